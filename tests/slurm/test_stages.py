"""The main events with the other trained stages; they take minutes: `-m "slow or not slow"`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from launching import Chain, with_parents
from slurm_cluster import Cluster
from struck_training import INTERVAL, Training

from experiments.run import Run


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["clip", "decoder", "temporal_sr"])
def test_preempted_requeued_cancelled_and_without_power_it_ends_as_undisturbed(
    cluster: Cluster, chain: Chain, tmp_path: Path, undisturbed: Callable[..., Run], stage: str
) -> None:
    reference = undisturbed(stage)
    training = Training(cluster, with_parents(chain, tmp_path / "home", stage), stage)
    training.launch()
    training.until_step(1)
    told = [
        training.strike("preemption with notice", cluster.preempt),
    ]
    training.until_step(2)
    told.append(training.strike("scontrol requeue", lambda: cluster.slurm("scontrol", "requeue", training.job)))
    training.until_step(3)
    told.append(training.strike("scancel, launch", lambda: cluster.slurm("scancel", training.job)))
    training.launch()
    training.until_step(4)
    try:
        untold = training.strike("power failure of a node", lambda: cluster.sandbox("node-down", "2"))
        training.settle(reference)
    finally:
        cluster.sandbox("node-up", "2")
    assert training.ends()[:3] == ["preempted", "stopped", "stopped"] and training.ends()[-1] == "done"
    assert [strike.lost_steps for strike in told] == [0, 0, 0]
    assert (untold.lost_steps or 0) <= INTERVAL
    training.until(lambda: len(cluster.idle()) == 3, "the node is back")
