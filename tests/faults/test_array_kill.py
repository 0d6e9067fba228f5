"""An array killed in the middle: the same command does only what is missing; the store is the same to the byte."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from launching import REPOSITORY, Chain, ranks_of

from experiments.run import Run

SMALL_SHARDS = ["--data.clips-per-shard", "1", "--tasks", "2"]


def digests(run: Run) -> dict[str, bytes]:
    """Every visible file of the store."""
    store = run.folder / "store"
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(store).parts)
    }


def test_preprocessing_killed_midway_ends_with_the_same_store(sample_data: Path, tmp_path: Path) -> None:
    undisturbed = Chain(home=tmp_path / "undisturbed", data=sample_data).run("preprocess", *SMALL_SHARDS)

    ours = Chain(home=tmp_path / "killed", data=sample_data)
    launcher = subprocess.Popen(
        ours.command("preprocess", *SMALL_SHARDS),
        cwd=REPOSITORY,
        env=ours.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    run = None
    while run is None or len(run.tasks_done()) < 3:
        assert time.monotonic() < deadline
        run = run or next(ours.registry.runs("preprocess"), None)
    job = run.intents()[-1].job
    assert job is not None
    launcher.kill()
    os.kill(job["pid"], signal.SIGKILL)
    while ranks_of(run):
        assert time.monotonic() < deadline, "workers must die with their supervisor"
    assert run.done() is None, "killed too late to prove anything"
    before = {path: path.stat().st_mtime_ns for path in (run.folder / "tasks").glob("[0-9]*.json")}
    assert 3 <= len(before) < 24

    # The data set was moved meanwhile: the same files in another place are the same run.
    moved = Chain(home=ours.home, data=shutil.copytree(sample_data, tmp_path / "moved"))
    finished = moved.run("preprocess", *SMALL_SHARDS)
    assert finished.folder == run.folder
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items()), "a finished task was done again"
    assert digests(finished) == digests(undisturbed)
    assert (finished.done() or {})["digest"] == (undisturbed.done() or {})["digest"]


def at_once(run: Run) -> int:
    """Return how many attempts were at work at the same time, at most."""
    changes = []
    for attempt in run.attempts():
        assert attempt.end is not None
        changes += [(attempt.claim["time"], 1), (attempt.end["time"], -1)]
    return max(sum(change for _, change in sorted(changes)[:n]) for n in range(1, len(changes) + 1))


def test_a_killed_group_starts_again_does_only_what_is_missing_and_no_more_groups_run_than_asked_for(
    sample_data: Path, tmp_path: Path
) -> None:
    ours = Chain(home=tmp_path, data=sample_data)
    launcher = subprocess.Popen(
        ours.command("preprocess", "--data.clips-per-shard", "1", "--tasks", "5", "--parallel", "2"),
        cwd=REPOSITORY,
        env=ours.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    run = None
    while run is None or not run.tasks_done():
        assert time.monotonic() < deadline
        run = run or next(ours.registry.runs("preprocess"), None)
    while not (working := ranks_of(run)):
        assert time.monotonic() < deadline
    os.kill(working[0], signal.SIGKILL)
    said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0 and "DONE" in said, said

    attempts = run.attempts()
    assert len(attempts) == 6 and at_once(run) == 2
    assert sorted(attempt.claim["group"] for attempt in attempts if (attempt.end or {})["kind"] == "done") == list(
        range(5)
    )
    (killed,) = [attempt for attempt in attempts if (attempt.end or {})["kind"] == "error"]
    assert killed.end is not None and "killed by signal 9" in killed.end["message"]
    assert run.tasks_done() == set(range(24))
    told = sorted(event["task"] for event in run.events())
    # A task is told just before it is recorded: only the killed one may have been told of twice.
    assert set(told) == set(range(24)) and len(told) <= 25
