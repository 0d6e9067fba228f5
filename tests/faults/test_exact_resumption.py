"""Interrupted and resumed at the same world size, every stage ends as the undisturbed run does, to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from safetensors.torch import load_file
from trainer_ranks import BATCH, STEPS, Attempt, Case, commits, prepare, run_ranks

STOPPED_AT = 3
"""Within the warm-up of four steps; the cosine follows it."""
BF16 = {"precision": "bf16"}
SELDOM = {"log_every": 2}
"""The interruption falls between two records of the metrics."""
CASES = {
    "clip": Case(stage="clip", dropout=0.1, joined=True, mirror=True, runtime={"workers": 1}),
    "clip-bf16": Case(
        stage="clip", dropout=0.1, optim=BF16, runtime={"zero_stage": 1, "activation_checkpointing": "full"} | SELDOM
    ),
    "prior": Case(
        stage="prior", dropout=0.1, joined=True, runtime={"micro_batch": 2, "activation_checkpointing": "selective"}
    ),
    "prior-bf16": Case(stage="prior", dropout=0.1, optim=BF16, runtime={"zero_stage": 2, "micro_batch": 3} | SELDOM),
    "decoder": Case(
        stage="decoder",
        dropout=0.1,
        mirror=True,
        diffusion={"learned_variance": "range", "zero_terminal_snr": True},
        runtime={"micro_batch": 3, "activation_checkpointing": "full"} | SELDOM,
    ),
    "decoder-joint": Case(
        stage="decoder",
        dropout=0.1,
        joint_images=2,
        strides=(5, 10),
        runtime={"micro_batch": 3, "activation_checkpointing": "selective"},
    ),
    "decoder-bf16": Case(stage="decoder", dropout=0.1, optim=BF16, runtime={"micro_batch": 3, "workers": 1}),
    "spatial_sr": Case(
        stage="spatial_sr", dropout=0.1, mirror=True, runtime={"micro_batch": 3, "zero_stage": 0} | SELDOM
    ),
    "spatial_sr-bf16": Case(
        stage="spatial_sr", dropout=0.1, joined=True, optim=BF16, runtime={"activation_checkpointing": "selective"}
    ),
    "temporal_sr": Case(stage="temporal_sr", dropout=0.1, strides=(2, 5), runtime={"micro_batch": 3, "zero_stage": 2}),
    "temporal_sr-bf16": Case(
        stage="temporal_sr",
        dropout=0.1,
        diffusion={"learned_variance": "residual", "loss_weight": "min_snr"},
        optim=BF16,
        runtime={"micro_batch": 3, "activation_checkpointing": "selective"},
    ),
}
"""All five stages drop conditions (but CLIP, which has none) and activations; padded clips; two learn variances, one
has images beside its videos, two have several frame rates."""
CASES["decoder-distilled"] = dataclasses.replace(
    CASES["decoder"], distillation={"steps": 26, "guidance": 2.0}, teacher="decoder-undisturbed"
)
CASES["temporal_sr-bf16-distilled"] = dataclasses.replace(
    CASES["temporal_sr-bf16"], distillation={"steps": 25}, teacher="temporal_sr-bf16-undisturbed"
)
"""Students of the undisturbed runs: with guidance folded in; in bf16."""


KEPT = {
    name: dataclasses.replace(CASES[name], runtime=CASES[name].runtime | {"activation_checkpointing": "none"})
    for name in ("clip-bf16", "prior", "decoder", "temporal_sr-bf16")
}
"""The same without activation checkpointing, for each kind of model."""


@pytest.fixture(scope="module")
def trained(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict]]]:
    """For each case the answers of three attempts on two ranks: undisturbed; stopped; going on."""
    folder = tmp_path_factory.mktemp("exact")
    prepare(sample_data, folder)
    attempts = [
        attempt
        for name, case in CASES.items()
        for attempt in (
            Attempt(run=f"{name}-undisturbed", case=case),
            Attempt(run=f"{name}-interrupted", case=case, stop_at=STOPPED_AT),
            Attempt(run=f"{name}-interrupted", case=case),
        )
    ]
    attempts += [Attempt(run=f"{name}-kept", case=case) for name, case in KEPT.items()]
    answers = run_ranks(folder, {2: attempts})[2]
    return folder, {name: answers[3 * number : 3 * number + 3] for number, name in enumerate(CASES)}


def assert_same_files(found: Path, expected: Path) -> None:
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in expected.iterdir())
    for shard in expected.glob("*.safetensors"):
        ours, theirs = load_file(found / shard.name), load_file(shard)
        differing = [name for name in theirs if ours[name].numpy().tobytes() != theirs[name].numpy().tobytes()]
        assert not differing, f"{shard.name}: {differing}"
    for path in expected.iterdir():
        assert (found / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", CASES)
def test_weights_moments_and_ema_are_those_of_the_undisturbed_run(
    trained: tuple[Path, dict[str, list[dict]]], name: str
) -> None:
    folder, answers = trained
    undisturbed, interrupted = (folder / "runs" / f"{name}-{kind}" for kind in ("undisturbed", "interrupted"))
    assert [answer["outcome"] for answer in answers[name]] == ["done", "stopped", "done"]
    assert [step for step, _ in commits(folder, interrupted.name)] == [STOPPED_AT, STEPS]
    (_, expected), (_, found) = commits(folder, undisturbed.name)[-1], commits(folder, interrupted.name)[-1]
    for shard in (expected / f"shard-0000{rank}-of-00002.safetensors" for rank in range(2)):
        assert {kind.split("/")[0] for kind in load_file(shard)} >= {"fp32", "exp_avg", "exp_avg_sq", "ema"}
    assert_same_files(found, expected)
    assert_same_files(interrupted / "export", undisturbed / "export")


@pytest.mark.parametrize("name", KEPT)
def test_activation_checkpointing_changes_nothing(trained: tuple[Path, dict[str, list[dict]]], name: str) -> None:
    (_, expected), (_, found) = (commits(trained[0], f"{name}-{kind}")[-1] for kind in ("undisturbed", "kept"))
    assert CASES[name].runtime["activation_checkpointing"] != "none"
    assert_same_files(found, expected)


@pytest.mark.parametrize("name", CASES)
def test_metrics_are_those_of_the_undisturbed_run(trained: tuple[Path, dict[str, list[dict]]], name: str) -> None:
    undisturbed, stopped, rest = (answer["metrics"] for answer in trained[1][name])
    assert stopped + rest == undisturbed
    train = [record for record in undisturbed if record["split"] == "train"]
    val = [record for record in undisturbed if record["split"] == "val"]
    every = CASES[name].runtime.get("log_every", 1)
    assert [record["step"] for record in train] == list(range(every, STEPS + 1, every))
    assert [record["step"] for record in val] == [3, 6]
    for records, metric in ((train, "loss"), (train, "grad_norm"), (train, "lr"), (val, "loss")):
        assert len({record[metric] for record in records}) > 1, f"{metric} never changes and so tells nothing"


@pytest.mark.parametrize("name", CASES)
def test_samples_times_and_noise_are_those_of_the_undisturbed_run(
    trained: tuple[Path, dict[str, list[dict]]], name: str
) -> None:
    undisturbed, stopped, rest = (sorted(answer["seen"]) for answer in trained[1][name])
    assert stopped + rest == undisturbed
    assert [sample for sample, _ in undisturbed] == list(range(STEPS * BATCH))
    assert rest[0][0] == STOPPED_AT * BATCH
