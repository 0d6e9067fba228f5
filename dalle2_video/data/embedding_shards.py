"""The write side of the embeddings: the array's metadata, and a shard at a time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dalle2_video.data.embeddings import EmbeddingSpec
from dalle2_video.data.shard_layout import ShardLayout
from dalle2_video.data.shard_writer import ShardWriter
from dalle2_video.data.store_arrays import Published, create_sharded, published_from


def _create_array(staging: Path, spec: EmbeddingSpec) -> ShardLayout:
    return create_sharded(
        staging / spec.name,
        (spec.num_clips, spec.max_windows, spec.dim),
        "float32",
        items_per_shard=spec.clips_per_shard,
        chunk_frames=spec.max_windows,
        compressed=False,
        fill_value=float("nan"),
        attributes=asdict(spec),
    )


def create(staging: Path, spec: EmbeddingSpec) -> Published:
    """Write the array's metadata; returns what to publish."""
    zarr.create_group(str(staging / "embeddings" / spec.run_id))
    _create_array(staging, spec)
    return [item for item in published_from(staging) if item[1] != "zarr.json"]


def write_shard(
    staging: Path, spec: EmbeddingSpec, shard: int, values: list[np.ndarray]
) -> tuple[Published, dict[str, Any]]:
    """Write the embeddings of the shard's clips; return the one file to publish, and its sha256 and bytes.

    values: for each clip of the shard, bad ones included, (windows of that clip, dim) float32. Each shard has its file,
    also where all its clips are bad.
    """
    first = shard * spec.clips_per_shard
    expected = min(spec.clips_per_shard, spec.num_clips - first)
    assert len(values) == expected, f"shard {shard} has {expected} clips, got {len(values)}"
    with ShardWriter(_create_array(staging, spec), shard) as writer:
        for row, vectors in enumerate(values):
            assert np.isfinite(vectors).all(), f"embedding of clip {first + row} is not finite"
            writer.write(row, vectors)
        facts = writer.finish()
    return [(writer.path, writer.path.relative_to(staging).as_posix())], facts
