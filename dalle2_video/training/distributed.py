"""Process group of one training attempt: start, agree, end.

Every rank has RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in its environment before `start`. NCCL on
GPUs, gloo on CPUs. All ranks call the functions here in the same order.
"""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from dalle2_video.training import allocation

COLLECTIVE_TIMEOUT = timedelta(days=1)
"""Never what ends a hang: the watchdog knows how long a step takes and says who hangs where."""
RAISED_ON_ZERO = "raised on rank 0:"
T = TypeVar("T")


def start(threads: int, *, thrifty: bool = False) -> torch.device:
    """Join the process group and return this rank's device.

    threads: CPU threads of this rank; 0 shares the machine's cores among its ranks. thrifty: on a CPU memory goes back
    to the system as soon as a tensor is freed, see `allocation`; no tensor may have been made before.
    """
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
        if thrifty:
            allocation.be_thrifty()
    import deepspeed

    # On CPU DeepSpeed would compile its shared-memory collectives at first use: minutes, and a compiler on every node.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon()
    local_rank, local_world = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // local_world))
    if cuda:
        torch.cuda.set_device(local_rank)
    deepspeed.init_distributed(
        dist_backend="nccl" if cuda else "gloo", timeout=COLLECTIVE_TIMEOUT, verbose=False, auto_mpi_discovery=False
    )
    return torch.device("cuda", local_rank) if cuda else torch.device("cpu")


def _import_muon() -> None:
    """Import the optimiser that DeepSpeed looks for in ours, without what it brings.

    Nothing here uses Muon, but its kernels are handed to `torch.compile` when they are defined, which loads the whole
    of Inductor: two seconds of each start.
    """
    compile_function = torch.compile
    torch.compile = lambda function, *_, **__: function  # type: ignore[assignment]
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        torch.compile = compile_function


def rank() -> int:
    """Rank of this process."""
    return dist.get_rank()


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size()


def from_rank_zero(make: Callable[[], T]) -> T:
    """Return on every rank what `make` returns on rank 0; an exception there is raised on every rank.

    On the other ranks it bears rank 0's traceback as a note.
    """
    box: list[tuple[T | None, Exception | None, str]] = [(None, None, "")]
    if rank() == 0:
        try:
            box = [(make(), None, "")]
        except Exception as error:
            box = [(None, error, traceback.format_exc())]
    dist.broadcast_object_list(box, src=0)
    value, failure, trace = box[0]
    if failure is not None:
        if rank() != 0:
            failure.add_note(f"{RAISED_ON_ZERO}\n{trace}")
        raise failure
    return value  # type: ignore[return-value]


def gather_at_zero(value: T) -> list[T] | None:
    """Return the values of all ranks on rank 0 and None elsewhere."""
    gathered: list[T] | None = [value] * world_size() if rank() == 0 else None
    dist.gather_object(value, gathered, dst=0)
    return gathered


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks, in place."""
    dist.all_reduce(values)
    return values


def highest(value: int, device: torch.device) -> int:
    """Return the largest of all ranks' values."""
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def end() -> None:
    """Leave the process group together."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
