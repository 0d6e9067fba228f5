"""Noise schedule: from time t in [0, 1] to log SNR, and from log SNR to the amounts of signal and noise.

Time only ever enters the other files as log SNR = log(alpha^2 / sigma^2), with alpha^2 + sigma^2 = 1 (variance
preserving), so that networks, losses and samplers work with any schedule. Invariant: log SNR falls with t. It is finite
but for two levels: -inf is t = 1 of a schedule with zero terminal SNR (alpha is 0, exactly), and +inf, which no
schedule has, the sample itself (sigma is 0). Formulas elsewhere are written such that both ends come out exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dalle2_video.diffusion_config import DiffusionConfig

# At |log SNR| = 15 the smaller of alpha and sigma is 5.5e-4: invisible beside 8-bit pixels, and safe to divide by.
MAX_LOGSNR = 15.0
BETA_MIN, BETA_MAX = 0.1, 20.0


def log_snr(t_b: Tensor, config: DiffusionConfig) -> Tensor:
    """Log SNR of the schedule at time t, plus `config.logsnr_shift`.

    t_b: (b,) float in [0, 1], 0 clean and 1 noise. Returns (b,) fp32 in [-15, 15] + shift, falling with t.
    cosine: alpha = cos(pi t / 2), so log SNR = -2 log tan(pi t / 2) (Nichol & Dhariwal 2021, eq. 17, without offset).
    linear: log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2 (Song et al. 2021, eq. 33), the limit of Ho et
    al. 2020's linear betas 1e-4 to 0.02 of 1000 steps.
    Instead of cutting the infinite ends off, t is mapped onto the interval where |log SNR| <= 15, so it still falls.
    With config.zero_terminal_snr alpha is then rescaled to be 0 at t = 1, where log SNR is -inf.
    """
    t = t_b.double()  # near t = 1 the tangent loses four digits in fp32
    logsnr = _scheduled(t, config)
    if config.zero_terminal_snr:
        logsnr = _rescaled(logsnr, *_scheduled(torch.tensor([0.0, 1.0], dtype=torch.float64, device=t.device), config))
    return (logsnr + config.logsnr_shift).float()


def _scheduled(t: Tensor, config: DiffusionConfig) -> Tensor:
    """Log SNR without shift and rescaling; t and it in fp64."""
    if config.schedule == "cosine":
        first, last = math.atan(math.exp(-MAX_LOGSNR / 2)), math.atan(math.exp(MAX_LOGSNR / 2))
        return -2 * torch.log(torch.tan(first + t * (last - first)))
    if config.schedule == "linear":
        slope = (BETA_MAX - BETA_MIN) / 2
        start = math.log1p(math.exp(-MAX_LOGSNR))  # -log alpha^2 at t = 0
        first = (math.sqrt(BETA_MIN**2 + 4 * slope * start) - BETA_MIN) / (2 * slope)
        time = first + t * (1 - first)
        return -torch.log(torch.expm1(slope * time**2 + BETA_MIN * time))
    raise ValueError(f"DiffusionConfig.schedule={config.schedule!r} must be 'cosine' or 'linear'")


def _rescaled(logsnr: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Shift alpha to 0 at the last level and scale it back at the first (Lin et al. 2024, alg. 1); fp64."""
    alpha, alpha_first, alpha_last = (level.sigmoid().sqrt() for level in (logsnr, first, last))
    # clamped: at t = 1 the two ways to the same number need not round alike
    squared = (alpha_first * (alpha - alpha_last).clamp(min=0) / (alpha_first - alpha_last)).square()
    return torch.log(squared) - torch.log1p(-squared)


def alpha_sigma(logsnr_b: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """Signal and noise amounts: alpha^2 = sigmoid(log SNR), sigma^2 = sigmoid(-log SNR) (Kingma et al. 2021, eq. 4).

    logsnr_b: (b,) float. Returns two fp32 tensors (b, 1, ..., 1) of `ndim` dimensions, in (0, 1); at infinite log SNR
    exactly 0 and 1.
    """
    logsnr = logsnr_b.float().reshape(-1, *[1] * (ndim - 1))
    # sigmoid(-x) rather than 1 - sigmoid(x): the difference is 0 in fp32 above log SNR 17
    return logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()


def add_noise(x0: Tensor, noise: Tensor, logsnr_b: Tensor) -> Tensor:
    """Sample of q(z | x0): z = alpha x0 + sigma noise.

    x0, noise: (b, ...) float, noise ~ N(0, 1); logsnr_b: (b,). Returns fp32 of the shape of x0.
    """
    alpha, sigma = alpha_sigma(logsnr_b, x0.ndim)
    return alpha * x0.float() + sigma * noise.float()
