"""Generated videos judged: CLIP score with their prompts, distances between them and the real windows of a split.

    clip_score             mean cosine of a video and its prompt; _real: of the split's windows and their texts;
                           _unrelated: of videos and other prompts
    frechet_clip           Frechet distance of CLIP's embeddings of videos;  kernel_clip: kernel distance
    frechet_clip_frames    the same of single frames, each embedded as a video of one frame;  kernel_clip_frames
    fvd, kvd, fid, kid     the same with the features of a TorchScript file: of videos, of frames

A task looks at the real clips of one shard and at its share of the videos. Distances with less than two prompts, or two
persons, are left out with a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dalle2_video.data import keyed_random
from dalle2_video.data.batches import to_float
from dalle2_video.data.tokenizer import Tokenizer
from dalle2_video.data_config import WindowConfig
from dalle2_video.evaluation import frechet, kernel, videos
from dalle2_video.evaluation.clip_judge import on_device, texts_of
from dalle2_video.evaluation.feature_network import FeatureNetwork
from dalle2_video.evaluation.intervals import Figure, means, numbered
from dalle2_video.evaluation.judge import Lazy, Rows, Verdict, in_words, told
from dalle2_video.evaluation.prior_judge import unrelated
from dalle2_video.evaluation.split_clips import SplitClips, batches
from dalle2_video.models.factory import TOKENIZER
from dalle2_video.stages.frozen_clip import FrozenClip
from dalle2_video.task_array import OnProgress

VIDEOS_AT_ONCE = 8
FRAMES_PER_VIDEO = 4
"""Evenly spaced frames of each video that enter the distances of frames: neighbours are nearly the same."""
REAL, GENERATED = "real", "generated"
DISTANCES = {
    "clip": ("frechet_clip", "kernel_clip"),
    "clip_frames": ("frechet_clip_frames", "kernel_clip_frames"),
    "video_features": ("fvd", "kvd"),
    "frame_features": ("fid", "kid"),
}
"""Names of the Frechet and the kernel distance by what the features are of."""


class SampleJudge:
    """Videos of a sample run beside those of a split."""

    def __init__(
        self,
        clips: SplitClips,
        samples: Path,
        window: WindowConfig,
        clip_export: Lazy,
        networks: Mapping[str, tuple[str, str]],
        device: torch.device,
    ) -> None:
        """samples: folder of the videos; window: of the last stage that made them, of which `clips` have a whole one.

        networks: path and digest of TorchScript files by field.
        """
        self.clips, self.folder, self.window, self.device = clips, samples, window, device
        self._export, self._named = clip_export, networks
        self.entries = videos.listed(samples)
        self.prompts = [str(entry["prompt"]) for entry in self.entries]

    @cached_property
    def clip(self) -> FrozenClip:
        """The CLIP whose score is measured."""
        return on_device(self._export(), self.device)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.read(self._export() / TOKENIZER)

    @cached_property
    def _networks(self) -> dict[str, FeatureNetwork]:
        return {field: FeatureNetwork(field, *named, self.device) for field, named in self._named.items()}

    def share(self, task: int) -> range:
        """Return which videos a task looks at."""
        tasks, count = self.clips.num_tasks, len(self.entries)
        return range(task * count // tasks, (task + 1) * count // tasks)

    def measure(self, task: int, on_progress: OnProgress) -> Rows:
        """Return features of the real windows of a shard and of the task's videos, and embeddings of their texts."""
        rows, mine = self.clips.of_task(task), self.share(task)
        total = len(rows) + len(mine)
        parts = [self._real(part, told(on_progress, before, total)) for before, part in batches(rows, VIDEOS_AT_ONCE)]
        for first in range(mine.start, mine.stop, VIDEOS_AT_ONCE):
            on_progress((len(rows) + first - mine.start) / total)
            parts.append(self._generated(range(first, min(first + VIDEOS_AT_ONCE, mine.stop))))
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: np.concatenate([part[name] for part in parts if name in part]) for name in names}

    def _real(self, rows: np.ndarray, on_read: Callable[[float], None]) -> Rows:
        stored = self.clips.windows(rows, self.clips.starts(rows, self.window), self.window, on_read)
        fps = self.clips.store.config.fps / self.window.stride
        found = self._features(np.stack([videos.as_if_generated(frames, fps) for frames in stored]))
        text = texts_of(self.clips, rows, self.clip, self.device).embedding_bd
        return {f"{REAL}_{name}": values for name, values in (found | {"text": text.cpu().numpy()}).items()}

    def _generated(self, numbers: range) -> Rows:
        entries = [self.entries[number] for number in numbers]
        found = self._features(
            np.stack([videos.read_generated(self.folder, entry, self.window) for entry in entries])
        )  # fmt: skip
        text = self._encoded([self.prompts[number] for number in numbers])
        return {f"{GENERATED}_{name}": values for name, values in (found | {"text": text}).items()}

    def _features(self, videos_bthwc: np.ndarray) -> Rows:
        """Return features (b, d) of videos and (b, frames, d) of their frames."""
        clip_window, count = self.clip.config.window, len(videos_bthwc)
        seen = torch.cat([videos.for_clip(video, self.window, clip_window) for video in videos_bthwc])
        places = np.linspace(0, self.window.num_frames - 1, min(FRAMES_PER_VIDEO, self.window.num_frames)).round()
        frames = rearrange(videos_bthwc[:, places.astype(int)], "b f h w c -> (b f) h w c")
        stills = videos.scaled(to_float(torch.from_numpy(frames)[:, None]), clip_window.size)
        found = {"clip": self._embedded(seen), "clip_frames": self._embedded(stills)}
        if "video_features" in self._networks:
            found["video_features"] = self._networks["video_features"].of_videos(videos_bthwc)
        if "frame_features" in self._networks:
            found["frame_features"] = self._networks["frame_features"].of_frames(frames)
        of_frames = ("clip_frames", "frame_features")
        return {
            name: rearrange(values, "(b f) d -> b f d", b=count) if name in of_frames else values
            for name, values in found.items()
        }

    def _embedded(self, video_bcthw: Tensor) -> np.ndarray:
        return self.clip.encode_video(video_bcthw.to(self.device)).float().cpu().numpy()

    def _encoded(self, prompts: list[str]) -> np.ndarray:
        tokens, lengths, _ = self._tokenizer.encode(prompts, self.clip.dims.text_context)
        given = (torch.from_numpy(array).long().to(self.device) for array in (tokens, lengths))
        return self.clip.encode_text(*given).embedding_bd.cpu().numpy()

    def verdict(self, found: Rows, staging: Path) -> Verdict:
        """Return scores and distances."""
        seed = keyed_random.key(self.clips.seed, "evaluate")
        persons = self.clips.identities(self.clips.rows)
        figures = self._scores(found, persons, seed)
        groups = {REAL: numbered(persons), GENERATED: numbered(self.prompts)}
        facts: dict[str, Any] = {
            "videos": len(self.entries),
            "prompts": len(set(self.prompts)),
            "frames_per_video": min(FRAMES_PER_VIDEO, self.window.num_frames),
            "frechet_resamples": frechet.RESAMPLES,
        }
        if min(len(set(of.tolist())) for of in groups.values()) < 2:
            facts["left_out"] = "distances: they take two persons and two prompts or more"
        else:
            figures |= self._distances(found, groups, seed)
        return Verdict(figures={"samples": figures}, facts=facts, words={"samples": in_words(figures)})

    def _scores(self, found: Rows, persons: np.ndarray, seed: int) -> dict[str, Figure]:
        made, prompts = found[f"{GENERATED}_clip"], found[f"{GENERATED}_text"]
        columns = {"clip_score": (made.astype(np.float64) * prompts).sum(axis=1)}
        if (others := unrelated(made, prompts, self.prompts)) is not None:
            columns["clip_score_unrelated"] = others
        real = (found[f"{REAL}_clip"].astype(np.float64) * found[f"{REAL}_text"]).sum(axis=1)
        return means(columns, self.prompts, seed) | means({"clip_score_real": real}, persons, seed)

    def _distances(self, found: Rows, groups: Mapping[str, np.ndarray], seed: int) -> dict[str, Figure]:
        figures = {}
        for kind, names in DISTANCES.items():
            if f"{REAL}_{kind}" not in found:
                continue
            real, of_real = _one_each(found[f"{REAL}_{kind}"], groups[REAL])
            made, of_made = _one_each(found[f"{GENERATED}_{kind}"], groups[GENERATED])
            for name, distance in zip(names, (frechet.figure, kernel.figure), strict=True):
                figures[name] = distance(real, made, of_real, of_made, seed)
        return figures


def _one_each(features: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of videos (n, d), or of all their frames (n f, d), and the group of each row."""
    per_video = features.shape[1] if features.ndim == 3 else 1
    return features.reshape(-1, features.shape[-1]), groups.repeat(per_video)
