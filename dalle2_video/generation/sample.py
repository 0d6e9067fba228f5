"""Sampling as a task array: prompts to mp4 files, each with a file that says how it was made, and a contact sheet.

A task brings all its batches through one stage before the next is loaded. After each stage a batch is published as it
stands, so that a task which is killed anywhere goes on from there: only what is missing is made, and it is the same to
the bit. A video counts as made once its JSON file is there, which is published last; then nothing unfinished is needed.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from dalle2_video import json_file
from dalle2_video.config_io import to_dict
from dalle2_video.digests import file_digest
from dalle2_video.generation.pipeline import SCORE, VIDEO, State, VideoPipeline, batched
from dalle2_video.generation.ranking import best_of
from dalle2_video.generation.requests import Request, requests_of
from dalle2_video.generation.start_frames import read_start
from dalle2_video.generation.video_file import (
    contact_sheet,
    enlarge,
    read_mp4,
    write_animation,
    write_frames,
    write_mp4,
)
from dalle2_video.given_files import DIGEST_MARK
from dalle2_video.sample_config import SampleConfig
from dalle2_video.task_array import OnProgress, Published

SAMPLES = "samples.json"
CONTACT_SHEET = "contact_sheet.png"
SHEET_ROWS = 12
UNFINISHED = "unfinished"
"""Folder of the batches that are between two stages."""
LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "av", "pillow")
Publish = Callable[[Path, str], None]
"""Make a staged file or folder visible, whole, under a name relative to the array's root."""


class SampleArray:
    """Videos of a few prompts each task."""

    def __init__(
        self,
        *,
        root: Path,
        exports: Callable[[], Mapping[str, Path]],
        config: SampleConfig,
        seed: int,
        device: torch.device,
        publish: Publish,
        prompts: Callable[[], Sequence[str]] | None = None,
        start: Path | None = None,
        made_by: Mapping[str, Any] | None = None,
        code: str = "",
    ) -> None:
        """root: folder of the videos; exports: finds export folders by stage; prompts: where `config` has none.

        start: file that `config.start` means; made_by: run, parents and their digests, for the record; code: version of
        the code, which is on record beside the videos only, since it does not make another one of them.
        """
        self.root, self.config, self.device = root, config, device
        self._exports, self._seed, self._publish = exports, seed, publish
        self._prompts, self._start_file = prompts, start
        self._made_by, self._code = dict(made_by or {}), code
        self.num_tasks = config.num_tasks

    @cached_property
    def requests(self) -> list[Request]:
        """The videos to keep."""
        prompts = self.config.prompts if self._prompts is None else self._prompts()
        return requests_of(self.config, prompts, self._seed)

    @cached_property
    def _pipeline(self) -> VideoPipeline:
        return VideoPipeline(self._exports(), self.device)

    @cached_property
    def _start(self) -> np.ndarray | None:
        if self._start_file is None:
            return None
        wanted = self.config.start
        if DIGEST_MARK + file_digest(self._start_file) != wanted:
            raise ValueError(f"{self._start_file} is not what the run was started with ({wanted}); put that back")
        return read_start(self._start_file, *self._pipeline.start_window(self.config))

    @cached_property
    def _options(self) -> dict[str, Any]:
        return {name: value for name, value in to_dict(self.config).items() if name != "prompts"}

    def prepare(self, staging: Path) -> Published:
        """Nothing must exist before the first task."""
        return []

    def run_task(self, task: int, staging: Path, on_progress: OnProgress) -> tuple[Published, dict[str, Any]]:
        """Make those of the task's videos that are missing; all is published on the way."""
        first = task * self.config.videos_per_task
        mine = dict(enumerate(self.requests[first : first + self.config.videos_per_task], start=first))
        missing = [number for number in mine if not (self.root / _name(number, "json")).exists()]
        folder = f"{UNFINISHED}/{task:04d}"
        if missing:
            batches = batched([*mine.values()], self.config)
            at_once, tries = self.config.videos_at_once, self.config.candidates
            needed = {(number - first) * tries + one for number in missing for one in range(tries)}
            wanted = sorted({place // at_once for place in needed})
            self._bring_on({place: batches[place] for place in wanted}, folder, staging, on_progress)
            last = len(self._pipeline.steps(self.config)) - 1
            for number in missing:
                places = [(number - first) * tries + one for one in range(tries)]
                found = {place // at_once for place in places}
                states = {place: load_file(self.root / folder / _state(last, place)) for place in found}
                self._write(number, mine[number], [(states[p // at_once], p % at_once) for p in places], staging)
        shutil.rmtree(self.root / folder, ignore_errors=True)
        return [], {"samples": [self._entry(number) for number in mine]}

    def _bring_on(
        self, batches: Mapping[int, list[Request]], folder: str, staging: Path, on_progress: OnProgress
    ) -> None:
        """Bring batches through all steps, each batch from the last step after which it was published."""
        steps = self._pipeline.steps(self.config)

        def path(step: int, place: int) -> Path:
            return self.root / folder / _state(step, place)

        reached = {
            place: max((step for step in range(len(steps)) if path(step, place).exists()), default=-1)
            for place in batches
        }
        total, finished = len(steps) * len(batches), sum(step + 1 for step in reached.values())

        def on_step(_: str, done: int, of: int) -> None:
            on_progress((finished + done / of) / (total + 1))  # one more: files are written at the end

        for number, step in enumerate(steps):
            for place, batch in batches.items():
                if reached[place] >= number:
                    continue
                on_progress(finished / (total + 1))
                state: State = load_file(path(number - 1, place)) if number else {}
                state = self._pipeline.run(step, batch, state, self.config, start=self._start, on_step=on_step)
                staged = staging / "state.safetensors"
                # clones: safetensors refuses tensors that share memory, as the text's embedding decoded does
                save_file(
                    {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()},
                    staged,
                )
                self._publish(staged, f"{folder}/{_state(number, place)}")
                if number:
                    path(number - 1, place).unlink(missing_ok=True)
                finished += 1

    def _write(self, number: int, request: Request, tries: list[tuple[State, int]], staging: Path) -> None:
        """Write the files of the best try of one request; tries: batches with its place in each."""
        facts: dict[str, Any] = {"file": _name(number, "mp4"), "prompt": request.prompt}
        facts |= {"seed": request.seed, "repeat": request.repeat}
        if request.towards:
            facts |= {"towards": request.towards, "share": request.share}
        kept = 0
        if len(tries) > 1:
            scores = torch.stack([state[SCORE][place] for state, place in tries])
            kept = best_of(scores, 0, len(tries))
            facts |= {"candidate": kept, "clip_score": scores[kept].item()}
            facts["clip_scores"] = scores.tolist()
        state, place = tries[kept]
        video, fps = enlarge(state[VIDEO][place].numpy()), self._pipeline.fps(self.config)
        provenance = {name: value for name, value in facts.items() if name != "file"} | self._made_by
        tags = {"title": request.prompt, "comment": json.dumps(provenance)}
        write_mp4(staging / facts["file"], video, fps, metadata=tags)
        also = []
        for kind in self.config.also:
            name = f"{number:04d}" if kind == "frames" else _name(number, kind)
            if kind == "frames":
                write_frames(staging / name, state[VIDEO][place].numpy())
                shutil.rmtree(self.root / name, ignore_errors=True)  # of an attempt that was killed right here
            else:
                write_animation(staging / name, video, fps)
            also.append(name)
        facts["sha256"] = file_digest(staging / facts["file"])
        facts |= {"also": also} if also else {}
        record = {
            "sample": facts,
            "made_by": self._made_by,
            "place_in_batch": place,
            "fps": fps,
            "frames": list(state[VIDEO][place].shape),
            "options": self._options,
            "samplers": self._pipeline.samplers(self.config),
            "code": self._code,
            "versions": _versions(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine(),
        }
        text = json.dumps(record, indent=1, ensure_ascii=False)
        (staging / _name(number, "json")).write_text(text + "\n")
        for name in (*also, facts["file"], _name(number, "json")):
            self._publish(staging / name, name)

    def _entry(self, number: int) -> dict[str, Any]:
        return json_file.read(self.root / _name(number, "json"))["sample"]

    def finish(self, records: dict[int, dict[str, Any]], staging: Path) -> tuple[Published, dict[str, Any]]:
        """Write the list of videos and the contact sheet."""
        shutil.rmtree(self.root / UNFINISHED, ignore_errors=True)
        samples = [entry for task in sorted(records) for entry in records[task]["samples"]]
        (staging / SAMPLES).write_text(json.dumps(samples, indent=1, ensure_ascii=False))
        shown = samples[:SHEET_ROWS]
        contact_sheet(
            staging / CONTACT_SHEET,
            [read_mp4(self.root / entry["file"]) for entry in shown],
            [_words(entry) for entry in shown],
        )
        names = (SAMPLES, CONTACT_SHEET)
        return [(staging / name, name) for name in names], {"videos": len(samples), "folder": str(self.root)}


@cache
def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def _name(number: int, suffix: str) -> str:
    """File name of a video: its number alone, for a prompt can be any text."""
    return f"{number:04d}.{suffix}"


def _state(step: int, place: int) -> str:
    return f"{place:04d}-{step}.safetensors"


def _words(entry: Mapping[str, Any]) -> str:
    if "towards" not in entry:
        return entry["prompt"]
    return f"{entry['prompt']} -> {entry['share']:.0%} {entry['towards']}"
