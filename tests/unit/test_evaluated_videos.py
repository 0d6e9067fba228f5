"""Generated videos and real windows in one form, and what CLIP sees of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dalle2_video.data.batches import to_float
from dalle2_video.data_config import WindowConfig
from dalle2_video.digests import file_digest
from dalle2_video.evaluation import videos
from dalle2_video.generation.video_file import enlarge, write_mp4


def moving(frames: int = 8, size: int = 16) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    made = [np.stack([(x * 9 + 11 * t) % 256, y * 13 % 256, np.full_like(x, 20 * t)], -1) for t in range(frames)]
    return np.stack(made).astype(np.uint8)


def test_reducing_undoes_enlarging() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    assert np.array_equal(videos.reduced(enlarge(frames), 16), frames)
    assert videos.reduced(frames, 1) is frames


def test_a_real_window_in_a_generated_file_is_what_real_windows_are_brought_to(tmp_path: Path) -> None:
    window = WindowConfig(size=16, num_frames=8, stride=2)
    real = moving()
    write_mp4(tmp_path / "0.mp4", enlarge(real), 4.0)
    entry = {"file": "0.mp4", "prompt": "x", "sha256": file_digest(tmp_path / "0.mp4")}
    made = videos.read_generated(tmp_path, entry, window)
    assert np.array_equal(made, videos.as_if_generated(real, 4.0))
    assert made.shape == real.shape and np.abs(made.astype(int) - real).mean() < 12
    # Of a longer video the first window.
    assert np.array_equal(
        videos.read_generated(tmp_path, entry, WindowConfig(size=16, num_frames=5, stride=2)), made[:5]
    )
    for other in (WindowConfig(size=16, num_frames=9, stride=2), WindowConfig(size=24, num_frames=8, stride=2)):
        with pytest.raises(ValueError, match="holds no window"):
            videos.read_generated(tmp_path, entry, other)
    with pytest.raises(ValueError, match="missing or damaged"):
        videos.read_generated(tmp_path, entry | {"sha256": "0"}, window)


@pytest.mark.parametrize(
    ("stride", "clip_stride", "clip_frames", "expected"),
    [(1, 2, 8, [0, 2, 4, 6]), (2, 2, 4, [0, 1, 2, 3]), (2, 1, 6, [0, 1, 1, 2, 2, 3]), (1, 3, 2, [0, 3])],
)
def test_clip_sees_the_frames_nearest_in_time(
    stride: int, clip_stride: int, clip_frames: int, expected: list[int]
) -> None:
    video = moving(8, 16)
    seen = videos.for_clip(
        video, WindowConfig(size=16, num_frames=8, stride=stride),
        WindowConfig(size=16, num_frames=clip_frames, stride=clip_stride),
    )  # fmt: skip
    assert torch.equal(seen, to_float(torch.from_numpy(video[expected])[None]))


def test_scaling_keeps_what_is_constant_and_does_not_alias() -> None:
    flat = torch.full((1, 3, 2, 32, 32), 0.25)
    assert torch.allclose(videos.scaled(flat, 12), torch.full((1, 3, 2, 12, 12), 0.25))
    stripes = torch.tensor([-1.0, 1.0]).repeat(16).expand(1, 3, 2, 32, 32)
    assert videos.scaled(stripes, 8).abs().max() < 0.3
    assert videos.scaled(stripes, 32) is stripes


def test_a_list_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not finished"):
        videos.listed(tmp_path)
