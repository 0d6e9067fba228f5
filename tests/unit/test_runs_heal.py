"""`tools/runs.py heal`: quiet where nothing is to do, one line a run, told once, within the limits given."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from registry_fixtures import make_spec

from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run
from launch import relaunch as launch_relaunch
from slurm.local import process_record
from tools import runs

GONE = {"executor": "local", "host": socket.gethostname(), "pid": 2**22 + 1, "start_ticks": 1}
NOW = ("--older-than", "0h")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return Registry(tmp_path / "home")


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the runs that were resumed; nothing is really started (that is tests/slurm/test_see.py's)."""
    found: list[str] = []

    class Started:
        decision = type("Decision", (), {"reason": "resumes at step 40"})
        submission = type("Submission", (), {"record": GONE, "refused": ""})

    def relaunch(run: Run, say: object, *, retry: bool = False) -> type[Started]:
        if run.id.startswith("bad"):
            raise ValueError("sbatch refused the job")
        found.append(run.id)
        return Started

    monkeypatch.setattr(launch_relaunch, "relaunch", relaunch)
    return found


def lost(registry: Registry, name: str, *ends: str | None, job: Any = GONE, **details: Any) -> Run:
    run = registry.create(make_spec(id=name))
    run.claim_intent(1, {"launcher": GONE, "groups": [[]], "training": True, "placement": {}})
    run.resolve_intent(1, job)
    for end in ends:
        attempt = run.claim_attempt({"intent": 1, "group": 0})
        if end is not None:
            attempt.end(end, **details)  # type: ignore[arg-type]
    return run


def heal(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert runs.main(["heal", *arguments]) == code
    answer = capsys.readouterr()
    return answer.out + answer.err


def test_where_nothing_is_to_do_nothing_is_said(
    registry: Registry, resumed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert heal(capsys) == ""
    lost(registry, "a000000001", None, job=process_record(os.getpid()))
    lost(registry, "a000000002", "done").mark_done({"digest": "d"})
    lost(registry, "a000000003", "stopped").request_stop()
    registry.create(make_spec(id="a000000004"))
    lost(registry, "a000000005", None, job=GONE | {"host": "elsewhere"})
    assert heal(capsys, *NOW) == "" and resumed == []
    told = heal(capsys, *NOW, "--dry-run")
    assert re.search(r"a000000003: left alone: somebody asked it to stop", told)
    assert re.search(r"a000000004: left alone: it was never launched", told)
    assert "a000000001" not in told and "a000000002" not in told and told.count("\n") == 3


def test_what_was_lost_is_resumed_with_a_line_each(
    registry: Registry, resumed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lost(registry, "a000000001", None)
    lost(registry, "a000000002", "error", message="a reason")
    assert "a000000001: would resume: " in heal(capsys, *NOW, "--dry-run") and resumed == []
    told = heal(capsys, *NOW).splitlines()
    assert sorted(told) == [f"clip/tiny-a00000000{n}: resumes at step 40: process {GONE['pid']}" for n in (1, 2)]
    assert sorted(resumed) == ["a000000001", "a000000002"]


def test_what_is_left_to_a_person_is_said_once(
    registry: Registry, resumed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lost(registry, "a000000001", "stopped")
    lost(registry, "a000000002", "error", "error", "error", message="the same again")
    lost(registry, "a000000003", "error", message="--micro-batch 3 [red]does not divide", exit_code=2)
    told = heal(capsys, *NOW)
    assert "a000000001: left alone: it was stopped, and nobody can tell whether by a person" in told
    assert "a000000002: left alone: 3 attempts in a row failed" in told
    assert "a000000003: left alone: mend the cause, then launch it again: --micro-batch 3 [red]does" in told
    assert heal(capsys, *NOW) == "" and resumed == []


def test_the_limit_and_the_ages_are_kept(
    registry: Registry, resumed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    made = [lost(registry, f"a00000000{number}", None) for number in range(5)]
    assert heal(capsys) == "" and resumed == []  # heard of just now
    assert heal(capsys, *NOW, "--dry-run", "--limit", "2").count("in a later call") == 3
    assert heal(capsys, *NOW, "--limit", "2").count("\n") == 2 and len(resumed) == 2
    resumed.clear()
    time.sleep(1.1)
    made[0].claim_attempt({"intent": 1, "group": 0}).end("preempted")
    assert heal(capsys, "--older-than", "0.015min").count("\n") == 4 and made[0].id not in resumed
    resumed.clear()
    assert heal(capsys, *NOW, "--since", "0.015min").count("\n") == 1 and resumed == [made[0].id]


def test_runs_of_others_are_theirs_to_heal(
    registry: Registry, resumed: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost(registry, "a000000001", None)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    assert heal(capsys, *NOW) == "" and resumed == []
    assert heal(capsys, *NOW, "--all-users").count("\n") == 1 and resumed == ["a000000001"]


def test_one_that_cannot_be_resumed_keeps_none_of_the_others(
    registry: Registry, resumed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a000000001", "bad0000002", "c000000003"):
        lost(registry, name, None)
    told = heal(capsys, *NOW, code=2)
    assert "error: clip/tiny-bad0000002 could not be resumed: sbatch refused the job" in told
    assert sorted(resumed) == ["a000000001", "c000000003"]
