"""Preprocessing as a task array: one task makes one shard of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dalle2_video.data import preprocess
from dalle2_video.data.celebv_text import ClipFile
from dalle2_video.data_config import DataConfig
from dalle2_video.task_array import OnProgress, Published


class PreprocessArray:
    """Clips on disk to a store at `root`."""

    def __init__(self, *, root: Path, data_root: Path, clips: list[ClipFile], config: DataConfig) -> None:
        self.root, self.data_root, self.clips, self.config = root, data_root, clips, config
        self.num_tasks = preprocess.num_tasks(len(clips), config)

    def prepare(self, staging: Path) -> Published:
        """Write the empty store."""
        return preprocess.create_store(staging, self.clips, self.config)

    def run_task(self, task: int, staging: Path, on_progress: OnProgress) -> tuple[Published, dict[str, Any]]:
        """Decode the clips of one shard."""
        mine = min(self.config.clips_per_shard, len(self.clips) - task * self.config.clips_per_shard)
        done = 0

        def on_clip(clip_id: str, bad_reason: str | None) -> None:
            nonlocal done
            done += 1
            if bad_reason is not None:
                print(f"bad clip {clip_id}: {bad_reason}", flush=True)
            on_progress(done / mine)

        result = preprocess.run_task(task, self.clips, self.data_root, self.config, staging, on_clip)
        return result.published, result.record

    def finish(self, records: dict[int, dict[str, Any]], staging: Path) -> tuple[Published, dict[str, Any]]:
        """Write captions, tokens and statistics."""
        ordered = [records[task] for task in sorted(records)]
        published = preprocess.finish(ordered, self.clips, self.config, staging)
        bad = sum(clip["bad"] is not None for record in ordered for clip in record["clips"])
        return published, {"clips": len(self.clips), "bad": bad}
