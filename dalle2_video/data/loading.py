"""A rank's batches in order, made ahead by loader processes or in this one: no state but the step.

Invariant: what is yielded depends neither on the number of processes nor on how far ahead they work. The processes
leave signals to the trainer and end with it; one that dies is an error that names the clip it was reading. Batches
come over in shared memory, so that the trainer copies nothing.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from ctypes import Array, c_int64
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info

from dalle2_video.data.batches import Batch, WindowDataset, batch_samples

# Slurm signals every process of a step. Stopping is decided by the training process; a loader worker that died of the
# same signal would turn an orderly stop into an error.
_LEFT_TO_THE_TRAINER = {signal.SIGUSR2, signal.SIGTERM}
_DEATH_IS_KNOWN_S = 1.0
"""The fork server tells of a dead worker a little after its connections break."""


@dataclass(frozen=True, kw_only=True)
class _RankBatches(Sampler[list[int]]):
    """The sample numbers of a rank's micro-batches, step by step."""

    first_step: int
    last_step: int
    batch_size: int
    rank: int
    world: int
    micro: int

    def __iter__(self) -> Iterator[list[int]]:
        accumulation = self.batch_size // (self.micro * self.world)
        for step in range(self.first_step, self.last_step):
            yield from batch_samples(step, self.batch_size, self.rank, self.world, self.micro, accumulation)


def loader(
    dataset: WindowDataset,
    first_step: int,
    last_step: int,
    batch_size: int,
    rank: int,
    world: int,
    micro: int,
    workers: int,
    *,
    prefetch: int = 2,
    pin: bool = False,
) -> Generator[Batch, None, None]:
    """Yield the rank's micro-batches of steps [first_step, last_step) in order, batch_size / (micro * world) a step.

    workers: processes that load ahead, `prefetch` batches each; 0 loads in this one. pin: in page-locked memory, which
    a GPU copies from while the trainer goes on. What is yielded depends on none of these. Raises OSError naming the
    clip where the store is damaged, RuntimeError naming it where a worker died reading it.
    """
    numbers = _RankBatches(
        first_step=first_step, last_step=last_step, batch_size=batch_size, rank=rank, world=world, micro=micro
    )
    if workers == 0:
        for samples in numbers:
            batch = dataset.__getitems__(samples)
            yield {name: tensor.pin_memory() for name, tensor in batch.items()} if pin else batch
        return
    running = LoaderProcesses(dataset, numbers, workers, prefetch=prefetch, pin=pin)
    # At exit multiprocessing waits for its children, so that they must be told to end before.
    atexit.register(running.close)
    try:
        yield from running
    finally:
        running.close()
        atexit.unregister(running.close)


class LoaderProcesses(Iterator[Batch]):
    """Batches from `workers`, running loader processes; `reading` has the store row that each reads, -1 for none."""

    def __init__(
        self, dataset: WindowDataset, numbers: Sampler[list[int]], workers: int, *, prefetch: int, pin: bool
    ) -> None:
        # A fork server, since this process has threads and perhaps a GPU, which fork does not survive.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._store = dataset.store
        self.reading: Array[c_int64] = context.RawArray(c_int64, [-1] * workers)
        data_loader = DataLoader(
            dataset,
            batch_sampler=numbers,
            num_workers=workers,
            collate_fn=_as_it_is,
            prefetch_factor=prefetch,
            pin_memory=pin,
            multiprocessing_context=context,
            worker_init_fn=functools.partial(_start, self.reading),
            generator=torch.Generator(),  # its seed for workers must not be drawn from the global generator
        )
        # Blocked signals stay blocked in new processes, and reach this one as soon as the old mask is back.
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_TRAINER)
        try:
            resource_tracker.ensure_running()
            # Starting multiprocessing's tracker unblocks SIGTERM; it runs now and will not do so again.
            signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_TRAINER)
            # Any: nothing public tells of the processes.
            self._batches = cast(Any, iter(data_loader))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        self.workers: list[BaseProcess] = self._batches._workers

    def __next__(self) -> Batch:
        """Return the next batch. Raises what a worker raised, and RuntimeError if one died."""
        try:
            return next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            # Of a worker that died DataLoader says so within 5 s, or finds a connection broken.
            death = self._death()
            if death is None:
                raise
            raise RuntimeError(death) from error

    def close(self) -> None:
        """End the workers, also one that hangs; calling it again does nothing."""
        if self._batches is None:
            return
        # Not left to the iterator's end: the traceback of an error may keep it alive.
        self._batches._shutdown_workers()
        self._batches = None
        for worker in self.workers:
            if worker.is_alive():
                worker.kill()  # it ignores SIGTERM

    def _death(self) -> str | None:
        """Return which worker died, how and at what; None if all live."""
        connection.wait([worker.sentinel for worker in self.workers], _DEATH_IS_KNOWN_S)
        for number, (worker, row) in enumerate(zip(self.workers, self.reading, strict=True)):
            if not worker.is_alive():
                place = f"while reading clip {self._store.clip_id(row)} of" if row >= 0 else "while reading no clip of"
                return (
                    f"loader worker {number} died ({_ending(worker.exitcode)}) {place} {self._store.path}; look for "
                    f"damage: python tools/verify_store.py {self._store.path}"
                )
        return None


def _ending(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return "SIGKILL, as when memory runs out; try fewer --workers or less --prefetch"
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


def _as_it_is(batch: Any) -> Any:
    return batch


def _start(reading: Array[c_int64], worker: int) -> None:
    """Make a new worker live and die with the trainer, and tell the trainer what it reads."""
    for number in _LEFT_TO_THE_TRAINER:
        signal.signal(number, signal.SIG_IGN)
    # PyTorch's own watchdog looks at the parent's pid, which is the fork server's: after a SIGKILL of the trainer the
    # worker and the server would keep each other alive for ever.
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    threading.Thread(target=_exit_after, args=(trainer,), daemon=True).start()
    info = get_worker_info()
    assert info is not None and isinstance(info.dataset, WindowDataset)
    info.dataset.reading = np.ctypeslib.as_array(reading)[worker : worker + 1]


def _exit_after(trainer: BaseProcess) -> None:
    trainer.join()
    os._exit(1)
