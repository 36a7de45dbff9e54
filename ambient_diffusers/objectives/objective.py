"""What one training step minimises, free of any model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses import ambient_noise_error, loss_weight
from ..parametrization import check_prediction_type, predict_epsilon, predict_x_0
from ..randomness import sample_keys
from ..schedule import CLEAN, NoiseSchedule, expand_like
from ..tweedie import add_extra_noise
from .config import AmbientObjectiveConfig
from .consistency import Consistency
from .draws import Draws
from .posterior import PosteriorDraws
from .rollout import RowDenoiser

WEIGHTING_OF = {"epsilon": "noise", "v_prediction": "velocity", "sample": "x_0"}
DEFAULT_WEIGHT = {"none": 0.0, "consistency": 0.1, "sfbd": 1.0}


@dataclass(frozen=True)
class ObjectiveOutput:
    """The loss of a step and its parts."""

    loss: Tensor
    """Scalar to backpropagate: `mean(ambient) + weight * mean(low_noise) / share`, means over all B rows."""
    terms: dict[str, Tensor]
    """`ambient` and `low_noise`, float, `(B,)`, detached, without the factors of the low-noise term; 0 where a term did not act."""
    acted: dict[str, Tensor]
    """Under the same names bool, `(B,)`: where a term acted."""

    def means(self) -> dict[str, Tensor]:
        """For logging: the mean of each term over the rows it acted on, NaN where there are none."""
        return {name: term.sum() / self.acted[name].sum() for name, term in self.terms.items()}


class AmbientObjective:
    r"""Ambient denoising score matching above t_n and a low-noise objective below it, for any mix of t_n and clean samples.

    Every row draws `t` uniformly from `t_n + 1 .. T - 1` and takes the ambient loss there. Once the delay is over,

    - `consistency` adds the violation of consistency at states below t_n of rows that have such;
    - `sfbd` draws `t` uniformly from `0 .. T - 1`; a row at `t <= t_n` that has a posterior draw of x_0 takes the plain
      denoising loss on it instead (a row that has none draws t above t_n as before).

    Clean rows (`t_n = -1`) always take plain denoising score matching over all t. A step costs 3 evaluations a row (a backward pass counts
    2), with `consistency` at most 8 (by default), with `sfbd` at most 4 (without `sfbd_refresh_every`).

    Args:
        schedule: The noise schedule of the model.
        config: See `AmbientObjectiveConfig`.
        prediction_type: What the model predicts, as in diffusers.

    References:
        Daras et al., arXiv 2404.10177; Lu et al., arXiv 2502.05446; Daras et al., arXiv 2411.02780 (mixed data).
    """

    def __init__(
        self, schedule: NoiseSchedule, config: AmbientObjectiveConfig | None = None, prediction_type: str = "epsilon"
    ):
        check_prediction_type(prediction_type)
        self.schedule, self.config, self.prediction_type = schedule, config or AmbientObjectiveConfig(), prediction_type
        self._consistency = Consistency(schedule, self.config)
        self._posterior = PosteriorDraws(schedule, self.config)

    def __call__(
        self,
        denoiser: Callable[[Tensor, Tensor, Tensor], Tensor],
        x_tn: Tensor,
        t_n: Tensor,
        *,
        index: Tensor,
        step: int,
        max_steps: int,
        teacher: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
        draw: int | None = None,
        sample_weight: Tensor | None = None,
    ) -> ObjectiveOutput:
        """The loss of one batch.

        Args:
            denoiser: `(x_t (M, ...), t (M,), rows (M,)) -> model output (M, ...)` for states that belong to rows `rows` of the
                batch; M may differ from B. States are float32 at least; t and rows are long, on the device of x_tn.
            x_tn: Data, each at its own noise level, `(B, ...)`; t_n: long, `(B,)`, in `-1..T-2`.
            index: Stable sample ids, long, `(B,)`: what is kept of a sample, and the random streams, go by them.
            step: The training step, from 0, of `max_steps`.
            teacher: An average of the denoiser; takes the evaluations that carry no gradient and set the target.
            generator: None takes every draw from a stream named by `(seed, purpose, draw or step, sample id)`.
            draw: Tells apart the micro-batches of one step.
            sample_weight: Factors on the loss of each row, `(B,)`, as for prior preservation; default 1.

        Raises:
            ValueError: where t_n is not in `-1..T-2`: at T-1 no noise level is left to learn from.
        """
        batch, last = len(x_tn), self.schedule.num_train_timesteps - 1
        t_n = torch.as_tensor(t_n).to("cpu").expand(batch)  # all arithmetic of timesteps is done on the CPU, in float64
        if not bool(((t_n >= CLEAN) & (t_n < last)).all()):
            raise ValueError(
                f"t_n must lie in {CLEAN}..{last - 1}, got {t_n.tolist()}: at {last} there is nothing to learn above"
            )
        x_tn = x_tn.float() if x_tn.dtype.itemsize < 4 else x_tn
        draws = Draws(sample_keys(index), self.config.seed, step if draw is None else draw, generator)
        h = self._posterior_mean(denoiser)
        h_teacher = self._posterior_mean(teacher or denoiser)
        weight, rows = self.low_noise_weight(step, max_steps), torch.arange(batch)
        low_noise = self.config.low_noise_objective if weight > 0 and bool((t_n >= 0).any()) else "none"

        # Data of noise level `level`, taken on to t.
        data, level, uniform = x_tn, t_n, draws.rand("timestep", rows)
        t = t_n + 1 + (uniform * (last - t_n)).long()
        if low_noise == "sfbd":
            data, level, t = self._with_posterior_draws(h_teacher, x_tn, t_n, t, uniform, draws, step)
        noise = self._noise(x_tn, t_n, draws)
        x_t = add_extra_noise(data, noise, level, t, self.schedule)

        states, finish = [(x_t, t, rows)], None
        if low_noise == "consistency":
            prepared = self._consistency.start(h, h_teacher, x_tn, t_n, x_t, t, draws)
            if prepared is not None:
                more, finish = prepared
                states.append(more)
        x, time, of_row = (torch.cat(parts) for parts in zip(*states, strict=True))
        output = denoiser(x, time.to(x.device), of_row.to(x.device))

        error = self._denoising_error(output[:batch], x_t, noise, t, level)
        on_draw = (level != t_n).to(x.device)
        terms = {"ambient": error.masked_fill(on_draw, 0), "low_noise": error.masked_fill(~on_draw, 0)}
        acted, share = {"ambient": ~on_draw, "low_noise": on_draw}, 1.0
        if finish is not None:
            x_0_hat = predict_x_0(output[batch:], x[batch:], time[batch:], self.schedule, self.prediction_type)
            where = of_row[batch:].to(x.device)
            terms["low_noise"] = terms["low_noise"].index_copy(0, where, finish(x_0_hat).to(error.dtype))
            acted["low_noise"] = acted["low_noise"].index_fill(0, where, True)
            share = self._consistency.share
        weighted = terms
        if sample_weight is not None:
            weighted = {name: term * sample_weight.to(term) for name, term in terms.items()}
        loss = weighted["ambient"].mean()
        if low_noise != "none":
            loss = loss + weight / share * weighted["low_noise"].mean()
        return ObjectiveOutput(loss, {name: term.detach() for name, term in terms.items()}, acted)

    def low_noise_weight(self, step: int, max_steps: int) -> float:
        """The factor on the low-noise term at a step: 0 until the delay is over, then rising over the warm-up."""
        config = self.config
        weight = config.low_noise_weight
        weight = DEFAULT_WEIGHT[config.low_noise_objective] if weight is None else weight
        since = step - config.low_noise_delay * max_steps
        if since < 0 or config.low_noise_objective == "none":
            return 0.0
        return weight * min(1.0, (since + 1) / max(1.0, config.low_noise_warmup * max_steps))

    def state_dict(self) -> dict[str, Tensor | int]:
        """Flat: tensors (the posterior draws) and ints, enough to go on bit for bit."""
        state = {"consistency_credit": self._consistency.credit, "posterior_credit": self._posterior.credit}
        return {**state, **self._posterior.store.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Takes over what `state_dict` returned."""
        self._consistency.credit = int(state["consistency_credit"])
        self._posterior.credit = int(state["posterior_credit"])
        self._posterior.store.load_state_dict(state)

    def _posterior_mean(self, denoiser) -> RowDenoiser:
        def h(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
            output = denoiser(x, t.to(x.device), rows.to(x.device))
            return predict_x_0(output, x, t, self.schedule, self.prediction_type)

        return h

    def _with_posterior_draws(self, h_teacher, x_tn, t_n, t, uniform, draws, step):
        """Data, their noise level and timesteps, with rows at t <= t_n moved to their posterior draws where they have one."""
        count = self.schedule.num_train_timesteps
        anywhere = (uniform * count).long()
        wanted = (anywhere <= t_n).nonzero()[:, 0]
        rows, x_0 = self._posterior.assign(h_teacher, x_tn, t_n, wanted, draws, step)
        # The uniform draw of a row left over is known to lie below (t_n + 1) / T: stretched, it is uniform again.
        left = wanted[~torch.isin(wanted, rows)]
        stretched = (uniform[left] * count / (t_n[left] + 1) * (count - 1 - t_n[left])).long() + t_n[left] + 1
        t = anywhere.index_copy(0, left, stretched.clamp(max=count - 1))
        return x_tn.index_copy(0, rows.to(x_tn.device), x_0), t_n.index_fill(0, rows, CLEAN), t

    def _noise(self, x_tn: Tensor, t_n: Tensor, draws: Draws) -> Tensor:
        """eta `(B, ...)`, with diffusers' offset noise (one draw a channel) for clean rows."""
        rows = torch.arange(len(x_tn))
        noise = draws.randn("noise", rows, x_tn)
        if self.config.noise_offset > 0:
            one_a_channel = x_tn.flatten(2)[:, :, :1].reshape(*x_tn.shape[:2], *(1,) * (x_tn.ndim - 2))
            offset = draws.randn("noise_offset", rows, one_a_channel)
            noise = noise + expand_like(self.config.noise_offset * (t_n == CLEAN), noise) * offset
        return noise

    def _denoising_error(self, output: Tensor, x_t: Tensor, noise: Tensor, t: Tensor, level: Tensor) -> Tensor:
        """The weighted ambient loss of every row."""
        config = self.config
        weighting = config.loss_weighting or ("min_snr" if config.snr_gamma else WEIGHTING_OF[self.prediction_type])
        epsilon = predict_epsilon(output, x_t, t, self.schedule, self.prediction_type)
        error = ambient_noise_error(epsilon, noise, t, level, self.schedule)
        return error * expand_like(loss_weight(t, level, self.schedule, weighting, config.snr_gamma or 5.0), error)
