"""How the bytes of a sharded Zarr v3 array lie on disk, for the two that bypass zarr: ShardWriter and ShardReader.

An array (N, T, *rest) whose single codec is `sharding_indexed`, with inner chunks (1, chunk_frames, *rest) as plain
bytes or zstd. A shard file holds the chunks of `items_per_shard` items in any order, then an index of (offset, length)
for each chunk of each item, then the index's crc32c. Invariant: any other layout is refused, never guessed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dalle2_video import json_file

EMPTY = 2**64 - 1
"""Offset and length of a chunk that is not stored: it reads as the fill value."""
_DTYPES = {"bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"}


@dataclass(frozen=True, kw_only=True)
class ShardLayout:
    """What a zarr.json says of where an item's frames are."""

    path: Path
    """The array's folder."""
    shape: tuple[int, ...]
    dtype: np.dtype
    fill_value: np.ndarray
    """Scalar array of `dtype`."""
    items_per_shard: int
    chunk_frames: int
    zstd: tuple[int, bool] | None
    """Level and whether each chunk carries a checksum; None for plain bytes."""
    separator: str

    @classmethod
    def open(cls, path: Path) -> ShardLayout:
        """Parse the zarr.json in an array's folder. Raises as `parse` does, OSError if there is none."""
        return cls.parse(json_file.read(path / "zarr.json"), path)

    @classmethod
    def parse(cls, metadata: dict[str, Any], path: Path) -> ShardLayout:
        """Return the layout of the array at `path` by its metadata. Raises ValueError naming what is unsupported."""
        with json_file.as_written_here(path, "write it again with python launch/preprocess.py"):
            return cls._parse(metadata, path)

    @classmethod
    def _parse(cls, metadata: dict[str, Any], path: Path) -> ShardLayout:
        codecs = metadata.get("codecs", [])
        if metadata.get("zarr_format") != 3 or [codec["name"] for codec in codecs] != ["sharding_indexed"]:
            raise ValueError(f"{path}: not a Zarr v3 array with the one codec sharding_indexed")
        sharding = codecs[0]["configuration"]
        shape = tuple(metadata["shape"])
        rest, shard = list(shape[2:]), metadata["chunk_grid"]["configuration"]["chunk_shape"]
        chunk = sharding["chunk_shape"]
        inner = [codec["name"] for codec in sharding["codecs"]]
        endian = sharding["codecs"][0].get("configuration", {}).get("endian", "little")
        separator = metadata["chunk_key_encoding"].get("configuration", {}).get("separator", "/")
        whole_items = len(shape) >= 2 and shard[1:] == [-(-shape[1] // chunk[1]) * chunk[1], *rest]
        checks = {
            f"data type {metadata['data_type']}": metadata["data_type"] in _DTYPES,
            f"inner codecs {inner}": inner in (["bytes"], ["bytes", "zstd"]),
            f"byte order {endian}": endian == "little",
            "index codecs": [codec["name"] for codec in sharding["index_codecs"]] == ["bytes", "crc32c"],
            "index location": sharding.get("index_location", "end") == "end",
            f"sizes {shape}, {shard}, {chunk}": _are_sizes(shape, 0) and _are_sizes([*shard, *chunk], 1),
            f"chunk shape {chunk}": chunk[0] == 1 and chunk[2:] == rest,
            f"shard shape {shard}": whole_items,
            "chunk key encoding": metadata["chunk_key_encoding"]["name"] == "default",
            f"separator {separator!r}": separator in (".", "/"),
        }
        wrong = [what for what, right in checks.items() if not right]
        if wrong:
            raise ValueError(f"{path}: unsupported {', '.join(wrong)}; write it again with python launch/preprocess.py")
        zstd = sharding["codecs"][1]["configuration"] if len(inner) == 2 else None
        dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
        return cls(
            path=path,
            shape=shape,
            dtype=dtype,
            fill_value=np.array(metadata["fill_value"]).astype(dtype),
            items_per_shard=int(shard[0]),
            chunk_frames=int(chunk[1]),
            zstd=None if zstd is None else (int(zstd["level"]), bool(zstd["checksum"])),
            separator=separator,
        )

    @property
    def chunks_per_item(self) -> int:
        """Chunks that a whole item has; the last may reach past T."""
        return -(-self.shape[1] // self.chunk_frames)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of one chunk of one item: (chunk_frames, *rest)."""
        return (self.chunk_frames, *self.shape[2:])

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame, uncompressed."""
        return int(np.prod(self.shape[2:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def index_bytes(self) -> int:
        """Bytes at the end of a shard file that hold its index and the index's checksum."""
        return 16 * self.items_per_shard * self.chunks_per_item + 4

    @property
    def num_shards(self) -> int:
        """Shard files that a complete array has."""
        return -(-self.shape[0] // self.items_per_shard)

    def shard_path(self, shard: int) -> Path:
        """Return the file of one shard."""
        return self.path / self.separator.join(["c", str(shard), *["0"] * (len(self.shape) - 1)])


def _are_sizes(values: Sequence[Any], least: int) -> bool:
    return all(type(value) is int and value >= least for value in values)
