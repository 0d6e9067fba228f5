"""Diffusion of Gaussian data, for which everything is known: the perfect network, and what a sampler makes of it.

With a Gaussian x0 the perfect network is affine, so a sampler is an affine map of its noises. Feeding it one unit of
noise a row gives that map, and so the mean and the covariance of its samples, without drawing a single number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dalle2_video.diffusion.guidance import Predict
from dalle2_video.diffusion.parameterization import target
from dalle2_video.diffusion.samplers import num_steps, sample
from dalle2_video.diffusion.schedule import alpha_sigma
from dalle2_video.diffusion_config import DiffusionConfig, Objective, SamplerConfig

MEAN = torch.tensor([0.5, -1.0, 0.2])
FACTOR = torch.tensor([[1.0, 0, 0], [0.6, 0.5, 0], [-0.3, 0.2, 0.3]])
COVARIANCE = FACTOR @ FACTOR.T


def posterior_x0(noised: Tensor, logsnr_b: Tensor, mean: Tensor = MEAN, covariance: Tensor = COVARIANCE) -> Tensor:
    """Mean of x0 given z, for x0 ~ N(mean, covariance); all rows at one noise level."""
    alpha, sigma = (amount[:1].double() for amount in alpha_sigma(logsnr_b, 2))
    mean, covariance = mean.double(), covariance.double()
    gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(len(mean)))
    return (mean + (noised.double() - alpha * mean) @ gain.T).float()


def exact_network(
    objective: Objective, mean: Tensor = MEAN, covariance: Tensor = COVARIANCE
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the network that no training can better."""

    def predict(noised: Tensor, logsnr_b: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(logsnr_b, 2)
        x0 = posterior_x0(noised, logsnr_b, mean, covariance)
        return target(objective, x0, (noised - alpha * x0) / sigma, logsnr_b)

    return predict


def moments(predict: Predict, config: DiffusionConfig, sampler: SamplerConfig, size: int = 3) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of a sampler's samples with an affine network, to rounding."""
    steps = num_steps(config, sampler)
    units = torch.eye(size * steps).reshape(size * steps, steps, size)
    rows = torch.cat([units, torch.zeros(1, steps, size)])
    found = sample(predict, rows[:, 0], config, sampler, lambda index: rows[:, index + 1], clip_x0=False).double()
    effects = found[:-1] - found[-1]
    return found[-1].float(), (effects.T @ effects).float()
