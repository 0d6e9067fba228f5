"""From noise to a sample: DDIM, ancestral DDPM sampling and DPM-Solver++(2M), with any number of steps.

The network runs once a step and the last step returns its x0. Invariant: no random number is drawn here. The initial
noise and, where a step draws, its noise come from the caller, so that a sample is a pure function of its key on any
number of ranks. Used by generation. All steps are exact at a first log SNR of -inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dalle2_video.diffusion.guidance import ConditionalPredict, Predict, guidance_scales, guided
from dalle2_video.diffusion.parameterization import to_x0
from dalle2_video.diffusion.posterior import log_variances, posterior_mean, step_share
from dalle2_video.diffusion.schedule import alpha_sigma, log_snr
from dalle2_video.diffusion.variance import learned_log_variance, split_output
from dalle2_video.diffusion_config import DiffusionConfig, SamplerConfig


def step_levels(steps: int, config: DiffusionConfig, sampler: SamplerConfig) -> Tensor:
    """Log SNR before each step and after the last, (steps + 1,) fp32, rising from t = 1 to t = 0.

    Raises ValueError where the sampler does not fit the schedule.
    """
    sampler.check("sampler", config)
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    if sampler.spacing == "logsnr":
        noisiest, clean = log_snr(times[[0, -1]], config)
        return torch.lerp(clean.double(), noisiest.double(), times).float()
    return log_snr(times.square() if sampler.spacing == "quadratic" else times, config)


def ddim_step(
    x0: Tensor,
    noised: Tensor,
    logsnr_b: Tensor,
    next_logsnr_b: Tensor,
    eta: float = 0.0,
    fresh_noise: Tensor | None = None,
) -> Tensor:
    """Step along the noise that x0 implies (Song, Meng & Ermon 2021, eq. 12 and 16).

    eta: share in [0, 1] of the posterior's standard deviation that fresh_noise makes up.
    """
    alpha, sigma = alpha_sigma(logsnr_b, noised.ndim)
    next_alpha, next_sigma = alpha_sigma(next_logsnr_b, noised.ndim)
    # the noise is derived from x0 and not from the prediction, so that it agrees with a clamped x0
    noise = (noised - alpha * x0) / sigma
    if fresh_noise is None:
        return next_alpha * x0 + next_sigma * noise
    share = eta**2 * step_share(logsnr_b, next_logsnr_b).reshape(alpha.shape)
    return next_alpha * x0 + next_sigma * ((1 - share).sqrt() * noise + share.sqrt() * fresh_noise)


def dpmpp_step(
    x0: Tensor,
    noised: Tensor,
    logsnr_b: Tensor,
    next_logsnr_b: Tensor,
    before: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Step of DPM-Solver++(2M) (Lu et al. 2022b, alg. 2).

    before: x0 and log SNR of the step before; None: a first step, which is of first order and that of DDIM.
    """
    _, sigma = alpha_sigma(logsnr_b, noised.ndim)
    next_alpha, next_sigma = alpha_sigma(next_logsnr_b, noised.ndim)
    if before is not None:
        x0_before, logsnr_before_b = before
        # 1 / (2 r); 0 after a step from log SNR -inf, which tells nothing of how x0 changes
        weight = (next_logsnr_b - logsnr_b) / (2 * (logsnr_b - logsnr_before_b))
        x0 = x0 + weight.reshape(sigma.shape) * (x0 - x0_before)
    decay = torch.expm1((logsnr_b - next_logsnr_b) / 2).reshape(sigma.shape)
    return next_sigma / sigma * noised - next_alpha * decay * x0


def threshold(x0: Tensor, quantile: float | None) -> Tensor:
    """Bring x0 into [-1, 1]: cut it off, or first divide each sample by its quantile of |x0| where that is more than 1.

    (Saharia et al. 2022, sec. 2.3, dynamic thresholding.)
    """
    if quantile is None:
        return x0.clamp(-1, 1)
    sizes = x0.abs().flatten(1)
    # not torch.quantile, which takes 16 million elements at most
    rank = max(1, math.ceil(quantile * sizes.shape[1]))
    limit = sizes.kthvalue(rank, dim=1).values.clamp(min=1).reshape(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-limit, limit) / limit


@torch.no_grad()
def sample(
    predict: Predict,
    noise: Tensor,
    config: DiffusionConfig,
    sampler: SamplerConfig,
    noise_at: Callable[[int], Tensor] | None = None,
    *,
    clip_x0: bool,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Turn N(0, 1) noise into samples with `sampler.steps`, or `config.sampling_steps`, calls of `predict`.

    predict: gives `config.objective`, and with learned variance the head's output after it along axis 1. noise:
    (b, ...) float. Where a step draws (ddpm, or ddim with eta > 0) its noise is `noise_at(step_index)`, (b, ...) float,
    for step_index 0 to steps - 2. clip_x0 brings each step's x0 into [-1, 1]: for videos, not for embeddings.
    `on_step(step_index)` runs after each step, step_index 0 to steps - 1 (progress, stop requests). Returns x0,
    (b, ...) fp32. Raises ValueError where steps draw and there is no `noise_at`, or sampler and stage do not fit.
    """
    steps = num_steps(config, sampler)
    draws = sampler.method == "ddpm" or sampler.eta > 0
    if draws and noise_at is None:
        raise ValueError(
            f"method={sampler.method!r} with eta={sampler.eta} needs noise_at: pass a function from a step's index to "
            "its noise"
        )
    levels = step_levels(steps, config, sampler).to(noise.device)
    noised = x0 = noise.float()
    before = None
    for index in range(steps):
        logsnr_b, next_logsnr_b = levels[index : index + 2, None].expand(2, len(noise))
        prediction, raw = split_output(predict(noised, logsnr_b, index), noise.shape[1])
        x0 = to_x0(config.objective, prediction, noised, logsnr_b)
        if clip_x0:
            x0 = threshold(x0, sampler.dynamic_threshold)
        if index < steps - 1:
            fresh = noise_at(index).float() if draws and noise_at is not None else None
            if sampler.method == "dpmpp":
                noised, before = dpmpp_step(x0, noised, logsnr_b, next_logsnr_b, before), (x0, logsnr_b)
            elif sampler.method == "ddim":
                noised = ddim_step(x0, noised, logsnr_b, next_logsnr_b, sampler.eta, fresh)
            else:
                assert fresh is not None
                deviation = torch.exp(0.5 * _log_variance(sampler, config, raw, logsnr_b, next_logsnr_b, noised.ndim))
                noised = posterior_mean(x0, noised, logsnr_b, next_logsnr_b) + deviation * fresh
        if on_step is not None:
            on_step(index)
    return x0


def sample_guided(
    model_fn: ConditionalPredict,
    noise: Tensor,
    config: DiffusionConfig,
    sampler: SamplerConfig,
    noise_at: Callable[[int], Tensor] | None = None,
    *,
    guidance: float | None = None,
    clip_x0: bool,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """`sample` with classifier-free guidance as the sampler has it; model_fn: see `guided`; guidance: its scale.

    guidance None takes `config.guidance_scale`.
    """
    predict = guided_predict(model_fn, config, sampler, guidance)
    return sample(predict, noise, config, sampler, noise_at, clip_x0=clip_x0, on_step=on_step)


def guided_predict(
    model_fn: ConditionalPredict, config: DiffusionConfig, sampler: SamplerConfig, guidance: float | None = None
) -> Predict:
    """Return what `sample` calls once a step, with classifier-free guidance; arguments as in `sample_guided`."""
    scale = config.guidance_scale if guidance is None else guidance
    return guided(model_fn, guidance_scales(scale, num_steps(config, sampler), sampler), sampler.guidance_rescale)


def num_steps(config: DiffusionConfig, sampler: SamplerConfig) -> int:
    """Return how often the network runs."""
    return sampler.steps or config.sampling_steps


def _log_variance(
    sampler: SamplerConfig,
    config: DiffusionConfig,
    raw: Tensor | None,
    logsnr_b: Tensor,
    next_logsnr_b: Tensor,
    ndim: int,
) -> Tensor:
    """Log variance of a ddpm step, broadcastable to (b, ...)."""
    if sampler.variance == "learned" or (sampler.variance == "auto" and config.learned_variance != "none"):
        return learned_log_variance(config.learned_variance, raw, logsnr_b, next_logsnr_b)
    small, large = log_variances(logsnr_b, next_logsnr_b)
    return (large if sampler.variance == "large" else small).reshape(-1, *[1] * (ndim - 1))
