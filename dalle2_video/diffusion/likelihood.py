"""Terms of the variational bound on -log p(x0): how well mean and variance of the sampling steps fit.

A sampler with given steps is a model p(x0) whose bound has three parts (Ho et al. 2020, eq. 5): what is left of x0 at
t = 1, the steps, and the last step, which gives the probability of 8-bit levels. In nats an element; `bound` adds up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dalle2_video.diffusion.posterior import log_variances, step_share
from dalle2_video.diffusion.schedule import alpha_sigma

HALF_LEVEL = 1 / 255


def gaussian_kl(squared_distance: Tensor, log_variance_q: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(q || p) of Gaussians whose means lie a squared_distance apart, in nats."""
    ratio = torch.exp(log_variance_q - log_variance_p)
    return 0.5 * (log_variance_p - log_variance_q - 1 + ratio + squared_distance * torch.exp(-log_variance_p))


def discretised_nll(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the mass that N(mean, variance) has on the 8-bit level x0, in nats (Ho et al. 2020, eq. 13).

    x0: levels in [-1, 1], multiples of 2 / 255 apart; the outermost reach to infinity. Right far out in the tails.
    """
    scale = torch.exp(-0.5 * log_variance)
    centred, half = (x0 - mean) * scale, HALF_LEVEL * scale
    # mirrored onto the lower tail, where the difference of two masses does not cancel
    upper = _log_cdf(half - centred.abs())
    lower = _log_cdf(-half - centred.abs())
    inner = upper + torch.log1p(-torch.exp(lower - upper))
    outer = _log_cdf(half - centred * x0.sign())
    return -torch.where(x0.abs() > 1 - HALF_LEVEL, outer, inner)


def _log_cdf(x: Tensor) -> Tensor:
    """Log of the normal distribution function: torch.special.log_ndtr, but with a slope that is right far out too."""
    below, above = x.clamp(max=0) / math.sqrt(2), x.clamp(min=0) / math.sqrt(2)
    lower = torch.log(0.5 * torch.special.erfcx(-below)) - below.square()
    return torch.where(x < 0, lower, torch.log1p(-0.5 * torch.special.erfc(above)))


def prior_kl(x0: Tensor, last_logsnr_b: Tensor) -> Tensor:
    """KL(q(z_1 | x0) || N(0, 1)), in nats an element."""
    alpha, sigma = alpha_sigma(last_logsnr_b, x0.ndim)
    return gaussian_kl((alpha * x0).square(), 2 * torch.log(sigma), torch.zeros_like(x0))


def step_terms(
    x0: Tensor, predicted_x0: Tensor, log_variance: Tensor, logsnr_b: Tensor, next_logsnr_b: Tensor
) -> Tensor:
    """Term of the bound for a step whose model is N(posterior_mean(predicted_x0), log_variance), in nats an element.

    x0, predicted_x0: (b, ...) fp32; log_variance: (b, ...) or (b, 1, ..., 1), finite; a sample whose next_logsnr_b is
    +inf takes the step to x0 itself.
    """
    shape = (-1, *[1] * (x0.ndim - 1))
    last = next_logsnr_b.isposinf().reshape(shape)
    small, _ = log_variances(logsnr_b, next_logsnr_b)
    # where `last`, the other branch must be finite too, or its zero gradient is no number
    small = torch.where(last, log_variance.detach(), small.reshape(shape))
    distance = step_gain(logsnr_b, next_logsnr_b, x0.ndim).square() * (x0 - predicted_x0).square()
    kl = gaussian_kl(distance, small, log_variance)
    return torch.where(last, discretised_nll(x0, predicted_x0, log_variance), kl)


def step_gain(logsnr_b: Tensor, next_logsnr_b: Tensor, ndim: int) -> Tensor:
    """How much an error of x0 moves a step's mean: alpha_s (1 - SNR_t / SNR_s), (b, 1, ..., 1)."""
    next_alpha, _ = alpha_sigma(next_logsnr_b, ndim)
    return next_alpha * step_share(logsnr_b, next_logsnr_b).reshape(next_alpha.shape)
