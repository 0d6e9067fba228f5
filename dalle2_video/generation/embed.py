"""CLIP video embeddings of every window of a store, as a task array: one task embeds the clips of one shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle2_video.data import embedding_shards, embeddings
from dalle2_video.data.batches import read_window, to_float
from dalle2_video.data.embeddings import window_starts
from dalle2_video.data.store import Store
from dalle2_video.stages.frozen_clip import FrozenClip
from dalle2_video.task_array import OnProgress, Published

WINDOWS_AT_ONCE = 64


def embeddings_name(clip_run: str, hop: int) -> str:
    """Name of the embeddings that a CLIP run makes at a hop; their folder in the store."""
    return f"{clip_run}-hop{hop}"


class EmbedArray:
    """Embeddings into the store they are of."""

    def __init__(self, *, store: Path, clip_export: Path, name: str, hop: int, device: torch.device) -> None:
        self.root, self.device = store, device
        self.store = Store(store)
        self.clip = FrozenClip(clip_export)
        self.clip.to(device)
        self.window = self.clip.config.window
        self.reader = self.store.frames(self.window.size)
        self.spec = embeddings.spec_for(self.store, name, self.window, hop, self.clip.config.embed_dim)
        self.num_tasks = self.spec.num_shards

    def prepare(self, staging: Path) -> Published:
        """Write the array's metadata."""
        return embedding_shards.create(staging, self.spec)

    def run_task(self, task: int, staging: Path, on_progress: OnProgress) -> tuple[Published, dict[str, Any]]:
        """Embed the windows of one shard's clips; bad clips have none."""
        first = task * self.spec.clips_per_shard
        clips = range(first, min(first + self.spec.clips_per_shard, self.store.num_clips))
        values, size = [], self.window.size
        for done, clip in enumerate(clips, start=1):
            num_frames = int(self.store.num_frames_at(size, np.asarray(clip)))
            starts = window_starts(num_frames, self.window.span, self.spec.hop).tolist()
            windows = np.empty((len(starts), self.window.num_frames, size, size, 3), np.uint8)
            for start, window in zip(starts, windows, strict=True):
                read_window(self.reader, clip, start, num_frames, self.window.stride, window)
            values.append(self._embed(windows))
            on_progress(done / len(clips))
        published, facts = embedding_shards.write_shard(staging, self.spec, task, values)
        return published, {"clips": len(clips), "windows": sum(map(len, values)), "sha256": facts["sha256"]}

    def _embed(self, windows: np.ndarray) -> np.ndarray:
        vectors = [np.zeros((0, self.spec.dim), np.float32)]
        for first in range(0, len(windows), WINDOWS_AT_ONCE):
            video = torch.from_numpy(windows[first : first + WINDOWS_AT_ONCE]).to(self.device)
            vectors.append(self.clip.encode_video(to_float(video)).float().cpu().numpy())
        return np.concatenate(vectors)

    def finish(self, records: dict[int, dict[str, Any]], staging: Path) -> tuple[Published, dict[str, Any]]:
        """Nothing to join: readers find all shards."""
        return [], {
            "embeddings": self.spec.run_id,
            "clips": sum(record["clips"] for record in records.values()),
            "windows": sum(record["windows"] for record in records.values()),
        }
