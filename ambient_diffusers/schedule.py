"""The variance-preserving noise schedule, tabulated once in float64."""

from __future__ import annotations

import torch
from torch import Tensor

CLEAN = -1
"""The ambient timestep of a clean sample: alpha = 1, sigma = 0; timestep 0 is not that (SDXL has sigma_0 = 0.029)."""


class NoiseSchedule:
    r"""The tables of `x_t = alpha_t x_0 + sigma_t eps`, with `alpha_t^2 + sigma_t^2 = 1`.

    Args:
        alphas_cumprod: Tensor `(T,)`, the cumulative products $\bar\alpha_t = \alpha_t^2$ of a discrete diffusion,
            decreasing, in `[0, 1)`.

    Timesteps are integers in `-1..T-1`; `-1` stands for a clean sample. Every look-up takes a long tensor of any shape
    (or an int) and returns a float64 tensor of that shape on the same device: cast last.

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, eq. 4.
    """

    def __init__(self, alphas_cumprod: Tensor):
        alphas_cumprod = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64)
        if alphas_cumprod.ndim != 1 or len(alphas_cumprod) == 0:
            raise ValueError(f"alphas_cumprod must be a non-empty vector, got shape {tuple(alphas_cumprod.shape)}")
        if not ((alphas_cumprod >= 0) & (alphas_cumprod < 1)).all() or not (alphas_cumprod.diff() <= 0).all():
            raise ValueError("alphas_cumprod must decrease within [0, 1)")
        # Entry t + 1 belongs to timestep t, so that entry 0 is the clean sample.
        self._alphas_cumprod = {torch.device("cpu"): torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod])}
        self.num_train_timesteps = len(alphas_cumprod)

    @classmethod
    def from_scheduler(cls, scheduler) -> NoiseSchedule:
        """Reads the schedule off any diffusers scheduler that has `alphas_cumprod` and is not set to flow matching."""
        alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
        # Some multistep solvers keep alphas_cumprod while they follow another path, x_t = (1 - sigma) x_0 + sigma eps.
        flow_matching = getattr(getattr(scheduler, "config", None), "use_flow_sigmas", False)
        if alphas_cumprod is None or flow_matching:
            raise ValueError(
                "scheduler must be variance preserving and have alphas_cumprod, got "
                f"{type(scheduler).__name__}{' with use_flow_sigmas=True' if flow_matching else ''}; allowed: the "
                "schedulers of discrete diffusions, such as DDPMScheduler or EulerDiscreteScheduler"
            )
        return cls(alphas_cumprod)

    def alphas_cumprod(self, t: Tensor | int, name: str = "t") -> Tensor:
        """alpha_t^2, float64, of the shape of t; errors call the argument `name`."""
        t = torch.as_tensor(t)
        if t.device.type == "cpu":  # on an accelerator the look-up itself asserts, without a synchronisation
            self.check_timestep(t, name)
        if t.device not in self._alphas_cumprod:
            self._alphas_cumprod[t.device] = self._alphas_cumprod[torch.device("cpu")].to(t.device)
        # gather, because indexing with [] would take t = -2 for the last timestep.
        return self._alphas_cumprod[t.device].gather(0, t.long().flatten() + 1).reshape(t.shape)

    def alpha(self, t: Tensor | int) -> Tensor:
        """The scale of the signal at t."""
        return self.alphas_cumprod(t).sqrt()

    def sigma(self, t: Tensor | int) -> Tensor:
        """The standard deviation of the noise at t."""
        return (1 - self.alphas_cumprod(t)).sqrt()

    def snr(self, t: Tensor | int) -> Tensor:
        """The signal-to-noise ratio alpha_t^2 / sigma_t^2; infinite for a clean sample."""
        alphas_cumprod = self.alphas_cumprod(t)
        return alphas_cumprod / (1 - alphas_cumprod)

    def log_snr(self, t: Tensor | int) -> Tensor:
        """The natural logarithm of `snr`."""
        return self.snr(t).log()

    def transition(
        self, t: Tensor | int, s: Tensor | int, names: tuple[str, str] = ("t", "s")
    ) -> tuple[Tensor, Tensor]:
        r"""The Gaussian transition from noise level s up to t >= s: `x_t = r x_s + sqrt(v) eta`.

        Returns:
            `r = alpha_t / alpha_s` and `v = sigma_t^2 - r^2 sigma_s^2`. For a variance-preserving schedule v is
            `1 - r^2`, which loses no digits where t is close to s and is exactly 0 at t = s.
        """
        ratio = self.alphas_cumprod(t, names[0]) / self.alphas_cumprod(s, names[1])
        # 0 / 0 is t = s at the end of a schedule of zero terminal SNR: no step, like every other t = s.
        ratio = ratio.nan_to_num(nan=1.0)
        return ratio.sqrt(), 1 - ratio

    def timestep_for_sigma(self, sigma: Tensor | float) -> Tensor | int:
        """The timestep whose sigma is nearest (`-1` where clean is nearest).

        Args:
            sigma: Standard deviation of the noise of `x_t` as the variance-preserving schedule scales it, in `[0, 1]`.

        Returns:
            An int for a number, a long tensor for a tensor.
        """
        table = self.sigma(torch.arange(-1, self.num_train_timesteps))
        wanted = torch.as_tensor(sigma, dtype=torch.float64, device="cpu")
        if not ((wanted >= 0) & (wanted <= 1)).all():
            raise ValueError(f"sigma must lie in [0, 1] (variance-preserving scale), got {sigma}")
        nearest = (wanted[..., None] - table).abs().argmin(-1) - 1
        return nearest.to(sigma.device) if isinstance(sigma, Tensor) else int(nearest)

    def check_timestep(self, t: Tensor | int, name: str = "t", lowest: int = CLEAN) -> None:
        """Raises a ValueError unless t holds integers, every one in `lowest..T-1`."""
        t = torch.as_tensor(t)
        if t.is_floating_point() or t.is_complex():
            raise ValueError(f"{name} must hold integers, got {t.dtype}")
        if t.numel() and not (lowest <= int(t.min()) and int(t.max()) < self.num_train_timesteps):
            raise ValueError(f"{name} must lie in {lowest}..{self.num_train_timesteps - 1}, got {t.tolist()}")


def expand_like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A per-sample coefficient `(B,)` or `()`, cast to x's dtype and device and shaped to broadcast over `(B, ...)`."""
    coefficient = coefficient.to(x.device, x.dtype)
    return (
        coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim)) if coefficient.ndim else coefficient
    )
