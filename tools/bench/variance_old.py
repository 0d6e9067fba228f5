"""The controls of `variance.py`: the learned variance that failed, and the whole bound without a stop-gradient.

None of this is the product's; its own variance is in `dalle2_video.diffusion.variance`. The old setup as the first
version of the project had it: the log variance is a line from the posterior's, cut off at log(1e-20), to the forward
process's, without limits on where it ends (Nichol & Dhariwal 2021, eq. 15, has none either); the bound's term of one
step has the weight 0.001, which is that paper's for the sum of all 1000 steps; the variance and the mean share the
trunk; and the output was halved along the frames instead of the channels. Times, noise and data are the product's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.likelihood import HALF_LEVEL, gaussian_kl, step_gain, step_terms
from dalle2_video.diffusion.loss import diffusion_loss, mean_of_samples
from dalle2_video.diffusion.parameterization import to_x0
from dalle2_video.diffusion.posterior import log_variances, posterior_mean
from dalle2_video.diffusion.samplers import step_levels
from dalle2_video.diffusion.schedule import add_noise, log_snr
from dalle2_video.diffusion.variance import bound_step, learned_log_variance, split_output
from dalle2_video.diffusion_config import DiffusionConfig, SamplerConfig
from dalle2_video.models.unet3d import Unet3D
from dalle2_video.stages.denoising import Denoised

FLOOR = math.log(1e-20)
"""Log variance of the last step at the lower end: -46, where that of the step before it is near -10."""
WEIGHT = 0.001
"""Of one step's term beside the mean's loss: 1000 times less than meant."""
LEAST_MASS = 1e-12
"""Probabilities of levels are cut off here, where their slope ends too."""

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
Split = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]


class SharedTrunk(Unet3D):
    """The network with the same weights at the start, but whose variance head changes the trunk."""

    def _out(self, x_nchw: Tensor) -> Tensor:
        features = functional.silu(self.norm_out(x_nchw))
        assert self.variance_out is not None
        return torch.cat([self.conv_out(features), self.variance_out(features)], dim=1)


def split_frames(output: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Halve (b, 2 channels, t, h, w) along the frames, each half read as (b, channels, t, h, w); t is even.

    So the first half of the network's frames has to give the mean of all, the second half their variances.
    """
    batch, _, frames, height, width = output.shape
    first, second = output.chunk(2, dim=2)
    shape = (batch, channels, frames, height, width)
    return first.reshape(shape), second.reshape(shape)


def old_log_variance(raw: Tensor, logsnr_b: Tensor, next_logsnr_b: Tensor) -> Tensor:
    """Log variance of a step, of the shape of raw (b, ...): FLOOR or more, if raw is -1 or more."""
    shape = (-1, *[1] * (raw.ndim - 1))
    small, large = (bound.reshape(shape) for bound in log_variances(logsnr_b, next_logsnr_b))
    return torch.lerp(small.clamp(min=FLOOR), large, (raw.float() + 1) / 2)


def old_level_nll(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the mass on the level x0, at most -log(LEAST_MASS), in nats; as `likelihood.discretised_nll` else."""
    scale = torch.exp(-0.5 * log_variance)
    above, below = ((x0 - mean + side) * scale for side in (HALF_LEVEL, -HALF_LEVEL))
    upper, lower = torch.special.ndtr(above), torch.special.ndtr(below)
    mass = torch.where(x0 < -1 + HALF_LEVEL, upper, torch.where(x0 > 1 - HALF_LEVEL, 1 - lower, upper - lower))
    return -torch.log(mass.clamp(min=LEAST_MASS))


def old_terms(x0: Tensor, predicted_x0: Tensor, log_variance: Tensor, logsnr_b: Tensor, next_b: Tensor) -> Tensor:
    """Term of the bound of one step, in nats an element: as `likelihood.step_terms`, with the cut-offs."""
    shape = (-1, *[1] * (x0.ndim - 1))
    small, _ = log_variances(logsnr_b, next_b)
    distance = step_gain(logsnr_b, next_b, x0.ndim).square() * (x0 - predicted_x0).square()
    kl = gaussian_kl(distance, small.clamp(min=FLOOR).reshape(shape), log_variance)
    return torch.where(next_b.isposinf().reshape(shape), old_level_nll(x0, predicted_x0, log_variance), kl)


def denoise_old(predict: Predict, x0: Tensor, draws: Draws, config: DiffusionConfig, split: Split) -> Denoised:
    """Loss of the old setup; arguments as `stages.denoising.denoise`. split: `split_frames`, or `split_output`."""
    noised, noise, time, keep = _noised(x0, draws, config)
    logsnr = log_snr(time, config)
    prediction, raw = split(predict(noised, logsnr, keep), x0.shape[1])
    assert raw is not None
    loss = diffusion_loss(prediction, x0, noise, logsnr, config.objective).mean()
    # the mean was a constant to the bound here too
    predicted_x0 = to_x0(config.objective, prediction.detach(), noised, logsnr).clamp(-1, 1)
    next_b, _ = bound_step(time, config)
    terms = old_terms(x0, predicted_x0, old_log_variance(raw, logsnr, next_b), logsnr, next_b)
    of_head = (mean_of_samples(terms) / math.log(2)).mean()
    return Denoised(
        loss=loss + WEIGHT * of_head,
        prediction=prediction,
        metrics={"mean_loss": loss.detach(), "variance_loss": of_head.detach()},
    )


def denoise_full_bound(predict: Predict, x0: Tensor, draws: Draws, config: DiffusionConfig) -> Denoised:
    """The bound of all config.variance_steps steps in bits a dimension, by one step a sample, and nothing else.

    Its gradient goes through mean and variance (L_vlb of Nichol & Dhariwal 2021, sec. 3.3, without their resampling).
    config.learned_variance is `range`.
    """
    noised, noise, time, keep = _noised(x0, draws, config)
    logsnr = log_snr(time, config)
    prediction, raw = split_output(predict(noised, logsnr, keep), x0.shape[1])
    next_b, noisier_b = bound_step(time, config)
    log_variance = learned_log_variance("range", raw, logsnr, next_b, noisier_b)
    predicted_x0 = to_x0(config.objective, prediction, noised, logsnr)
    terms = step_terms(x0, predicted_x0, log_variance, logsnr, next_b)
    loss = config.variance_steps * mean_of_samples(terms).mean() / math.log(2)
    with torch.no_grad():
        mean_loss = diffusion_loss(prediction, x0, noise, logsnr, config.objective).mean()
    return Denoised(loss=loss, prediction=prediction, metrics={"mean_loss": mean_loss, "variance_loss": loss.detach()})


def _noised(x0: Tensor, draws: Draws, config: DiffusionConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return z, noise, times and kept conditions, drawn as the product draws them."""
    time = draws.uniform("time")
    noise = draws.normal("noise", tuple(x0.shape[1:]))
    keep = draws.keep("condition", config.condition_dropout)
    return add_noise(x0, noise, log_snr(time, config)), noise, time, keep


@torch.no_grad()
def sample_old(
    predict: Callable[[Tensor, Tensor, int], Tensor],
    noise: Tensor,
    config: DiffusionConfig,
    steps: int,
    noise_at: Callable[[int], Tensor],
    split: Split,
    log_variance: Callable[[Tensor, Tensor, Tensor], Tensor] = old_log_variance,
) -> Tensor:
    """Return ddpm samples with the old variance; arguments as `samplers.sample`, x0 is cut off at 1."""
    levels = step_levels(steps, config, SamplerConfig(method="ddpm", steps=steps))
    noised = x0 = noise.float()
    for index in range(steps):
        logsnr_b, next_b = levels[index : index + 2, None].expand(2, len(noise))
        prediction, raw = split(predict(noised, logsnr_b, index), noise.shape[1])
        assert raw is not None
        x0 = to_x0(config.objective, prediction, noised, logsnr_b).clamp(-1, 1)
        if index < steps - 1:
            deviation = torch.exp(0.5 * log_variance(raw, logsnr_b, next_b))
            noised = posterior_mean(x0, noised, logsnr_b, next_b) + deviation * noise_at(index).float()
    return x0
