"""The ranks of process groups on this machine, forked from one process that has imported DeepSpeed.

The import costs seconds of a core, once instead of once a rank. Before it the environment must say OMP_NUM_THREADS=1
and, without a GPU, DS_ACCELERATOR=cpu: a process that forks must not have threads.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable

from slurm.local import free_port


def preload() -> None:
    """Import all that the first Trainer of a process would."""
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - and torch's compiler with it

    import dalle2_video.training.loop  # noqa: F401

    gc.freeze()  # DeepSpeed collects garbage for every engine: half a second over all that was imported


def run(worlds: Iterable[int], work: Callable[[int, int], None]) -> bool:
    """Run work(rank, world size) on all ranks of process groups of these sizes, all at once; return whether all ended.

    A rank's traceback goes to stderr; where one fails the others are killed.
    """
    children = []
    for world in worlds:
        port = str(free_port())
        children += [_fork(rank, world, port, work) for rank in range(world)]
    while children:
        child, status = os.wait()
        children.remove(child)
        if status != 0:
            for other in children:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            return False
    return True


def _fork(rank: int, world: int, port: str, work: Callable[[int, int], None]) -> int:
    child = os.fork()
    if child != 0:
        return child
    code = 1
    try:
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(world),
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        work(rank, world)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # as slurm/job.py does, for the same reason
