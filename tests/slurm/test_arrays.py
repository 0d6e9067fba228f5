"""What happens to the jobs of an array costs what they had not finished, and the store is the same to the byte."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import REPOSITORY
from slurm_cluster import Cluster

from experiments.registry import Registry
from experiments.run import Run

COPIES = 10
"""Of each sample clip, under names of their own: a job is to be at work long enough for something to happen to it."""
CLIPS_A_SHARD = 20
TASKS = 24 * COPIES // CLIPS_A_SHARD


@pytest.fixture(scope="module")
def long_data(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample data several times over."""
    folder = tmp_path_factory.mktemp("long")
    for path in sample_data.rglob("*.*"):
        if path.parent != sample_data:
            for copy in range(COPIES):
                twin = folder / path.relative_to(sample_data).parent / f"{copy}{path.name[1:]}"
                twin.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, twin)
    return folder


class Preprocessing:
    """An array on the cluster, or on this machine to compare with."""

    def __init__(self, cluster: Cluster, home: Path, data: Path) -> None:
        self.cluster, self.home, self.data = cluster, home, data

    def launch(self, *place: str) -> str:
        flags = ["--data-root", str(self.data), "--data.clips-per-shard", str(CLIPS_A_SHARD), "--tasks", "3"]
        answer = subprocess.run(
            [sys.executable, "launch/preprocess.py", *flags, *(place or ("--cluster", "sandbox"))],
            cwd=REPOSITORY,
            env=self.cluster.environment | {"DALLE2_VIDEO_HOME": str(self.home)},
            capture_output=True,
            text=True,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    @property
    def run(self) -> Run:
        return next(Registry(self.home).runs("preprocess"))

    def node_of(self, group: int) -> str:
        """Node on which a group is at work in the middle of a task, "" where it is not."""
        for attempt in self.run.open_attempts():
            if attempt.claim["group"] == group:
                beat = self.run.beat(attempt.number)
                if beat is not None and 0 < beat["share"] < 0.7 and beat["task"] not in self.run.tasks_done():
                    return attempt.claim["slurm"]["SLURMD_NODENAME"]
        return ""

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-2000:] for path in (self.run.folder / "logs").glob("*.out"))
                queue = self.cluster.try_slurm("squeue", "--array")
                pytest.fail(f"waited in vain until {what}; {self.run.attempts()}\n{queue}\n{logs}")
            time.sleep(0.02)

    def files(self) -> dict[str, bytes]:
        """Every visible file of the store."""
        store = self.run.folder / "store"
        return {
            str(path.relative_to(store)): path.read_bytes()
            for path in store.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(store).parts)
        }

    def ends(self, group: int) -> list[str]:
        return [
            (attempt.end or {"kind": ""})["kind"] for attempt in self.run.attempts() if attempt.claim["group"] == group
        ]


def test_of_an_array_whose_jobs_are_told_requeued_and_lose_their_node_only_what_is_missing_is_done_again(
    cluster: Cluster, tmp_path: Path, long_data: Path
) -> None:
    expected = Preprocessing(cluster, tmp_path / "undisturbed", long_data)
    expected.launch("--cluster", "local")

    ours = Preprocessing(cluster, tmp_path / "home", long_data)
    ours.launch("--cluster", "sandbox", "--sbatch", "exclusive")
    (array,) = (ours.run.intents()[-1].job or {})["ids"]
    ours.until(lambda: ours.node_of(0), "group 0 is within a task")
    (told,) = (attempt for attempt in ours.run.open_attempts() if attempt.claim["group"] == 0)
    task_at_hand = (ours.run.beat(told.number) or {})["task"]
    cluster.slurm("scancel", "--signal=USR2", f"{array}_0")
    ours.until(lambda: ours.node_of(1), "group 1 is within a task")
    cluster.slurm("scontrol", "requeue", f"{array}_1")
    ours.until(lambda: node(ours, 2), "group 2 is within a task")
    lost = node(ours, 2)
    done = {path: path.stat().st_mtime_ns for path in (ours.run.folder / "tasks").glob("[0-9]*.json")}
    cluster.sandbox("node-down", lost)
    try:
        # A job's end is recorded just after the run's.
        ours.until(lambda: all(ours.ends(group)[-1:] == ["done"] for group in range(3)), "the run is done")
    finally:
        cluster.sandbox("node-up", lost)
    # Within a task, whose work until then is lost, not after it: notice is short.
    left_s = (ours.run.attempt(told.number).end or {})["time"]
    assert ours.run.task_file(task_at_hand).stat().st_mtime > left_s
    assert ours.run.is_done()
    assert "error" not in ours.ends(0) + ours.ends(1) + ours.ends(2)
    assert all(path.stat().st_mtime_ns == changed for path, changed in done.items()), "a finished task was done again"
    assert len(ours.run.intents()) == 1 and len(ours.run.tasks_done()) == TASKS
    assert ours.files() == expected.files()
    environment = cluster.environment | {"DALLE2_VIDEO_HOME": str(ours.home)}
    command = [sys.executable, "tools/verify_store.py", ours.run.id]
    answer = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    ours.until(lambda: len(cluster.idle()) == 3, "the node is back")


def test_a_job_that_slurm_holds_since_nodes_cannot_start_it_is_submitted_anew_by_the_next_launch(
    cluster: Cluster, tmp_path: Path, sample_data: Path
) -> None:
    ours = Preprocessing(cluster, tmp_path / "home", sample_data)
    try:
        for number in ("1", "2", "3"):
            cluster.sandbox("launch-fail", number)
        ours.launch("--cluster", "sandbox", "--tasks", "1")
        ours.until(lambda: "held" in cluster.slurm("squeue", "--noheader", "--format=%r"), "the job is held")
    finally:
        for number in ("1", "2", "3"):
            cluster.sandbox("launch-mend", number)
    said = ours.launch("--cluster", "sandbox", "--tasks", "1")
    assert "running or queued already" not in said
    ours.until(lambda: ours.ends(0) == ["done"], "the run is done")
    assert len(ours.run.intents()) == 2 and ours.run.is_done()
    ours.until(lambda: len(cluster.idle()) == 3, "the nodes are back")


def node(ours: Preprocessing, group: int) -> str:
    """Number of the node on which a group is within a task."""
    return ours.node_of(group).removeprefix("n")
