"""What a diffusion model predicts, and the way from there to x_0 and to epsilon.

Shapes: model output and states `(B, ...)`, timesteps `(B,)` or an int. The names are those of diffusers'
`prediction_type`.

References:
    Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", ICLR 2022, appendix D (velocity).
"""

from __future__ import annotations

from torch import Tensor

from .schedule import NoiseSchedule, expand_like

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def predict_x_0(
    model_output: Tensor, x_t: Tensor, t: Tensor | int, schedule: NoiseSchedule, prediction_type: str = "epsilon"
) -> Tensor:
    """`h(x_t, t) = E[x_0 | x_t]` from the output of the model."""
    check_prediction_type(prediction_type)
    alpha, sigma = expand_like(schedule.alpha(t), x_t), expand_like(schedule.sigma(t), x_t)
    if prediction_type == "epsilon":
        return (x_t - sigma * model_output) / alpha
    if prediction_type == "v_prediction":
        return alpha * x_t - sigma * model_output
    return model_output


def predict_epsilon(
    model_output: Tensor, x_t: Tensor, t: Tensor | int, schedule: NoiseSchedule, prediction_type: str = "epsilon"
) -> Tensor:
    """`eps_hat = E[eps | x_t] = (x_t - alpha_t h) / sigma_t` from the output of the model."""
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return model_output
    alpha, sigma = expand_like(schedule.alpha(t), x_t), expand_like(schedule.sigma(t), x_t)
    if prediction_type == "v_prediction":
        return sigma * x_t + alpha * model_output
    return (x_t - alpha * model_output) / sigma


def model_output_from_x_0(
    x_0_hat: Tensor, x_t: Tensor, t: Tensor | int, schedule: NoiseSchedule, prediction_type: str = "epsilon"
) -> Tensor:
    """The output of a model of this prediction type whose denoiser is x_0_hat: the inverse of `predict_x_0`."""
    check_prediction_type(prediction_type)
    if prediction_type == "sample":
        return x_0_hat
    alpha, sigma = expand_like(schedule.alpha(t), x_t), expand_like(schedule.sigma(t), x_t)
    epsilon = (x_t - alpha * x_0_hat) / sigma
    return epsilon if prediction_type == "epsilon" else alpha * epsilon - sigma * x_0_hat


def check_prediction_type(prediction_type: str) -> None:
    """Raises a ValueError unless diffusers knows this prediction type."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")
