"""The cluster of `tools/slurm_sandbox`: nodes without real GPUs, whose jobs the partition `high` preempts."""

from __future__ import annotations

from slurm.placement import Placement

HOSTS: tuple[str, ...] = ()


def placement() -> Placement:
    """Defaults of every launch on the sandbox: one CPU thread a rank, since its nodes share this machine's cores."""
    return Placement(partition="low", time_min=60, signal_lead_s=60, env=("OMP_NUM_THREADS=1",))
