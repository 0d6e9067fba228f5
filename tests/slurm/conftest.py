"""Slurm clusters for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from slurm_cluster import Cluster, started


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes for a training and one to spare; preemption sends the job's own signal."""
    yield from started("--nodes", "3")


@pytest.fixture
def cluster_without_notice() -> Iterator[Cluster]:
    """Preemption sends TERM."""
    yield from started("--nodes", "2", "--no-user-signal")
