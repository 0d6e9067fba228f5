"""The forward process backwards: q(z_s | z_t, x0) for a step from log SNR_t to a higher log SNR_s.

Everything follows from the share 1 - SNR_t / SNR_s of a step, which is 1 where z_t holds no signal or z_s no noise.
Samplers draw from this posterior with the predicted x0, learned variances lie between its variance and the largest that
is of use, and the likelihood compares the two. Invariant: exact at both infinite ends (see `schedule`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle2_video.diffusion.schedule import alpha_sigma


def step_share(logsnr_b: Tensor, next_logsnr_b: Tensor) -> Tensor:
    """Return 1 - SNR_t / SNR_s, in (0, 1]; both (b,) with logsnr_b < next_logsnr_b."""
    return -torch.expm1(logsnr_b - next_logsnr_b)


def posterior_mean(x0: Tensor, noised: Tensor, logsnr_b: Tensor, next_logsnr_b: Tensor) -> Tensor:
    """Mean of q(z_s | z_t, x0) (Ho et al. 2020, eq. 7, in log SNR).

    x0, noised: (b, ...) float; logsnr_b, next_logsnr_b: (b,). Returns fp32 of the shape of x0.
    """
    alpha, sigma = alpha_sigma(logsnr_b, noised.ndim)
    next_alpha, next_sigma = alpha_sigma(next_logsnr_b, noised.ndim)
    share = step_share(logsnr_b, next_logsnr_b).reshape(alpha.shape)
    # the first factor is (1 - share) next_alpha / alpha, without dividing by an alpha of 0
    return alpha * next_sigma.square() / (sigma.square() * next_alpha) * noised + next_alpha * share * x0


def log_variances(
    logsnr_b: Tensor, next_logsnr_b: Tensor, noisier_logsnr_b: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log variance of q(z_s | z_t, x0) and of q(z_t | z_s), the least and the largest of use in a step.

    They are right for data that is certain and for data of unit variance (Ho et al. 2020, sec. 3.2). A step to the
    sample itself (next_logsnr_b is +inf) has a least variance of 0: it takes that of the step before it, which comes
    from noisier_logsnr_b (Nichol & Dhariwal 2021, sec. 3.1), or without that -inf. All (b,); returns two (b,) fp32.
    """
    log_share = torch.log(step_share(logsnr_b, next_logsnr_b))
    small, large = F.logsigmoid(-next_logsnr_b) + log_share, F.logsigmoid(-logsnr_b) + log_share
    if noisier_logsnr_b is not None:
        floor = F.logsigmoid(-logsnr_b) + torch.log(step_share(noisier_logsnr_b, logsnr_b))
        small = torch.where(next_logsnr_b.isposinf(), floor, small)
    return small, large
