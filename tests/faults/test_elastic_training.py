"""Stopped on four ranks and gone on with on one, two or three: the same samples, noise and losses."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from trainer_ranks import BATCH, STEPS, Attempt, Case, commits, prepare, run_ranks

STOPPED_AT = 3
CASES = {
    "clip": Case(stage="clip"),
    "decoder": Case(stage="decoder"),
    # Twelve samples in 3, 6, 12 and 4 micro-batches a rank on 4, 2, 1 and 3 ranks.
    "decoder-accumulated": Case(stage="decoder", mirror=True, runtime={"micro_batch": 1}),
}
TARGETS = (1, 2, 3)
Answers = dict[tuple[str, str], dict]


def to(world: int) -> str:
    return f"on {world} ranks"


@pytest.fixture(scope="module")
def trained(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answers]:
    """Answers by (case, what was run): "stopped" and "undisturbed" on four ranks, then the rest on the others."""
    folder = tmp_path_factory.mktemp("elastic")
    prepare(sample_data, folder)
    plan = {
        4: [Attempt(run=f"{name} stopped", case=case, stop_at=STOPPED_AT) for name, case in CASES.items()]
        + [Attempt(run=f"{name} undisturbed", case=case) for name, case in CASES.items()]
    }
    for world in TARGETS:
        plan[world] = [
            Attempt(run=f"{name} {to(world)}", case=case, after=f"{name} stopped") for name, case in CASES.items()
        ]
    found = run_ranks(folder, plan)
    named = {
        tuple(attempt.run.split(" ", 1)): answer
        for world, attempts in plan.items()
        for attempt, answer in zip(attempts, found[world], strict=True)
    }
    return folder, named  # type: ignore[return-value]


def records(answer: dict, split: str) -> dict[int, dict]:
    return {record["step"]: record for record in answer["metrics"] if record["split"] == split}


@pytest.mark.parametrize("world", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_losses_after_a_change_of_the_world_size_are_those_of_the_undisturbed_run(
    trained: tuple[Path, Answers], name: str, world: int
) -> None:
    folder, answers = trained
    assert (answers[name, "stopped"]["outcome"], answers[name, to(world)]["outcome"]) == ("stopped", "done")
    assert [step for step, _ in commits(folder, f"{name} {to(world)}")] == [STOPPED_AT, STEPS]
    for split, steps in (("train", range(STOPPED_AT + 1, STEPS + 1)), ("val", [STEPS])):
        expected = records(answers[name, "undisturbed"], split)
        found = records(answers[name, to(world)], split)
        assert list(found) == list(steps)
        for step, record in found.items():
            assert record["loss"] == pytest.approx(expected[step]["loss"], rel=1e-5, abs=0), (split, step)
    # The loss of another step differs by far more than the tolerance.
    losses = [record["loss"] for record in records(answers[name, "undisturbed"], "train").values()]
    assert all(abs(one / other - 1) > 1e-4 for one, other in itertools.pairwise(losses)), losses


@pytest.mark.parametrize("world", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_every_world_size_sees_the_same_samples_times_and_noise(
    trained: tuple[Path, Answers], name: str, world: int
) -> None:
    _, answers = trained
    stopped, rest, undisturbed = (sorted(answers[name, what]["seen"]) for what in ("stopped", to(world), "undisturbed"))
    assert stopped + rest == undisturbed
    assert [sample for sample, _ in undisturbed] == list(range(STEPS * BATCH))
    assert len(stopped) == STOPPED_AT * BATCH
