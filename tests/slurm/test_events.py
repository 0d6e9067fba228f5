"""What happens to jobs on a cluster happens to a training on two nodes: it ends done, with the same weights to the bit.

Each test submits with the launcher a user types, on a real Slurm with real nodes (`tools/slurm_sandbox`).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import NEEDED, REPOSITORY, TINY, Chain, assert_same_training, with_parents
from slurm_cluster import Cluster

from experiments.run import Run

STEPS, INTERVAL = 150, 10
FLAGS = ["--prior.optim.steps", str(STEPS), "--checkpoint-every", str(INTERVAL), "--validate-every", "50"]
LAUNCH = ["--cluster", "slurm", "--nodes", "2", "--log-every", "1", "--partition", "low", "--torch-threads", "1"]


class Training:
    """The prior on two nodes, submitted as a user does."""

    def __init__(self, cluster: Cluster, chain: Chain) -> None:
        self.cluster, self.chain = cluster, chain
        self.launch()
        self.run: Run = next(chain.registry.runs("prior"))

    def launch(self) -> str:
        """Type the launch command; return what it says."""
        flags = [flag for part in NEEDED["prior"] for flag in TINY[part]]
        answer = subprocess.run(
            [sys.executable, "launch/prior.py", *flags, *FLAGS, *LAUNCH],
            cwd=REPOSITORY,
            env=self.cluster.environment | {"DALLE2_VIDEO_HOME": str(self.chain.home)},
            capture_output=True,
            text=True,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    @property
    def job(self) -> str:
        """Id of the newest job."""
        job = self.run.intents()[-1].job
        assert job is not None
        return job["ids"][-1]

    def state(self) -> str:
        """State of the newest job in the queue, "" where it has left."""
        return self.cluster.slurm("squeue", "--noheader", "--format=%T %r", "--jobs", self.job).strip()

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 150) -> None:
        """Wait; fails with the logs."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"{path}:\n{path.read_text()[-3000:]}" for path in sorted((self.run.folder / "logs").glob("*.out"))
                )
                queue = self.cluster.slurm("squeue")
                pytest.fail(f"waited in vain until {what}; attempts {self.run.attempts()}\n{queue}\n{logs}")
            time.sleep(0.2)

    def until_commits(self, attempts: int = 1) -> None:
        """Wait until the attempt of this number has committed."""
        self.until(lambda: any(c.attempt >= attempts for c in self.run.commits()), f"attempt {attempts} commits")

    def until_done(self) -> None:
        """Wait for the end of the run and of its job."""
        self.until(self.run.is_done, "the run is done")

    def ends(self) -> list[str]:
        """How the attempts ended, in order; "" without a word."""
        return [(attempt.end or {"kind": ""})["kind"] for attempt in self.run.attempts()]


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Run:
    training = Training(cluster, with_parents(chain, tmp_path_factory.mktemp("undisturbed") / "home"))
    training.until_done()
    assert training.ends() == ["done"]
    claim = training.run.attempt(1).claim
    assert claim["world_size"] == 2 and claim["slurm"]["SLURM_JOB_NODELIST"] == "n[1-2]"
    return training.run


@pytest.fixture
def training(cluster: Cluster, chain: Chain, tmp_path: Path, undisturbed: Run) -> Training:
    return Training(cluster, with_parents(chain, tmp_path / "home"))


def preempt(cluster: Cluster, nodes: int) -> None:
    """Submit a job that takes all nodes away for two seconds."""
    cluster.slurm(
        "sbatch", "--partition=high", f"--nodes={nodes}", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"
    )


def test_preemption_with_notice_saves_and_goes_on(training: Training, cluster: Cluster, undisturbed: Run) -> None:
    training.until_commits()
    preempt(cluster, 3)
    training.until_done()
    assert training.ends() == ["preempted", "done"]
    # It saved when it was told, not at the last multiple of the interval.
    assert training.run.attempt(2).claim["slurm"]["SLURM_RESTART_COUNT"] == "1"
    assert_same_training(training.run, undisturbed)


def test_preemption_without_notice_saves_and_goes_on(
    cluster_without_notice: Cluster, chain: Chain, tmp_path: Path, undisturbed: Run
) -> None:
    training = Training(cluster_without_notice, with_parents(chain, tmp_path / "home"))
    training.until_commits()
    preempt(cluster_without_notice, 2)
    training.until_done()
    assert training.ends() == ["stopped", "done"]
    assert_same_training(training.run, undisturbed)


def test_a_preemption_while_imports_run_costs_no_attempt(
    training: Training, cluster: Cluster, undisturbed: Run
) -> None:
    training.until(lambda: training.state().startswith("RUNNING"), "the job runs")
    preempt(cluster, 3)
    training.until_done()
    assert training.ends()[-1] == "done" and "error" not in training.ends()
    assert_same_training(training.run, undisturbed)


def test_the_time_limit_ends_in_the_next_job(training: Training, cluster: Cluster, undisturbed: Run) -> None:
    training.until_commits()
    cluster.slurm("scontrol", "update", f"JobId={training.job}", "EndTime=now+20")
    training.until(lambda: len(training.run.attempts()) > 1 or training.run.is_done(), "it is started again")
    training.until_done()
    assert training.ends() == ["preempted", "done"]
    assert_same_training(training.run, undisturbed)


def test_requeued_held_and_released_it_goes_on(training: Training, cluster: Cluster, undisturbed: Run) -> None:
    training.until_commits()
    cluster.slurm("scontrol", "requeue", training.job)
    training.until_commits(2)
    cluster.slurm("scontrol", "requeuehold", training.job)
    training.until(lambda: "JobHeld" in training.state(), "the job is held")
    assert "running" not in training.launch()  # attaches to the held job
    cluster.slurm("scontrol", "release", training.job)
    training.until_done()
    assert training.ends() == ["stopped", "stopped", "done"]
    assert len(training.run.intents()) == 1
    assert_same_training(training.run, undisturbed)


def test_a_cancelled_job_stays_cancelled_and_the_next_launch_goes_on(
    training: Training, cluster: Cluster, undisturbed: Run
) -> None:
    training.until_commits()
    cluster.slurm("scancel", training.job)
    training.until(lambda: not training.state(), "the job has left the queue", timeout_s=60)
    time.sleep(10)  # a requeue would wait for the credential's six seconds
    assert not training.state() and not training.run.is_done()
    training.launch()
    training.until_done()
    assert training.ends() == ["stopped", "done"]
    assert_same_training(training.run, undisturbed)


def test_a_node_loses_power(training: Training, cluster: Cluster, undisturbed: Run) -> None:
    training.until_commits()
    cluster.sandbox("node-down", "2")
    try:
        training.until_done()
    finally:
        cluster.sandbox("node-up", "2")
        training.until(lambda: "n2" in idle(cluster), "the node is back")
    assert training.ends()[-1] == "done"
    assert training.run.attempts()[-1].claim["slurm"]["SLURM_JOB_NODELIST"] == "n[1,3]"
    assert_same_training(training.run, undisturbed)


def test_the_orphan_of_a_network_partition_neither_commits_nor_joins(
    training: Training, cluster: Cluster, undisturbed: Run
) -> None:
    training.until_commits()
    cluster.sandbox("node-cut", "1")
    try:
        training.until(lambda: len(training.run.attempts()) > 1, "it is started elsewhere")
        orphans = cluster.sandbox("in", "1", "pgrep", "--count", "--full", "slurm.job|submitit")
        training.until_done()
    finally:
        cluster.sandbox("node-mend", "1")
        training.until(lambda: "n1" in idle(cluster), "the node is back")
    assert int(orphans) > 0, "nothing lived on: no orphan to fence"
    assert training.ends()[-1] == "done"
    started = training.run.attempts()[1].claim["time"]
    late = [
        commit for commit in training.run.commits() if commit.attempt == 1 and commit.path.stat().st_ctime > started
    ]
    assert late == []
    assert_same_training(training.run, undisturbed)


def test_daemons_that_are_restarted_are_not_noticed(training: Training, cluster: Cluster, undisturbed: Run) -> None:
    training.until_commits()
    cluster.sandbox("ctld-restart")
    cluster.sandbox("slurmd-restart", "1")
    training.until_done()
    assert training.ends() == ["done"]
    assert_same_training(training.run, undisturbed)


def idle(cluster: Cluster) -> str:
    return cluster.slurm("sinfo", "--noheader", "--Node", "--partition=low", "--states=idle", "--format=%N")
