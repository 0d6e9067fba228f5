"""Figures of a run in the lists: nodes and restarts where there is room, tasks of arrays, time left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from registry_fixtures import make_spec

from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run
from slurm.local import process_record
from tools import run_facts, runs


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return Registry(tmp_path / "home")


def at_work(registry: Registry, nodes: str = "n[1-2]", **request: Any) -> Run:
    run = registry.create(make_spec(stage=request.pop("stage", "clip")))
    run.claim_intent(1, {"launcher": {}, "groups": [[]], "training": True} | request)
    run.resolve_intent(1, process_record(os.getpid()))
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": nodes, "SLURM_RESTART_COUNT": "2"}
    run.claim_attempt({"intent": 1, "group": 0, "slurm": slurm})
    return run


def listed(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    assert runs.main(["list"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    return head.split(), line.split()


def test_the_list_has_nodes_and_restarts_where_there_are_some_and_room(
    registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = at_work(registry)
    head, line = listed(capsys)
    assert head == ["stage", "name", "state", "progress", "nodes", "restarts", "attempts", "last", "end", "age"]
    assert line[:8] == ["clip", "tiny-0123456789", "running", "0%", "starting", "n[1-2]", "2", "1"]
    monkeypatch.setattr(runs, "PIPE_COLUMNS", 70)
    assert "nodes" not in listed(capsys)[0]
    monkeypatch.setattr(runs, "PIPE_COLUMNS", 180)
    run.mark_done({"digest": "d"})
    assert "nodes" not in listed(capsys)[0] and "restarts" not in listed(capsys)[0]


def test_an_array_tells_its_tasks_and_clips_a_second(registry: Registry) -> None:
    run = at_work(registry, stage="preprocess", training=False, groups=[[0, 1, 2, 3]], num_tasks=4, num_clips=16)
    (run.folder / "tasks").mkdir()
    run.finish_task(0, {"clips": 4, "bad": {}})
    looker = run_facts.Looker()
    facts = looker.look(run, "running")
    assert (facts.done, facts.of, facts.loss) == (1, 4, None)
    assert facts.per_second and facts.left_s is not None
    assert looker.look(run, "failed").per_second is None


@pytest.mark.parametrize(
    ("latest", "step", "steps", "left_s"),
    [
        # Two steps of four samples a second.
        ({"step": 90, "samples": 360, "samples_per_second": 8.0}, 90, 120, 15.0),
        ({"step": 90, "samples": 360, "samples_per_second": 8.0}, 118, 120, 1.0),
        ({"step": 90, "samples_per_second": 8.0}, 90, 120, None),
        ({"step": 90, "samples": 360, "samples_per_second": 0.0}, 90, 120, None),
        ({}, 90, 120, None),
        ({"step": 90, "samples": 360, "samples_per_second": 8.0}, None, None, None),
    ],
)
def test_time_left_follows_from_the_rate(
    latest: dict[str, Any], step: int | None, steps: int | None, left_s: float | None
) -> None:
    assert run_facts.time_left(latest, step, steps) == left_s
