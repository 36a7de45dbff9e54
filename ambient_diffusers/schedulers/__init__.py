"""Drop-in diffusers schedulers that stop at the noise level of the data, and the stock config that does the same.

`DiffusionPipeline.from_pretrained` finds these classes in a saved pipeline once `ambient_diffusers.schedulers` has been
imported (diffusers imports no third-party module by itself). For users without this package publish a stock scheduler
made from `stock_truncated_config`.
"""

from .ddim import AmbientDDIMScheduler
from .ddpm import AmbientDDPMScheduler
from .euler_discrete import AmbientEulerDiscreteScheduler
from .stock import stock_truncated_config

__all__ = [
    "AmbientDDIMScheduler",
    "AmbientDDPMScheduler",
    "AmbientEulerDiscreteScheduler",
    "stock_truncated_config",
]
