"""Who teaches a distilled stage, as far as configs tell: shared by the launchers and by the stages, without torch.

A line of students begins with an undistilled run: at `diffusion.sampling_steps` 32 the student of 16 steps learns from
the undistilled run, that of 8 from the student of 16. All of a line agree in everything but `distillation` and `optim`.
"""

from __future__ import annotations

from dataclasses import fields, replace

from dalle2_video.config import DecoderConfig, OptimConfig, SpatialSrConfig, TemporalSrConfig
from dalle2_video.diffusion_config import DistillationConfig

VideoConfig = DecoderConfig | TemporalSrConfig | SpatialSrConfig


def teachers_config(config: VideoConfig) -> VideoConfig | None:
    """Return the config of the run that a stage learns from; None where it learns from data alone."""
    mine = config.distillation
    if mine.steps == 0:
        return None
    first = 2 * mine.steps >= config.diffusion.sampling_steps
    return replace(config, distillation=DistillationConfig() if first else replace(mine, steps=2 * mine.steps))


def students_optim(config: VideoConfig) -> OptimConfig:
    """Return the training schedule of a stage, of a student with its own number of steps and learning rate."""
    mine, optim = config.distillation, config.optim
    return replace(optim, steps=mine.updates or optim.steps, lr=mine.lr or optim.lr)


def check_teacher(config: VideoConfig, teacher: VideoConfig, name: str) -> None:
    """Raise ValueError with the remedy unless a run of the config `teacher` can teach a stage of `config`.

    name: of the stage, for messages.
    """
    mine, theirs = config.distillation, teacher.distillation
    flag = f"--{name.replace('_', '-')}"
    if theirs.steps not in (0, 2 * mine.steps):
        even = theirs.steps % 2 == 0
        raise ValueError(
            f"{flag}.distillation.steps {mine.steps}: the teacher samples in {theirs.steps} steps, a student of "
            f"{mine.steps} needs one of {2 * mine.steps} or an undistilled one; name another by --parents.teacher"
            + (f", or give {flag}.distillation.steps {theirs.steps // 2}" if even else "")
        )
    learnt, taught = mine.taught_guidance(config.diffusion), theirs.taught_guidance(teacher.diffusion)
    if theirs.steps and learnt != taught:
        raise ValueError(
            f"{flag}.distillation.guidance {learnt}: the teacher has learnt {taught} already, which stays; give that"
        )
    for field in fields(config):
        ours, its = getattr(config, field.name), getattr(teacher, field.name)
        if field.name not in ("distillation", "optim") and ours != its:
            raise ValueError(
                f"{flag}.{field.name.replace('_', '-')} is not the teacher's: {ours!r}, the teacher has {its!r}; give "
                "the values of the teacher, or name another teacher by --parents.teacher"
            )
