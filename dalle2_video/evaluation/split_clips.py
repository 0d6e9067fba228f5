"""The clips of a split as they are judged: each by its middle window and one draw of its captions.

Invariant: which window and which text stand for a clip follows from the store and the seed, and which clips share a
batch from the store alone, so that no sharing-out of tasks can change a bit. A task looks at the clips of one shard.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dalle2_video.data import keyed_random
from dalle2_video.data.batches import read_window
from dalle2_video.data.captions import Captions
from dalle2_video.data.celebv_text import identity_of
from dalle2_video.data.store import Store
from dalle2_video.data_config import CaptionConfig, WindowConfig
from dalle2_video.evaluate_config import EvaluateConfig


class SplitClips:
    """The clips that an evaluation looks at."""

    def __init__(
        self, store: Path, config: EvaluateConfig, captions: CaptionConfig, seed: int, *, most: int = 0, span: int = 1
    ) -> None:
        """captions: as CLIP was trained on them; most: more clips than these are not looked at, 0 for no limit.

        span: clips with fewer stored frames are left out. Raises ValueError where the split has none.
        """
        self.store, self.seed = Store(store), seed
        if config.captions != "trained":
            captions = dataclasses.replace(captions, choose=config.captions)
        self.choose = captions.choose
        """How the text of a clip is made."""
        self._captions = Captions(self.store, captions)
        self.rows = chosen_rows(self.store, config, seed, most=most, span=span)
        """Rows of the store, int64 ascending."""
        self.clips_per_shard = self.store.config.clips_per_shard
        self.num_tasks = -(-self.store.num_clips // self.clips_per_shard)

    def of_task(self, task: int) -> np.ndarray:
        """Return the rows of a task's shard; there may be none."""
        first = task * self.clips_per_shard
        return self.rows[np.searchsorted(self.rows, first) : np.searchsorted(self.rows, first + self.clips_per_shard)]

    def in_shard(self, task: int) -> int:
        """Clips of a task's shard, whether they are looked at or not."""
        return min(self.clips_per_shard, self.store.num_clips - task * self.clips_per_shard)

    def starts(self, rows: np.ndarray, *windows: WindowConfig) -> np.ndarray:
        """Return the first frames (b,) of the clips' middle windows; of several windows that start together."""
        span = max(window.span for window in windows)
        return np.maximum(self.num_frames(rows, *windows) - span, 0) // 2

    def num_frames(self, rows: np.ndarray, *windows: WindowConfig) -> np.ndarray:
        """Return how many frames of each clip can be read at the size of every window."""
        return np.minimum.reduce([self.store.num_frames_at(window.size, rows) for window in windows])

    def windows(
        self, rows: np.ndarray, starts: np.ndarray, window: WindowConfig, on_read: Callable[[float], None]
    ) -> np.ndarray:
        """Read windows (b, t, size, size, 3) uint8; on_read: told before each how many have been read."""
        reader, num_frames = self.store.frames(window.size), self.num_frames(rows, window)
        frames = np.empty((len(rows), window.num_frames, window.size, window.size, 3), np.uint8)
        for place, row in enumerate(rows.tolist()):
            on_read(place)
            read_window(reader, row, int(starts[place]), int(num_frames[place]), window.stride, frames[place])
        on_read(len(rows))
        return frames

    def tokens(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the clips' texts as tokens (b, context) int64 of lengths (b,) int64."""
        tokens, lengths = np.empty((len(rows), self.store.config.text_context), np.int64), np.empty(len(rows), np.int64)
        for place, lines in enumerate(self._lines(rows)):
            lengths[place] = self._captions.write(lines, tokens[place])
        return tokens, lengths

    def texts(self, rows: np.ndarray) -> list[str]:
        """Return the clips' texts in words."""
        return [self._words(row, lines) for row, lines in zip(rows.tolist(), self._lines(rows), strict=True)]

    def identities(self, rows: np.ndarray) -> np.ndarray:
        """Return who is in each clip, as a group of clips that are not independent."""
        return np.array([identity_of(self.store.clip_id(row)) for row in rows.tolist()])

    def _lines(self, rows: np.ndarray) -> list[list[int]]:
        """Return the captions that stand for each clip, as rows of the store."""
        return self._captions.choose(keyed_random.key(self.seed, "evaluate"), rows, rows)

    def _words(self, row: int, lines: list[int]) -> str:
        first, _ = self.store.caption_range(row)
        captions = self.store.captions_of(row)
        return " ".join(captions[line - first].text for line in lines)


def chosen_rows(store: Store, config: EvaluateConfig, seed: int, *, most: int = 0, span: int = 1) -> np.ndarray:
    """Return the store's rows that are evaluated, int64 ascending; ValueError if there are none. See SplitClips."""
    rows = store.usable(config.split)
    if span > 1:
        rows = rows[store.num_frames[rows] >= span]
        if len(rows) == 0:
            raise ValueError(
                f"no clip of split {config.split!r} in {store.path} has {span} frames, which a window spans"
            )
    limit = min((number for number in (config.max_clips, most) if number), default=0)
    if limit == 0 or len(rows) <= limit:
        return rows
    lots = keyed_random.uniform(seed, "evaluate.clips", rows)
    return np.sort(rows[np.argsort(lots, kind="stable")[:limit]])


def batches(rows: np.ndarray, at_once: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield parts of rows with the number of rows before each."""
    for start in range(0, len(rows), at_once):
        yield start, rows[start : start + at_once]
