"""Global sample numbers to batches: what a sample holds, read straight into the tensors that the trainer gets.

Step s of a training consumes the samples [s*B, (s+1)*B). What a sample holds (clip, first frame, caption) follows from
(seed, sample number) alone, see `keyed_random`; which rank computes it follows from `batch_samples`. Invariant: a
resumed run and a run on other ranks see the same samples.
`loading` has the batches made ahead, in processes of their own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from dalle2_video.data import keyed_random
from dalle2_video.data.captions import Captions
from dalle2_video.data.embeddings import Embeddings
from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.store import Split, Store
from dalle2_video.data_config import CaptionConfig, WindowConfig

Batch = dict[str, Tensor]


class WindowDataset(Dataset):
    """`dataset[global sample number]`, any number >= 0, in epochs over the split's usable clips.

    "sample"     int64 scalar: the number itself, which keys the sample's noise
    "tokens"     (context,) int64 and "length" int64 scalar: the clip's text
    "video"      (t, size, size, 3) uint8 RGB: the window's frames           (unless window is None)
    "low_video"  (t, low_size, low_size, 3) uint8: the same frames           (with low_size)
    "stride"     int64 scalar: distance of the window's frames in stored frames            (with strides)
    "valid"      int64 scalar: the window's real frames, 1 or more; behind them the last one stands still
                                                                             (with frames, of a store of padded clips)
    "embedding"  (dim,) float32: CLIP's embedding of its own window at the same start, whatever the stride
                                                                             (with embeddings)

    With images = k > 0 a sample also brings k single frames of clips drawn in an order of their own:

    "images"     (k, size, size, 3) uint8 RGB, "image_tokens" (k, context) and "image_lengths" (k,) int64: their texts
    "image_embeddings" (k, dim) float32: of the last window that starts at or before the frame   (with embeddings)
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
        captions: CaptionConfig | None = None,
        images: int = 0,
        strides: tuple[int, ...] = (),
        mirror: bool = False,
    ) -> None:
        """embeddings: id of the CLIP run whose embeddings to give; strides: each sample draws one, instead of the
        window's; mirror: half of the samples, left to right.

        Raises ValueError naming what the store lacks.
        """
        assert window is not None or embeddings is not None, "a sample needs frames or an embedding"
        assert window is not None or not (low_size or images or strides or mirror), "frames need a window"
        self._arguments = {
            "store_path": store_path, "split": split, "seed": seed, "window": window, "low_size": low_size,
            "embeddings": embeddings, "captions": captions, "images": images,
            "strides": strides, "mirror": mirror,
        }  # fmt: skip
        self.store = Store(store_path)
        self.clips = self.store.usable(split)
        self.split, self.seed, self.window, self.images, self.mirror = split, seed, window, images, mirror
        self.captions = Captions(self.store, captions or CaptionConfig())
        self.embeddings = Embeddings(self.store.path, embeddings) if embeddings is not None else None
        self._sizes: dict[str, int] = {}
        if window is not None:
            self._sizes = {"video": window.size} | ({"low_video": low_size} if low_size is not None else {})
        self._videos = {name: self.store.frames(size) for name, size in self._sizes.items()}
        self.strides = strides
        self._strides = np.asarray(strides or [window.stride if window is not None else 1], np.int64)
        self.span = int(self._spans(self._strides).max())
        self._pads = self.store.config.short_clips == "pad"
        if not self._pads:
            self._check_span()
        self._layout = self._sample_layout()
        self.reading = np.full(1, -1, np.int64)
        """(1,) int64: row of the clip that is being read, -1 between clips; a loader process shares it."""

    def _check_span(self) -> None:
        limits = [self.store.config.frames_at(size) for size in self._sizes.values()]
        shortest = min([self.store.shortest(self.split), *limits])
        if shortest < self.span:
            raise ValueError(
                f"a window spans {self.span} stored frames, the shortest clip of {self.store.path} has {shortest}; "
                f"preprocess with --data.min-frames {self.span}"
            )

    def _sample_layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and type of each tensor of one sample."""
        k, text = self.images, (self.store.config.text_context,)
        layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "sample": ((), torch.int64),
            "tokens": (text, torch.int64),
            "length": ((), torch.int64),
        }
        if self.window is not None:
            frames = self.window.num_frames
            layout |= {name: ((frames, size, size, 3), torch.uint8) for name, size in self._sizes.items()}
            if self.strides:
                layout["stride"] = ((), torch.int64)
            if self._pads:
                layout["valid"] = ((), torch.int64)
            if k:
                layout["images"] = ((k, self.window.size, self.window.size, 3), torch.uint8)
                layout |= {"image_tokens": ((k, *text), torch.int64), "image_lengths": ((k,), torch.int64)}
        if self.embeddings is not None:
            layout["embedding"] = ((self.embeddings.dim,), torch.float32)
            if k:
                layout["image_embeddings"] = ((k, self.embeddings.dim), torch.float32)
        return layout

    @property
    def num_clips(self) -> int:
        """Clips of the split: samples in an epoch."""
        return len(self.clips)

    def choose(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (store row, first frame) of each sample; int64 of the shape (b,)."""
        rows = self._rows(self.seed, samples)
        hop = self.embeddings.hop if self.embeddings is not None else 1
        choices = np.maximum(self._num_frames(rows) - self._spans(self.choose_strides(samples)), 0) // hop + 1
        if self.embeddings is not None:
            choices = np.minimum(choices, self.embeddings.spec.max_windows)
        return rows, keyed_random.integers(self.seed, "window", samples, choices) * hop

    def choose_strides(self, samples: np.ndarray) -> np.ndarray:
        """Return the distance of each window's frames in stored frames; int64 of the shape (b,)."""
        return self._strides[keyed_random.integers(self.seed, "stride", samples, len(self._strides))]

    def _spans(self, strides: np.ndarray) -> np.ndarray:
        """Return how many stored frames a sample takes of a clip, by stride: its own window and the embedding's."""
        own = ((self.window.num_frames if self.window is not None else 1) - 1) * strides + 1
        return np.maximum(own, self.embeddings.span if self.embeddings is not None else 1)

    def choose_images(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (store row, frame) of the images of each sample; int64 of the shape (b, images)."""
        numbers, seed = keyed_random.image_numbers(self.seed, samples, self.images)
        rows = self._rows(seed, numbers)
        return rows, keyed_random.integers(seed, "window", numbers, self._num_frames(rows))

    def _rows(self, seed: int, numbers: np.ndarray) -> np.ndarray:
        """Return the store row of each number, any shape: each epoch of numbers has every clip once."""
        epochs, positions = keyed_random.sample_position(numbers, len(self.clips))
        rows = np.empty(numbers.shape, np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = self.clips[keyed_random.order(seed, int(epoch), len(self.clips), positions[chosen])]
        return rows

    def _num_frames(self, rows: np.ndarray) -> np.ndarray:
        """Return how many frames of each row can be read at all sizes of the samples, int64."""
        if not self._sizes:
            return self.store.num_frames[rows].astype(np.int64)
        stored = [self.store.num_frames_at(size, rows) for size in self._sizes.values()]
        return np.minimum.reduce(stored).astype(np.int64)

    def __getitem__(self, sample: int) -> Batch:
        return {name: tensor[0] for name, tensor in self.__getitems__([sample]).items()}

    def __getitems__(self, samples: Sequence[int]) -> Batch:
        """Return the samples as one batch: each tensor has a first axis b. The batch is new memory, filled in place.

        Raises OSError naming the clip where the store is damaged.
        """
        numbers = np.asarray(samples, np.int64)
        batch = {name: _new((len(numbers), *shape), dtype) for name, (shape, dtype) in self._layout.items()}
        out = {name: tensor.numpy() for name, tensor in batch.items()}
        out["sample"][:] = numbers
        rows, starts = self.choose(numbers)
        lines = self.captions.choose(self.seed, numbers, rows)
        mirrored = self._mirrored(self.seed, numbers)
        num_frames, strides = self._num_frames(rows), self.choose_strides(numbers)
        if "stride" in out:
            out["stride"][:] = strides
        for place, (row, start) in enumerate(zip(rows.tolist(), starts.tolist(), strict=True)):
            with self._reading(row):
                out["length"][place] = self.captions.write(lines[place], out["tokens"][place])
                for name, reader in self._videos.items():
                    into, stride = out[name][place], int(strides[place])
                    valid = read_window(reader, row, start, int(num_frames[place]), stride, into)
                    if mirrored[place]:
                        mirror_frames(out[name][place])
                if "valid" in out:
                    out["valid"][place] = valid
                if self.embeddings is not None:
                    out["embedding"][place] = self.embeddings.read(row, start // self.embeddings.hop)
        if self.images:
            self._read_images(numbers, out)
        return batch

    def _read_images(self, samples: np.ndarray, out: dict[str, np.ndarray]) -> None:
        numbers, seed = keyed_random.image_numbers(self.seed, samples, self.images)
        rows, frames = self.choose_images(samples)
        lines = self.captions.choose(seed, numbers.reshape(-1), rows.reshape(-1))
        mirrored = self._mirrored(seed, numbers)
        for place, of_lines in zip(np.ndindex(rows.shape), lines, strict=True):
            row, frame = int(rows[place]), int(frames[place])
            with self._reading(row):
                out["image_lengths"][place] = self.captions.write(of_lines, out["image_tokens"][place])
                self._videos["video"].read(row, frame, frame + 1, out=out["images"][place][None])
                if mirrored[place]:
                    mirror_frames(out["images"][place][None])
                if self.embeddings is not None:
                    window = min(frame // self.embeddings.hop, self._num_windows(row) - 1)
                    out["image_embeddings"][place] = self.embeddings.read(row, window)

    def _mirrored(self, seed: int, numbers: np.ndarray) -> np.ndarray:
        """Return which of the samples are mirrored: bool of the shape of `numbers`."""
        if not self.mirror:
            return np.zeros(numbers.shape, bool)
        return keyed_random.integers(seed, "mirror", numbers, 2).astype(bool)

    def _num_windows(self, row: int) -> int:
        """Return how many windows of a clip have an embedding."""
        assert self.embeddings is not None
        beyond_first = max(int(self.store.num_frames[row]) - self.embeddings.span, 0) // self.embeddings.hop
        return min(beyond_first + 1, self.embeddings.spec.max_windows)

    @contextlib.contextmanager
    def _reading(self, row: int) -> Iterator[None]:
        """Note which clip is being read; its id goes into errors of reading."""
        self.reading[0] = row
        try:
            yield
        except OSError as error:
            raise OSError(
                f"clip {self.store.clip_id(row)}: {error}; "
                f"find all that is damaged: python tools/verify_store.py {self.store.path}"
            ) from error
        self.reading[0] = -1

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments  # a loader process maps the store itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _new(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor; in a loader process in shared memory, so that sending it copies nothing."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def read_window(reader: ShardReader, row: int, start: int, num_frames: int, stride: int, out: np.ndarray) -> int:
    """Fill out (t, size, size, 3) with frames start, start + stride, ... of a clip; return how many of them it has.

    num_frames: of the clip, more than `start`. Behind its last frame of the window this one stands still.
    """
    valid = min(len(out), -(-(num_frames - start) // stride))
    reader.read(row, start, start + (valid - 1) * stride + 1, stride, out=out[:valid])
    out[valid:] = out[valid - 1]
    return valid


def mirror_frames(frames_thwc: np.ndarray) -> None:
    """Exchange left and right of (t, h, w, c) in place."""
    frames_thwc[:] = frames_thwc[:, :, ::-1].copy()


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
