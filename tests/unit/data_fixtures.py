"""Small real data sets: mp4 files rendered with PyAV, captions, and the store that preprocessing makes of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np

from dalle2_video.data import celebv_text, join, preprocess
from dalle2_video.data.decode_process import DecodeProcess
from dalle2_video.data.store_arrays import Published
from dalle2_video.data_config import DataConfig

CLIP_IDS = [
    f"{identity}_{n}_0" for identity in ("-bcdefghijk", "_bcdefghijk", "abc_efghijk", "qqqqqqqqqqq") for n in (0, 1)
]
"""Eight clips of four identities; the first two are held out at val_fraction 0.3."""
KIND_LINES = {
    "face40_details_new": "a red square moves\nthe square is red\n",
    "action_dur": "it moves to the right\n",
    "emotion": "calm\n",
    "light_dir": "light from the left\n",
    "light_intensity": "bright\n",
    "light_color_temp": "warm\n",
}


def write_mp4(
    path: Path,
    *,
    seconds: float = 2.5,
    fps: int = 24,
    width: int = 48,
    height: int = 32,
    seed: int = 0,
    preset: str = "ultrafast",
) -> Path:
    """Render a square that moves right over a coloured ground whose brightness grows with time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.random.default_rng(seed).integers(40, 160, 3)
    frames = round(seconds * fps)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "preset": preset})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            image = np.empty((height, width, 3), np.uint8)
            image[:] = colour + 80 * number // frames
            left = (width - 8) * number // frames
            image[8:16, left : left + 8] = (250, 10, 10)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_dataset(root: Path, clip_ids: list[str], **video: float) -> Path:
    """Write videos and all six caption files of each clip in the layout of CelebV-Text."""
    for number, clip_id in enumerate(clip_ids):
        write_mp4(root / "videos/celebvtext_6" / f"{clip_id}.mp4", seed=number, **video)  # type: ignore[arg-type]
        for folder, lines in KIND_LINES.items():
            (root / "texts" / folder).mkdir(parents=True, exist_ok=True)
            (root / "texts" / folder / f"{clip_id}.txt").write_text(lines.replace("square", f"square {number}"))
    return root


def publish(items: Published, destination: Path) -> None:
    """Move staged files to their places, as the launcher's side does durably."""
    for staged, relative in items:
        (destination / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(staged, destination / relative)


def build_store(root: Path, config: DataConfig, destination: Path, staging: Path) -> list[dict]:
    """Preprocess `root` task by task; returns the tasks' records."""
    clips = celebv_text.scan(root, config)
    publish(preprocess.create_store(staging / "create", clips, config), destination)
    records = []
    with DecodeProcess(config) as decoder:
        for task in range(preprocess.num_tasks(len(clips), config)):
            result = preprocess.run_task(task, clips, root, config, staging / f"task{task}", decoder)
            publish(result.published, destination)
            records.append(result.record)
    publish(join.finish(records, clips, config, destination, staging / "finish"), destination)
    return records
