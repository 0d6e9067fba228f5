"""A student trained by the real Trainer does in one step nearly what its teacher does in two."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from trainer_ranks import EMBEDDINGS, SEED, Attempt, Case, prepare, run_ranks

from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.samplers import sample_guided
from dalle2_video.diffusion_config import DiffusionConfig, SamplerConfig
from dalle2_video.models.factory import load_export
from dalle2_video.stages import StageInputs
from dalle2_video.stages.decoder import DecoderStage

GUIDANCE = 2.0
UPDATES = 20
TEACHER = Case(
    stage="decoder",
    optim={"steps": 10, "lr": 3e-3, "warmup_steps": 0, "lr_decay": "constant"},
    runtime={"validate_every": 1000},
)
STUDENT = dataclasses.replace(
    TEACHER, distillation={"steps": 1, "guidance": GUIDANCE, "updates": UPDATES, "lr": 1e-3}, teacher="teacher"
)


@pytest.fixture(scope="module")
def trained(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("distilled")
    prepare(sample_data, folder)
    answers = run_ranks(folder, {1: [Attempt(run="teacher", case=TEACHER), Attempt(run="student", case=STUDENT)]})
    return folder, answers[1]


def videos(folder: Path, run: str, diffusion: DiffusionConfig, guidance: float) -> Tensor:
    """Sample videos of the validation clips' embeddings and captions with a run's exported weights."""
    inputs = StageInputs(
        config=TEACHER.config(), seed=SEED, store=folder / "store", exports={"clip": folder / "clip"},
        embeddings=EMBEDDINGS,
    )  # fmt: skip
    stage, network = DecoderStage(inputs), load_export(folder / "runs" / run / "export", "decoder").module
    batch = stage.dataset("val").__getitems__([*range(12)])
    text = stage.clip.encode_text(batch["tokens"], batch["length"])

    def predict(noised: Tensor, logsnr: Tensor, keep: Tensor) -> Tensor:
        def whole(condition: Tensor) -> Tensor:
            return torch.cat([condition] * (len(noised) // 12))

        return network(
            noised, logsnr, encodings_bld=whole(text.encodings_bld), text_mask_bl=whole(text.mask_bl), keep_b=keep,
            embedding_bd=whole(batch["embedding"]),
        )  # fmt: skip

    noise = Draws(1, batch["sample"], "cpu").normal("noise", (3, 3, 16, 16))
    return sample_guided(predict, noise, diffusion, SamplerConfig(), guidance=guidance, clip_x0=True)


def test_one_step_of_the_student_comes_near_two_guided_steps_of_the_teacher(trained: tuple[Path, list[dict]]) -> None:
    folder, _ = trained
    diffusion = TEACHER.config().diffusion
    one, two = (dataclasses.replace(diffusion, sampling_steps=steps) for steps in (1, 2))
    goal = videos(folder, "teacher", two, GUIDANCE)
    learnt = STUDENT.config().distillation.sampling(diffusion)
    assert (learnt.sampling_steps, learnt.guidance_scale) == (1, 1.0)

    def distance(found: Tensor) -> float:
        return (found - goal).square().mean().item()

    student = distance(videos(folder, "student", learnt, learnt.guidance_scale))
    untaught = min(distance(videos(folder, "teacher", one, scale)) for scale in (1.0, GUIDANCE))
    assert student < 0.65 * untaught, (student, untaught)


def test_the_student_starts_from_its_teacher_and_does_its_own_number_of_updates(
    trained: tuple[Path, list[dict]],
) -> None:
    teacher, student = ([one for one in answer["metrics"] if one["split"] == "train"] for answer in trained[1])
    assert [record["step"] for record in teacher] == [*range(1, 11)]
    assert [record["step"] for record in student] == [*range(1, UPDATES + 1)]
    losses = [record["loss"] for record in student]
    assert sum(losses[-5:]) / 5 < 0.65 * losses[0], losses
    assert losses[0] < 0.7 * teacher[0]["loss"], "fresh weights would begin where the teacher began"
