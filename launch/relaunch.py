"""Starting a run again as it was last launched, without a command line: for `tools/runs.py heal` and pipelines."""

from __future__ import annotations

from dalle2_video.config_io import from_dict
from experiments import code_snapshot
from experiments.run import Run
from launch.start import Order, Say, Started, start
from slurm.placement import Placement


def order_of(run: Run, *, retry: bool = False) -> Order:
    """Return the order of a run's newest launch; ValueError where it was never launched.

    It runs the code of that launch: only an explicit launch takes what stands in the checkout today.
    """
    intents = run.intents()
    if not intents:
        raise ValueError(f"{run.name} was never launched; run its launch command")
    request = intents[-1].request
    code = request.get("code")
    return Order(
        training=request["training"],
        placement=from_dict(Placement, request["placement"]),
        runtime=request["runtime"],
        tasks=max(1, len(request["groups"])),
        parallel=request["parallel"],
        num_tasks=request["num_tasks"],
        num_clips=request["num_clips"],
        data_root=request["data_root"],
        retry=retry,
        code=code if code and code_snapshot.folder(run.folder.parents[2], code).is_dir() else None,
    )


def relaunch(run: Run, say: Say, *, retry: bool = False) -> Started:
    """Start a run again unless it is done or at work; raises ValueError as `start` does."""
    return start(run, order_of(run, retry=retry), say)
