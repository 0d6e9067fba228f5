"""Videos and captions to a store, in tasks that do not know each other: one task makes one shard of every frame size.

    create_store  ->  run_task(0) ... run_task(n-1), in any order, anywhere  ->  join.finish(all records)

Each writes whole files into the staging folder it is given and returns what to publish; nothing here renames or syncs.
Invariant: a task's files and record depend on its input only, so that running it again after a crash gives the same
bytes. One bad clip never ends a task: it keeps its row, without frames, and its reason is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dalle2_video.data.celebv_text import Caption, ClipFile, fingerprint, read_captions, text_folders
from dalle2_video.data.decode_process import DecodeProcess
from dalle2_video.data.shard_writer import ShardWriter
from dalle2_video.data.store_arrays import Published, create_frames, group_attributes, published_from
from dalle2_video.data.tokenizer import from_folder
from dalle2_video.data.video import BadClip, ClipFacts
from dalle2_video.data_config import DataConfig

ClipRecord = dict[str, Any]
OnClip = Callable[[str, str | None], None]
"""Told each clip's id and the reason that it is bad, or None."""
# Cut at key frames, a clip may well be a little longer or shorter than its entry says.
_EXPECTED_WITHIN_S = 1.0


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """`published`: (staged file, path relative to the store); `record`: JSON-able facts that `join.finish` needs."""

    published: Published
    record: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ClipContent:
    """What goes into the store of one clip."""

    facts: ClipFacts
    frames: dict[int, np.ndarray]
    """For each size (t or more, size, size, 3) uint8 RGB, of which min(facts.num_frames, frames_at(size)) count."""
    captions: list[Caption]


def num_tasks(num_clips: int, config: DataConfig) -> int:
    """Return the number of tasks, which is the number of shards of each frame size."""
    return -(-num_clips // config.clips_per_shard)


def clips_of(task: int, num_clips: int, config: DataConfig) -> range:
    """Return the rows that a task owns."""
    first = task * config.clips_per_shard
    rows = range(first, min(first + config.clips_per_shard, num_clips))
    assert task >= 0 and len(rows) > 0, f"task {task} of {num_tasks(num_clips, config)}"
    return rows


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
    decoder: DecodeProcess,
    on_clip: OnClip = lambda clip_id, bad_reason: None,
) -> TaskResult:
    """Decode the task's clips and write one shard file a frame size into `staging`.

    decoder: made with the same config. Raises OSError as the file system does (disk full, unreadable file).
    """
    folders = text_folders(root, config, clips)  # one that went away must end the task, not make its clips bad

    def read(row: int) -> ClipContent:
        try:
            captions = read_captions(clips[row].clip_id, clips[row].texts, folders)
        except ValueError as error:
            raise BadClip(str(error)) from error
        facts = decoder.decode(clips[row].source)
        return ClipContent(facts=facts, frames=decoder.frames, captions=captions)

    return write_shards(task, clips, config, staging, read, on_clip)


def write_shards(
    task: int,
    clips: Sequence[ClipFile],
    config: DataConfig,
    staging: Path,
    read: Callable[[int], ClipContent],
    on_clip: OnClip,
) -> TaskResult:
    """Write the task's rows as `read(row)` gives them, clip by clip; a row whose `read` raises BadClip is bad.

    Memory is bounded by one clip. No shard file is written where all clips are bad.
    """
    rows = clips_of(task, len(clips), config)
    records: list[ClipRecord] = []
    with ExitStack() as stack:
        writers: dict[int, ShardWriter] = {}
        for place, row in enumerate(rows):
            try:
                record, frames = _kept(clips[row], read(row), config)
            except BadClip as error:
                record, frames = _bad(clips[row], error.reason), {}
            for size, pixels in frames.items():
                if size not in writers:
                    layout = create_frames(staging, size, len(clips), config)
                    writers[size] = stack.enter_context(ShardWriter(layout, task))
                writers[size].write(place, pixels)
            records.append(record)
            on_clip(record["clip_id"], record["bad"])
        shards = {str(size): writer.finish() for size, writer in sorted(writers.items())}
    published = [(writer.path, writer.path.relative_to(staging).as_posix()) for _, writer in sorted(writers.items())]
    return TaskResult(published=published, record={"task": task, "clips": records, "shards": shards})


def _bad(clip: ClipFile, reason: str, *, short: bool = False) -> ClipRecord:
    return {
        "clip_id": clip.clip_id,
        "bad": reason,
        "num_frames": 0,
        "source_fps": 0.0,
        "source_size": [0, 0],
        "seconds": 0.0,
        "short": short,
        "captions": [],
        "notes": [],
    }


def _kept(clip: ClipFile, content: ClipContent, config: DataConfig) -> tuple[ClipRecord, dict[int, np.ndarray]]:
    """Return the clip's record and the frames to store, none for a short clip that is to be left out."""
    facts, count = content.facts, content.facts.num_frames
    short = count < config.min_frames
    if short and config.short_clips == "leave_out":
        reason = f"{count} frames at {config.fps:g} fps, fewer than data.min_frames={config.min_frames}"
        return _bad(clip, reason, short=True), {}
    frames = {size: pixels[: min(count, config.frames_at(size))] for size, pixels in content.frames.items()}
    if short and config.short_clips == "repeat":
        again = np.arange(config.min_frames) % count
        frames = {size: pixels[again] for size, pixels in frames.items()}
        count = config.min_frames
    notes = []
    if clip.expected_seconds is not None and abs(clip.expected_seconds - facts.seconds) > _EXPECTED_WITHIN_S:
        notes.append(
            f"lasts {facts.seconds:.1f} s, its entry in celebvtext_info.json says {clip.expected_seconds:.1f} s"
        )
    record = {
        "clip_id": clip.clip_id,
        "bad": None,
        "num_frames": count,
        "source_fps": facts.source_fps,
        "source_size": list(facts.source_size),
        "seconds": facts.seconds,
        "short": short,
        "captions": [[caption.kind, caption.text] for caption in content.captions],
        "notes": notes,
    }
    return record, frames
