"""The write side of the store's layout: arrays, texts and attributes, as `store` reads them.

Writers fill a staging folder with whole files and return (staged file, path relative to the store).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from dalle2_video.config_io import to_dict
from dalle2_video.data.shard_layout import ShardLayout
from dalle2_video.data.store import FORMAT, VERSION, chunk_file, frames_name
from dalle2_video.data_config import CAPTION_KINDS, DataConfig

Published = list[tuple[Path, str]]

# "." keeps a shard one file in the array's folder; "/" would make a folder for each index.
KEY_ENCODING = {"name": "default", "separator": "."}


def files_below(staging: Path) -> list[Path]:
    """Return every file below a folder, sorted, zarr.json last: metadata must not be seen before its data."""
    files = [path for path in staging.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (path.name == "zarr.json", path))


def published_from(staging: Path) -> Published:
    """Return (staged file, path relative to the store) for all files of a staging folder."""
    return [(path, path.relative_to(staging).as_posix()) for path in files_below(staging)]


def create_sharded(
    path: Path,
    shape: tuple[int, ...],
    dtype: str,
    *,
    items_per_shard: int,
    chunk_frames: int,
    compressed: bool,
    fill_value: float = 0,
    attributes: dict[str, Any] | None = None,
) -> ShardLayout:
    """Create the metadata of an array for ShardWriter and ShardReader; shape (N, T, *rest)."""
    frames = -(-shape[1] // chunk_frames) * chunk_frames
    zarr.create_array(
        str(path),
        shape=shape,
        dtype=dtype,
        chunks=(1, chunk_frames, *shape[2:]),
        shards=(items_per_shard, frames, *shape[2:]),
        compressors=[ZstdCodec(level=1, checksum=True)] if compressed else None,
        filters=None,
        fill_value=fill_value,
        chunk_key_encoding=KEY_ENCODING,
        attributes=attributes,
    )
    return ShardLayout.open(path)


def create_frames(staging: Path, size: int, num_clips: int, config: DataConfig) -> ShardLayout:
    """Create the metadata of `frames_<size>` below `staging`."""
    frames = config.frames_at(size)
    return create_sharded(
        staging / frames_name(size),
        (num_clips, frames, size, size, 3),
        "uint8",
        items_per_shard=config.clips_per_shard,
        chunk_frames=min(config.chunk_frames, frames),
        compressed=config.compression == "zstd",
    )


def write_array(staging: Path, name: str, values: np.ndarray) -> None:
    """Write a whole array as one uncompressed chunk, so that readers may also map its file."""
    file = create_table(staging, name, values.shape, values.dtype)
    if values.size:
        np.ascontiguousarray(values).tofile(file)


def create_table(staging: Path, name: str, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> Path:
    """Create the metadata of an array of one uncompressed chunk; return the file that is to hold its values."""
    zarr.create_array(
        str(staging / name),
        shape=shape,
        dtype=dtype,
        chunks=tuple(max(1, length) for length in shape),
        compressors=None,
        filters=None,
        chunk_key_encoding=KEY_ENCODING,
    )
    return chunk_file(staging / name, len(shape))


def write_texts(staging: Path, name: str, texts: list[str]) -> None:
    """Write texts as UTF-8 bytes and offsets: variable-length strings are not portable between Zarr libraries."""
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    write_array(staging, f"{name}_bytes", np.frombuffer(b"".join(encoded), np.uint8))
    write_array(staging, f"{name}_offsets", offsets)


def group_attributes(config: DataConfig, num_clips: int, fingerprint: str) -> dict[str, Any]:
    """Return the attributes of the group, which make the store describe itself."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "data": to_dict(config),
        "num_clips": num_clips,
        "fingerprint": fingerprint,
        "caption_kinds": list(CAPTION_KINDS),
    }
