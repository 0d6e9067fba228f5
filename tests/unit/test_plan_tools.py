"""Plans for people: lists, stories, and queueing them again once the parent that failed is mended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from plan_fixtures import TINY, launch, make_plan, make_queue
from registry_fixtures import make_run

from experiments import plan
from experiments.reconcile import Liveness
from experiments.registry import Registry
from launch import plans
from launch.plans import to_mend
from slurm.executor import Submission
from tools import registry_garbage, runs


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("DALLE2_VIDEO_HOME", str(tmp_path))
    return Registry(tmp_path)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> dict[str, Liveness]:
    return make_queue(monkeypatch)


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch, queue: dict[str, Liveness]) -> list[tuple[str, str]]:
    """Submissions as (stage, dependency); each becomes the next job, which is alive."""
    found: list[tuple[str, str]] = []

    def submit(work: Any, *, on_job: Any, say: Any) -> Submission:
        found.append((work.name.partition("-")[0], work.dependency))
        job = str(100 + len(found))
        queue[job] = "alive"
        on_job({"executor": "slurm", "ids": [job]})
        return Submission(record={"executor": "slurm", "ids": [job]}, groups=1)

    monkeypatch.setattr(plans.executor, "submit", submit)
    return found


def test_a_list_ends_with_what_waits_and_what_failed(
    registry: Registry, queue: dict[str, Liveness], capfd: pytest.CaptureFixture[str]
) -> None:
    store = make_run(registry, TINY, "preprocess")
    waits, failed, made = (make_plan(registry, stage, store) for stage in ("clip", "embed", "prior"))
    for number, one in enumerate((waits, failed, made)):
        launch(one, str(number))
    queue["0"] = "alive"
    failed.end(1, "failed", reason="clip/tiny-x failed: why", by_parents=True, restart=0)
    made.end(1, "became", run="prior/tiny-y", launch=1, restart=0)
    assert runs.main(["list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    shown = [line.strip() for line in lines[lines.index("") + 2 :]]
    assert shown == [
        f"{waits.name}  waiting in the queue: job 0, behind job 9",
        f"{failed.name}  failed: clip/tiny-x failed: why; mend it, then run the same pipeline command",
    ]
    assert runs.main(["list", "--stage", "embed"]) == 0
    assert waits.name not in capfd.readouterr().out


def test_a_plan_tells_its_story(
    registry: Registry, queue: dict[str, Liveness], capfd: pytest.CaptureFixture[str]
) -> None:
    one = make_plan(registry, "embed", make_run(registry, TINY, "preprocess"))
    launch(one, "7")
    assert runs.main(["why", one.id[:6]]) == 0
    told = capfd.readouterr().out
    assert "behind preprocess, clip" in told and "Slurm job 7" in told
    assert "clip: nothing was submitted that makes it" in told and "left the queue before it began" in told


def test_what_failed_with_its_parent_is_queued_again_with_it_and_nothing_else(
    registry: Registry, queue: dict[str, Liveness], submitted: list[tuple[str, str]]
) -> None:
    store = make_run(registry, TINY, "preprocess")
    clip = make_run(registry, TINY, "clip", [store], done=False)
    launch(clip, "1")
    stages = ("embed", "prior", "decoder", "temporal_sr")
    of = {stage: make_plan(registry, stage, store) for stage in stages}
    for stage, one in of.items():
        launch(one, "9")
        if stage != "decoder":  # its job was cancelled
            one.end(1, "failed", reason="clip failed", by_parents=stage != "temporal_sr", restart=0)

    def mend() -> list[str]:
        found = []
        for one, verdict in to_mend(registry, lambda _: True):
            assert plans.mend(registry, one, verdict, lambda _: None) is not None
            found.append(one.stage)
        return found

    assert mend() == [], "its parent is not mended"
    queue["1"] = "alive"
    assert mend() == ["embed", "prior"]
    assert submitted == [("embed", "afterany:1,singleton"), ("prior", "afterany:1:101,singleton")]
    assert mend() == [], "they are in the queue"


def test_plans_that_are_of_no_use_any_more_are_garbage(registry: Registry, queue: dict[str, Liveness]) -> None:
    store = make_run(registry, TINY, "preprocess")
    clip, embed = (make_run(registry, TINY, "clip", [store], done=done, salt=str(done)) for done in (True, False))
    for stage, job in (("clip", "1"), ("embed", "2"), ("prior", "3"), ("decoder", "4"), ("temporal_sr", "5")):
        launch(make_plan(registry, stage, store), job)
    queue["4"] = "alive"
    of = {one.stage: one for one in plan.plans(registry.home)}
    of["clip"].end(1, "became", run=clip.name, launch=1, restart=0)
    of["embed"].end(1, "became", run=embed.name, launch=1, restart=0)
    of["temporal_sr"].end(1, "failed", reason="why", by_parents=True, restart=0)

    def garbage(*, whole_runs: bool = False) -> set[str]:
        found = registry_garbage.find(registry, whole_runs=whole_runs)
        return {one.path.parent.name for one in found if "plan" in one.why}

    assert garbage(whole_runs=True) == set(), "younger than a day"
    for one in of.values():
        for name in ("plan.json", "intent"):
            os.utime(one.folder / name, (0, 0))
    assert garbage() == {"clip"}
    assert garbage(whole_runs=True) == {"clip", "prior", "temporal_sr"}
