"""Import of the old project's HDF5 videos as a task array: one task converts the clips of one shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dalle2_video.data import preprocess
from dalle2_video.data.celebv_text import Caption, ClipFile
from dalle2_video.data.legacy import Conversion, LegacyVideos, read_clip
from dalle2_video.data.preprocess_array import PreprocessArray
from dalle2_video.data.video import BadClip
from dalle2_video.data_config import DataConfig
from dalle2_video.digests import file_digest
from dalle2_video.task_array import OnProgress, Published


class LegacyArray(PreprocessArray):
    """Clips of an HDF5 file to a store at `root`; one task makes one shard, as in preprocessing."""

    def __init__(
        self,
        *,
        root: Path,
        videos: LegacyVideos,
        clip_ids: Sequence[str],
        captions: Callable[[int], list[Caption]],
        how: Conversion,
        config: DataConfig,
        fingerprint: str,
    ) -> None:
        """captions: a row's captions, raises ValueError where it has none; fingerprint: of all that is read."""
        clip_bytes = videos.frame_bytes * videos.num_frames
        clips = [ClipFile(clip_id=clip_id, path=videos.path, size_bytes=clip_bytes) for clip_id in clip_ids]
        super().__init__(root=root, data_root=videos.path.parent, clips=clips, config=config)
        self.videos, self.captions, self.how, self.fingerprint = videos, captions, how, fingerprint

    def prepare(self, staging: Path) -> Published:
        """Write the empty store, which tells the fingerprint of what it was made from."""
        published = preprocess.create_store(staging, self.clips, self.config)
        zarr.open_group(str(staging), mode="r+").attrs["fingerprint"] = self.fingerprint
        return published

    def run_task(self, task: int, staging: Path, on_progress: OnProgress) -> tuple[Published, dict[str, Any]]:
        """Convert the clips of one shard."""
        first = task * self.config.clips_per_shard
        rows = range(first, min(first + self.config.clips_per_shard, len(self.clips)))
        blocks = {
            size: np.zeros((len(rows), self.config.max_frames, size, size, 3), np.uint8)
            for size in self.config.frame_sizes
        }
        records = []
        for place, row in enumerate(rows):
            record = self._convert(row, place, blocks)
            records.append(record)
            if record["bad"] is not None:
                print(f"bad clip {record['clip_id']}: {record['bad']}", flush=True)
            on_progress((place + 1) / len(rows))
        published: Published = []
        shards = {}
        good = any(record["bad"] is None for record in records)
        for size, block in blocks.items():
            staged = preprocess.write_shard(staging, size, task, len(self.clips), block, self.config, good)
            if staged is not None:
                published.append((staged, staged.relative_to(staging).as_posix()))
                shards[str(size)] = {"sha256": file_digest(staged), "bytes": staged.stat().st_size}
        return published, {"task": task, "clips": records, "shards": shards}

    def _convert(self, row: int, place: int, blocks: dict[int, np.ndarray]) -> dict[str, Any]:
        record: dict[str, Any] = {"clip_id": self.clips[row].clip_id, "bad": None}
        try:
            captions = self.captions(row)
            frames = read_clip(self.videos, row, self.how, self.config)
        except (BadClip, ValueError) as error:
            nothing = {"num_frames": 0, "source_fps": 0.0, "source_size": [0, 0], "captions": []}
            return record | {"bad": str(error)} | nothing
        for size, pixels in frames.items():
            blocks[size][place, : len(pixels)] = pixels
        return record | {
            "num_frames": len(frames[self.config.frame_sizes[0]]),
            "source_fps": self.how.source_fps,
            "source_size": [self.videos.width, self.videos.height],
            "captions": [[caption.kind, caption.text] for caption in captions],
        }
