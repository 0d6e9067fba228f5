"""Write the sample data's folder: clips by several processes, then captions, then the two JSON files.

Every file is a pure function of its place in the plan and appears whole (temporary name, then rename), so a call may be
killed anywhere and made again: it does what is missing, and nothing when all is there. `sample_data.json` comes last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path

from dalle2_video.data_config import TextFolders
from tools.sample_data import drawing, footage
from tools.sample_data.encode import PARTIAL_SUFFIX, remove_leftovers, write_mp4
from tools.sample_data.footage_segments import Segment
from tools.sample_data.scenes import Scene

VIDEO_FOLDER = "videos/celebvtext_6"
TRUTH_FILE = "sample_data.json"
INFO_FILE = "celebvtext_info.json"

Clip = Scene | tuple[Segment, Path]


def build(
    out: Path,
    scenes: list[Scene],
    segments: list[tuple[Segment, Path]],
    *,
    seed: int,
    workers: int,
    progress: Callable[[int], None],
) -> int:
    """Make what `out` lacks; return the number of clips made. `progress` is told of each number of clips done.

    Raises ValueError if `out` holds clips that are not in this plan, or workers < 1.
    """
    if workers < 1:
        raise ValueError(f"--workers {workers}: must be 1 or more")
    clips: dict[str, Clip] = {scene.clip_id: scene for scene in scenes}
    clips |= {segment.clip_id: (segment, source) for segment, source in segments}
    videos = out / VIDEO_FOLDER
    _make_folder(videos)
    remove_leftovers(videos)
    present = {path.stem for path in videos.glob("*.mp4")}
    foreign = sorted(present - clips.keys())
    if foreign:
        raise ValueError(
            f"{videos} holds {len(foreign)} clips that this call would not make ({foreign[0]}.mp4 ...): give an empty "
            "--out, or the --seed, --clips and --footage that the folder was made with"
        )
    missing = [clip for clip_id, clip in clips.items() if clip_id not in present]
    progress(len(clips) - len(missing))
    _make_clips(missing, videos, workers, lambda done: progress(len(clips) - len(missing) + done))
    _write_texts(out, clips)
    _write_if_changed(out / INFO_FILE, _json({f"{clip_id}.mp4": _info(clip) for clip_id, clip in clips.items()}))
    truth = {clip_id: _truth(clip) for clip_id, clip in clips.items()}
    _write_if_changed(out / TRUTH_FILE, _json({"seed": seed, "clips": truth}))
    return len(missing)


def _make_clips(clips: list[Clip], videos: Path, workers: int, progress: Callable[[int], None]) -> None:
    """Share the clips among processes. One that loses its parent stops after its clip: the pipe is broken then."""
    context = get_context("spawn")
    processes, pipes = [], []
    try:
        for number in range(min(workers, len(clips))):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(clips[number::workers], videos, sender), daemon=True)
            process.start()
            sender.close()
            processes.append(process)
            pipes.append(receiver)
        done = 0
        while pipes:
            for pipe in wait(pipes):
                assert isinstance(pipe, Connection)
                try:
                    problem = pipe.recv()
                except EOFError:
                    pipes.remove(pipe)
                    continue
                if problem:
                    raise ValueError(problem)
                done += 1
                progress(done)
        if done < len(clips):
            raise ValueError(
                f"{len(clips) - done} clips were not made: a worker was killed; give the same command again"
            )
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work(clips: list[Clip], videos: Path, sender: Connection) -> None:
    for clip in clips:
        try:
            if isinstance(clip, Scene):
                write_mp4(videos / f"{clip.clip_id}.mp4", drawing.frames_of(clip), clip.fps)
            else:
                segment, source = clip
                write_mp4(videos / f"{segment.clip_id}.mp4", footage.frames_of(segment, source), segment.fps)
        except (OSError, ValueError) as error:  # PyAV's errors are one or the other
            sender.send(f"{clip.clip_id if isinstance(clip, Scene) else clip[1]}: {error}")
            return
        try:
            sender.send("")
        except BrokenPipeError:
            return


def _write_texts(out: Path, clips: dict[str, Clip]) -> None:
    for folder in asdict(TextFolders()).values():
        _make_folder(out / folder)
    for clip_id, clip in clips.items():
        lines = clip.captions() if isinstance(clip, Scene) else clip[0].captions
        for kind, folder in asdict(TextFolders()).items():
            _write_if_changed(out / folder / f"{clip_id}.txt", "\n".join(lines[kind]) + "\n")


def _truth(clip: Clip) -> dict[str, object]:
    if isinstance(clip, Scene):
        return clip.truth()
    segment = clip[0]
    return {"kind": "footage", "source": segment.source, "fps": segment.fps, "seconds": segment.seconds}


def _info(clip: Clip) -> dict[str, object]:
    """Return the clip's record in CelebV-Text's own information file."""
    if isinstance(clip, Scene):
        clip_id, start_s, seconds = clip.clip_id, 0.0, round(clip.seconds, 3)
    else:
        clip_id, start_s, seconds = clip[0].clip_id, clip[0].start_s, clip[0].seconds
    return {
        "ytb_id": clip_id[:11],
        "duration": {"start_sec": start_s, "end_sec": round(start_s + seconds, 3)},
        "bbox": {"top": 0.0, "bottom": 1.0, "left": 0.0, "right": 1.0},
        "version": "sample",
    }


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--out: {folder} cannot be a folder, a file is in the way; give another --out") from error


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"


def _write_if_changed(path: Path, text: str) -> None:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
