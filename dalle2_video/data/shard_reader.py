"""Random reads from a sharded Zarr v3 array, without asyncio and threads: one pread and one decompression a chunk.

Reads arrays of shape (N, T, *rest) whose single codec is `sharding_indexed` with inner chunks (1, ct, *rest), stored as
plain bytes or zstd, index with crc32c at the end; refuses any other layout. Invariant: what is damaged or missing
raises OSError, while Zarr itself takes a missing shard for zeros. Offsets of a shard are read once and kept with its
open file (least recently used files are closed). Processes made by fork or spawn may use a reader they inherit or
unpickle: pread shares no file position. One thread a reader.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Zstd

_EMPTY = 2**64 - 1  # Zarr's mark for a chunk that was not stored because it holds only the fill value
_DTYPES = {"bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"}


class ShardReader:
    """One array; `shape`, `dtype`, `items_per_shard` and `chunk_frames` are those of its zarr.json."""

    def __init__(self, path: Path, max_open: int = 256) -> None:
        """path: the array's folder. Raises ValueError naming what is unsupported, OSError if there is no array."""
        self.path, self.max_open = Path(path), max_open
        metadata = json.loads((self.path / "zarr.json").read_text())
        self._parse(metadata)
        self._open: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()
        self._zstd = Zstd() if self._compressed else None

    def _parse(self, metadata: dict[str, Any]) -> None:
        codecs = metadata.get("codecs", [])
        if metadata.get("zarr_format") != 3 or [codec["name"] for codec in codecs] != ["sharding_indexed"]:
            raise ValueError(f"{self.path}: not a Zarr v3 array with the one codec sharding_indexed")
        sharding = codecs[0]["configuration"]
        self.shape: tuple[int, ...] = tuple(metadata["shape"])
        rest, shard = list(self.shape[2:]), metadata["chunk_grid"]["configuration"]["chunk_shape"]
        chunk = sharding["chunk_shape"]
        inner = [codec["name"] for codec in sharding["codecs"]]
        endian = sharding["codecs"][0].get("configuration", {}).get("endian", "little")
        whole_clips = len(self.shape) >= 2 and shard[1:] == [-(-self.shape[1] // chunk[1]) * chunk[1], *rest]
        checks = {
            f"data type {metadata['data_type']}": metadata["data_type"] in _DTYPES,
            f"inner codecs {inner}": inner in (["bytes"], ["bytes", "zstd"]),
            f"byte order {endian}": endian == "little",
            "index codecs": [codec["name"] for codec in sharding["index_codecs"]] == ["bytes", "crc32c"],
            "index location": sharding.get("index_location", "end") == "end",
            f"chunk shape {chunk}": chunk[0] == 1 and chunk[2:] == rest,
            f"shard shape {shard}": whole_clips,
            "chunk key encoding": metadata["chunk_key_encoding"]["name"] == "default",
        }
        wrong = [what for what, right in checks.items() if not right]
        if wrong:
            raise ValueError(
                f"{self.path}: unsupported {', '.join(wrong)}; write it again with python launch/preprocess.py"
            )
        self.dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
        self.fill_value = np.array(metadata["fill_value"]).astype(self.dtype)
        self.items_per_shard, self.chunk_frames = int(shard[0]), int(chunk[1])
        self._compressed = len(inner) == 2
        self._chunks_per_item = shard[1] // chunk[1]
        self._frame_bytes = int(np.prod(rest, dtype=np.int64)) * self.dtype.itemsize
        self._separator = metadata["chunk_key_encoding"].get("configuration", {}).get("separator", "/")

    @property
    def num_shards(self) -> int:
        """Shard files that a complete array has."""
        return -(-self.shape[0] // self.items_per_shard)

    def shard_path(self, shard: int) -> Path:
        """Return the file of one shard."""
        return self.path / self._separator.join(["c", str(shard), *["0"] * (len(self.shape) - 1)])

    def read(self, n: int, start: int, stop: int, step: int = 1) -> np.ndarray:
        """Return item n's frames start, start+step, ... below stop: (ceil((stop-start)/step), *rest), array's dtype.

        0 <= n < N, 0 <= start < stop <= T, step >= 1, else IndexError. Touches only the chunks that hold such a frame.
        Raises OSError for a missing, short or damaged shard.
        """
        if not (0 <= n < self.shape[0] and 0 <= start < stop <= self.shape[1] and step >= 1):
            raise IndexError(f"{self.path}: item {n}, frames {start}:{stop}:{step} of shape {self.shape}")
        wanted = np.arange(start, stop, step)
        out = np.empty((len(wanted), *self.shape[2:]), self.dtype)
        file, index = self._shard(n // self.items_per_shard)
        base = (n % self.items_per_shard) * self._chunks_per_item
        filled = 0
        while filled < len(wanted):
            chunk = int(wanted[filled]) // self.chunk_frames
            end = int(np.searchsorted(wanted, (chunk + 1) * self.chunk_frames))
            inside = wanted[filled:end] - chunk * self.chunk_frames
            offset, length = (int(value) for value in index[base + chunk])
            out[filled:end] = self._frames(n, file, offset, length, int(inside[0]), int(inside[-1]) + 1, step)
            filled = end
        return out

    def _frames(self, n: int, file: int, offset: int, length: int, first: int, stop: int, step: int) -> np.ndarray:
        """Return frames first, first+step, ... below stop of one chunk."""
        if offset == _EMPTY:
            return self.fill_value
        if self._zstd is None:  # frames lie at known places: read no more than is wanted
            length, offset = (stop - first) * self._frame_bytes, offset + first * self._frame_bytes
            data = os.pread(file, length, offset)
            first, stop = 0, stop - first
        else:
            data = os.pread(file, length, offset)
        if len(data) != length:
            raise OSError(f"{self.shard_path(n // self.items_per_shard)}: short read, the file was cut")
        if self._zstd is not None:
            try:
                data = self._zstd.decode(data)  # verifies the frame's checksum if it has one
            except RuntimeError as error:
                raise OSError(f"{self.shard_path(n // self.items_per_shard)}: damaged item {n}: {error}") from error
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape[2:])[first:stop:step]

    def _shard(self, shard: int) -> tuple[int, np.ndarray]:
        """Return the shard's file descriptor and its index: (chunks, 2) uint64 offsets and lengths."""
        found = self._open.get(shard)
        if found is not None:
            self._open.move_to_end(shard)
            return found
        path = self.shard_path(shard)
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                error.errno, "shard is missing; run the same preprocessing (or embedding) command again", str(path)
            ) from error
        size = 16 * self.items_per_shard * self._chunks_per_item + 4
        footer = os.pread(file, size, max(0, os.fstat(file).st_size - size))
        if len(footer) != size or google_crc32c.value(footer[:-4]) != int.from_bytes(footer[-4:], "little"):
            os.close(file)
            raise OSError(f"{path}: the shard's index is damaged or cut")
        self._open[shard] = (file, np.frombuffer(footer[:-4], "<u8").reshape(-1, 2))
        if len(self._open) > self.max_open:
            os.close(self._open.popitem(last=False)[1][0])
        return self._open[shard]

    def close(self) -> None:
        """Close all files; a later read opens them again."""
        while self._open:
            os.close(self._open.popitem()[1][0])

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "max_open": self.max_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
