"""Progressive distillation in a stage: the teacher, a finished run of the same stage, and the student's loss.

(Salimans & Ho 2022, alg. 2; guidance folded in as in Meng et al. 2023, for one scale.) The student starts from the
teacher's weights and sees what the teacher would, so everything else of the stage stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.distillation import distillation_target, student_times
from dalle2_video.diffusion.loss import mean_of_samples
from dalle2_video.diffusion.schedule import add_noise, log_snr
from dalle2_video.diffusion.variance import split_output
from dalle2_video.diffusion.weights import loss_weight
from dalle2_video.models.factory import load_export
from dalle2_video.stages.denoising import Denoised, denoise
from dalle2_video.teaching import VideoConfig, check_teacher, teachers_config

Network = Callable[..., Tensor]
PredictBy = Callable[[Network, Tensor, Tensor, Tensor], Tensor]
"""(network, noised, logsnr (b,), keep (b,) bool) -> the network's output with a batch's conditions."""


class Teacher:
    """A finished run of the stage, frozen: fp32 EMA weights, whole on every rank."""

    def __init__(self, config: VideoConfig, teacher: VideoConfig, module: nn.Module) -> None:
        """config: the student's; teacher: its own."""
        self.config, self.module = config, module.eval().requires_grad_(False)
        # what a student has learnt from is guided already
        self.guidance = 1.0 if teacher.distillation.steps else config.distillation.taught_guidance(config.diffusion)

    def to(self, device: torch.device) -> None:
        """Move the weights to `device`."""
        self.module.to(device)

    def begin(self, student: nn.Module) -> nn.Module:
        """Give a student the teacher's weights; return it."""
        student.load_state_dict(self.module.state_dict())
        return student

    def output(self, predict_by: PredictBy, noised: Tensor, logsnr_b: Tensor) -> Tensor:
        """Return the teacher's guided prediction, (b, ...) fp32 (Ho & Salimans 2022, eq. 6)."""

        def prediction(kept: bool) -> Tensor:
            keep_b = torch.full((len(noised),), kept, device=noised.device)
            return split_output(predict_by(self.module, noised, logsnr_b, keep_b), noised.shape[1])[0].float()

        if self.guidance == 1.0:
            return prediction(True)
        dropped = prediction(False)
        return dropped + self.guidance * (prediction(True) - dropped)

    def distil(
        self, predict_by: PredictBy, student: Network, x0: Tensor, draws: Draws, valid_b: Tensor | None
    ) -> Denoised:
        """Compare the student's prediction at one of its times with what two steps of the teacher come to.

        x0: (b, ...) in [-1, 1]; valid_b: (b,) real frames of each video; the loss leaves those behind them out. The
        condition is never dropped: a student samples without guidance.
        """
        diffusion, steps = self.config.diffusion, self.config.distillation.steps
        time_b = student_times(draws.uniform("time"), steps)
        logsnr_b = log_snr(time_b, diffusion)
        noised = add_noise(x0, draws.normal("noise", tuple(x0.shape[1:])), logsnr_b)
        taught, _ = distillation_target(
            partial(self.output, predict_by), noised, time_b, steps, diffusion, clip_x0=True
        )
        keep_b = torch.ones(len(x0), dtype=torch.bool, device=x0.device)
        prediction, raw = split_output(predict_by(student, noised, logsnr_b, keep_b), x0.shape[1])
        losses = mean_of_samples((prediction.float() - taught).square(), valid_b)
        if diffusion.loss_weight != "none":
            losses = losses * loss_weight(logsnr_b, diffusion)
        loss = losses.mean()
        if raw is not None:
            # ddim steps have no variance, and ZeRO waits for a gradient of every parameter
            loss = loss + 0.0 * raw.float().mean()
        return Denoised(loss=loss, prediction=prediction, metrics={})


def load_teacher(config: VideoConfig, stage: str, export: Path | None) -> Teacher | None:
    """Return the teacher of a stage; None where it learns from data alone.

    export: the teacher's export folder, None where there is no teacher. Raises ValueError with the remedy where a
    teacher is missing or cannot teach it.
    """
    if teachers_config(config) is None:
        return None
    if export is None:
        raise ValueError(f"{stage}.distillation.steps={config.distillation.steps} needs a teacher among the parents")
    found = load_export(export, stage)
    check_teacher(config, found.config, stage)
    return Teacher(config, found.config, found.module)


def learn(
    teacher: Teacher | None,
    predict_by: PredictBy,
    network: Network,
    x0: Tensor,
    draws: Draws,
    config: VideoConfig,
    valid_b: Tensor | None,
) -> Denoised:
    """Return the loss of a batch, from data or from a teacher; see `denoise` and `Teacher.distil`."""
    if teacher is None:
        return denoise(partial(predict_by, network), x0, draws, config.diffusion, valid_b)
    return teacher.distil(predict_by, network, x0, draws, valid_b)
