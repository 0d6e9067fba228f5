"""Where the ranks of a Slurm job meet: the variables of the process group, from Slurm's own.

The port depends on job and restart and lies below the ephemeral range, so that an orphan of an earlier attempt can
neither join nor have it taken. Caches lie on the node's own disk, per job: a stale lock in a shared home would hang
every later run.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from experiments import files
from slurm import hostlist

log = logging.getLogger(__name__)

_PORTS = range(15000, 30000)


def join(usable: Callable[[int], bool]) -> bool:
    """Set RANK, WORLD_SIZE, MASTER_ADDR and the like; return whether this rank takes part.

    usable: whether a number of ranks shares the batch. Given more nodes than do, the largest number of them that does
    is used and the ranks of the others are not needed. Raises ValueError where no number of nodes shares the batch.
    Where a supervisor has set the variables, nothing is done.
    """
    if "RANK" in os.environ:
        return True
    job, restarts = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    nodes = hostlist.expand(os.environ["SLURM_JOB_NODELIST"])
    ranks = int(os.environ["SLURM_NTASKS"]) // len(nodes)
    used = next((number for number in range(len(nodes), 0, -1) if usable(number * ranks)), 0)
    if not used:
        raise ValueError(f"no number of nodes up to {len(nodes)}, with {ranks} ranks each, shares the batch")
    if int(os.environ["SLURM_NODEID"]) >= used:
        log.warning("not needed: of %d nodes the batch is shared by %d", len(nodes), used)
        return False
    caches = files.private_folder(caches_of_job())  # what is compiled there is loaded as code
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        WORLD_SIZE=str(used * ranks),
        LOCAL_RANK=os.environ["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR=nodes[0],
        MASTER_PORT=str(_PORTS[(job * 31 + restarts * 7919) % len(_PORTS)]),
        TORCH_EXTENSIONS_DIR=str(caches / "torch_extensions"),
        TRITON_CACHE_DIR=str(caches / "triton"),
    )
    return True


def caches_of_job() -> Path:
    """Folder of this job's compile caches on this node."""
    return Path(tempfile.gettempdir()) / f"dalle2_video-{os.getuid()}-{os.environ['SLURM_JOB_ID']}"
