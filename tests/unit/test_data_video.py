import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from data_fixtures import write_mp4

from dalle2_video.data.video import BadClip, decode


def write_frames(path: Path, images: list[np.ndarray], times_ms: list[int], aspect: Fraction | None = None) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "4", "preset": "ultrafast"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for image, time_ms in zip(images, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_one_pass_gives_all_sizes_with_the_same_frames(tmp_path: Path) -> None:
    clip = decode(write_mp4(tmp_path / "a.mp4", seconds=2.5, fps=24), 8.0, (8, 16), 100)
    assert {size: frames.shape for size, frames in clip.frames.items()} == {8: (20, 8, 8, 3), 16: (20, 16, 16, 3)}
    assert all(frames.dtype == np.uint8 for frames in clip.frames.values())
    assert (clip.source_fps, clip.source_size) == (24.0, (48, 32))
    assert clip.seconds == pytest.approx(2.5)
    halved = clip.frames[16].reshape(20, 8, 2, 8, 2, 3).mean((2, 4))
    assert np.abs(halved - clip.frames[8]).mean() < 3


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    image = np.full((32, 32, 3), (220, 40, 90), np.uint8)
    path = write_frames(tmp_path / "a.mp4", [image] * 10, [100 * i for i in range(10)])
    frames = decode(path, 8.0, (8,), 100).frames[8]
    assert np.abs(frames.astype(int) - (220, 40, 90)).max() <= 6


def test_longer_clips_are_cut_at_max_frames(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "a.mp4", seconds=2.5)
    np.testing.assert_array_equal(decode(path, 8.0, (8,), 7).frames[8], decode(path, 8.0, (8,), 100).frames[8][:7])


def test_variable_frame_rate_keeps_the_time(tmp_path: Path) -> None:
    times_ms = [0, 20, 40, 60, 80, 500, 980, 1000, 1020, 1500, 2000, 2400]
    images = [np.full((32, 32, 3), 20 + time_ms // 12, np.uint8) for time_ms in times_ms]
    frames = decode(write_frames(tmp_path / "a.mp4", images, times_ms), 4.0, (8,), 100).frames[8]
    shown_ms = (frames.mean((1, 2, 3)) - 20) * 12
    # At k/4 s the newest frame not after it (to the nearest quarter) is shown: 250 ms shows the one of 80 ms.
    assert shown_ms[:9] == pytest.approx([80, 80, 500, 500, 1020, 1020, 1500, 1500, 2000], abs=40)


def test_wide_pixels_are_displayed_square(tmp_path: Path) -> None:
    # 16 stored columns of double width by 32 rows display as a square; the crop must keep all of it.
    image = np.zeros((32, 16, 3), np.uint8)
    image[:, :2] = 255
    image[:2] = 255
    path = write_frames(tmp_path / "a.mp4", [image] * 10, [100 * i for i in range(10)], aspect=Fraction(2))
    frame = decode(path, 8.0, (8,), 10).frames[8][0].astype(int).mean(-1)
    assert frame[4, 0] > 200  # the bright columns are still in the picture
    assert frame[4, 2:].max() < 60
    assert 90 < frame[0, 4:].mean() < 170  # 2 of the 4 source rows of an output row


def test_the_crop_is_the_centre_square(tmp_path: Path) -> None:
    image = np.zeros((32, 96, 3), np.uint8)
    image[:, 32:64] = 200
    frames = decode(write_frames(tmp_path / "a.mp4", [image] * 10, [100 * i for i in range(10)]), 8.0, (8,), 10).frames[
        8
    ]
    assert frames.min() > 180


def test_scaling_down_averages_instead_of_aliasing(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::2] = 255
    frames = decode(write_frames(tmp_path / "a.mp4", [image] * 10, [100 * i for i in range(10)]), 8.0, (8,), 10).frames[
        8
    ]
    assert np.abs(frames.astype(int) - 128).max() < 16


@pytest.mark.parametrize(
    ("matrix", "turns", "size"),
    [((0, 1, -1, 0), 3, (32, 48)), ((-1, 0, 0, -1), 2, (48, 32)), ((0, -1, 1, 0), 1, (32, 48))],
)
def test_rotation_in_the_file_is_applied(
    tmp_path: Path, matrix: tuple[int, int, int, int], turns: int, size: tuple[int, int]
) -> None:
    path = write_mp4(tmp_path / "a.mp4")
    upright = decode(path, 8.0, (16,), 100).frames[16]
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags, times and track, layer and volume
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    turned = decode(path, 8.0, (16,), 100)
    np.testing.assert_array_equal(turned.frames[16], np.rot90(upright, turns, (1, 2)))
    assert turned.source_size == size


def test_a_quarter_turn_clockwise_moves_the_top_to_the_right() -> None:
    # The phone convention behind the matrix (0, 1, -1, 0): what is stored at the top is displayed at the right.
    image = np.zeros((1, 4, 4, 3))
    image[:, 0] = 1
    assert np.rot90(image, 3, (1, 2))[0, :, 3].all()


def test_a_truncated_file_is_bad_not_short(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "1", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        noise = np.random.default_rng(0)
        for _ in range(72):
            image = noise.integers(0, 255, (64, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    assert len(decode(path, 8.0, (8,), 100).frames[8]) == 24
    data = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(BadClip, match=r"truncated|decoded|damaged"):
            decode(path, 8.0, (8,), 100)
    damaged = bytearray(data)
    middle = len(data) // 2
    damaged[middle : middle + 3000] = bytes(3000)
    path.write_bytes(damaged)
    with pytest.raises(BadClip, match=r"decoded|damaged"):
        decode(path, 8.0, (8,), 100)


@pytest.mark.parametrize("content", [b"", b"this is a caption, not a video\n" * 100, bytes(5000)])
def test_what_is_no_video_is_bad_with_a_reason(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(BadClip, match="cannot be decoded: Invalid data"):
        decode(tmp_path / "a.mp4", 8.0, (8,), 100)


def test_sound_without_picture_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BadClip, match="no video stream"):
        decode(path, 8.0, (8,), 100)


def test_a_file_that_cannot_be_read_is_not_the_clip_s_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "gone.mp4", 8.0, (8,), 100)
