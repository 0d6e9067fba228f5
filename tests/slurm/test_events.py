"""What happens to jobs on a cluster happens to a training on two nodes: it ends done, with the same weights to the bit.

Each test submits with the launcher a user types, on a real Slurm with real nodes (`tools/slurm_sandbox`), and lets
several things happen to one training.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import REPOSITORY, Chain, learnt, with_parents
from slurm_cluster import Cluster
from struck_training import INTERVAL, Training

from experiments.run import Run

Undisturbed = Callable[..., Run]

SILENT = "Slurm's controller does not answer; the work is saved"


@pytest.fixture
def training(cluster: Cluster, chain: Chain, tmp_path: Path) -> Training:
    return Training(cluster, with_parents(chain, tmp_path / "home"))


def test_preempted_requeued_held_and_out_of_time_with_notice_it_loses_no_step(
    training: Training, cluster: Cluster, undisturbed: Undisturbed
) -> None:
    reference = undisturbed()
    training.launch()
    training.until_step(1)
    training.strike("preemption with notice", cluster.preempt)
    training.until_step(2)
    training.strike("scontrol requeue", lambda: cluster.slurm("scontrol", "requeue", training.job))
    training.until_step(3)
    training.strike("scontrol requeuehold, release", lambda: cluster.slurm("scontrol", "requeuehold", training.job))
    assert "held" in training.state()
    assert "running or queued already" in training.launch()  # attaches to the held job
    cluster.slurm("scontrol", "release", training.job)
    training.until_step(4)
    training.strike(
        "time limit",
        lambda: cluster.slurm("scontrol", "update", f"JobId={training.job}", "EndTime=now+50"),
        at_once=False,
    )
    training.settle(reference)
    ends = training.ends()
    assert ends[:4] == ["preempted", "stopped", "stopped", "timeout"]
    # The shortened limit stays with the job: on a busy machine the rest may meet it again.
    assert set(ends[4:-1]) <= {"timeout"} and ends[-1] == "done"
    assert training.run.attempt(len(ends)).claim["slurm"]["SLURM_RESTART_COUNT"] == str(len(ends) - 1)
    assert len(training.run.intents()) == 1
    assert [strike.lost_steps for strike in training.strikes] == [0, 0, 0, 0]
    # Far less than the five seconds from TERM to KILL: nobody waits to be killed.
    assert max(strike.freed_s or 0 for strike in training.strikes) < 4


def test_preempted_without_notice_and_cancelled_it_loses_no_step_and_stays_cancelled_until_the_next_launch(
    cluster_without_notice: Cluster, chain: Chain, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    reference, cluster = undisturbed(), cluster_without_notice
    training = Training(cluster, with_parents(chain, tmp_path / "home"))
    training.launch()
    freeze_as_it_starts(training)
    training.strike("preemption without notice while imports run", lambda: cluster.preempt(2))
    training.until_step(1)
    training.strike("preemption without notice", lambda: cluster.preempt(2))
    training.until_step(2)
    training.strike("scancel, launch", lambda: cluster.slurm("scancel", training.job))
    time.sleep(8)  # a requeue would wait for the credential's six seconds
    assert not training.state() and training.run.newest_attempt() == 2
    assert "resumes at step" in training.launch()
    training.settle(reference)
    assert training.ends() == ["preempted", "stopped", "done"]
    assert [strike.lost_steps for strike in training.strikes] == [0, 0, 0]


@pytest.mark.slow
def test_nodes_that_lose_power_cost_what_was_not_saved(
    training: Training, cluster: Cluster, undisturbed: Undisturbed
) -> None:
    reference = undisturbed()
    training.launch()
    training.until_commits(1)
    training.strike("power failure of a node", lambda: cluster.sandbox("node-down", "2"))
    try:
        training.until_step(2)
        assert training.run.attempt(2).claim["slurm"]["SLURM_JOB_NODELIST"] == "n[1,3]"
        training.until_commits(2)
        training.strike("power failure of the first rank's node", lambda: cluster.sandbox("node-down", "1"))
    finally:
        for node in ("1", "2"):
            cluster.sandbox("node-up", node)
    training.settle(reference)
    assert training.ends()[-1] == "done" and len(training.run.intents()) == 1
    assert max(strike.lost_steps or 0 for strike in training.strikes) <= INTERVAL
    training.until(lambda: len(cluster.idle()) == 3, "the nodes are back")


@pytest.mark.slow
def test_the_orphan_of_a_network_partition_neither_commits_nor_joins(
    cluster: Cluster, chain: Chain, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    reference = undisturbed(nodes=1)
    training = Training(cluster, with_parents(chain, tmp_path / "home"), nodes=1)
    training.launch()
    training.until_commits(1)
    try:
        # It goes on as soon as the next attempt trains: at this pace it would be done before its node is missed.
        assert cluster.signal_ranks(1, "STOP") == 1
        training.strike("network partition", lambda: cluster.sandbox("node-cut", "1"))
        training.until_step(2)
        assert cluster.signal_ranks(1, "CONT") == 1, "nothing lives on: no orphan to fence"
        log = next((training.run.folder / "logs").glob("*_0_log.out"))
        training.until(lambda: "a newer attempt owns the run" in log.read_text(), "the orphan is refused")
        training.settle(reference)
    finally:
        cluster.sandbox("node-mend", "1")
    assert training.ends() == ["", "done"]
    training.until(lambda: len(cluster.idle()) == 3, "the node is back")


@pytest.mark.slow
def test_daemons_that_are_down_or_restarted_are_not_noticed_nor_is_a_preemption_while_imports_run(
    training: Training, cluster: Cluster, undisturbed: Undisturbed
) -> None:
    reference = undisturbed()
    cluster.sandbox("ctld-down")
    launcher = subprocess.Popen(
        training.command(), cwd=REPOSITORY, env=training.environment(), stdout=subprocess.PIPE, text=True
    )
    time.sleep(4)
    cluster.sandbox("ctld-up")
    said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, said
    freeze_as_it_starts(training)
    training.strike("preemption while imports run", cluster.preempt)
    training.until_commits(1)
    # On a quiet machine it would be done before all this has happened to it.
    assert [cluster.signal_ranks(node, "STOP") for node in (1, 2)] == [1, 1]
    training.strike("slurmctld and slurmd restarted", lambda: restart_daemons(cluster), frees=False)

    def log() -> Path:
        return next((training.run.folder / "logs").glob("*_0_log.out"))

    def told_while_nobody_answers() -> None:
        cluster.sandbox("ctld-down")
        try:
            assert cluster.signal_ranks(1, "USR2") == 1
            assert [cluster.signal_ranks(node, "CONT") for node in (1, 2)] == [1, 1]
            training.until(lambda: training.ends() == ["preempted"], "it saved")
            # Slurm's commands try for some seconds themselves.
            training.until(lambda: SILENT in log().read_text(), "it has asked a controller that is down")
        finally:
            cluster.sandbox("ctld-up")

    training.strike("preempted while slurmctld is down", told_while_nobody_answers)
    training.settle(reference)
    assert training.ends() == ["preempted", "done"]
    assert len(training.run.intents()) == 1


@pytest.mark.slow
def test_stopped_on_two_nodes_it_goes_on_on_one_with_the_same_samples(
    training: Training, cluster: Cluster, undisturbed: Undisturbed
) -> None:
    training.launch()
    training.until_commits(1)
    command = [training.command()[0], "tools/runs.py", "stop", training.run.id]
    answer = subprocess.run(command, cwd=REPOSITORY, env=training.environment(), capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    training.until(lambda: training.state() == "", "the job has left the queue")
    training.nodes = 1
    training.launch()
    training.until_done()
    assert training.ends() == ["stopped", "done"]
    assert [attempt.claim["world_size"] for attempt in training.run.attempts()] == [2, 1]
    ours, theirs = learnt(training.run), learnt(undisturbed())
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    went_on = training.steps(2)[0]["step"]
    for record, expected in zip(ours, theirs, strict=True):
        # The order of summation differs, and with the steps that difference grows: later ones tell nothing.
        if record["step"] < went_on + 3 * INTERVAL:
            assert record["loss"] == pytest.approx(expected["loss"], rel=1e-3), record["step"]


def freeze_as_it_starts(training: Training) -> None:
    """Stop the ranks while they import; Slurm wakes them when it has something to tell them."""
    training.until_running()
    cluster, nodes = training.cluster, range(1, training.nodes + 1)
    training.until(lambda: all(cluster.signal_ranks(node, "CONT") for node in nodes), "the ranks start")
    time.sleep(0.5)
    for node in nodes:
        cluster.signal_ranks(node, "STOP")
    assert training.run.newest_attempt() == 0, "too late: they have started"


def restart_daemons(cluster: Cluster) -> None:
    cluster.sandbox("ctld-restart")
    cluster.sandbox("slurmd-restart", "1")
