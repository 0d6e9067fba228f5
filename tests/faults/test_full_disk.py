"""A disk that fills up while a training saves: nothing is lost, the training goes on and saves when there is room."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_runs import STEPS, end_of, environment
from launching import REPOSITORY, Chain, assert_same_training, with_parents

from experiments.run import Run

KEPT = ["--keep-every", "25"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")


@pytest.fixture
def small_disk(chain: Chain, tmp_path: Path) -> Iterator[Chain]:
    """A home on a file system that can be filled; parents lie elsewhere."""
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m,mode=755", "tmpfs", str(home)], check=True)
    yield with_parents(chain, home)
    subprocess.run(["umount", "-l", str(home)], check=True)


def wait_for(condition: Callable[[], object], launcher: subprocess.Popen[str]) -> None:
    while not condition():
        assert launcher.poll() is None, launcher.communicate()[0]
        time.sleep(0.05)


def fill(disk: Path, *, leave: int) -> Path:
    """Leave so many bytes free."""
    filler = disk / "filler"
    state = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_bsize - leave)
    return filler


class Paused:
    """A training whose rank 0 waits at given steps for the test's word."""

    def __init__(self, home: Chain, folder: Path, steps: list[int]) -> None:
        folder.mkdir()
        self.home, self.folder = home, folder
        faults = {1: {"kind": "wait", "rank": 0, "steps": steps}}
        self.launcher = subprocess.Popen(
            home.command("prior", *STEPS, *KEPT),
            cwd=REPOSITORY,
            env=environment(home, faults, FAULT_FOLDER=str(folder)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def reach(self, step: int) -> Run:
        wait_for((self.folder / f"reached-{step}").exists, self.launcher)
        return next(self.home.registry.runs("prior"))

    def go(self, step: int) -> None:
        (self.folder / f"go-{step}").touch()

    def end(self) -> tuple[int, str]:
        said, _ = self.launcher.communicate(timeout=180)
        return self.launcher.returncode, said


@needs_root
def test_training_goes_on_over_a_full_disk_ends_only_if_it_is_full_at_the_last_step_and_loses_nothing(
    chain: Chain, small_disk: Chain, tmp_path: Path
) -> None:
    training = Paused(small_disk, tmp_path / "words", [8, 15, 23, 33])
    run = training.reach(8)
    before = [commit.step for commit in run.commits()]
    filler = fill(small_disk.home, leave=0)  # no room for a single line of metrics either
    training.go(8)
    training.reach(15)
    assert [commit.step for commit in run.commits()] == before == [5], "the last commit stays, no other came"
    filler.unlink()
    filler = fill(small_disk.home, leave=1 << 20)  # room for records and for a part of a checkpoint
    training.go(15)
    training.reach(23)
    assert [commit.step for commit in run.commits()] == before
    assert not list((run.folder / "checkpoints").glob(".staging*")), "what was begun is gone"
    filler.unlink()
    training.go(23)
    training.reach(33)
    filler = fill(small_disk.home, leave=1 << 20)
    training.go(33)
    code, said = training.end()
    assert code != 0 and "disk full" in said
    end = end_of(run, 1)
    assert end["kind"] == "error" and end["message"].startswith("disk full:") and end["exit_code"] == 2
    assert run.commits()[-1].step == 30 and run.newest_attempt() == 1, "nothing tries in vain again and again"
    failed = [event for event in run.events() if event["event"] == "checkpoint not saved"]
    # checkpoint_every is 5, so that the next try is made at the very next step.
    assert [event["step"] for event in failed] == [*range(10, 23), *range(35, 40)]
    assert all("No space left" in event["message"] for event in failed)
    assert [event["step"] for event in run.events() if event["event"] == "checkpoint"] == [5, 23, 25, 30]
    filler.unlink()
    run = small_disk.run("prior", *STEPS, *KEPT)
    assert [commit.step for commit in run.commits()] == [25, 35, 40], "the newest two and the milestone"
    assert_same_training(run, chain.run("prior", *STEPS))
