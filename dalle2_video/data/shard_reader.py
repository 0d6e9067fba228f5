"""Random reads from a sharded Zarr v3 array, without asyncio or threads: a system call and a decompression a chunk.

Reads what `shard_layout` describes, into the caller's memory where it is given. Invariant: what is damaged or missing
raises OSError, while Zarr itself takes a missing shard for zeros. A shard's index is read and checked once and kept
while there is room, longer than its open file: opening again is cheap, reading and checking an index is not. Processes
made by fork or spawn may use a reader they inherit or unpickle: reads share no file position. One thread a reader.
"""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import Zstd

from dalle2_video.data.shard_layout import EMPTY, ShardLayout

_READERS = 4
"""Readers of a process that find room for their open files beside each other: two sizes, embeddings, one to spare."""


class _Index(NamedTuple):
    file: tuple[int, int, int]
    """Inode, size and time of change of the file it was read from: another file of the same name has another index."""
    chunks: np.ndarray
    """(items_per_shard * chunks_per_item, 2) uint64: offset and length."""


class ShardReader:
    """One array; `layout` is that of its zarr.json, `shape` and `dtype` are the array's."""

    _open_files: ClassVar[int] = 0
    """Of all readers of the process."""

    def __init__(self, path: Path, max_open: int = 1024, max_index_bytes: int = 64 << 20) -> None:
        """path: the array's folder. Raises ValueError naming what is unsupported, OSError if there is no array.

        max_open: files kept open; all readers together keep at most half of what the process may open, and one each.
        max_index_bytes: memory for indexes.
        """
        self.path, self.max_open, self.max_index_bytes = Path(path), max_open, max_index_bytes
        self.layout = layout = ShardLayout.open(self.path)
        self.shape, self.dtype, self.fill_value = layout.shape, layout.dtype, layout.fill_value
        self.items_per_shard, self.chunk_frames = layout.items_per_shard, layout.chunk_frames
        self.num_shards, self._frame_bytes = layout.num_shards, layout.frame_bytes
        self._chunks_per_item, self._index_bytes = layout.chunks_per_item, layout.index_bytes
        self._files: OrderedDict[int, int] = OrderedDict()
        self._indexes: OrderedDict[int, _Index] = OrderedDict()
        self._zstd = Zstd() if layout.zstd is not None else None
        self._scratch: np.ndarray | None = None

    def shard_path(self, shard: int) -> Path:
        """Return the file of one shard."""
        return self.layout.shard_path(shard)

    def read(self, n: int, start: int, stop: int, step: int = 1, out: np.ndarray | None = None) -> np.ndarray:
        """Return item n's frames start, start+step, ... below stop: (ceil((stop-start)/step), *rest), array's dtype.

        out: C-contiguous memory of that shape and dtype to read into, which is returned; its content is undefined after
        an error. 0 <= n < N, 0 <= start < stop <= T, step >= 1, else IndexError. Touches only the chunks that hold
        such a frame. Raises OSError for a missing, short or damaged shard.
        """
        if not (0 <= n < self.shape[0] and 0 <= start < stop <= self.shape[1] and step >= 1):
            raise IndexError(f"{self.path}: item {n}, frames {start}:{stop}:{step} of shape {self.shape}")
        shape = (-(-(stop - start) // step), *self.shape[2:])
        if out is None:
            out = np.empty(shape, self.dtype)
        elif out.shape != shape or out.dtype != self.dtype or not (out.flags.c_contiguous and out.flags.writeable):
            raise ValueError(f"out is {out.dtype} {out.shape}, wanted writeable C-contiguous {self.dtype} {shape}")
        file, index = self._shard(n // self.items_per_shard)
        base = (n % self.items_per_shard) * self._chunks_per_item
        filled, frame = 0, start
        while frame < stop:
            chunk, first = divmod(frame, self.chunk_frames)
            last = min(stop - chunk * self.chunk_frames, self.chunk_frames)
            count = -(-(last - first) // step)
            offset, length = index[base + chunk].tolist()
            self._read_chunk(n, file, offset, length, first, step, out[filled : filled + count])
            filled, frame = filled + count, frame + count * step
        return out

    def _read_chunk(self, n: int, file: int, offset: int, length: int, first: int, step: int, out: np.ndarray) -> None:
        """Read frames first, first+step, ... of one chunk, as many as `out` takes."""
        if offset == EMPTY:
            out[...] = self.fill_value
            return
        past_last = first + (len(out) - 1) * step + 1
        if self._zstd is None:  # frames lie at known places: read no more than is wanted
            into = out if step == 1 else self._chunk()[: past_last - first]
            if (
                os.preadv(file, [into.reshape(-1).view(np.uint8).data], offset + first * self._frame_bytes)
                != into.nbytes
            ):
                raise OSError(f"{self._shard_of(n)}: short read, the file was cut")
            if into is not out:
                out[...] = into[::step]
            return
        data = os.pread(file, length, offset)
        if len(data) != length:
            raise OSError(f"{self._shard_of(n)}: short read, the file was cut")
        into = out if len(out) == self.chunk_frames else self._chunk()
        try:
            # Decoding into memory does not tell of content that does not fill it.
            if _content_bytes(data) != into.nbytes:
                raise OSError(f"{self._shard_of(n)}: damaged item {n}: not the size of a chunk")
            self._zstd.decode(data, into)  # verifies the chunk's checksum if it has one
        except (RuntimeError, ValueError) as error:
            raise OSError(f"{self._shard_of(n)}: damaged item {n}: {error}") from error
        if into is not out:
            out[...] = into[first:past_last:step]

    def _chunk(self) -> np.ndarray:
        """Return memory for one chunk, used again and again."""
        if self._scratch is None:
            self._scratch = np.empty(self.layout.chunk_shape, self.dtype)
        return self._scratch

    def _shard_of(self, n: int) -> Path:
        return self.shard_path(n // self.items_per_shard)

    def _shard(self, shard: int) -> tuple[int, np.ndarray]:
        """Return the shard's file descriptor and its index."""
        file = self._files.get(shard)
        index = self._indexes.get(shard)
        if file is None:
            file = self._open(shard)
            status = os.fstat(file)
            if index is not None and index.file != (status.st_ino, status.st_size, status.st_mtime_ns):
                index = None
        else:
            self._files.move_to_end(shard)
        if index is None:
            index = self._indexes[shard] = self._read_index(shard, file)
            while len(self._indexes) > 1 and len(self._indexes) * self._index_bytes > self.max_index_bytes:
                self._indexes.popitem(last=False)
        else:
            self._indexes.move_to_end(shard)
        return file, index.chunks

    def _open(self, shard: int) -> int:
        may_open = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        most = max(1, min(self.max_open, may_open // _READERS))
        while self._files and (len(self._files) >= most or ShardReader._open_files >= may_open):
            self._close_oldest()
        path = self.shard_path(shard)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            remedy = "have it made again: python tools/verify_store.py STORE --repair"
            raise FileNotFoundError(error.errno, f"shard is missing; {remedy}", str(path)) from error
        self._files[shard] = file
        ShardReader._open_files += 1
        return file

    def _read_index(self, shard: int, file: int) -> _Index:
        status, size = os.fstat(file), self._index_bytes
        footer = os.pread(file, size, status.st_size - size) if size <= status.st_size else b""
        chunks = footer[:-4]
        if len(footer) != size or google_crc32c.value(chunks) != int.from_bytes(footer[-4:], "little"):
            self._files.pop(shard)
            self._close_file(file)
            raise OSError(f"{self.shard_path(shard)}: the shard's index is damaged or cut")
        of_file = (status.st_ino, status.st_size, status.st_mtime_ns)
        return _Index(of_file, np.frombuffer(chunks, "<u8").reshape(-1, 2))

    def _close_oldest(self) -> None:
        self._close_file(self._files.popitem(last=False)[1])

    @staticmethod
    def _close_file(file: int) -> None:
        os.close(file)
        ShardReader._open_files -= 1

    def close(self) -> None:
        """Close all files; a later read opens them again."""
        while self._files:
            self._close_oldest()

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "max_open": self.max_open, "max_index_bytes": self.max_index_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _content_bytes(frame: bytes) -> int:
    """Return how many bytes a Zstandard frame says it holds, -1 if it does not say (RFC 8878, section 3.1.1.1)."""
    if len(frame) < 6:
        return -1
    flags = frame[4]
    single_segment = flags >> 5 & 1
    size = (single_segment, 2, 4, 8)[flags >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(frame[start : start + size], "little") + (256 if size == 2 else 0) if size else -1
