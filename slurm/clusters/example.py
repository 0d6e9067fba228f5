"""A profile to copy: nodes of eight GPUs with InfiniBand, jobs that may be preempted. Fields: slurm/placement.py."""

from __future__ import annotations

from slurm.placement import Placement

HOSTS: tuple[str, ...] = ()
"""Fill in your login nodes, for example ("login*.cluster.example.org",): then --cluster need not be typed."""


def placement() -> Placement:
    """Defaults of every launch on this cluster."""
    return Placement(
        partition="preemptible",
        account="my-group",
        qos="normal",
        constraint="a100",
        gpus_per_node=8,
        cpus_per_rank=12,
        mem_gb=960,
        time_min=24 * 60,
        # Twice the time of a checkpoint, and a step; the cluster's GraceTime must not be shorter.
        signal_lead_s=180,
        scratch="/scratch/$SLURM_JOB_ID",
        interface="ib0",
        setup=("module purge", "module load cuda/12.4"),
        env=("NCCL_DEBUG=WARN", "NCCL_ASYNC_ERROR_HANDLING=1"),
        exclude=None,
    )
