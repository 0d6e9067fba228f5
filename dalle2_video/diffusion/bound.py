"""Bits a dimension of a network and its variances over all steps of a sampler, for comparing variances.

Invariant: as in the samplers, no random number is drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dalle2_video.diffusion.likelihood import prior_kl, step_terms
from dalle2_video.diffusion.loss import mean_of_samples
from dalle2_video.diffusion.parameterization import to_x0
from dalle2_video.diffusion.posterior import log_variances
from dalle2_video.diffusion.schedule import add_noise, log_snr
from dalle2_video.diffusion.variance import learned_log_variance, split_output
from dalle2_video.diffusion_config import DiffusionConfig


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Bits a dimension, one number a sample."""

    prior_b: Tensor
    """What z_1 still says of x0."""
    steps_sb: Tensor
    """Each step but the last, the noisiest first."""
    last_b: Tensor
    """The last step: the levels of x0."""

    @property
    def total_b(self) -> Tensor:
        """Bound on -log2 p(x0) a dimension."""
        return self.prior_b + self.steps_sb.sum(0) + self.last_b


@torch.no_grad()
def bound(
    predict: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    noise_at: Callable[[int], Tensor],
    config: DiffusionConfig,
    steps: int,
    variance: Literal["small", "large", "learned"],
) -> Bound:
    """Bound of ddpm sampling with `steps` steps even in t, at one draw of the noise a step.

    predict: (noised, log SNR (b,)) -> the network's output; x0: (b, c, ...) 8-bit levels in [-1, 1]; noise_at: (b, ...)
    by index, 0 the noisiest level. Raises ValueError where steps is 1: the last step's least variance is that of the
    one before.
    """
    if steps < 2:
        raise ValueError(f"steps={steps} must be 2 or more")
    levels = log_snr(torch.linspace(1, 0, steps + 1, dtype=torch.float64), config).to(x0.device)
    levels[-1] = math.inf
    terms = []
    for index in range(steps):
        noisier, logsnr_b, next_b = levels[[max(index - 1, 0), index, index + 1], None].expand(3, len(x0))
        noised = add_noise(x0, noise_at(index), logsnr_b)
        prediction, raw = split_output(predict(noised, logsnr_b), x0.shape[1])
        small, large = log_variances(logsnr_b, next_b, noisier)
        if variance == "learned":
            log_variance = learned_log_variance(config.learned_variance, raw, logsnr_b, next_b, noisier)
        else:
            fixed = small if variance == "small" else large
            log_variance = fixed.reshape(-1, *[1] * (x0.ndim - 1))
        predicted = to_x0(config.objective, prediction, noised, logsnr_b).clamp(-1, 1)
        terms.append(mean_of_samples(step_terms(x0, predicted, log_variance, logsnr_b, next_b)) / math.log(2))
    return Bound(
        prior_b=mean_of_samples(prior_kl(x0, levels[:1].expand(len(x0)))) / math.log(2),
        steps_sb=torch.stack(terms[:-1]),
        last_b=terms[-1],
    )
