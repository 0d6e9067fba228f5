"""Writes one shard file of a sharded Zarr v3 array, clip by clip, holding one chunk in memory.

Zarr itself needs the whole shard as one padded block and spends half of its time comparing padding with the fill value.
Invariant: a chunk is stored if and only if it holds a frame that was given, so that black frames are stored and padding
is not; the bytes depend on the items and the order in which they are written, nothing else. Plain zarr and ShardReader
read the file. Nothing here syncs or renames: write into a staging folder and publish.
"""

from __future__ import annotations

import hashlib
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Zstd

from dalle2_video.data.shard_layout import EMPTY, ShardLayout


class ShardWriter:
    """Context manager: `write` the items, then `finish`. Left without `finish`, the file is removed."""

    def __init__(self, layout: ShardLayout, shard: int) -> None:
        """Create the file of this shard, `path`, in the layout's folder; FileExistsError if it exists."""
        self.layout, self.path = layout, layout.shard_path(shard)
        self._zstd = Zstd(level=layout.zstd[0], checksum=layout.zstd[1]) if layout.zstd is not None else None
        self._index = np.full((layout.items_per_shard, layout.chunks_per_item, 2), EMPTY, "<u8")
        self._written: set[int] = set()
        self._hash, self._bytes, self._finished = hashlib.sha256(), 0, False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("xb")

    def write(self, item: int, frames: np.ndarray) -> None:
        """Append an item's frames: (t, *rest) of the array's dtype, t in [0, T]; those after t read as the fill value.

        item: its place in the shard, in [0, items_per_shard); each at most once. An item that is never written, or
        without frames, takes no room. Raises OSError as the file system does.
        """
        layout = self.layout
        assert 0 <= item < layout.items_per_shard and item not in self._written, f"item {item} of {self.path}"
        assert len(frames) <= layout.shape[1] and frames.shape[1:] == layout.shape[2:], (frames.shape, layout.shape)
        assert frames.dtype == layout.dtype, (frames.dtype, layout.dtype)
        self._written.add(item)
        for chunk, first in enumerate(range(0, len(frames), layout.chunk_frames)):
            part = np.ascontiguousarray(frames[first : first + layout.chunk_frames])
            if len(part) < layout.chunk_frames:
                padded = np.full(layout.chunk_shape, layout.fill_value, layout.dtype)
                padded[: len(part)] = part
                part = padded
            data = part.reshape(-1).view(np.uint8).data if self._zstd is None else self._zstd.encode(part)
            self._index[item, chunk] = self._bytes, len(data)
            self._append(data)

    def finish(self) -> dict[str, Any]:
        """Write the index and close; return the file's {"sha256": hexadecimal, "bytes": its size}."""
        index = self._index.tobytes()
        self._append(index + google_crc32c.value(index).to_bytes(4, "little"))
        self._file.close()
        self._finished = True
        return {"sha256": self._hash.hexdigest(), "bytes": self._bytes}

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._bytes += len(data)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._finished:
            self._file.close()
            self.path.unlink(missing_ok=True)
