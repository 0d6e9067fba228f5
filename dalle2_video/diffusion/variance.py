"""Learned variance of ancestral steps: a second output of the network, beside the mean and without effect on it.

What makes it stable: fp32; a step's variance lies between the posterior's and the forward process's, both finite at
the last step too; the head starts in the middle, reads a detached trunk and sees the mean as a constant, cut off as in
sampling; and a sample whose slope is far out is scaled down by itself (`SLOPE_LIMIT`), so that it can neither push the
head nor, through the common norm, the gradient of the mean.

Two ways to use the head's raw output, both (b, c, ...) like the prediction:
range: log variance = f log large + (1 - f) log small with f = sigmoid(raw), by the bound (Nichol & Dhariwal 2021, eq.
    15 and 16; there f is unconstrained).
residual: the expected squared error of v, by regression (Bao et al. 2022b, "Estimating the optimal covariance", NPR).
    It does not depend on the steps, so that any number of them has its own best variance.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle2_video.diffusion.likelihood import step_gain, step_terms
from dalle2_video.diffusion.loss import mean_of_samples
from dalle2_video.diffusion.posterior import log_variances
from dalle2_video.diffusion.schedule import alpha_sigma, log_snr
from dalle2_video.diffusion_config import DiffusionConfig, LearnedVariance

RESIDUAL_SCALE = 0.01
"""Of the loss of `residual`: AdamW does not care, and the common norm, by which all gradients are clipped, is then that
of the mean. The bound's gradient is as small by itself."""
SLOPE_LIMIT = 10.0
"""Root mean square over a sample of the loss's slope; a fitted head on Gaussian errors has 0.7 (range), 2.8 (residual)
times the variance."""


def split_output(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Split a network's output (b, channels or 2 channels, ...) into its prediction and the head's raw output.

    Raises ValueError at any other number of channels.
    """
    if output.shape[1] == channels:
        return output, None
    if output.shape[1] == 2 * channels:
        prediction, raw = output.chunk(2, dim=1)
        return prediction, raw
    raise ValueError(f"the network's output {tuple(output.shape)} has neither {channels} nor {2 * channels} channels")


def residual(raw: Tensor) -> Tensor:
    """Expected squared error of v that the head's output stands for, more than 0; 1 at 0, as for unit variance data."""
    return F.softplus(raw.float()) / math.log(2)


def learned_log_variance(
    kind: LearnedVariance,
    raw: Tensor | None,
    logsnr_b: Tensor,
    next_logsnr_b: Tensor,
    noisier_logsnr_b: Tensor | None = None,
) -> Tensor:
    """Log variance of a step; raw: (b, ...). Returns the shape of raw, fp32.

    noisier_logsnr_b: floor of a last step in `range`, as in `log_variances`. Raises ValueError without a head's output.
    """
    if raw is None or kind == "none":
        raise ValueError("the network has no learned variance; take variance small or large")
    shape = (-1, *[1] * (raw.ndim - 1))
    if kind == "range":
        small, large = log_variances(logsnr_b, next_logsnr_b, noisier_logsnr_b)
        return torch.lerp(small.reshape(shape), large.reshape(shape), raw.float().sigmoid())
    # an error of x0 is sigma times one of v and moves the step's mean by step_gain; the last step varies by that alone
    small, _ = log_variances(logsnr_b, next_logsnr_b)
    _, sigma = alpha_sigma(logsnr_b, raw.ndim)
    of_error = 2 * torch.log(step_gain(logsnr_b, next_logsnr_b, raw.ndim) * sigma) + torch.log(residual(raw))
    return torch.logaddexp(small.reshape(shape), of_error)


def bound_step(t_b: Tensor, config: DiffusionConfig) -> tuple[Tensor, Tensor]:
    """Log SNR at the end of the step of 1 / variance_steps from t, and at the start of the step before it; (b,) fp32.

    A step that would end nearer to 0 than half of it ends at the sample itself, at +inf.
    """
    step, t = 1 / config.variance_steps, t_b.double()
    ends = log_snr((t - step).clamp(min=0), config)
    return torch.where(t < 1.5 * step, math.inf, ends), log_snr((t + step).clamp(max=1), config)


def head_loss(
    raw: Tensor, predicted_x0: Tensor, x0: Tensor, t_b: Tensor, config: DiffusionConfig, valid_b: Tensor | None = None
) -> Tensor:
    """Loss of the variance head, one number a sample; no gradient reaches the prediction.

    raw, predicted_x0, x0: (b, c, ...) float; t_b: (b,) in [0, 1]; valid_b: as in `mean_of_samples`. range: the bound's
    term of a step of 1 / config.variance_steps, in nats; residual: 0.01 of the squared error. Returns (b,) fp32.
    """
    logsnr_b = log_snr(t_b, config)
    x0, predicted_x0 = x0.float(), predicted_x0.detach().float().clamp(-1, 1)
    squared_error = (x0 - predicted_x0).square()
    if config.learned_variance == "residual":
        _, sigma = alpha_sigma(logsnr_b, x0.ndim)
        excess = residual(raw) - squared_error / sigma.square()
        terms, slope = RESIDUAL_SCALE * excess.square(), 2 * excess.detach()
    else:
        next_b, noisier_b = bound_step(t_b, config)
        log_variance = learned_log_variance(config.learned_variance, raw, logsnr_b, next_b, noisier_b)
        terms = step_terms(x0, predicted_x0, log_variance, logsnr_b, next_b)
        small, _ = log_variances(logsnr_b, next_b)
        expected = small.exp().reshape(-1, *[1] * (x0.ndim - 1))
        expected = expected + step_gain(logsnr_b, next_b, x0.ndim).square() * squared_error
        # in the log variance; of the last step it is an upper limit, as the levels blur it
        slope = 0.5 * (1 - expected * torch.exp(-log_variance.detach()))
    size_b = mean_of_samples(slope.square(), valid_b).sqrt()
    return mean_of_samples(terms, valid_b) * (SLOPE_LIMIT / size_b.clamp(min=SLOPE_LIMIT))
