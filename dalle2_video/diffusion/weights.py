"""Weight of a sample's loss by its noise level, right for whatever the network predicts.

Papers state a weight for one objective. Squared errors of the three are |dx0|^2 = |deps|^2 / SNR = sigma^2 |dv|^2, so a
weight w of the error of x0 is w / SNR for eps and w sigma^2 for v.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dalle2_video.diffusion_config import DiffusionConfig


def loss_weight(logsnr_b: Tensor, config: DiffusionConfig) -> Tensor:
    """Weight of the mean squared error of `config.objective`; logsnr_b: (b,). Returns (b,) fp32, 0 or more.

    min_snr: min(SNR, gamma) of x0 (Hang et al. 2023, sec. 3.4, gamma 5). p2: 1 / (1 + SNR)^gamma of eps (Choi et al.
    2022, eq. 8 over eq. 5, k = 1, gamma 1). none: 1.
    """
    logsnr = logsnr_b.float()
    if config.loss_weight == "none":
        return torch.ones_like(logsnr)
    alpha_squared, sigma_squared = logsnr.sigmoid(), (-logsnr).sigmoid()
    if config.loss_weight == "min_snr":
        of_objective = {
            "x0": logsnr.exp().clamp(max=config.gamma),
            "v": torch.minimum(alpha_squared, config.gamma * sigma_squared),
            "eps": (config.gamma * (-logsnr).exp()).clamp(max=1),
        }
    elif config.loss_weight == "p2":
        of_eps = sigma_squared**config.gamma  # 1 + SNR = 1 / sigma^2
        of_objective = {"x0": logsnr.exp() * of_eps, "v": alpha_squared * of_eps, "eps": of_eps}
    else:
        raise ValueError(f"DiffusionConfig.loss_weight={config.loss_weight!r} must be 'none', 'min_snr' or 'p2'")
    return of_objective[config.objective]
