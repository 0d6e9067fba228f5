"""Read the old project's HDF5 videos and their text into a store, as a finished run that `launch/clip.py` builds on.

    python tools/import_h5.py --videos OLD.h5 --captions DATA_ROOT --recipe celebv_text_64 --source-fps 30
    python tools/import_h5.py --videos OLD.h5 --tokens OLD.pt --tokenizer CLIP_FOLDER --source-fps 30 --bgr auto

The run is one of stage 'preprocess' in $DALLE2_VIDEO_HOME; the same command goes on where a killed one was. Clip ids
come from --ids, else from the file, else they are made up (each clip one identity). `--dry-run` tells what is detected.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dalle2_video.config import Recipe
from dalle2_video.config_io import to_dict
from dalle2_video.data import celebv_text, legacy
from dalle2_video.data.celebv_text import Caption
from dalle2_video.data.legacy_array import LegacyArray, clips_of
from dalle2_video.data.tokenizer import from_folder
from dalle2_video.data_config import DataConfig
from experiments import files, identity
from experiments.registry import Registry, default_home
from experiments.run import Attempt, Run, RunSpec
from launch.arguments import load_recipe, override_flags
from launch.console import Console, print_error
from launch.parents import IMPORT_COMMAND, IMPORTED_CLIPS
from launch.proposal import MANIFEST
from slurm import run_state
from slurm.array_job import Worker
from slurm.local import process_record

USER_ERROR = 2
INTERRUPTED = 130
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Read the old project's videos and text into a store that `launch/clip.py` finds."""

    videos: Path
    """HDF5 file of the old project."""
    recipe: str = "tiny"
    """Recipe whose data part the store is made for."""
    dataset: str = "videos"
    """Dataset of the videos in the file."""
    layout: Literal["auto", "ncthw", "ntchw", "nthwc"] = "auto"
    """Order of the dataset's axes: clip, channel, time, height, width."""
    values: Literal["auto", "clip", "unit", "signed", "bytes"] = "auto"
    """Range of the values: normalised for CLIP, [0, 1], [-1, 1] or [0, 255]."""
    bgr: Literal["no", "yes", "auto"] = "no"
    """Whether channels lie as blue, green, red; auto: decided by skin tones, refused where they do not tell."""
    source_fps: float | None = None
    """Frames per second in the file; default: its attribute `fps`. Greater than 0."""
    captions: Path | None = None
    """Folder that holds `texts/` as CelebV-Text lays it out, files named by clip id."""
    tokens: Path | None = None
    """Instead of --captions: .pt file of CLIP token ids, (N, context) or (N, 1, context), one caption a clip."""
    tokenizer: Path | None = None
    """With --tokens: folder of the Hugging Face tokenizer that made them."""
    ids: Path | None = None
    """Text file of clip ids, one a line in the order of the videos; default: those in the HDF5 file."""
    dry_run: bool = False
    """Tell what was detected and change nothing."""
    data: DataConfig
    """The recipe's data part; what is changed here must be changed in the later launches too."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; return the exit code."""
    try:
        return _import(_parse(sys.argv[1:] if arguments is None else arguments))
    except ValueError as error:
        print("error:", *(line.strip() for line in str(error).splitlines()), file=sys.stderr)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT):
            raise
        print_error(f"{error}; mend it, then run the same command again")
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    return USER_ERROR


def _parse(arguments: Sequence[str]) -> Arguments:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="tiny")
    name = first.parse_known_args(list(arguments))[0].recipe
    default = Arguments(videos=tyro.MISSING, recipe=name, data=load_recipe(name).data)
    return tyro.cli(Arguments, args=list(arguments), default=default, prog="tools/import_h5.py")


def _import(arguments: Arguments) -> int:
    default = load_recipe(arguments.recipe)
    recipe = dataclasses.replace(default, data=arguments.data)  # refused now where its stages cannot use such data
    spec, array = _plan(arguments)
    registry = Registry(default_home())
    if arguments.dry_run:
        console.print(f"would make {registry.folder_of(spec)}")
        return 0
    registry.check_writable()
    run = registry.create(spec)
    manifest = [clip.to_row(array.data_root) for clip in array.clips]
    files.create_exclusive(run.folder / MANIFEST, files.encode_rows(manifest))
    code = _run(run, array)
    record = run.done()
    if record is not None:
        flags = override_flags(default, recipe, ("data",))
        following = shlex.join(["python", "launch/clip.py", "--recipe", arguments.recipe, *flags])
        bad = f" (reasons: {run.folder / 'store' / 'bad_clips.json'})" if record["bad"] else ""
        console.print(f"[bold]{run.name}[/bold]: DONE, {record['clips']} clips, {record['bad']} bad{bad}")
        console.print(f"next: {following}")
    return code


def spec_of(command: str) -> RunSpec:
    """Return the run that a command line of this tool makes today. Raises ValueError or OSError where it makes none."""
    with console.capture():
        return _plan(_parse(shlex.split(command)[2:]))[0]


def _plan(arguments: Arguments) -> tuple[RunSpec, LegacyArray]:
    """Detect what the files hold, say so, and return the run and its work."""
    data = arguments.data
    videos = legacy.LegacyVideos(arguments.videos.absolute(), arguments.dataset, arguments.layout)
    if data.frame_sizes[-1] > min(videos.height, videos.width):
        raise ValueError(
            f"--data.frame-sizes {data.frame_sizes[-1]}: the old videos are {videos.width} x {videos.height} px and "
            "hold no more detail; leave that size out, or preprocess the original clips"
        )
    console.print(
        f"{videos.num_clips} clips of {videos.num_frames} frames, {videos.width} x {videos.height} px, "
        f"{videos.data.dtype}, axes {videos.layout}"
    )
    how = _conversion(arguments, videos)
    clip_ids = _clip_ids(arguments, videos)
    captions, text_fingerprint = _captions(arguments, clip_ids)
    source = identity.digest(
        {
            "h5": videos.fingerprint(), "dataset": arguments.dataset, "layout": videos.layout, "values": how.values,
            "bgr": how.bgr, "source_fps": how.source_fps, "ids": clip_ids, "text": text_fingerprint,
        }
    )  # fmt: skip
    spec = RunSpec(
        stage="preprocess",
        recipe=arguments.recipe,
        id=identity.run_id(stage="preprocess", config={"data": data}, source=source, parents={}),
        config={"data": to_dict(data)},
        source=source,
        parents={},
        inputs={
            "videos": str(videos.path),
            IMPORTED_CLIPS: celebv_text.fingerprint(clips_of(videos, clip_ids)),
            IMPORT_COMMAND: _command(arguments, load_recipe(arguments.recipe)),
        },
    )
    root = Registry(default_home()).folder_of(spec) / "store"
    return spec, LegacyArray(
        root=root, videos=videos, clip_ids=clip_ids, captions=captions, how=how, config=data, fingerprint=source
    )


def _command(arguments: Arguments, default: Recipe) -> str:
    """Return the command line that goes on with this import."""
    words = ["python", "tools/import_h5.py"]
    for field in dataclasses.fields(Arguments):
        value = getattr(arguments, field.name)
        if field.name not in ("data", "dry_run") and value != field.default:
            path = isinstance(value, Path)
            words += [f"--{field.name.replace('_', '-')}", str(value.absolute() if path else value)]
    return shlex.join([*words, *override_flags(default, dataclasses.replace(default, data=arguments.data), ("data",))])


def _conversion(arguments: Arguments, videos: legacy.LegacyVideos) -> legacy.Conversion:
    """Settle range, order of channels and frame rate, and say so."""
    source_fps = videos.fps() if arguments.source_fps is None else arguments.source_fps
    if source_fps is None:
        raise ValueError(f"{videos.path} does not tell its frame rate; give it: --source-fps 30")
    if not 0 < source_fps < 1000:
        raise ValueError(f"--source-fps {source_fps:g} must be greater than 0 and below 1000")
    sample = videos.sample()
    if arguments.values == "auto":
        values, reason = legacy.detect_values(sample)
        console.print(f"values: {reason}")
    else:
        values = arguments.values
    evidence = legacy.bgr_evidence(sample, values)
    bgr = arguments.bgr == "yes" if arguments.bgr != "auto" else evidence.verdict
    if bgr is None:
        raise ValueError(f"--bgr auto: {evidence}; look at a frame and say --bgr yes or --bgr no")
    console.print(f"channels: {'BGR, turned round' if bgr else 'RGB'}{f' ({evidence})' * (arguments.bgr == 'auto')}")
    if evidence.verdict not in (None, bgr):
        console.print(f"[yellow]caution[/yellow]: {evidence}; did you mean --bgr {'no' if bgr else 'yes'}?")
    data = arguments.data
    count = len(legacy.frame_numbers(videos.num_frames, source_fps, data.fps, data.max_frames))
    if count < data.min_frames:
        raise ValueError(
            f"{videos.num_frames} frames at {source_fps:g} fps make {count} at {data.fps:g} fps, fewer than "
            f"--data.min-frames {data.min_frames}; lower that, raise --data.fps, or see whether --source-fps is right"
        )
    console.print(f"time: {source_fps:g} to {data.fps:g} frames per second, {count} frames a clip")
    return legacy.Conversion(values=values, bgr=bgr, source_fps=source_fps)


def _clip_ids(arguments: Arguments, videos: legacy.LegacyVideos) -> list[str]:
    if arguments.ids is not None:
        lines = arguments.ids.read_text(encoding="utf-8-sig").splitlines()
        return legacy.check_ids(lines, videos.num_clips, str(arguments.ids))
    found = videos.ids()
    if found is not None:
        return found
    if arguments.captions is not None:
        raise ValueError(
            f"{videos.path} holds no clip ids, so no caption file can be found; give one id a line in the order of the "
            "videos: --ids LIST"
        )
    made_up = legacy.synthetic_ids(videos.num_clips)
    console.print(
        f"[yellow]caution[/yellow]: no clip ids; named {made_up[0]} and on, so that the split cannot keep clips of one "
        "person on one side (give the ids: --ids LIST)"
    )
    return made_up


def _captions(arguments: Arguments, clip_ids: list[str]) -> tuple[Callable[[int], list[Caption]], str]:
    """Return what gives a row's captions, and their fingerprint."""
    if (arguments.captions is None) == (arguments.tokens is None):
        raise ValueError("give the text by just one of --captions FOLDER and --tokens FILE")
    if arguments.captions is not None:
        folder = arguments.captions
        root = folder.parent if folder.name == "texts" and not (folder / "texts").exists() else folder
        fingerprint = legacy.caption_files_fingerprint(root, clip_ids, arguments.data)
        folders = celebv_text.text_folders(root, arguments.data)
        return lambda row: celebv_text.read_captions(clip_ids[row], {}, folders), fingerprint
    assert arguments.tokens is not None
    if arguments.tokenizer is None:
        raise ValueError(
            f"--tokens {arguments.tokens}: the store keeps text, which ids tell only with their tokenizer; give its "
            "folder: --tokenizer DIR, or the caption files instead: --captions FOLDER"
        )
    decoded = legacy.decode_tokens(
        _load_tokens(arguments.tokens, len(clip_ids)), from_folder(arguments.tokenizer.absolute())
    )
    console.print(f"text: {len(decoded.texts)} captions, all taken as 'appearance'; {decoded.cut} had been cut")

    def of_row(row: int) -> list[Caption]:
        if not decoded.texts[row]:
            raise ValueError(f"the tokens of {clip_ids[row]} hold no text")
        return [Caption(kind="appearance", text=decoded.texts[row])]

    return of_row, identity.digest(decoded.texts)


def _load_tokens(path: Path, num_clips: int) -> np.ndarray:
    """Return (n, context) ids. Raises ValueError for anything else than a tensor of them."""
    import torch  # seconds to import, and only this needs it

    if not path.is_file():
        raise ValueError(f"--tokens {path}: no such file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever damaged bytes lead to
        # Torch's own message advises to run whatever code the file holds.
        raise ValueError(
            f"--tokens {path}: not a file of plain tensors ({type(error).__name__}); save the ids alone where it was "
            "made: torch.save(ids, FILE)"
        ) from error
    if isinstance(loaded, dict) and "input_ids" in loaded:
        loaded = loaded["input_ids"]
    if not isinstance(loaded, torch.Tensor) or loaded.is_floating_point() or loaded.is_complex():
        what = f"{loaded.dtype} tensor" if isinstance(loaded, torch.Tensor) else type(loaded).__name__
        raise ValueError(f"--tokens {path}: holds a {what}; wanted a tensor of integer ids, (N, 77) or (N, 1, 77)")
    ids = loaded[:, 0] if loaded.ndim == 3 and loaded.shape[1] == 1 else loaded
    if ids.ndim != 2 or ids.shape[0] != num_clips or ids.shape[1] < 2:
        raise ValueError(
            f"--tokens {path}: shape {tuple(loaded.shape)}; wanted ({num_clips}, 77) or ({num_clips}, 1, 77)"
        )
    return ids.numpy()


def _run(run: Run, array: LegacyArray) -> int:
    """Do the tasks that are not done, in this process; return the exit code."""
    intents = run.intents()
    # Other hosts' imports are not asked after: two at once write the same bytes.
    decision = run_state.decision(run, intents, retry=True)
    if decision.action == "finished":
        return 0
    number, us = len(intents) + 1, process_record(os.getpid())
    request = {
        "training": False, "groups": [sorted(set(range(array.num_tasks)) - run.tasks_done())], "world_size": 1,
        "num_tasks": array.num_tasks, "num_clips": len(array.clips), "launcher": us,
    }  # fmt: skip
    if decision.action == "attach" or not run.claim_intent(number, request):
        raise ValueError(f"{run.name} is being imported already; see: python tools/runs.py show {run.spec.id}")
    run.clear_stop()
    run.resolve_intent(number, us)
    attempt = run.claim_attempt({"supervised": True, "intent": number, "group": 0, "world_size": 1})
    try:
        stopped = _tasks(run, attempt, array)
    except KeyboardInterrupt:
        attempt.end("stopped")
        raise
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk must not hide its own message
            attempt.end("error", message=f"{type(error).__name__}: {error}")
        raise
    attempt.end("stopped" if stopped else "done")
    if stopped:
        console.print("stopped; the same command goes on from there")
    return 0


def _tasks(run: Run, attempt: Attempt, array: LegacyArray) -> bool:
    """Do what is missing, with a progress bar; return whether somebody asked to stop before all was done."""
    of_task, total = array.config.clips_per_shard, len(array.clips)
    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        clips = bar.add_task("clips", total=total)

        def on_task(task: int, share: float) -> None:
            bar.update(clips, completed=task * of_task + share * min(of_task, total - task * of_task))

        finished = Worker(run, attempt, array, group=0).work(range(array.num_tasks), run.stop_requested, on_task)
        bar.update(clips, completed=total if finished else None)
    return not finished


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main())
