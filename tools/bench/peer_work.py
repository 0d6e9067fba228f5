"""What runs in the peers' environment: one JSON request a line on stdin, one JSON answer a line on stdout.

    old_preprocess     mp4 to float32 h5 as the user's first version did: OpenCV, PIL, CLIP's transform, h5py
    write_webdataset   clips of a numpy file to one tar;  read_webdataset: stream it and cut one window a clip
    ffmpeg             where the package's binary lies

Started by `peers.py`; imports nothing of the product. CPU time is measured here, around the work alone.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def old_preprocess(clips: list[str], frames: int, size: int, out: str) -> dict[str, Any]:
    """Write the first `frames` frames of each clip to `videos` (N, 3, T, size, size) float32, CLIP-normalised.

    Channels stay in OpenCV's order (BGR), as they did then. Resize is bicubic on the shorter side, then a centre crop.
    `ends`: of each clip's first and last frame, the means of 4 x 4 blocks as RGB in [0, 255], for the caller's check.
    """
    import cv2  # type: ignore[import-not-found]
    import h5py
    from PIL import Image

    cv2.setNumThreads(1)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    shape = (len(clips), 3, frames, size, size)
    start = time.process_time()
    with h5py.File(out, "w") as file:
        videos = file.create_dataset("videos", shape, "float32", chunks=(1, *shape[1:]), maxshape=(None, *shape[1:]))
        for row, path in enumerate(clips):
            capture = cv2.VideoCapture(path)
            transformed: list[np.ndarray] = []
            while len(transformed) < frames:
                found, picture = capture.read()
                if not found:
                    break
                image = Image.fromarray(picture)
                scale = size / min(image.size)
                width, height = (round(side * scale) for side in image.size)
                image = image.resize((width, height), Image.Resampling.BICUBIC)
                left, top = (width - size) // 2, (height - size) // 2
                image = image.crop((left, top, left + size, top + size))
                pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32) / 255
                transformed.append((pixels - mean) / std)
            capture.release()
            assert len(transformed) == frames, f"{path}: {len(transformed)} of {frames} frames"
            videos[row] = np.stack(transformed, axis=1)
    cpu_s = time.process_time() - start
    with h5py.File(out, "r") as file:
        ends_nchw = file["videos"][:, :, [0, frames - 1]].swapaxes(1, 2) * std + mean
    blocks = ends_nchw.reshape(-1, 2, 3, 4, size // 4, 4, size // 4).mean(axis=(4, 6))[:, :, ::-1]
    return {"cpu_s": cpu_s, "bytes": Path(out).stat().st_size, "ends": (255 * blocks).tolist()}


def write_webdataset(source: str, out: str) -> dict[str, int]:
    """Write the clips of `source`, an npy file (N, T, H, W, 3) uint8, as N samples of one tar."""
    import webdataset  # type: ignore[import-not-found]

    clips = np.load(source, mmap_mode="r")
    with webdataset.TarWriter(out) as tar:
        for row, clip in enumerate(clips):
            data = io.BytesIO()
            np.save(data, clip)
            tar.write({"__key__": f"{row:06d}", "frames.npy": data.getvalue()})
    return {"clips": len(clips)}


def read_webdataset(tar: str, starts: list[int], frames: int) -> dict[str, float]:
    """Stream the tar and cut the window [start, start + frames) out of each clip; `sum` is that of all pixels."""
    import webdataset

    samples = webdataset.WebDataset(tar, shardshuffle=False, handler=webdataset.reraise_exception).decode()
    total, windows = 0.0, []
    start_s = time.process_time()
    for sample, start in zip(samples, starts, strict=True):
        windows.append(np.array(sample["frames.npy"][start : start + frames]))
    cpu_s = time.process_time() - start_s
    for window in windows:
        total += float(window.sum(dtype=np.int64))
    return {"cpu_s": cpu_s, "clips": len(windows), "sum": total}


def ffmpeg() -> dict[str, str]:
    """Return where the package's ffmpeg lies."""
    import imageio_ffmpeg  # type: ignore[import-not-found]

    return {"path": imageio_ffmpeg.get_ffmpeg_exe()}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    task.__name__: task for task in (old_preprocess, write_webdataset, read_webdataset, ffmpeg)
}


def main() -> None:
    """Answer requests until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        answer = TASKS[request.pop("task")](**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
