"""Students and teachers as configs: who teaches whom, what is refused, and how a student samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from registry_fixtures import changed

from dalle2_video.config import DecoderConfig
from dalle2_video.diffusion_config import DistillationConfig, SamplerConfig
from dalle2_video.teaching import check_teacher, students_optim, teachers_config
from launch.arguments import load_recipe

TINY = load_recipe("tiny").decoder
STUDENT = DistillationConfig(steps=8, guidance=2.0, updates=30, lr=1e-5)


def student(**settings: Any) -> DecoderConfig:
    return replace(TINY, distillation=DistillationConfig(**settings))


def test_a_line_of_students_begins_with_the_undistilled_run() -> None:
    assert TINY.diffusion.sampling_steps == 32 and teachers_config(TINY) is None
    line = [student(steps=4, guidance=2.0, updates=7)]
    while (teacher := teachers_config(line[-1])) is not None:
        line.append(teacher)
    assert [one.distillation.steps for one in line] == [4, 8, 16, 0]
    assert [one.distillation.updates for one in line] == [7, 7, 7, 0], "a line is one recipe but for the steps"
    assert line[-1] == TINY
    odd = replace(student(steps=9), diffusion=replace(TINY.diffusion, sampling_steps=19))
    assert teachers_config(odd) == replace(odd, distillation=DistillationConfig(steps=18))


def test_a_student_has_its_own_updates_and_learning_rate() -> None:
    assert students_optim(TINY) == TINY.optim == students_optim(student(steps=8))
    found = students_optim(replace(TINY, distillation=STUDENT))
    assert (found.steps, found.lr) == (30, 1e-5)
    assert replace(found, steps=TINY.optim.steps, lr=TINY.optim.lr) == TINY.optim


@pytest.mark.parametrize("steps", [16, 0])
def test_a_teacher_of_twice_the_steps_or_an_undistilled_one_is_taken(steps: int) -> None:
    check_teacher(student(steps=8), changed(student(steps=steps), "optim.lr", 0.5), "decoder")


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (student(steps=32), r"a student of 8 needs one of 16 .*--parents\.teacher, or give .*steps 16$"),
        (student(steps=8), r"a student of 8 needs one of 16 .*steps 4$"),
        (
            student(steps=7),
            r"a student of 8 needs one of 16 or an undistilled one; name another by --parents\.teacher$",
        ),
        (student(steps=16, guidance=2.0), r"--decoder\.distillation\.guidance 3\.0: the teacher has learnt 2\.0"),
        (changed(TINY, "unet.dim", 64), r"--decoder\.unet is not the teacher's: .*dim=32.*dim=64"),
        (changed(TINY, "diffusion.schedule", "linear"), r"--decoder\.diffusion is not the teacher's"),
        (changed(TINY, "window.stride", 1), r"--decoder\.window is not the teacher's"),
    ],
)
def test_another_teacher_is_refused_with_the_remedy(teacher: DecoderConfig, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_teacher(student(steps=8), teacher, "decoder")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": -1}, "DistillationConfig.steps=-1 must be 0 or more"),
        ({"steps": 4, "updates": -1}, "updates=-1"),
        ({"steps": 4, "lr": -0.1}, "lr=-0.1"),
        ({"steps": 4, "guidance": -0.1}, "guidance=-0.1"),
        ({"guidance": 2.0}, r"guidance=2.0 is read with distillation\.steps alone"),
        ({"updates": 2}, r"updates=2 is read with distillation\.steps alone"),
        ({"lr": 0.1}, r"lr=0.1 is read with distillation\.steps alone"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DistillationConfig(**settings)


def test_noise_predictions_are_not_distilled() -> None:
    with pytest.raises(ValueError, match=r"decoder\.distillation\.steps=8 cannot be learnt with .* eps"):
        replace(student(steps=8), diffusion=replace(TINY.diffusion, objective="eps"))


def test_a_student_samples_in_its_steps_without_guidance() -> None:
    assert DistillationConfig().sampling(TINY.diffusion) == TINY.diffusion
    found = STUDENT.sampling(TINY.diffusion)
    assert found == replace(TINY.diffusion, sampling_steps=8, guidance_scale=1.0)
    assert STUDENT.taught_guidance(TINY.diffusion) == 2.0
    assert DistillationConfig(steps=8).taught_guidance(TINY.diffusion) == TINY.diffusion.guidance_scale


@pytest.mark.parametrize(
    ("sampler", "guidance", "field"),
    [
        (SamplerConfig(steps=16), None, r"decoder\.steps=16"),
        (SamplerConfig(method="dpmpp"), None, r"decoder\.method='dpmpp'"),
        (SamplerConfig(spacing="quadratic"), None, r"decoder\.spacing='quadratic'"),
        (SamplerConfig(eta=0.5), None, r"decoder\.eta=0\.5"),
        (SamplerConfig(guidance_low=1.0), None, r"decoder\.guidance_low=1\.0"),
        (SamplerConfig(), 2.0, r"decoder_guidance=2\.0"),
    ],
)
def test_a_student_cannot_be_sampled_otherwise(sampler: SamplerConfig, guidance: float | None, field: str) -> None:
    with pytest.raises(ValueError, match=rf"sample\.{field} cannot be: the run is distilled to 8 ddim steps"):
        STUDENT.check_sampler("sample.decoder", sampler, guidance)
    DistillationConfig().check_sampler("sample.decoder", sampler, guidance)
    STUDENT.check_sampler("sample.decoder", SamplerConfig(steps=8, dynamic_threshold=0.9), 1.0)
