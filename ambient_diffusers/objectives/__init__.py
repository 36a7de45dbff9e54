"""What one training step minimises: the ambient loss above t_n, a low-noise objective below it, and the state they keep."""

from .config import LOW_NOISE_OBJECTIVES, AmbientObjectiveConfig
from .objective import AmbientObjective, ObjectiveOutput

__all__ = ["LOW_NOISE_OBJECTIVES", "AmbientObjective", "AmbientObjectiveConfig", "ObjectiveOutput"]
