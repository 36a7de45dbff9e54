"""From a folder of images to the noise-once cache that training reads, and nothing else."""

from .cache import LatentCache
from .prepare import prepare
from .report import PrepareReport
from .sampler import BatchSampler
from .source import Source
from .transform import Transform, sdxl_buckets

__all__ = ["BatchSampler", "LatentCache", "PrepareReport", "Source", "Transform", "prepare", "sdxl_buckets"]
