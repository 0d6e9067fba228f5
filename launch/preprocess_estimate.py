"""What preprocessing will take, told before it is submitted: a few clips are decoded as a task would, nothing is kept.

The clips are chosen evenly by the size of their files, so that their mean stands for the data set's. Time is scaled by
the files' bytes (long clips take longer), stored bytes by the number of clips (they are cut to max_frames).
"""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numcodecs
import numpy as np
from rich.console import Console
from rich.markup import escape

from dalle2_video.data.celebv_text import ClipFile, read_captions, scan_with_notes, text_folders
from dalle2_video.data.decode_process import DecodeProcess
from dalle2_video.data.video import BadClip
from dalle2_video.data_config import DataConfig
from launch.arguments import Arguments
from launch.array_progress import span

SAMPLED_CLIPS = 8
BUDGET_S = 20.0
MANY_FILES = 10_000
STORE_FILES = 40
"""Files of a store beside its shards: metadata, captions, tokens, tokenizer, statistics."""
GROUP_FILES = 6
"""Files of an array group in the run folder: claim, end, beat, events, log, what submitit hands over."""
RUN_FILES = 10
JOIN_TEXT_COPIES, JOIN_CAPTION_BYTES = 3.5, 200
"""Memory of the last step, which holds all captions: copies of their text, and bytes a caption beside text and tokens.
Measured: 675 MB for 14,000 clips of 20 captions of 276 bytes, in a context of 128."""


@dataclass(kw_only=True)
class Sample:
    """What decoding a few clips took."""

    clips: int = 0
    source_bytes: int = 0
    cpu_s: float = 0.0
    """CPU seconds to decode and compress them, in this process and the decoding one."""
    frames: int = 0
    """Stored frames, of the largest number over the sizes."""
    stored_bytes: dict[int, int] = field(default_factory=dict)
    """Bytes in the store by frame size."""
    bad: dict[str, str] = field(default_factory=dict)
    """Reason by the id of each bad clip."""
    captions: int = 0
    caption_bytes: int = 0
    """Of their text."""
    longest_caption: int = 0
    """Words of the longest caption."""
    memory_bytes: int = 0
    """Most memory that this process and the decoding one held: imports, decoder, one clip's frames."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a whole run takes."""

    tasks: int
    groups: int
    at_once: int
    stored_bytes: dict[int, float]
    """By frame size."""
    store_files: int
    run_files: int
    core_s: float
    wall_s: float
    """Seconds with `at_once` groups at once, none of them waiting for a node."""
    task_memory_bytes: float
    join_memory_bytes: float
    """Of the last step, which is done by the job that finishes last."""


def choose(clips: Sequence[ClipFile], count: int) -> list[ClipFile]:
    """Return up to `count` clips, evenly by rank of size; any first few of them are spread over the sizes too."""
    by_size = sorted(clips, key=lambda clip: (clip.source.size, clip.clip_id))
    count = min(count, len(by_size))
    chosen = [by_size[(2 * rank + 1) * len(by_size) // (2 * count)] for rank in range(count)]
    bits = max(1, (count - 1).bit_length())
    # Ranks with their bits reversed: middle, quarters, eighths.
    order = sorted(range(count), key=lambda rank: int(f"{rank:0{bits}b}"[::-1], 2))
    return [chosen[rank] for rank in order]


def measure(
    clips: Sequence[ClipFile], folders: dict[str, Path], config: DataConfig, *, budget_s: float = BUDGET_S
) -> Sample:
    """Decode and compress clips until `budget_s` seconds have passed, one at least; folders: those of captions."""
    sample, began_s = Sample(stored_bytes=dict.fromkeys(config.frame_sizes, 0)), time.monotonic()
    with DecodeProcess(config) as decoder:
        for clip in clips:
            if sample.clips and time.monotonic() - began_s > budget_s:
                break
            before_s = time.process_time() + decoder.cpu_s
            _measure_clip(clip, folders, config, decoder, sample)
            sample.cpu_s += time.process_time() + decoder.cpu_s - before_s
            sample.clips += 1
            sample.source_bytes += clip.source.size
    used = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    sample.memory_bytes = sum(used) * 1024
    return sample


def _measure_clip(
    clip: ClipFile, folders: dict[str, Path], config: DataConfig, decoder: DecodeProcess, sample: Sample
) -> None:
    try:
        captions = read_captions(clip.clip_id, clip.texts, folders)
        sample.captions += len(captions)
        sample.caption_bytes += sum(len(caption.text.encode()) for caption in captions)
        sample.longest_caption = max(sample.longest_caption, *(len(caption.text.split()) for caption in captions))
        count = decoder.decode(clip.source).num_frames
        if count < config.min_frames and config.short_clips == "leave_out":
            raise BadClip(f"{count} frames at {config.fps:g} fps, fewer than data.min_frames={config.min_frames}")
    except (BadClip, ValueError) as error:
        sample.bad[clip.clip_id] = str(error)
        return
    sample.frames += count
    for size, frames in decoder.frames.items():
        sample.stored_bytes[size] += _stored_bytes(frames[: min(count, config.frames_at(size))], config)


def _stored_bytes(frames: np.ndarray, config: DataConfig) -> int:
    """Bytes that a clip takes in a shard; frames: (t, size, size, 3) uint8."""
    total = 0
    for first in range(0, len(frames), config.chunk_frames):
        chunk = np.zeros((config.chunk_frames, *frames.shape[1:]), np.uint8)  # the last chunk is stored whole
        some = frames[first : first + config.chunk_frames]
        chunk[: len(some)] = some
        total += (
            len(numcodecs.Zstd(level=1, checksum=True).encode(chunk)) if config.compression == "zstd" else chunk.nbytes
        )
    return total


def extrapolate(
    sample: Sample,
    *,
    clips: int,
    source_bytes: int,
    config: DataConfig,
    tasks: int,
    left: int,
    groups: int,
    at_once: int,
) -> Estimate:
    """Scale a sample to the data set.

    clips, source_bytes: of the data set; tasks: all tasks of the run; left: those that are not done; groups: jobs that
    share these; at_once: groups that run at the same time.
    """
    task_s = sample.cpu_s * source_bytes / max(1, sample.source_bytes) / tasks  # the clips decoded may all be empty
    stored = {size: total * clips / sample.clips for size, total in sample.stored_bytes.items()}
    waves = -(-groups // at_once)
    of_captions = sample.captions * (4 * config.text_context + JOIN_CAPTION_BYTES)
    joined_bytes = (sample.caption_bytes * JOIN_TEXT_COPIES + of_captions) * clips / sample.clips
    return Estimate(
        tasks=tasks,
        groups=groups,
        at_once=at_once,
        stored_bytes=stored,
        store_files=store_files(tasks, config),
        run_files=tasks + groups * GROUP_FILES + RUN_FILES,
        core_s=left * task_s,
        wall_s=waves * -(-left // groups) * task_s,
        task_memory_bytes=sample.memory_bytes,
        join_memory_bytes=sample.memory_bytes + joined_bytes,
    )


def store_files(tasks: int, config: DataConfig) -> int:
    """Files of a store of so many shards a frame size."""
    return len(config.frame_sizes) * (tasks + 1) + STORE_FILES


def warnings(
    estimate: Estimate, *, clips: int, config: DataConfig, asked_tasks: int, free_bytes: int, mem_gb: int
) -> list[str]:
    """Return what the user should think about, each with a remedy; asked_tasks, mem_gb: values of the options."""
    found = []
    if estimate.store_files + estimate.run_files > MANY_FILES:
        per_task = len(config.frame_sizes) + 1  # shards and the record
        room = max(1, MANY_FILES - STORE_FILES - RUN_FILES - estimate.groups * GROUP_FILES)
        found.append(
            f"{estimate.store_files + estimate.run_files} files are a burden to a shared file system; "
            f"--data.clips-per-shard {-(-clips * per_task // room)} keeps them near {MANY_FILES}"
        )
    if estimate.tasks < asked_tasks:
        remedy = f"; --data.clips-per-shard {clips // asked_tasks} makes enough" if clips >= asked_tasks else ""
        found.append(f"--tasks {asked_tasks}, but there are {estimate.tasks} shards to share out{remedy}")
    if 0 < mem_gb * 1e9 < estimate.join_memory_bytes:
        enough = 2 + int(estimate.join_memory_bytes / 1e9)
        found.append(f"--mem-gb {mem_gb} is too little for the last step, which joins all captions; --mem-gb {enough}")
    stored = sum(estimate.stored_bytes.values())
    if stored > free_bytes:
        found.append(
            f"the store needs about {stored / 1e9:.3g} GB and {free_bytes / 1e9:.3g} GB are free; free space, or put "
            "the registry elsewhere: export DALLE2_VIDEO_HOME=/path/on/the/shared/file/system"
        )
    return found


def show(console: Console, arguments: Arguments, home: Path, tasks_done: int) -> None:
    """Measure and print; home: the registry's folder, which need not exist; tasks_done: finished tasks of the run."""
    config, root = arguments.recipe.data, Path(arguments.data_root)
    clips, notes = scan_with_notes(root, config)
    for note in notes:
        console.print(f"  [yellow]note[/yellow]: {escape(note)}")
    tasks = -(-len(clips) // config.clips_per_shard)
    left = tasks - tasks_done
    groups = max(1, min(arguments.array.tasks, left))
    local = arguments.placement.resolved_cluster() == "local"
    at_once = min(groups, arguments.array.parallel or (len(os.sched_getaffinity(0)) if local else groups))
    console.print(
        f"  {len(clips)} clips in {tasks} tasks of {config.clips_per_shard} clips, {groups} jobs, {at_once} at once"
        + (f"; {tasks_done} tasks are done already" if tasks_done else "")
    )
    sample = measure(choose(clips, SAMPLED_CLIPS), text_folders(root, config, clips), config)
    console.print(
        f"  measured on {sample.clips} of the clips: {sample.cpu_s / sample.clips:.2f} core-seconds and "
        f"{sample.frames / sample.clips:.0f} frames a clip, {len(sample.bad)} of {sample.clips} bad"
    )
    for clip_id, reason in sample.bad.items():
        console.print(f"    bad {clip_id}: {reason}", markup=False)
    estimate = extrapolate(
        sample,
        clips=len(clips),
        source_bytes=sum(clip.source.size for clip in clips),
        config=config,
        tasks=tasks,
        left=left,
        groups=groups,
        at_once=at_once,
    )
    free_bytes = shutil.disk_usage(next(folder for folder in (home, *home.parents) if folder.exists())).free
    sizes = ", ".join(f"{size} px {total / 1e9:.3g} GB" for size, total in estimate.stored_bytes.items())
    console.print(
        f"  store: {sizes} ({free_bytes / 1e9:.3g} GB free); about {estimate.store_files} files, and "
        f"{estimate.run_files} in the run folder\n"
        f"  time: {estimate.core_s / 3600:.3g} core-hours, {span(estimate.wall_s)} on the clock; memory: "
        f"{estimate.task_memory_bytes / 1e9:.2g} GB a job, {estimate.join_memory_bytes / 1e9:.2g} GB that which ends "
        "last and joins the tables (--mem-gb)\n"
        f"  longest caption of them: {sample.longest_caption} words (data.text_context: {config.text_context} tokens)"
    )
    for warning in warnings(
        estimate,
        clips=len(clips),
        config=config,
        asked_tasks=arguments.array.tasks,
        free_bytes=free_bytes,
        mem_gb=arguments.placement.mem_gb,
    ):
        console.print(f"  [yellow]caution[/yellow]: {warning}")
