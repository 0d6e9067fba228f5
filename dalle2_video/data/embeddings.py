"""CLIP video embeddings of windows, kept beside the frames as `embeddings/<CLIP run id>/video` of the store.

One vector for each clip and window start on a fixed grid (0, hop, 2 hop, ...), so that the prior and the decoder can
draw a window at random and still find its own embedding. Invariant: a shard covers the same clips as a shard of frames
and has one writer; rows without a window hold NaN, which a reader refuses to return.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dalle2_video import json_file
from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.store import Store
from dalle2_video.data_config import WindowConfig


def window_starts(num_frames: int, span: int, hop: int) -> np.ndarray:
    """Return the starts 0, hop, 2 hop, ... of windows of `span` stored frames within `num_frames`, int64.

    A clip with fewer frames has the window at 0, in which its last frame stands still; one without frames has none.
    """
    return np.arange(0, max(num_frames - span, 0) + 1 if num_frames > 0 else 0, hop, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec:
    """Shape and meaning of one embeddings array."""

    run_id: str
    """CLIP run that made the embeddings: the name of their folder."""
    num_clips: int
    clips_per_shard: int
    max_windows: int
    dim: int
    size: int
    """Side in pixels of the frames that CLIP saw."""
    span: int
    """Stored frames that a window covers."""
    hop: int
    """Stored frames between window starts."""

    @property
    def name(self) -> str:
        """Path of the array relative to the store."""
        return f"embeddings/{self.run_id}/video"

    @property
    def num_shards(self) -> int:
        """Shards to write: one task each."""
        return -(-self.num_clips // self.clips_per_shard)


def spec_for(store: Store, run_id: str, window: WindowConfig, hop: int, dim: int) -> EmbeddingSpec:
    """Return the spec of the embeddings that a CLIP with this window makes of a store."""
    return EmbeddingSpec(
        run_id=run_id,
        num_clips=store.num_clips,
        clips_per_shard=store.config.clips_per_shard,
        max_windows=len(window_starts(store.config.frames_at(window.size), window.span, hop)),
        dim=dim,
        size=window.size,
        span=window.span,
        hop=hop,
    )


class Embeddings:
    """Reader of one run's embeddings; `spec` says which windows they are of."""

    def __init__(self, store_path: Path, run_id: str) -> None:
        """Raises ValueError, with the command to type, if they are missing or unfinished."""
        path = Path(store_path) / "embeddings" / run_id / "video"
        if not (path / "zarr.json").is_file():
            raise ValueError(f"no embeddings of CLIP run {run_id} in {store_path}; run python launch/embed.py")
        self._reader = ShardReader(path)
        remedy = f"have them made again: python tools/verify_store.py {store_path} --repair"
        with json_file.as_written_here(path / "zarr.json", remedy):
            self.spec = EmbeddingSpec(**json_file.read(path / "zarr.json")["attributes"])
        spec, layout = self.spec, self._reader.layout
        stated = (spec.num_clips, spec.max_windows, spec.dim), spec.clips_per_shard, spec.run_id
        if stated != (layout.shape, layout.items_per_shard, run_id):
            raise ValueError(f"{path}/zarr.json: its attributes {stated} are not those of its array; {remedy}")
        if not all(type(value) is int and value >= 1 for value in (spec.size, spec.span, spec.hop)):
            raise ValueError(f"{path}/zarr.json: size, span and hop must be whole numbers of 1 or more; {remedy}")
        present = {file.name for file in path.iterdir()}
        # The first one only: a damaged file may claim any number of them.
        missing = next((i for i in range(spec.num_shards) if self._reader.shard_path(i).name not in present), None)
        if missing is not None:
            raise ValueError(
                f"embeddings of CLIP run {run_id} in {store_path} lack shard {missing} of {spec.num_shards}; {remedy}"
            )

    @property
    def span(self) -> int:
        """Stored frames that a window covers."""
        return self.spec.span

    @property
    def hop(self) -> int:
        """Stored frames between window starts."""
        return self.spec.hop

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.spec.dim

    def read(self, clip: int, window: int) -> np.ndarray:
        """Return the embedding of the clip's window that starts at frame window * hop: (dim,) float32.

        Raises ValueError if the clip has no such window.
        """
        vector = self._reader.read(clip, window, window + 1)[0]
        if not np.isfinite(vector).all():
            raise ValueError(f"clip {clip} has no embedding of window {window} (start {window * self.hop})")
        return vector
