"""Preprocessing as a task array: one task makes one shard of the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dalle2_video.data import join, preprocess
from dalle2_video.data.celebv_text import ClipFile
from dalle2_video.data.decode_process import DecodeProcess
from dalle2_video.data.preprocess import OnClip
from dalle2_video.data.store import PAGE_FILE
from dalle2_video.data_config import DataConfig
from dalle2_video.task_array import OnProgress, Published


class PreprocessArray:
    """Clips on disk to a store at `root`."""

    def __init__(
        self, *, root: Path, data_root: Path, clips: list[ClipFile], config: DataConfig, notes: Sequence[str] = ()
    ) -> None:
        """notes: what the scan of the input had to say, for the statistics."""
        self.root, self.data_root, self.clips, self.config, self.notes = root, data_root, clips, config, notes
        self.num_tasks = preprocess.num_tasks(len(clips), config)

    def prepare(self, staging: Path) -> Published:
        """Write the empty store."""
        return preprocess.create_store(staging, self.clips, self.config)

    def run_task(self, task: int, staging: Path, on_progress: OnProgress) -> tuple[Published, dict[str, Any]]:
        """Decode the clips of one shard."""
        on_clip = self.on_clip(task, on_progress)
        with DecodeProcess(self.config) as decoder:
            result = preprocess.run_task(task, self.clips, self.data_root, self.config, staging, decoder, on_clip)
        return result.published, result.record

    def on_clip(self, task: int, on_progress: OnProgress) -> OnClip:
        """Return what to call after each clip of a task: it tells the progress, and of bad clips."""
        mine = len(preprocess.clips_of(task, len(self.clips), self.config))
        done = 0

        def tell(clip_id: str, bad_reason: str | None) -> None:
            nonlocal done
            done += 1
            if bad_reason is not None:
                print(f"bad clip {clip_id}: {bad_reason}", flush=True)
            on_progress(done / mine)

        return tell

    def finish(self, records: dict[int, dict[str, Any]], staging: Path) -> tuple[Published, dict[str, Any]]:
        """Write captions, tokens and statistics."""
        ordered = [records[task] for task in sorted(records)]
        published = join.finish(ordered, self.clips, self.config, self.root, staging, self.notes)
        bad = sum(clip["bad"] is not None for record in ordered for clip in record["clips"])
        return published, {"clips": len(self.clips), "bad": bad, "page": str(self.root / PAGE_FILE)}
