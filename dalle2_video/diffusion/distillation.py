"""Progressive distillation: what a student must predict so that one of its DDIM steps does two of its teacher's.

(Salimans & Ho 2022, sec. 3 and alg. 2.) The student of N steps learns at the times i / N, i from 1 to N; its last step
ends at the sample itself, as in the samplers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dalle2_video.diffusion.parameterization import target, to_x0
from dalle2_video.diffusion.samplers import ddim_step
from dalle2_video.diffusion.schedule import alpha_sigma, log_snr
from dalle2_video.diffusion_config import DiffusionConfig


def student_times(uniform_b: Tensor, steps: int) -> Tensor:
    """Return the student's times for uniform numbers: (b,) in [0, 1) to i / steps, i from 1 to steps, fp64."""
    return ((uniform_b.double() * steps).floor() + 1) / steps


@torch.no_grad()
def distillation_target(
    teacher: Callable[[Tensor, Tensor], Tensor],
    noised: Tensor,
    t_b: Tensor,
    steps: int,
    config: DiffusionConfig,
    *,
    clip_x0: bool,
) -> tuple[Tensor, Tensor]:
    """Return the student's target in `config.objective` at noised, (b, ...), and the x0 it stands for, both fp32.

    teacher: (noised, log SNR (b,)) -> prediction of `config.objective`; noised: (b, ...) fp32 at t_b, (b,) fp64 of
    `student_times`; steps: the student's. clip_x0: cut the teacher's x0 off at [-1, 1], as its sampling does.
    """
    middle_b, end_b = t_b - 0.5 / steps, t_b - 1 / steps
    logsnr_b, middle_logsnr_b = log_snr(t_b, config), log_snr(middle_b, config)
    end_logsnr_b = torch.where(end_b < 0.5 / steps, math.inf, log_snr(end_b.clamp(min=0), config))

    def predicted_x0(sample: Tensor, level_b: Tensor) -> Tensor:
        x0 = to_x0(config.objective, teacher(sample, level_b), sample, level_b)
        return x0.clamp(-1, 1) if clip_x0 else x0

    halfway = ddim_step(predicted_x0(noised, logsnr_b), noised, logsnr_b, middle_logsnr_b)
    ends = ddim_step(predicted_x0(halfway, middle_logsnr_b), halfway, middle_logsnr_b, end_logsnr_b)
    alpha, sigma = alpha_sigma(logsnr_b, noised.ndim)
    end_alpha, end_sigma = alpha_sigma(end_logsnr_b, noised.ndim)
    # the x0 from which one step leads from `noised` to `ends`
    x0 = (ends - end_sigma / sigma * noised) / (end_alpha - end_sigma / sigma * alpha)
    return target(config.objective, x0, (noised - alpha * x0) / sigma, logsnr_b), x0
