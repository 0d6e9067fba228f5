"""Import of the old project's HDF5 videos as a task array: one task converts the clips of one shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zarr

from dalle2_video.data import preprocess
from dalle2_video.data.archives import Source
from dalle2_video.data.celebv_text import Caption, ClipFile
from dalle2_video.data.legacy import Conversion, LegacyVideos, read_clip
from dalle2_video.data.preprocess import ClipContent
from dalle2_video.data.preprocess_array import PreprocessArray
from dalle2_video.data.video import BadClip, ClipFacts
from dalle2_video.data_config import DataConfig
from dalle2_video.task_array import OnProgress, Published


def clips_of(videos: LegacyVideos, clip_ids: Sequence[str]) -> list[ClipFile]:
    """Return the clips of a file, in its order."""
    source = Source(path=videos.path, size=videos.frame_bytes * videos.num_frames)
    return [ClipFile(clip_id=clip_id, source=source) for clip_id in clip_ids]


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
        super().__init__(root=root, data_root=videos.path.parent, clips=clips_of(videos, clip_ids), config=config)
        self.videos, self.captions, self.how, self.fingerprint = videos, captions, how, fingerprint

    def prepare(self, staging: Path) -> Published:
        """Write the empty store, which tells the fingerprint of what it was made from."""
        published = preprocess.create_store(staging, self.clips, self.config)
        zarr.open_group(str(staging), mode="r+").attrs["fingerprint"] = self.fingerprint
        return published

    def run_task(self, task: int, staging: Path, on_progress: OnProgress) -> tuple[Published, dict[str, Any]]:
        """Convert the clips of one shard."""
        result = preprocess.write_shards(
            task, self.clips, self.config, staging, self._read, self.on_clip(task, on_progress)
        )
        return result.published, result.record

    def _read(self, row: int) -> ClipContent:
        try:
            captions = self.captions(row)
        except ValueError as error:
            raise BadClip(str(error)) from error
        frames = read_clip(self.videos, row, self.how, self.config)
        facts = ClipFacts(
            num_frames=len(frames[self.config.frame_sizes[0]]),
            source_fps=self.how.source_fps,
            source_size=(self.videos.width, self.videos.height),
            seconds=self.videos.num_frames / self.how.source_fps,
        )
        return ClipContent(facts=facts, frames=frames, captions=captions)
