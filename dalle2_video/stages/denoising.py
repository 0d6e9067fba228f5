"""The one training objective of all diffusion stages: noise at a random time, predict, compare."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dalle2_video.config import DiffusionConfig
from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.loss import diffusion_loss
from dalle2_video.diffusion.schedule import add_noise, log_snr


def denoise(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    x0: Tensor,
    draws: Draws,
    config: DiffusionConfig,
    valid_b: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the per-sample loss (b,) and the network's prediction.

    predict: (noised, logsnr (b,), keep (b,) bool) to prediction; x0: (b, ...). The condition of a sample is
    dropped with probability config.condition_dropout (Ho & Salimans 2022). valid_b: (b,) real frames of each video; the
    loss leaves those behind them out.
    """
    logsnr = log_snr(draws.uniform("time"), config)
    noise = draws.normal("noise", tuple(x0.shape[1:]))
    keep = draws.keep("condition", config.condition_dropout)
    prediction = predict(add_noise(x0, noise, logsnr), logsnr, keep)
    return diffusion_loss(prediction, x0, noise, logsnr, config.objective, valid_b), prediction
