"""Prior preservation: clean images of the class, made by the base itself where there are too few.

References:
    Ruiz et al., "DreamBooth", CVPR 2023, section 3.3.
"""

from __future__ import annotations

from pathlib import Path

from ..data import Source
from ..data.image import IMAGE_SUFFIXES
from ..models.sdxl import SDXLBase
from ..sampling import sample_images
from ..schedule import CLEAN
from .config import TrainingConfig


def class_source(config: TrainingConfig, base: SDXLBase) -> Source:
    """The clean images of the class; the base is sampled until there are `num_class_images`."""
    folder = Path(config.class_data_dir)
    made = folder / "sampled"
    own = [file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and made not in file.parents]
    missing = config.num_class_images - len(own)
    if missing > 0:
        sample_images(
            base.pipeline, [config.class_prompt], made, num_images=missing, seed=config.seed,
            height=config.resolution, width=config.resolution, num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale, made_with={"base": base.name},
        )  # fmt: skip
        (made / "grid.png").unlink(missing_ok=True)  # an overview is no image of the class
    return Source(
        str(folder), default_caption=config.class_prompt, ambient_timestep=CLEAN, loss_weight=config.prior_loss_weight
    )
