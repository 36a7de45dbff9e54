"""Training: one config dataclass, the trainer, and what it keeps."""

from .config import TrainingConfig, parse_config
from .trainer import AmbientTrainer

__all__ = ["AmbientTrainer", "TrainingConfig", "parse_config"]
