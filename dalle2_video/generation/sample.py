"""Sampling as a task array: prompts to mp4 files, a contact sheet and a list that says how each was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dalle2_video.config import SampleConfig
from dalle2_video.digests import file_digest
from dalle2_video.generation.pipeline import Request, VideoPipeline
from dalle2_video.generation.video_file import contact_sheet, enlarge, read_mp4, write_mp4
from dalle2_video.task_array import OnProgress, Published

SAMPLES = "samples.json"
CONTACT_SHEET = "contact_sheet.png"
SHEET_ROWS = 12


class SampleArray:
    """Videos of a few prompts each task."""

    def __init__(
        self, *, root: Path, exports: dict[str, Path], config: SampleConfig, seed: int, device: torch.device
    ) -> None:
        """root: folder of the videos; exports: export folders by stage."""
        self.root, self.exports, self.config, self.device = root, exports, config, device
        self.requests = [
            Request(prompt=prompt, seed=seed, repeat=number)
            for prompt in config.prompts
            for number in range(config.samples_per_prompt)
        ]
        self.num_tasks = config.num_tasks
        self._pipeline: VideoPipeline | None = None

    def prepare(self, staging: Path) -> Published:
        """Nothing must exist before the first task."""
        return []

    def run_task(self, task: int, staging: Path, on_progress: OnProgress) -> tuple[Published, dict[str, Any]]:
        """Make the task's videos."""
        self._pipeline = self._pipeline or VideoPipeline(self.exports, self.device)
        first = task * self.config.videos_at_once
        mine = self.requests[first : first + self.config.videos_at_once]
        higher = (self._pipeline.temporal_sr, self._pipeline.spatial_sr)
        total = self._pipeline.prior.config.candidates + 1 + sum(stage is not None for stage in higher)
        finished = 0

        def on_step(stage: str, step: int, steps: int) -> None:
            nonlocal finished
            on_progress((finished + step / steps) / total)
            finished += step == steps

        videos = self._pipeline.generate(mine, self.config, on_step=on_step).numpy()
        published, made = [], []
        for offset, (request, video) in enumerate(zip(mine, videos, strict=True)):
            name = f"{first + offset:04d}.mp4"
            facts = {"file": name, "prompt": request.prompt, "seed": request.seed, "repeat": request.repeat}
            tags = {"title": request.prompt, "comment": json.dumps(facts)}
            write_mp4(staging / name, enlarge(video), self._pipeline.fps, metadata=tags)
            published += [(staging / name, name)]
            made.append(facts | {"sha256": file_digest(staging / name)})
        return published, {"samples": made}

    def finish(self, records: dict[int, dict[str, Any]], staging: Path) -> tuple[Published, dict[str, Any]]:
        """Write the list of videos and the contact sheet."""
        samples = [entry for task in sorted(records) for entry in records[task]["samples"]]
        (staging / SAMPLES).write_text(json.dumps(samples, indent=1, ensure_ascii=False))
        shown = samples[:SHEET_ROWS]
        contact_sheet(
            staging / CONTACT_SHEET,
            [read_mp4(self.root / entry["file"]) for entry in shown],
            [entry["prompt"] for entry in shown],
        )
        names = (SAMPLES, CONTACT_SHEET)
        return [(staging / name, name) for name in names], {"videos": len(samples), "folder": str(self.root)}
