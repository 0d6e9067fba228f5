"""Global sample numbers to batches: the loader has no state but the step.

Step s of a training consumes the samples [s*B, (s+1)*B). What a sample holds (clip, first frame, caption) follows from
(seed, sample number) alone, see `keyed_random`; which rank computes it follows from `batch_samples`. Invariant: a
resumed run and a run on other ranks see the same samples. Frames are never mirrored: captions speak of left and right.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dalle2_video.data import keyed_random
from dalle2_video.data.embeddings import Embeddings
from dalle2_video.data.store import Split, Store
from dalle2_video.data_config import WindowConfig

Batch = dict[str, Tensor]

# Slurm signals every process of a step. Stopping is decided by the training process; a loader worker that died of the
# same signal would turn an orderly stop into an error.
_LEFT_TO_THE_TRAINER = {signal.SIGUSR2, signal.SIGTERM}


class WindowDataset(Dataset):
    """`dataset[global sample number]`, any number >= 0, in epochs over the split's usable clips.

    "sample"     int64 scalar: the number itself, which keys the sample's noise
    "tokens"     (context,) int64 and "length" int64 scalar: one of the clip's captions
    "video"      (t, size, size, 3) uint8 RGB: the window's frames           (unless window is None)
    "low_video"  (t, low_size, low_size, 3) uint8: the same frames           (with low_size)
    "embedding"  (dim,) float32: CLIP's embedding of the window's start      (with embeddings)
    """

    def __init__(
        self,
        store_path: Path,
        split: Split,
        seed: int,
        window: WindowConfig | None,
        *,
        low_size: int | None = None,
        embeddings: str | None = None,
    ) -> None:
        """embeddings: id of the CLIP run whose embeddings to give. Raises ValueError naming what the store lacks."""
        assert window is not None or embeddings is not None, "a sample needs frames or an embedding"
        assert low_size is None or window is not None, "low_size needs a window"
        self.store = Store(store_path)
        self.clips = self.store.usable(split)
        self.split, self.seed, self.window = split, seed, window
        self.video = self.store.frames(window.size) if window is not None else None
        self.low_video = self.store.frames(low_size) if low_size is not None else None
        self.embeddings = Embeddings(self.store.path, embeddings) if embeddings is not None else None
        self.span = max(
            window.span if window is not None else 1, self.embeddings.span if self.embeddings is not None else 1
        )
        shortest = int(self.store.num_frames[self.clips].min())
        if shortest < self.span:
            raise ValueError(
                f"a window spans {self.span} stored frames, the shortest clip of {self.store.path} has {shortest}; "
                f"preprocess with --data.min-frames {self.span}"
            )

    @property
    def num_clips(self) -> int:
        """Clips of the split: samples in an epoch."""
        return len(self.clips)

    def choose(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (store row, first frame, caption row) of each sample; int64 of the shape (b,)."""
        epochs, positions = keyed_random.sample_position(samples, len(self.clips))
        clips = np.empty(len(samples), np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            clips[chosen] = self.clips[keyed_random.order(self.seed, int(epoch), len(self.clips), positions[chosen])]
        num_frames = self.store.num_frames[clips].astype(np.int64)
        hop = self.embeddings.hop if self.embeddings is not None else 1
        choices = (num_frames - self.span) // hop + 1
        starts = keyed_random.integers(self.seed, "window", samples, choices) * hop
        first, last = self.store.caption_ranges[clips], self.store.caption_ranges[clips + 1]
        captions = first + keyed_random.integers(self.seed, "caption", samples, last - first)
        return clips, starts, captions

    def __getitem__(self, sample: int) -> Batch:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[int]) -> list[Batch]:
        numbers = np.asarray(samples, np.int64)
        chosen = zip(numbers.tolist(), *(values.tolist() for values in self.choose(numbers)), strict=True)
        return [self._assemble(*of_sample) for of_sample in chosen]

    def _assemble(self, sample: int, clip: int, start: int, caption: int) -> Batch:
        item = {
            "sample": torch.tensor(sample),
            "tokens": torch.from_numpy(self.store.tokens[caption].astype(np.int64)),
            "length": torch.tensor(int(self.store.token_lengths[caption])),
        }
        if self.window is not None:
            frames = (start, start + self.window.span, self.window.stride)
            for name, reader in (("video", self.video), ("low_video", self.low_video)):
                if reader is not None:
                    item[name] = torch.from_numpy(reader.read(clip, *frames))
        if self.embeddings is not None:
            item["embedding"] = torch.from_numpy(self.embeddings.read(clip, start // self.embeddings.hop))
        return item


def collate(items: list[Batch]) -> Batch:
    """Stack samples: each tensor gets a first axis b."""
    return default_collate(items)


def to_float(video_bthwc: Tensor) -> Tensor:
    """Stored frames (b, t, h, w, c) uint8 in [0, 255] to what networks take: (b, c, t, h, w) float32 in [-1, 1]."""
    return rearrange(video_bthwc, "b t h w c -> b c t h w").to(torch.float32) / 127.5 - 1.0


def batch_samples(step: int, batch_size: int, rank: int, world: int, micro: int, accumulation: int) -> list[list[int]]:
    """Return the global sample numbers of a rank's micro-batches in a step: `accumulation` lists of `micro` numbers.

    Over all ranks they are exactly [step*batch_size, (step+1)*batch_size), each number once.
    """
    assert micro * accumulation * world == batch_size and 0 <= rank < world, (batch_size, rank, world, micro)
    firsts = [step * batch_size + (turn * world + rank) * micro for turn in range(accumulation)]
    return [list(range(first, first + micro)) for first in firsts]


def validation_samples(count: int) -> list[int]:
    """Return the sample numbers of a validation: always the same, so that its losses can be compared over time."""
    return list(range(count))


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
) -> Generator[Batch, None, None]:
    """Yield the rank's micro-batches of steps [first_step, last_step) in order, batch_size / (micro * world) a step.

    workers: processes that load ahead; 0 loads in this one. What is yielded does not depend on it.
    """
    numbers = _RankBatches(
        first_step=first_step, last_step=last_step, batch_size=batch_size, rank=rank, world=world, micro=micro
    )
    if workers == 0:
        for samples in numbers:
            yield collate(dataset.__getitems__(samples))
        return
    running = [_start_workers(dataset, numbers, workers)]
    # At exit multiprocessing waits for its children: dropping the iterator first is what tells them to end.
    atexit.register(running.clear)
    try:
        while True:
            try:
                batch = next(running[0])
            except StopIteration:
                return
            yield batch
    finally:
        running.clear()
        atexit.unregister(running.clear)


def _start_workers(dataset: WindowDataset, numbers: _RankBatches, workers: int) -> Iterator[Batch]:
    # A fork server, since this process has threads and perhaps a GPU, which fork does not survive.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    data_loader = DataLoader(
        dataset,
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context=context,
        worker_init_fn=_live_and_die_with_the_trainer,
        generator=torch.Generator(),  # its seed for workers must not be drawn from the global generator
    )
    # Blocked signals stay blocked in new processes, and reach this one as soon as the old mask is back.
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_TRAINER)
    try:
        resource_tracker.ensure_running()
        # Starting multiprocessing's tracker unblocks SIGTERM; it runs now and will not do so again.
        signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_TRAINER)
        return iter(data_loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


def _live_and_die_with_the_trainer(worker: int) -> None:
    for number in _LEFT_TO_THE_TRAINER:
        signal.signal(number, signal.SIG_IGN)
    # PyTorch's own watchdog looks at the parent's pid, which is the fork server's: after a SIGKILL of the trainer the
    # worker and the server would keep each other alive for ever.
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    threading.Thread(target=_exit_after, args=(trainer,), daemon=True).start()


def _exit_after(trainer: BaseProcess) -> None:
    trainer.join()
    os._exit(1)
