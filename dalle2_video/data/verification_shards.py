"""Verification of the big files of a store: shards of frames and of embeddings, against their records and by reading.

Invariant: a shard is sound only if it has the recorded bytes *and* every chunk of it is what a reader expects, so that
a writer's mistake that went on record is found as well as a disk's.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from dalle2_video.data import embedding_shards
from dalle2_video.data.embeddings import EmbeddingSpec, window_starts
from dalle2_video.data.shard_layout import EMPTY, ShardLayout
from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.store import frames_name
from dalle2_video.data.verification_tables import (
    Findings,
    Subject,
    check_metadata,
    metadata_of,
    read_json_file,
    table_or_none,
)
from dalle2_video.digests import file_digest

MAX_REASONS = 3


def check_frames_shard(
    subject: Subject,
    size: int,
    task: int,
    recorded: dict[str, dict[str, Any]] | None,
    num_frames: np.ndarray | None,
) -> Findings:
    """Check a task's shard of one frame size: its bytes against the record, its chunks by decoding them.

    recorded: sha256 and bytes by frame size, or None if they are not known: then the file must be there and decode;
    num_frames: stored frames of each of the task's clips, or None if they are not known.
    """
    found = Findings()
    folder = subject.store / frames_name(size)
    file = folder / f"c.{task}.0.0.0.0"
    if recorded is not None and str(size) not in recorded:
        if file.exists():
            found.blame("frame shards", file, "no task recorded this file", "remove")
        return found
    found.checked["frame shards"] += 1
    reasons = _compare_file(file, None if recorded is None else recorded[str(size)])
    if num_frames is not None and file.is_file():
        wrong = _check_chunks(subject, size, file, task, num_frames, found)
        reasons += wrong[:MAX_REASONS]
        if len(wrong) > MAX_REASONS:
            reasons.append(f"{len(wrong) - MAX_REASONS} more chunks")
    if reasons:
        found.blame("frame shards", file, "; ".join(reasons), "task", task=task)
    return found


def _check_chunks(
    subject: Subject, size: int, file: Path, task: int, num_frames: np.ndarray, found: Findings
) -> list[str]:
    """Decode every stored chunk of the shard; return what is wrong."""
    try:
        reader = ShardReader(file.parent)
    except (OSError, ValueError, KeyError):
        return []  # `check_layout` says so
    layout, chunks = reader.layout, reader.layout.chunks_per_item
    if layout.shape[:2] != (subject.num_clips, subject.config.frames_at(size)):
        return []
    try:
        index = _shard_index(file, layout)
    except (OSError, ValueError) as error:
        return [str(error)]
    wrong = []
    first = task * subject.config.clips_per_shard
    if (index[len(num_frames) * chunks :, 0] != EMPTY).any():
        wrong.append("it holds chunks of more clips than there are")
    for row, count in enumerate(np.minimum(num_frames, layout.shape[1]).tolist()):
        stored = np.flatnonzero(index[row * chunks : (row + 1) * chunks, 0] != EMPTY).tolist()
        if stored != list(range(-(-count // layout.chunk_frames))):
            wrong.append(f"clip {first + row} of {count} frames has the chunks {stored}")
        for chunk in stored:
            start = chunk * layout.chunk_frames
            stop = min(start + layout.chunk_frames, layout.shape[1])
            where = f"clip {first + row}, frames {start}:{stop}"
            found.checked["frame chunks"] += 1
            try:
                frames = reader.read(first + row, start, stop)
            except (OSError, ValueError, OverflowError) as error:
                wrong.append(f"{where} cannot be decoded: {str(error).removeprefix(f'{file}: ')}")
                continue
            if frames[max(0, count - start) :].any():
                wrong.append(f"{where} hold pictures after the clip's {count} frames")
    reader.close()
    return wrong


def _compare_file(file: Path, wanted: dict[str, Any] | None) -> list[str]:
    """Return what is wrong with a file of recorded sha256 and size; None: not on record."""
    try:
        size = file.stat().st_size
        if wanted is None:
            return []
        if size != wanted.get("bytes", size):
            return [f"{size} bytes, wanted {wanted['bytes']}"]
        return [] if file_digest(file) == wanted["sha256"] else ["its sha256 is not the recorded one"]
    except FileNotFoundError:
        return ["is missing"]
    except OSError as error:
        return [f"cannot be read: {error.strerror}"]


def _shard_index(file: Path, layout: ShardLayout) -> np.ndarray:
    """Return offsets and lengths of a shard's chunks, (chunks, 2) uint64, read from the end of the file.

    Raises ValueError if its checksum is wrong or a chunk lies outside the file.
    """
    size = layout.index_bytes
    with file.open("rb") as shard:
        total = shard.seek(0, 2)
        shard.seek(max(0, total - size))
        footer = shard.read(size)
    if len(footer) != size or google_crc32c.value(footer[:-4]) != int.from_bytes(footer[-4:], "little"):
        raise ValueError("the index of its chunks is damaged or cut")
    index = np.frombuffer(footer[:-4], "<u8").reshape(-1, 2)
    stored = index[index[:, 0] != EMPTY]
    if len(stored) and int(stored.sum(1).max()) > total - size:
        raise ValueError("its index names chunks outside the file")
    return index


def embeddings_names(store: Path) -> list[str]:
    """Names of the embeddings in a store, finished or not."""
    return sorted(path.name for path in (store / "embeddings").glob("[!.]*") if path.is_dir())


def check_embeddings(subject: Subject, name: str) -> tuple[Findings, EmbeddingSpec | None]:
    """Check the metadata of one run's embeddings; the spec is None if they are of no use."""
    found = Findings()
    file = subject.store / "embeddings" / name / "video" / "zarr.json"
    try:
        spec = EmbeddingSpec(**read_json_file(file)["attributes"])
        config = subject.config
        windows = len(window_starts(config.frames_at(spec.size), spec.span, spec.hop))
        wanted = (name, subject.num_clips, config.clips_per_shard, windows)
        there = (spec.run_id, spec.num_clips, spec.clips_per_shard, spec.max_windows)
        if there != wanted:
            raise ValueError(f"run, clips, clips a shard and windows are {there}, wanted {wanted}")
        with tempfile.TemporaryDirectory() as folder:
            embedding_shards.create(Path(folder), spec)
            check_metadata(found, file, metadata_of(Path(folder) / spec.name), "prepare", name)
            group = Path(folder) / "embeddings" / name
            check_metadata(found, file.parents[1] / "zarr.json", metadata_of(group), "prepare", name)
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        found.checked["metadata"] += 1
        found.blame("metadata", file, str(error), "prepare", embeddings=name)
        return found, None
    return found, None if found.damages else spec


def check_embeddings_shard(subject: Subject, spec: EmbeddingSpec, shard: int, sha256: str | None) -> Findings:
    """Check a shard of embeddings: on record with this sha256, finite where the clip has a window, NaN elsewhere.

    sha256: None for embeddings whose run is not finished or not in the registry; a shard may then be missing.
    """
    found = Findings()
    folder = subject.store / spec.name
    file = folder / f"c.{shard}.0.0"
    if sha256 is None and not file.exists():
        return found
    found.checked["embedding shards"] += 1
    reasons = _compare_file(file, None if sha256 is None else {"sha256": sha256})
    counts = table_or_none(subject, "num_frames")
    if file.is_file() and counts is not None:
        reader = ShardReader(folder)
        first = shard * spec.clips_per_shard
        for clip in range(first, min(first + spec.clips_per_shard, spec.num_clips)):
            stored = min(int(counts[clip]), subject.config.frames_at(spec.size))
            windows = len(window_starts(stored, spec.span, spec.hop))
            try:
                vectors = reader.read(clip, 0, spec.max_windows)
            except (OSError, ValueError, OverflowError) as error:
                reasons.append(str(error).removeprefix(f"{file}: "))
                break
            if not np.isfinite(vectors[:windows]).all():
                reasons.append(f"clip {clip} lacks a vector in its {windows} windows")
            if not np.isnan(vectors[windows:]).all():
                reasons.append(f"clip {clip} has vectors after its {windows} windows")
        reader.close()
    if reasons:
        what = "; ".join(reasons[:MAX_REASONS])
        found.blame("embedding shards", file, what, "task", task=shard, embeddings=spec.run_id)
    return found
