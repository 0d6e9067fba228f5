"""The one training objective of all diffusion stages: noise at a random time, predict, compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.loss import diffusion_loss
from dalle2_video.diffusion.parameterization import to_x0
from dalle2_video.diffusion.schedule import add_noise, log_snr
from dalle2_video.diffusion.variance import head_loss, split_output
from dalle2_video.diffusion.weights import loss_weight
from dalle2_video.diffusion_config import DiffusionConfig


@dataclass(frozen=True, kw_only=True)
class Noised:
    """A batch at random times."""

    x0: Tensor
    """(b, ...) samples."""
    noise: Tensor
    """(b, ...) from N(0, 1)."""
    time_b: Tensor
    """(b,) in [0, 1)."""
    logsnr_b: Tensor
    """(b,), of the times."""
    keep_b: Tensor
    """(b,) bool: the condition is kept."""
    noised: Tensor
    """(b, ...) what the network sees."""


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """What came of one batch."""

    loss: Tensor
    """Mean over the batch, scalar fp32; what is minimised."""
    prediction: Tensor
    """The network's prediction of the objective, (b, ...)."""
    metrics: dict[str, Tensor]
    """The parts of the loss, scalars, where it has several: `mean_loss`, `variance_loss`."""


def noise_batch(x0: Tensor, draws: Draws, config: DiffusionConfig) -> Noised:
    """Noise samples (b, ...) at random times.

    The condition of a sample is dropped with probability config.condition_dropout (Ho & Salimans 2022).
    """
    time = draws.uniform("time")
    logsnr = log_snr(time, config)
    noise = draws.normal("noise", tuple(x0.shape[1:]))
    keep = draws.keep("condition", config.condition_dropout)
    noised = add_noise(x0, noise, logsnr)
    return Noised(x0=x0, noise=noise, time_b=time, logsnr_b=logsnr, keep_b=keep, noised=noised)


def compare(output: Tensor, batch: Noised, config: DiffusionConfig, valid_b: Tensor | None = None) -> Denoised:
    """Compare a network's output with what it should have been.

    valid_b: (b,) real frames of each video; the loss leaves those behind them out.
    """
    x0, logsnr = batch.x0, batch.logsnr_b
    prediction, raw = split_output(output, x0.shape[1])
    losses = diffusion_loss(prediction, x0, batch.noise, logsnr, config.objective, valid_b)
    if config.loss_weight != "none":
        losses = losses * loss_weight(logsnr, config)
    loss = losses.mean()
    if raw is None:
        return Denoised(loss=loss, prediction=prediction, metrics={})
    predicted_x0 = to_x0(config.objective, prediction.detach(), batch.noised, logsnr)
    of_head = head_loss(raw, predicted_x0, x0, batch.time_b, config, valid_b).mean()
    return Denoised(
        loss=loss + config.variance_weight * of_head,
        prediction=prediction,
        metrics={"mean_loss": loss.detach(), "variance_loss": of_head.detach()},
    )


def denoise(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    x0: Tensor,
    draws: Draws,
    config: DiffusionConfig,
    valid_b: Tensor | None = None,
) -> Denoised:
    """Noise a batch at random times and compare what the network predicts.

    predict: (noised, logsnr (b,), keep (b,) bool) to the network's output; x0: (b, ...); valid_b: see `compare`.
    """
    batch = noise_batch(x0, draws, config)
    return compare(predict(batch.noised, batch.logsnr_b, batch.keep_b), batch, config, valid_b)
