"""Classifier-free guidance: one or both predictions of a step, and the scale of each step.

A network's second half of channels, where it has learned its variance, is the conditional one's, unguided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dalle2_video.diffusion.variance import split_output
from dalle2_video.diffusion_config import SamplerConfig

Predict = Callable[[Tensor, Tensor, int], Tensor]
"""(noised (b, ...) fp32, log SNR (b,) fp32, index of the step) -> output of the network (b, ...)."""
ConditionalPredict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noised, log SNR, keep (b,) bool: condition kept) -> output of the network."""


def guidance_scales(scale: float, steps: int, sampler: SamplerConfig) -> list[float]:
    """Return each step's scale: constant, or oscillating between high and low (Ho et al. 2022, Imagen Video, sec. 2.7).

    The first step after the held ones is low.
    """
    if sampler.guidance_low is None:
        return [scale] * steps
    held = round(sampler.guidance_hold * steps)
    return [scale if index < held or (index - held) % 2 else sampler.guidance_low for index in range(steps)]


def guided(model_fn: ConditionalPredict, scales: Sequence[float], rescale: float = 0.0) -> Predict:
    """Classifier-free guidance: uncond + scale * (cond - uncond) (Ho & Salimans 2022, eq. 6, with scale = 1 + w).

    `model_fn(noised, logsnr_b, keep_b)` gets a batch twice as long in one call: first the b samples with their
    condition kept, then the same b without. It repeats its conditions along the batch in that order. At scale 1 it gets
    the b conditional samples only, at half the cost. scales: one a step. rescale: share in [0, 1] by which each guided
    sample is brought to the standard deviation of its conditional prediction (Lin et al. 2024, eq. 15 and 16).
    """

    def conditional(noised: Tensor, logsnr_b: Tensor) -> Tensor:
        return model_fn(noised, logsnr_b, torch.ones(len(noised), dtype=torch.bool, device=noised.device))

    def predict(noised: Tensor, logsnr_b: Tensor, index: int) -> Tensor:
        if scales[index] == 1.0:
            return conditional(noised, logsnr_b)
        keep = torch.arange(2 * len(noised), device=noised.device) < len(noised)
        output = model_fn(torch.cat([noised, noised]), torch.cat([logsnr_b, logsnr_b]), keep)
        prediction, raw = split_output(output.float(), noised.shape[1])
        kept, dropped = prediction.chunk(2)
        blended = dropped + scales[index] * (kept - dropped)
        if rescale:
            blended = rescaled(blended, kept, rescale)
        return blended if raw is None else torch.cat([blended, raw[: len(noised)]], dim=1)

    return predict


def rescaled(blended: Tensor, kept: Tensor, share: float) -> Tensor:
    """Bring each sample of `blended` to the standard deviation of its sample of `kept`, by a share in [0, 1].

    (Lin et al. 2024, eq. 15 and 16.) A constant sample, which has none, stays as it is.
    """
    axes = tuple(range(1, blended.ndim))
    of_kept, of_blended = (values.std(axes, keepdim=True) for values in (kept, blended))
    factor = torch.where(of_blended > 0, of_kept / of_blended, 1.0)
    return blended * (share * factor + (1 - share))
