"""Slurm clusters for the tests of this folder, and the undisturbed runs that disturbed ones are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from launching import Chain, with_parents
from slurm_cluster import Cluster, started
from struck_training import Training

from experiments.run import Run


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes for a training and one to spare; preemption sends the job's own signal."""
    yield from started("--nodes", "3")


@pytest.fixture(scope="session")
def cluster_without_notice() -> Iterator[Cluster]:
    """Preemption sends TERM."""
    yield from started("--nodes", "2", "--no-user-signal")


@pytest.fixture(autouse=True)
def no_job_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever became of a test, its jobs do not stand in the way of the next one's."""
    yield
    for name in {"cluster", "cluster_without_notice"} & set(request.fixturenames):
        request.getfixturevalue(name).slurm("scancel", "--user=root")


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Run]:
    """Return a stage's run on so many nodes that nothing happened to; trained once a session."""
    runs: dict[tuple[str, int], Run] = {}

    def trained(stage: str = "prior", nodes: int = 2) -> Run:
        if (stage, nodes) not in runs:
            home = tmp_path_factory.mktemp("undisturbed") / "home"
            training = Training(cluster, with_parents(chain, home, stage), stage, nodes=nodes)
            training.launch()
            training.until_done()
            assert training.ends() == ["done"]
            claim = training.run.attempt(1).claim
            assert claim["world_size"] == nodes
            assert claim["slurm"]["SLURM_JOB_NODELIST"] == ("n1" if nodes == 1 else f"n[1-{nodes}]")
            assert claim["slurm"]["SLURMD_NODENAME"] == "n1" and claim["slurm"]["SLURM_JOB_PARTITION"] == "low"
            runs[stage, nodes] = training.run
        return runs[stage, nodes]

    return trained
