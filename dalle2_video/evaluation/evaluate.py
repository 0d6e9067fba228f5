"""An evaluation as a task array: tasks measure, each the clips of one shard, and the last step makes figures of it all.

    shards/00003.safetensors   what task 3 found, one row a clip or video
    evaluation.json            the figures with their intervals, and what they were measured on
    ranks.jsonl                of a CLIP: where each clip and each text stands

What is judged decides the judge: see `judge`. Invariant: what a task finds follows from the task, and everything is
computed on one CPU thread (or on a GPU), so that no sharing-out of the tasks can change a bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from dalle2_video.digests import file_digest
from dalle2_video.evaluate_config import EvaluateConfig
from dalle2_video.evaluation import intervals
from dalle2_video.evaluation.judge import Judge
from dalle2_video.task_array import OnProgress, Published

EVALUATION = "evaluation.json"


class EvaluateArray:
    """One evaluation."""

    def __init__(
        self, *, root: Path, judge: Judge, made_from: dict[str, dict[str, Any]], config: EvaluateConfig, seed: int
    ) -> None:
        """root: folder of what is made; made_from: id, digest and, of a checkpoint, step by stage."""
        self.root, self.judge, self.made_from, self.config, self.seed = root, judge, made_from, config, seed
        self.num_tasks = judge.clips.num_tasks

    def prepare(self, staging: Path) -> Published:
        """Nothing must exist before the first task."""
        return []

    def run_task(self, task: int, staging: Path, on_progress: OnProgress) -> tuple[Published, dict[str, Any]]:
        """Measure; there may be nothing to."""
        with _one_thread():
            found = self.judge.measure(task, on_progress)
        staged = staging / "found.safetensors"
        save_file({name: np.ascontiguousarray(values) for name, values in found.items()}, staged)
        clips = self.judge.clips
        record = {"clips": clips.in_shard(task), "evaluated": len(clips.of_task(task)), "sha256": file_digest(staged)}
        return [(staged, shard_file(task))], record

    def finish(self, records: dict[int, dict[str, Any]], staging: Path) -> tuple[Published, dict[str, Any]]:
        """Write the figures."""
        of_tasks = [self._read(task, records[task]) for task in sorted(records)]
        names = dict.fromkeys(name for found in of_tasks for name in found)
        found = {name: np.concatenate([of_task[name] for of_task in of_tasks if name in of_task]) for name in names}
        clips = self.judge.clips
        with _one_thread():
            verdict = self.judge.verdict(found, staging)
        facts: dict[str, Any] = {
            "made_from": self.made_from,
            "split": self.config.split,
            "seed": self.seed,
            "captions": clips.choose,
            "clips": len(clips.rows),
            "identities": len(set(clips.identities(clips.rows).tolist())),
            "distinct_texts": len(set(clips.texts(clips.rows))),
            "confidence": intervals.CONFIDENCE,
            "resamples": intervals.RESAMPLES,
        }
        plain = {
            group: {name: dataclasses.asdict(one) for name, one in of.items()} for group, of in verdict.figures.items()
        }
        (staging / EVALUATION).write_text(json.dumps(facts | verdict.facts | plain, indent=1, ensure_ascii=False))
        summary = {"split": self.config.split, "clips": len(clips.rows), "folder": str(self.root)} | verdict.words
        # Last: whoever finds the figures finds what goes with them.
        return [(staging / name, name) for name in (*verdict.files, EVALUATION)], summary

    def _read(self, task: int, record: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return what a task found; ValueError where its file is not the one that it wrote."""
        path = self.root / shard_file(task)
        if not path.is_file() or file_digest(path) != record["sha256"]:
            raise ValueError(f"{path} is missing or damaged; remove the run's folder and run the same command again")
        return load_file(path)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one CPU thread: how many share a sum changes its last bits, and how many there are the job's size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def shard_file(task: int) -> str:
    """Where a task's findings lie, relative to the array's root."""
    return f"shards/{task:05d}.safetensors"
