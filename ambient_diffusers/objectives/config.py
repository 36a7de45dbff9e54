"""The settings of the objective; their names are the flags of the trainer."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..losses import WEIGHTINGS

LOW_NOISE_OBJECTIVES = ("none", "consistency", "sfbd")
CONSISTENCY_STARTS = ("rollout", "boundary", "everywhere")


def setting(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class AmbientObjectiveConfig:
    """How to train above and below the ambient timestep t_n. Each field's `metadata["help"]` says what it does.

    The paper's published runs are `loss_weighting="x_0", low_noise_objective="consistency", low_noise_weight=0.015,
    low_noise_delay=0, consistency_start="everywhere", consistency_steps=2, consistency_max_step=50`; their form "with
    gradient" adds `consistency_stop_gradient=False, consistency_sampling_gradient=True`.

    Raises:
        ValueError: for a value that is not allowed.
    """

    loss_weighting: str | None = setting(
        None,
        "noise, x_0 (the paper's), velocity or min_snr. Default: the loss of what the model predicts, as in diffusers.",
    )
    snr_gamma: float | None = setting(None, "gamma of the min-SNR weighting, usually 5.0; giving it chooses min_snr.")
    noise_offset: float = setting(
        0.0,
        "Scale of diffusers' offset noise. Clean samples only: beside the isotropic noise that noisy data already hold, "
        "noise of another covariance would break the identity that the ambient loss rests on.",
    )
    low_noise_objective: str = setting(
        "none",
        "What trains t <= t_n, where a sample's own data do not reach: none; consistency; or sfbd, denoising score "
        "matching on the model's own posterior draws x_0 ~ p(x_0 | x_tn).",
    )
    low_noise_weight: float | None = setting(
        None, "Factor on the low-noise term. Default: 0.1 for consistency, 1 for sfbd."
    )
    low_noise_delay: float = setting(
        1 / 3,
        "Share of the steps before the low-noise term begins: it harms while the ambient part has not converged.",
    )
    low_noise_warmup: float = setting(0.0, "Share of the steps over which its factor then rises to the full value.")
    widened_variance: bool = setting(
        True, "Widen the steps of rollouts by an estimate of Cov[x_0 | x_t] that costs no evaluation."
    )
    consistency_start: str = setting(
        "rollout",
        "The noisier state: rollout, taken down from x_tn to a random level by the model itself, so that every level "
        "below t_n is trained; boundary, x_tn; everywhere, the state of the ambient loss.",
    )
    consistency_levels: int = setting(
        12, "A reverse step goes down by this part of the log-SNR between t_n and timestep 0."
    )
    consistency_steps: int = setting(1, "Reverse steps between the noisier state and the less noisy one.")
    consistency_max_step: int | None = setting(
        None, "The paper's reverse steps instead: uniform in the last so many timesteps. Default: steps in log-SNR."
    )
    consistency_stop_gradient: bool = setting(
        True,
        "Hold the noisier side constant, so that what is known at t_n flows down. False is the literal form, which is "
        "attracted to the flat prior h = x_t / alpha_t.",
    )
    consistency_sampling_gradient: bool = setting(
        False, "With the literal form, let the gradient pass through the reverse steps as well."
    )
    sfbd_steps: int = setting(12, "Reverse steps, equal in log-SNR, of a posterior draw; each is one evaluation.")
    sfbd_refresh_every: int | None = setting(
        None,
        "Renew a posterior draw that its row needs once it is older than so many steps. Default: make and renew draws, "
        "oldest first, as far as one evaluation a noisy row and step pays for; rows that have none yet stay ambient.",
    )
    seed: int = setting(0, "Names the streams that all random draws come from.")

    def __post_init__(self):
        for name, allowed in (
            ("low_noise_objective", LOW_NOISE_OBJECTIVES),
            ("consistency_start", CONSISTENCY_STARTS),
            ("loss_weighting", (None, *WEIGHTINGS)),
        ):
            require(self, name, lambda x, allowed=allowed: x in allowed, f"one of {', '.join(map(str, allowed))}")
        for name in ("consistency_levels", "consistency_steps", "sfbd_steps"):
            require(self, name, lambda x: x >= 1, "at least 1")
        for name in ("consistency_max_step", "sfbd_refresh_every"):
            require(self, name, lambda x: x is None or x >= 1, "at least 1 or None")
        for name in ("low_noise_delay", "low_noise_warmup"):
            require(self, name, lambda x: 0 <= x <= 1, "a share of the steps in [0, 1]")
        require(self, "low_noise_weight", lambda x: x is None or x >= 0, "at least 0 or None")
        require(self, "noise_offset", lambda x: x >= 0, "at least 0")
        require(self, "snr_gamma", lambda x: x is None or x > 0, "above 0 or None")
        if self.snr_gamma is not None:
            require(self, "loss_weighting", lambda x: x in (None, "min_snr"), "min_snr or None beside snr_gamma")
        if self.consistency_sampling_gradient:
            require(self, "consistency_stop_gradient", lambda x: not x, "False with consistency_sampling_gradient")


def require(config, name: str, holds, allowed: str) -> None:
    """Raises a ValueError unless `holds` of the field."""
    if not holds(getattr(config, name)):
        raise ValueError(f"{name} must be {allowed}, got {getattr(config, name)!r}")
