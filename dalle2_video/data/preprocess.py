"""Videos and captions to a store, in tasks that do not know each other: one task makes one shard of every frame size.

    create_store  ->  run_task(0) ... run_task(n-1), in any order, anywhere  ->  finish(all records)

Each writes whole files into the staging folder it is given and returns what to publish; nothing here renames or syncs.
Invariant: a task's files and record depend on its input only, so that running it again after a crash gives the same
bytes. One bad clip never ends a task: it keeps its row, without frames, and its reason is recorded.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dalle2_video.data.celebv_text import (
    ClipFile,
    fingerprint,
    identity_of,
    is_validation,
    read_captions,
    text_folder,
)
from dalle2_video.data.store import (
    BAD_CLIPS_FILE,
    STATISTICS_FILE,
    TOKENIZER_FILE,
    WRITE_EMPTY_CHUNKS,
    ZARR_SETTINGS,
    Published,
    create_frames,
    frames_name,
    group_attributes,
    published_from,
    write_array,
    write_texts,
)
from dalle2_video.data.tokenizer import from_folder, train_bpe
from dalle2_video.data.video import BadClip, DecodedClip, decode
from dalle2_video.data_config import CAPTION_KINDS, DataConfig
from dalle2_video.digests import file_digest

ClipRecord = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """`published`: (staged file, path relative to the store); `record`: JSON-able facts that `finish` needs."""

    published: Published
    record: dict[str, Any]


def num_tasks(num_clips: int, config: DataConfig) -> int:
    """Return the number of tasks, which is the number of shards of each frame size."""
    return -(-num_clips // config.clips_per_shard)


def create_store(staging: Path, clips: list[ClipFile], config: DataConfig) -> Published:
    """Write the empty group and the metadata of the frame arrays; returns what to publish."""
    if config.tokenizer != "bpe":
        from_folder(Path(config.tokenizer))  # refused now rather than after hours of decoding
    for size in config.frame_sizes:
        create_frames(staging, size, len(clips), config)
    zarr.create_group(str(staging / "embeddings"))
    zarr.create_group(str(staging), attributes=group_attributes(config, len(clips), fingerprint(clips)))
    return published_from(staging)


def run_task(
    task: int,
    clips: list[ClipFile],
    root: Path,
    config: DataConfig,
    staging: Path,
    on_clip: Callable[[str, str | None], None] = lambda clip_id, bad_reason: None,
) -> TaskResult:
    """Decode the task's clips and write one shard file a frame size into `staging`.

    `on_clip(clip id, reason it is bad or None)` is called after each clip: the caller's progress and watchdog. Raises
    OSError as the file system does (disk full, unreadable file).
    """
    first = task * config.clips_per_shard
    mine = clips[first : first + config.clips_per_shard]
    assert task >= 0 and mine, f"task {task} of {num_tasks(len(clips), config)}"
    for kind in CAPTION_KINDS:
        text_folder(root, kind, config)  # a folder that went away must end the task, not make its clips bad
    records, decoded = [], []
    for clip in mine:
        record, frames = _run_clip(clip, root, config)
        records.append(record)
        decoded.append(frames)
        on_clip(clip.clip_id, record["bad"])
    published: Published = []
    shards = {}
    for size in config.frame_sizes:
        block = np.zeros((len(mine), config.max_frames, size, size, 3), np.uint8)  # untouched pages cost no memory
        for row, found in enumerate(decoded):
            if found is not None:
                frames_of_size = found.frames.pop(size)
                block[row, : len(frames_of_size)] = frames_of_size
        staged = write_shard(staging, size, task, len(clips), block, config, any(r["bad"] is None for r in records))
        if staged is not None:
            published.append((staged, staged.relative_to(staging).as_posix()))
            shards[str(size)] = {"sha256": file_digest(staged), "bytes": staged.stat().st_size}
    return TaskResult(published=published, record={"task": task, "clips": records, "shards": shards})


def _run_clip(clip: ClipFile, root: Path, config: DataConfig) -> tuple[ClipRecord, DecodedClip | None]:
    record: ClipRecord = {"clip_id": clip.clip_id, "bad": None}
    try:
        captions = read_captions(root, clip.clip_id, config)
        found = decode(clip.path, config.fps, config.frame_sizes, config.max_frames)
        count = len(found.frames[config.frame_sizes[0]])
        if count < config.min_frames:
            raise BadClip(f"{count} frames at {config.fps:g} fps, fewer than data.min_frames={config.min_frames}")
    except (BadClip, ValueError) as error:
        return record | {
            "bad": str(error),
            "num_frames": 0,
            "source_fps": 0.0,
            "source_size": [0, 0],
            "captions": [],
        }, None
    facts = {
        "num_frames": count,
        "source_fps": found.source_fps,
        "source_size": list(found.source_size),
        "captions": [[caption.kind, caption.text] for caption in captions],
    }
    return record | facts, found


def write_shard(
    staging: Path, size: int, task: int, num_clips: int, block: np.ndarray, config: DataConfig, has_good: bool
) -> Path | None:
    """Write rows [task * G, ...) of `frames_<size>` in one call; None if no clip of the shard is good."""
    if not has_good:
        return None
    first = task * config.clips_per_shard
    path = staging / frames_name(size) / f"c.{task}.0.0.0.0"
    with zarr.config.set(ZARR_SETTINGS):
        create_frames(staging, size, num_clips, config)[first : first + len(block)] = block
        if not path.is_file():
            # Zarr skips a shard that is black throughout, but readers take a missing file for an error.
            with zarr.config.set(WRITE_EMPTY_CHUNKS):
                zarr.open_array(str(path.parent), mode="r+")[first : first + len(block)] = block
    return path


def finish(records: list[dict[str, Any]], clips: list[ClipFile], config: DataConfig, staging: Path) -> Published:
    """Write text, tokens, tokenizer, per-clip arrays, bad list and statistics; returns what to publish, in order.

    Raises ValueError if a task's record is missing or belongs to other clips, or if all clips are bad.
    """
    rows = _rows(records, clips, config)
    bad = {row["clip_id"]: row["bad"] for row in rows if row["bad"] is not None}
    if len(bad) == len(rows):
        reasons = "\n".join(f"  {clip_id}: {reason}" for clip_id, reason in list(bad.items())[:5])
        raise ValueError(f"all {len(rows)} clips are bad; nothing to train on. First reasons:\n{reasons}")
    texts = [text for row in rows for _, text in row["captions"]]
    kinds = [kind for row in rows for kind, _ in row["captions"]]
    tokenizer = (
        train_bpe(texts, config.vocab_size) if config.tokenizer == "bpe" else from_folder(Path(config.tokenizer))
    )
    tokens, token_lengths, truncated = tokenizer.encode(texts, config.text_context)
    held_out = [is_validation(identity_of(row["clip_id"]), config.val_fraction) for row in rows]
    arrays: dict[str, np.ndarray] = {
        "num_frames": np.array([row["num_frames"] for row in rows], np.int32),
        "source_fps": np.array([row["source_fps"] for row in rows], np.float64),
        "source_size": np.array([row["source_size"] for row in rows], np.int32),
        "is_validation": np.array(held_out, bool),
        "caption_ranges": np.cumsum([0, *(len(row["captions"]) for row in rows)], dtype=np.int64),
        "caption_kinds": np.array([CAPTION_KINDS.index(kind) for kind in kinds], np.uint8),
        "tokens": tokens,
        "token_lengths": token_lengths,
    }
    for name, values in arrays.items():
        write_array(staging, name, values)
    write_texts(staging, "clip_ids", [row["clip_id"] for row in rows])
    write_texts(staging, "captions", texts)
    statistics = {
        "clips": len(rows),
        "bad": len(bad),
        "train_clips": sum(row["bad"] is None and not held for row, held in zip(rows, held_out, strict=True)),
        "val_clips": sum(row["bad"] is None and held for row, held in zip(rows, held_out, strict=True)),
        "frames": sum(row["num_frames"] for row in rows),
        "captions": {kind: count for kind in CAPTION_KINDS if (count := Counter(kinds)[kind])},
        "captions_truncated": int(truncated.sum()),
        "vocab_size": tokenizer.vocab_size,
        "shards": {str(record["task"]): record["shards"] for record in sorted(records, key=lambda r: r["task"])},
    }
    (staging / TOKENIZER_FILE).write_text(tokenizer.to_json())
    (staging / BAD_CLIPS_FILE).write_text(json.dumps(bad, indent=1, ensure_ascii=False))
    published = published_from(staging)
    # Last of all: its presence says that the store is finished.
    (staging / STATISTICS_FILE).write_text(json.dumps(statistics, indent=1))
    return [*published, (staging / STATISTICS_FILE, STATISTICS_FILE)]


def _rows(records: list[dict[str, Any]], clips: list[ClipFile], config: DataConfig) -> list[ClipRecord]:
    by_task = {record["task"]: record for record in records}
    missing = [task for task in range(num_tasks(len(clips), config)) if task not in by_task]
    if missing:
        raise ValueError(f"tasks without a record: {missing[:20]}; run the same preprocessing command again")
    rows = [row for task in sorted(by_task) for row in by_task[task]["clips"]]
    if [row["clip_id"] for row in rows] != [clip.clip_id for clip in clips]:
        raise ValueError("the tasks' records are of other clips than the data set now holds; preprocess it anew")
    return rows
