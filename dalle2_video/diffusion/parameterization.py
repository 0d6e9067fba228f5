"""What the network predicts: velocity v, the clean sample x0, or the noise eps; and the way from one to the others.

With z = alpha x0 + sigma eps and v = alpha eps - sigma x0, (z, v) is (x0, eps) turned by an angle, so that each of v,
x0 and eps gives the others from z. All maths is fp32 whatever the network's precision. Training uses `target`, the
samplers use `to_x0` and `to_noise`.
"""

from __future__ import annotations

from torch import Tensor

from dalle2_video.diffusion.schedule import alpha_sigma
from dalle2_video.diffusion_config import Objective


def _check(objective: str) -> None:
    if objective not in ("v", "x0", "eps"):
        raise ValueError(f"DiffusionConfig.objective={objective!r} must be 'v', 'x0' or 'eps'")


def target(objective: Objective, x0: Tensor, noise: Tensor, logsnr_b: Tensor) -> Tensor:
    """What a perfect network would output: v = alpha eps - sigma x0 (Salimans & Ho 2022, app. D), x0, or eps.

    x0, noise: (b, ...) float; logsnr_b: (b,). Returns fp32 of the shape of x0.
    """
    _check(objective)
    if objective == "x0":
        return x0.float()
    if objective == "eps":
        return noise.float()
    alpha, sigma = alpha_sigma(logsnr_b, x0.ndim)
    return alpha * noise.float() - sigma * x0.float()


def to_x0(objective: Objective, prediction: Tensor, noised: Tensor, logsnr_b: Tensor) -> Tensor:
    """Clean sample that the prediction stands for: alpha z - sigma v, or (z - sigma eps) / alpha.

    prediction, noised: (b, ...) float; logsnr_b: (b,). Returns fp32 of the shape of noised.
    """
    _check(objective)
    prediction, noised = prediction.float(), noised.float()
    if objective == "x0":
        return prediction
    alpha, sigma = alpha_sigma(logsnr_b, noised.ndim)
    if objective == "eps":
        return (noised - sigma * prediction) / alpha
    return alpha * noised - sigma * prediction


def to_noise(objective: Objective, prediction: Tensor, noised: Tensor, logsnr_b: Tensor) -> Tensor:
    """Noise that the prediction stands for: sigma z + alpha v, or (z - alpha x0) / sigma.

    prediction, noised: (b, ...) float; logsnr_b: (b,). Returns fp32 of the shape of noised.
    """
    _check(objective)
    prediction, noised = prediction.float(), noised.float()
    if objective == "eps":
        return prediction
    alpha, sigma = alpha_sigma(logsnr_b, noised.ndim)
    if objective == "x0":
        return (noised - alpha * prediction) / sigma
    return sigma * noised + alpha * prediction
