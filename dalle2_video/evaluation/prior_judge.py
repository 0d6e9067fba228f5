"""A prior judged by DALL-E 2's cosines: of what it samples to its text, to the true embedding and to other texts.

cosine_text should come near to cosine_text_of_true, which the true embeddings have; cosine_true tells whether it hits
the clip, and cosine_unrelated should be far below cosine_text. One embedding is sampled a text, not the best of some.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from dalle2_video.data import keyed_random
from dalle2_video.data.batches import to_float
from dalle2_video.data.draws import Draws
from dalle2_video.evaluation.clip_judge import on_device, texts_of
from dalle2_video.evaluation.intervals import means, numbered
from dalle2_video.evaluation.judge import Lazy, Rows, Verdict, in_words, told
from dalle2_video.evaluation.split_clips import SplitClips, batches
from dalle2_video.models.factory import Exported, load_export
from dalle2_video.stages.frozen_clip import FrozenClip
from dalle2_video.stages.prior import sample_embeddings
from dalle2_video.task_array import OnProgress

CLIPS_AT_ONCE = 64


class PriorJudge:
    """Cosines over a split."""

    def __init__(self, clips: SplitClips, clip_export: Lazy, prior_export: Lazy, device: torch.device) -> None:
        self.clips, self._clip_export, self._prior_export, self.device = clips, clip_export, prior_export, device

    @cached_property
    def clip(self) -> FrozenClip:
        """The prior's CLIP."""
        return on_device(self._clip_export(), self.device)

    @cached_property
    def prior(self) -> Exported:
        """The prior that is judged."""
        exported = load_export(self._prior_export(), "prior")
        exported.module.to(self.device)
        return exported

    def measure(self, task: int, on_progress: OnProgress) -> Rows:
        """Return the sampled embedding of each clip of a shard, that of its video and that of its text, (m, d)."""
        rows = self.clips.of_task(task)
        found: dict[str, list[np.ndarray]] = {"sampled": [], "video": [], "text": []}
        for before, part in batches(rows, CLIPS_AT_ONCE):
            on_read = told(on_progress, before, len(rows))
            window = self.clip.config.window
            frames = self.clips.windows(part, self.clips.starts(part, window), window, lambda _: None)
            text = texts_of(self.clips, part, self.clip, self.device)
            draws = Draws(keyed_random.key(self.clips.seed, "evaluate"), torch.from_numpy(part), self.device)
            alive = functools.partial(_again, on_read)
            sampled = sample_embeddings(self.prior.module, text, self.prior.config, draws, on_step=alive)
            on_read(len(part))
            video = self.clip.encode_video(to_float(torch.from_numpy(frames).to(self.device)))
            for name, tensor in (("sampled", sampled), ("video", video), ("text", text.embedding_bd)):
                found[name].append(tensor.float().cpu().numpy())
        return {name: np.concatenate(parts) for name, parts in found.items() if parts}

    def verdict(self, found: Rows, staging: Path) -> Verdict:
        """Return the mean cosines."""
        rows, clips = self.clips.rows, self.clips
        columns = cosines(found["sampled"], found["video"], found["text"], clips.texts(rows))
        figures = means(columns, clips.identities(rows), keyed_random.key(clips.seed, "evaluate"))
        return Verdict(figures={"prior": figures}, words={"prior": in_words(figures)})


def _again(on_read: Callable[[float], None], step: int) -> None:
    on_read(0)  # a task may be stopped between two steps


def cosines(sampled_nd: np.ndarray, video_nd: np.ndarray, text_nd: np.ndarray, texts: list[str]) -> Rows:
    """Return each clip's cosines, (n,) float64 by name.

    texts: clips of one text are not unrelated; where all have one there is no cosine_unrelated.
    """
    sampled, video, text = (_directions(vectors) for vectors in (sampled_nd, video_nd, text_nd))
    found = {
        "cosine_text": (sampled * text).sum(axis=1),
        "cosine_true": (sampled * video).sum(axis=1),
        "cosine_text_of_true": (video * text).sum(axis=1),
    }
    if (others := unrelated(sampled, text, texts)) is not None:
        found["cosine_unrelated"] = others
    return found


def unrelated(of_nd: np.ndarray, text_nd: np.ndarray, texts: list[str]) -> np.ndarray | None:
    """Return each one's mean cosine to the texts that are not its own, (n,); None where all have one text.

    of_nd, text_nd: unit vectors at the same row; texts: in words.
    """
    same = numbered(texts)
    others = len(texts) - np.bincount(same)[same]
    if not others.any():
        return None
    text = text_nd.astype(np.float64)
    by_text = np.zeros((int(same.max()) + 1, text.shape[1]))
    np.add.at(by_text, same, text)
    return (of_nd * (text.sum(axis=0) - by_text[same])).sum(axis=1) / others


def _directions(vectors_nd: np.ndarray) -> np.ndarray:
    vectors = vectors_nd.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
