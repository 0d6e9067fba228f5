"""From noise to a sample: DDIM (deterministic), ancestral DDPM sampling, and classifier-free guidance.

The steps are spaced evenly in t from 1 to 0; the network runs once a step and the last step returns its x0. Invariant:
no random number is drawn here. The initial noise and, for DDPM, each step's noise come from the caller, so that a
sample is a pure function of its key on any number of ranks. Used by the stages' previews and by generation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dalle2_video.config import DiffusionConfig
from dalle2_video.diffusion.parameterization import to_x0
from dalle2_video.diffusion.schedule import alpha_sigma, log_snr

Predict = Callable[[Tensor, Tensor], Tensor]
"""(noised (b, ...) fp32, log SNR (b,) fp32) -> prediction (b, ...)."""
ConditionalPredict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noised, log SNR, keep (b,) bool: condition kept) -> prediction."""


def guided(model_fn: ConditionalPredict, scale: float) -> Predict:
    """Classifier-free guidance: uncond + scale * (cond - uncond) (Ho & Salimans 2022, eq. 6, with scale = 1 + w).

    `model_fn(noised, logsnr_b, keep_b)` gets a batch twice as long in one call: first the b samples with their
    condition kept, then the same b without. It repeats its conditions along the batch in that order. At scale 1 it gets
    the b conditional samples only, at half the cost.
    """

    def conditional(noised: Tensor, logsnr_b: Tensor) -> Tensor:
        return model_fn(noised, logsnr_b, torch.ones(len(noised), dtype=torch.bool, device=noised.device))

    def both(noised: Tensor, logsnr_b: Tensor) -> Tensor:
        keep = torch.arange(2 * len(noised), device=noised.device) < len(noised)
        prediction = model_fn(torch.cat([noised, noised]), torch.cat([logsnr_b, logsnr_b]), keep)
        kept, dropped = prediction.float().chunk(2)
        return dropped + scale * (kept - dropped)

    return conditional if scale == 1.0 else both


def _ddim_step(x0: Tensor, noised: Tensor, logsnr_b: Tensor, next_logsnr_b: Tensor) -> Tensor:
    """Deterministic step (Song, Meng & Ermon 2021, eq. 12 with sigma_t = 0)."""
    alpha, sigma = alpha_sigma(logsnr_b, noised.ndim)
    next_alpha, next_sigma = alpha_sigma(next_logsnr_b, noised.ndim)
    # the noise is derived from x0 and not from the prediction, so that it agrees with a clamped x0
    noise = (noised - alpha * x0) / sigma
    return next_alpha * x0 + next_sigma * noise


def _ddpm_step(x0: Tensor, noised: Tensor, logsnr_b: Tensor, next_logsnr_b: Tensor, noise: Tensor) -> Tensor:
    """Sample of q(z_s | z_t, x0), the posterior of the forward process (Ho et al. 2020, eq. 6 and 7, in log SNR)."""
    alpha, _ = alpha_sigma(logsnr_b, noised.ndim)
    next_alpha, next_sigma = alpha_sigma(next_logsnr_b, noised.ndim)
    shape = alpha.shape
    share_x0 = -torch.expm1(logsnr_b - next_logsnr_b).reshape(shape)  # 1 - SNR_t / SNR_s
    mean = next_alpha * ((1 - share_x0) / alpha * noised + share_x0 * x0)
    return mean + next_sigma * share_x0.sqrt() * noise


@torch.no_grad()
def sample(
    predict: Predict,
    noise: Tensor,
    config: DiffusionConfig,
    steps: int,
    method: Literal["ddim", "ddpm"] = "ddim",
    noise_at: Callable[[int], Tensor] | None = None,
    *,
    clip_x0: bool,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Turn N(0, 1) noise into samples with `steps` calls of `predict` (which returns `config.objective`).

    noise: (b, ...) float. method "ddpm" draws a step's noise by `noise_at(step_index)`, (b, ...) float, for step_index
    0 to steps - 2. clip_x0 clamps each step's x0 to [-1, 1]: for videos, not for embeddings. `on_step(step_index)` runs
    after each step, step_index 0 to steps - 1 (progress, stop requests). Returns x0, (b, ...) fp32.
    Raises ValueError on steps < 1, an unknown method, or "ddpm" without `noise_at`.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be 1 or more")
    if method not in ("ddim", "ddpm"):
        raise ValueError(f"method={method!r} must be 'ddim' or 'ddpm'")
    if method == "ddpm" and noise_at is None:
        raise ValueError("method='ddpm' needs noise_at: pass a function from the step's index to its noise")
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    logsnr_steps = log_snr(times, config).to(noise.device)
    noised = x0 = noise.float()
    for index in range(steps):
        logsnr_b, next_logsnr_b = logsnr_steps[index : index + 2, None].expand(2, len(noise))
        x0 = to_x0(config.objective, predict(noised, logsnr_b), noised, logsnr_b)
        if clip_x0:
            x0 = x0.clamp(-1, 1)
        if index < steps - 1:
            if method == "ddpm":
                assert noise_at is not None
                noised = _ddpm_step(x0, noised, logsnr_b, next_logsnr_b, noise_at(index).float())
            else:
                noised = _ddim_step(x0, noised, logsnr_b, next_logsnr_b)
        if on_step is not None:
            on_step(index)
    return x0
