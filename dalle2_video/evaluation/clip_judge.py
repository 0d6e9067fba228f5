"""A CLIP judged by retrieval: is the right clip of a split found by its text, and the right text by its clip?

`ranks.jsonl` has one clip a line: its text and the rank of each of the two in the other's list. Where clips share a
text, top-1 can be no more than distinct_texts / clips: one of them alone can come first.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from dalle2_video.data import keyed_random
from dalle2_video.data.batches import to_float
from dalle2_video.evaluation import retrieval
from dalle2_video.evaluation.judge import Lazy, Rows, Verdict, told
from dalle2_video.evaluation.split_clips import SplitClips, batches
from dalle2_video.stages.frozen_clip import FrozenClip, TextCondition
from dalle2_video.task_array import OnProgress

RANKS = "ranks.jsonl"
CLIPS_AT_ONCE = 64


class ClipJudge:
    """Retrieval on a split."""

    def __init__(self, clips: SplitClips, clip_export: Lazy, device: torch.device) -> None:
        self.clips, self._export, self.device = clips, clip_export, device

    @cached_property
    def clip(self) -> FrozenClip:
        """The CLIP that is judged."""
        return on_device(self._export(), self.device)

    def measure(self, task: int, on_progress: OnProgress) -> Rows:
        """Embed the split's clips of one shard: of each the video and the text, (m, d) float32."""
        rows = self.clips.of_task(task)
        found: dict[str, list[np.ndarray]] = {"video": [], "text": []}
        for before, part in batches(rows, CLIPS_AT_ONCE):
            window = self.clip.config.window
            on_read = told(on_progress, before, len(rows))
            frames = self.clips.windows(part, self.clips.starts(part, window), window, on_read)
            video = self.clip.encode_video(to_float(torch.from_numpy(frames).to(self.device)))
            text = texts_of(self.clips, part, self.clip, self.device).embedding_bd
            for name, tensor in (("video", video), ("text", text)):
                found[name].append(tensor.float().cpu().numpy())
        return {name: np.concatenate(parts) for name, parts in found.items() if parts}

    def verdict(self, found: Rows, staging: Path) -> Verdict:
        """Rank all clips of the split."""
        rows, clips = self.clips.rows, self.clips
        identities = clips.identities(rows)
        of_text, of_video = retrieval.places(found["video"], found["text"])
        draws = keyed_random.key(clips.seed, "evaluate")
        figures = {
            "text_to_video": retrieval.figures(of_text, identities, draws),
            "video_to_text": retrieval.figures(of_video, identities, draws),
        }
        with (staging / RANKS).open("w") as file:
            ranks = zip(of_text.ranks().tolist(), of_video.ranks().tolist(), strict=True)
            for row, text, (by_text, by_video) in zip(rows.tolist(), clips.texts(rows), ranks, strict=True):
                line = {
                    "clip": clips.store.clip_id(row),
                    "row": row,
                    "text_to_video": by_text,
                    "video_to_text": by_video,
                }
                file.write(json.dumps(line | {"text": text}, ensure_ascii=False) + "\n")
        return Verdict(
            figures=figures,
            facts={"tie": retrieval.TIE},
            words={direction: retrieval.words(of, len(rows)) for direction, of in figures.items()},
            files=[RANKS],
        )


def on_device(export: Path, device: torch.device) -> FrozenClip:
    """Load a CLIP."""
    clip = FrozenClip(export)
    clip.to(device)
    return clip


def texts_of(clips: SplitClips, rows: np.ndarray, clip: FrozenClip, device: torch.device) -> TextCondition:
    """Encode the texts of clips."""
    return clip.encode_text(*(torch.from_numpy(array).to(device) for array in clips.tokens(rows)))
