"""Decoding gives the right frames at the right times for every kind of video, or says why it cannot."""

from __future__ import annotations

import shutil
import struct
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from video_fixtures import FOOTAGE_FPS, KINDS, Kind, encode, footage_frames, nearest, source_of, square

from dalle2_video.data.archives import Source
from dalle2_video.data.video import BadClip, ClipFacts, decode, decode_to_arrays, frame_shapes
from dalle2_video.data_config import DataConfig, DecodeConfig

CONFIG = DataConfig(frame_sizes=(32,), fps=8.0, min_frames=1, max_frames=100)
MIDDLE = DecodeConfig(excerpt="middle")
SHARP = Kind(options={"crf": "4", "preset": "ultrafast"}, size=(32, 32))
FOOTAGE_MS = [round(1000 * number / FOOTAGE_FPS) for number in range(90)]


def frames_of(path: Path, config: DataConfig = CONFIG, **changes: Any) -> np.ndarray:
    """The frames at the only size, (t, size, size, 3) int."""
    config = replace(config, **changes)
    (size,) = config.frame_sizes
    return decode_to_arrays(source_of(path), config)[1][size].astype(int)


def plain(levels: list[int]) -> list[np.ndarray]:
    """Images of one grey level each."""
    return [np.full((32, 32, 3), level, np.uint8) for level in levels]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The footage in every kind."""
    folder = tmp_path_factory.mktemp("kinds")
    images = footage_frames()
    return {name: encode(folder / f"{number}.mp4", images, kind) for number, (name, kind) in enumerate(KINDS.items())}


@pytest.fixture(scope="module")
def clip(clips: dict[str, Path]) -> Path:
    return clips["h264"]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_video_gives_the_frames_nearest_in_time(name: str, clips: dict[str, Path]) -> None:
    facts, arrays = decode_to_arrays(source_of(clips[name]), CONFIG)
    expected = np.stack([square(image, 32) for image in footage_frames()])
    if "grey" in name:
        expected = (expected @ (0.299, 0.587, 0.114))[..., None].repeat(3, -1)
    distances = np.abs(arrays[32][:, None] - expected[None]).mean((2, 3, 4))
    assert distances.argmin(1).tolist() == nearest(FOOTAGE_MS, 8, 24)
    assert distances.min(1).max() < 5 < np.sort(distances, 1)[:, 1].min()
    assert facts.num_frames == 24 and facts.source_size == KINDS[name].size
    assert facts.source_fps == pytest.approx(FOOTAGE_FPS, abs=0.1) and facts.seconds == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("name", KINDS)
def test_an_excerpt_from_the_middle_is_that_part_of_the_whole(name: str, clips: dict[str, Path]) -> None:
    whole = frames_of(clips[name])
    for frames in (1, 6, 21):
        start = (24 - frames) // 2
        excerpt = frames_of(clips[name], max_frames=frames, decode=MIDDLE)
        np.testing.assert_array_equal(excerpt, whole[start : start + frames])
    np.testing.assert_array_equal(frames_of(clips[name], max_frames=24, decode=MIDDLE), whole)


def test_an_excerpt_needs_no_stated_duration(tmp_path: Path) -> None:
    live = replace(KINDS["vp9 in webm"], mux={"live": "1"})
    path = encode(tmp_path / "a.mp4", footage_frames(), live)
    with av.open(path) as container:
        assert container.duration is None
    np.testing.assert_array_equal(frames_of(path, max_frames=6, decode=MIDDLE), frames_of(path)[9:15])


def test_an_excerpt_is_read_without_decoding_what_lies_before(clip: Path, tmp_path: Path) -> None:
    data = bytearray(clip.read_bytes())
    with av.open(clip) as container:
        (early,) = [packet for n, packet in enumerate(container.demux(video=0)) if n == 14]
        position = early.pos
    data[position + 4 : position + 40] = bytes(36)
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    with pytest.raises(BadClip):
        frames_of(path)
    np.testing.assert_array_equal(frames_of(path, max_frames=6, decode=MIDDLE), frames_of(clip)[9:15])


def test_one_pass_fills_every_size_as_far_as_it_goes(clip: Path) -> None:
    config = replace(CONFIG, frame_sizes=(8, 16, 32), max_frames=20, size_frames=(20, 7, 3))
    assert frame_shapes(config) == {8: (20, 8, 8, 3), 16: (7, 16, 16, 3), 32: (3, 32, 32, 3)}
    out = {size: np.full(shape, 77, np.uint8) for size, shape in frame_shapes(config).items()}
    assert decode(source_of(clip), config, out).num_frames == 20
    for size, frames in out.items():
        np.testing.assert_array_equal(frames, frames_of(clip, frame_sizes=(size,))[: len(frames)])
    short = {size: np.full(shape, 77, np.uint8) for size, shape in frame_shapes(replace(config, max_frames=40)).items()}
    assert decode(source_of(clip), replace(config, max_frames=40, size_frames=()), short).num_frames == 24


def test_a_rate_that_cannot_be_is_not_believed(tmp_path: Path) -> None:
    path, copy = encode(tmp_path / "a.mp4", plain([50] * 48), SHARP, fps=24), tmp_path / "b.mp4"
    with av.open(path) as source, av.open(str(copy), "w", format="matroska") as matroska:
        stream = matroska.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None:
                packet.pts = packet.dts = round(number * 1001 / 24000 / packet.time_base)
                packet.stream = stream
                matroska.mux(packet)
    with av.open(copy) as container:
        assert container.streams.video[0].average_rate > 500
    assert decode_to_arrays(source_of(copy), CONFIG)[0].source_fps == pytest.approx(24000 / 1001)


def test_frames_past_the_end_are_left_alone(clip: Path) -> None:
    out = {32: np.full((100, 32, 32, 3), 77, np.uint8)}
    assert decode(source_of(clip), CONFIG, out).num_frames == 24
    assert (out[32][24:] == 77).all() and not (out[32][23] == 77).all()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.integers(1, 700), min_size=1, max_size=20),
    fps=st.sampled_from([2.0, 8.0, 23.976, 30.0]),
    max_frames=st.integers(1, 40),
)
def test_variable_rates_keep_the_time(steps: list[int], fps: float, max_frames: int, tmp_path: Path) -> None:
    times_ms = np.cumsum([300, *steps]).tolist()
    levels = np.linspace(20, 230, len(times_ms)).round().astype(int).tolist()
    path = encode(tmp_path / "a.mp4", plain(levels), SHARP, times_ms=times_ms)
    shown = frames_of(path, fps=fps, max_frames=max_frames).mean((1, 2, 3))
    times = np.array(times_ms) - times_ms[0]
    for number, level in enumerate(shown):
        distances = np.abs(times - 1000 * number / fps)
        near = [level for level, distance in zip(levels, distances, strict=True) if distance <= distances.min() + 0.51]
        assert min(abs(level - wanted) for wanted in near) < 4, f"frame {number}"
    assert len(shown) == max_frames or len(shown) >= times[-1] / 1000 * fps - 1


def test_a_long_still_picture_costs_one_scaling_and_is_cut_at_max_frames(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", plain([50, 100, 150]), SHARP, times_ms=[0, 100, 500_000])
    frames = frames_of(path)
    assert len(frames) == 100 and frames[0].mean() == pytest.approx(50, abs=3)
    assert np.abs(frames[2:].mean((1, 2, 3)) - 100).max() < 3


@pytest.mark.parametrize("delta_s", [10**4, 10**6])
def test_a_time_stamp_far_behind_the_end_is_damage(delta_s: int, clip: Path, tmp_path: Path) -> None:
    data = bytearray(clip.read_bytes())
    with av.open(clip) as container:
        ticks_per_s = container.streams.video[0].time_base.denominator
    entry = data.index(b"stts") + 12 + 8  # size and kind are before; flags, count; the first run of equal durations
    struct.pack_into(">I", data, entry + 4, min(delta_s * ticks_per_s, 2**31 - 1))
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(BadClip, match=r"time stamps leap to \d+\.\d\d s in a clip of 3.00 s"):
        frames_of(tmp_path / "a.mp4")


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    image = np.full((32, 32, 3), (220, 40, 90), np.uint8)
    assert np.abs(frames_of(encode(tmp_path / "a.mp4", [image] * 10, SHARP)) - (220, 40, 90)).max() <= 6


@pytest.mark.parametrize("matrix", ["bt709", "bt470bg", "bt2020nc"])
def test_the_colour_matrix_of_the_file_is_used(matrix: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), (220, 40, 90), np.uint8), format="rgb24")
    number = {"bt709": 1, "bt470bg": 5, "bt2020nc": 9}[matrix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "4", "colorspace": matrix})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(8):
            container.mux(stream.encode(image.reformat(format="yuv420p", dst_colorspace=number)))
        container.mux(stream.encode(None))
    assert np.abs(frames_of(path) - (220, 40, 90)).max() <= 6


def test_wide_pixels_are_displayed_square(tmp_path: Path) -> None:
    # 16 stored columns of double width by 32 rows display as a square; the crop must keep all of it.
    image = np.zeros((32, 16, 3), np.uint8)
    image[:, :2] = 255
    image[:2] = 255
    kind = replace(SHARP, size=(16, 32), aspect=Fraction(2))
    frame = frames_of(encode(tmp_path / "a.mp4", [image] * 10, kind), frame_sizes=(8,))[0].mean(-1)
    assert frame[4, 0] > 200  # the bright columns are still in the picture
    assert frame[4, 2:].max() < 60
    assert 90 < frame[0, 4:].mean() < 170  # 2 of the 4 source rows of an output row


def test_the_crop_is_the_centre_square(tmp_path: Path) -> None:
    image = np.zeros((32, 96, 3), np.uint8)
    image[:, 32:64] = 200
    path = encode(tmp_path / "a.mp4", [image] * 10, replace(SHARP, size=(96, 32)))
    assert frames_of(path, frame_sizes=(8,)).min() > 180


def test_scaling_down_averages_instead_of_aliasing(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::2] = 255
    path = encode(tmp_path / "a.mp4", [image] * 10, replace(SHARP, size=(64, 64)))
    assert np.abs(frames_of(path, frame_sizes=(8,)) - 128).max() < 16


@pytest.mark.parametrize("fields", ["tff", "bff"])
def test_interlaced_footage_loses_its_combs(tmp_path: Path, fields: str) -> None:
    # A bar that moves by 4 pixels from field to field: woven fields show it twice, in odd and in even rows.
    moments = [np.zeros((64, 64, 3), np.uint8) for _ in range(48)]
    for number, image in enumerate(moments):
        image[:, 4 * number % 64 : 4 * number % 64 + 4] = 235
    woven = [early.copy() for early in moments[::2]]
    for image, late in zip(woven, moments[1::2], strict=True):
        row = 1 if fields == "tff" else 0
        image[row::2] = late[row::2]
    options = {"crf": "4", "g": "8"}
    interlaced = Kind(options=options | {"flags": "+ilme+ildct"}, size=(64, 64), fields=fields)
    config = replace(CONFIG, frame_sizes=(64,), fps=24.0)
    path = encode(tmp_path / "a.mp4", woven, interlaced, fps=24)
    whole = frames_of(path, config)
    # The time of a frame is that of its first field.
    assert np.abs(whole - np.stack(moments[::2])).mean((1, 2, 3)).max() < 2
    combed = frames_of(encode(tmp_path / "b.mp4", woven, Kind(options=options, size=(64, 64)), fps=24), config)
    assert np.abs(combed - np.stack(moments[::2])).mean((1, 2, 3)).min() > 10
    np.testing.assert_array_equal(frames_of(path, config, max_frames=6, decode=MIDDLE), whole[9:15])


@pytest.mark.parametrize(
    ("matrix", "turn", "size"),
    [
        ((0, 1, -1, 0), lambda frames: np.rot90(frames, 3, (1, 2)), (144, 176)),
        ((-1, 0, 0, -1), lambda frames: np.rot90(frames, 2, (1, 2)), (176, 144)),
        ((0, -1, 1, 0), lambda frames: np.rot90(frames, 1, (1, 2)), (144, 176)),
        ((-1, 0, 0, 1), lambda frames: frames[:, :, ::-1], (176, 144)),
        ((1, 0, 0, -1), lambda frames: frames[:, ::-1], (176, 144)),
        ((0, 1, 1, 0), lambda frames: frames.swapaxes(1, 2), (144, 176)),
    ],
    ids=["90 degrees", "180", "270", "mirrored", "upside down", "transposed"],
)
def test_what_the_file_says_of_display_is_done(
    tmp_path: Path, clip: Path, matrix: tuple[int, ...], turn: Any, size: tuple[int, int]
) -> None:
    path = with_display_matrix(clip, tmp_path / "a.mp4", matrix)
    facts, arrays = decode_to_arrays(source_of(path), CONFIG)
    np.testing.assert_array_equal(arrays[32], turn(frames_of(clip)))
    assert facts.source_size == size


def test_an_oblique_display_is_refused(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(BadClip, match="no multiple of 90 degrees"):
        frames_of(with_display_matrix(clip, tmp_path / "a.mp4", (0.8, 0.6, -0.6, 0.8)))


def test_a_quarter_turn_clockwise_moves_the_top_to_the_right() -> None:
    # The phone convention behind the matrix (0, 1, -1, 0): what is stored at the top is displayed at the right.
    image = np.zeros((1, 4, 4, 3))
    image[:, 0] = 1
    assert np.rot90(image, 3, (1, 2))[0, :, 3].all()


def with_display_matrix(clip: Path, path: Path, matrix: tuple[float, ...]) -> Path:
    data = bytearray(clip.read_bytes())
    place = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags, times and track, layer and volume
    a, b, c, d = (round(value * 65536) for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def test_what_an_edit_list_cuts_is_not_shown(tmp_path: Path) -> None:
    # One second of lead-in before time 0, needed to decode what follows and never displayed.
    kind = replace(KINDS["h264, one key frame"], first_ms=-1000, mux={"avoid_negative_ts": "disabled"})
    path = encode(tmp_path / "a.mp4", footage_frames(), kind)
    assert b"elst" in path.read_bytes()
    expected = np.stack([square(image, 32) for image in footage_frames()])
    distances = np.abs(frames_of(path)[:, None] - expected[None]).mean((2, 3, 4))
    assert distances.argmin(1).tolist() == [30 + number for number in nearest(FOOTAGE_MS[:60], 8, 16)]
    np.testing.assert_array_equal(frames_of(path, max_frames=6, decode=MIDDLE), frames_of(path)[5:11])


@pytest.mark.parametrize("excerpt", ["start", "middle"])
@pytest.mark.parametrize("name", ["h264", "vp9 in webm", "mpeg2, avi"])
def test_a_truncated_file_is_bad_not_short(tmp_path: Path, clips: dict[str, Path], name: str, excerpt: str) -> None:
    path = tmp_path / "a.mp4"
    if name == "h264":  # with its index in front, as on the web: what is left can be opened
        kind = replace(KINDS[name], mux={"movflags": "faststart"})
        data = encode(path, footage_frames(), kind).read_bytes()
    else:
        data = clips[name].read_bytes()
    for share in (0.05, 0.3, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        packed = tmp_path / "packed"
        packed.write_bytes(b"x" * 999 + data[: int(len(data) * share)])
        member = Source(path=packed, offset=999, size=len(data))
        for source in (source_of(path), replace(source_of(path), size=len(data)), member):
            with pytest.raises(BadClip, match=r"truncated|decoded|damaged|no frame|no video"):
                decode_to_arrays(source, replace(CONFIG, decode=DecodeConfig(excerpt=excerpt)))


def test_damage_in_the_middle_is_bad(tmp_path: Path, clip: Path) -> None:
    data = bytearray(clip.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(BadClip, match=r"decoded|damaged"):
        frames_of(tmp_path / "a.mp4")


def test_a_part_of_a_larger_file_is_a_clip(tmp_path: Path, clip: Path) -> None:
    data = clip.read_bytes()
    (tmp_path / "a.tar").write_bytes(b"x" * 1234 + data + b"y" * 5678)
    member = Source(path=tmp_path / "a.tar", offset=1234, size=len(data))
    np.testing.assert_array_equal(decode_to_arrays(member, CONFIG)[1][32], frames_of(clip))


def test_a_deflated_part_of_a_larger_file_is_a_clip_or_damaged(tmp_path: Path, clip: Path) -> None:
    data = clip.read_bytes()
    deflated = zlib.compress(data, wbits=-zlib.MAX_WBITS)
    member = Source(path=tmp_path / "a.zip", offset=1234, size=len(data), packed_size=len(deflated))
    member.path.write_bytes(b"x" * 1234 + deflated)
    np.testing.assert_array_equal(decode_to_arrays(member, CONFIG)[1][32], frames_of(clip))
    member.path.write_bytes(b"x" * 1234 + deflated[: len(deflated) // 2])
    with pytest.raises(BadClip, match="the archive ends"):
        decode_to_arrays(member, CONFIG)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"this is a caption,\n not a video\n" * 100, "holds text, no video: 'this is a caption, not a video this is"),
        (b"<!DOCTYPE html><html><p>404</p></html>", "holds text, no video: '<!DOCTYPE html>"),
        (b"7", "holds text, no video: '7'"),
        (bytes(5000), "cannot be decoded: Invalid data"),
    ],
)
def test_what_is_no_video_is_bad_with_a_reason(tmp_path: Path, content: bytes, reason: str, within: bool) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x" * 512 + content + b"x" * 512 if within else content)
    source = Source(path=tmp_path / "a.mp4", size=len(content), offset=512 if within else None)
    with pytest.raises(BadClip, match=f"^{reason}"):
        decode_to_arrays(source, CONFIG)


def test_a_file_cut_before_its_index_is_said_to_be_truncated(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    size = clip.stat().st_size
    path.write_bytes(clip.read_bytes()[: size // 2])
    with pytest.raises(BadClip, match=r"^truncated: there are \d+ of \d+ bytes of its last box, 'mdat'"):
        frames_of(path)


def test_a_play_list_opens_nothing_else(tmp_path: Path, clip: Path) -> None:
    shutil.copy(clip, tmp_path / "other.ts")
    (tmp_path / "a.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\nother.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(BadClip):
        frames_of(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile other.ts\n")
    with pytest.raises(BadClip):
        frames_of(tmp_path / "a.mp4")


def test_sound_without_picture_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(BadClip, match="no video stream"):
        frames_of(path)


def test_a_size_that_changes_midway_is_bad(tmp_path: Path) -> None:
    kind = replace(KINDS["h264, transport stream"], size=(64, 64))
    first = encode(tmp_path / "1.ts", footage_frames()[:30], kind).read_bytes()
    second = encode(tmp_path / "2.ts", footage_frames()[:30], replace(kind, size=(96, 64), first_ms=1000)).read_bytes()
    (tmp_path / "a.mp4").write_bytes(first + second)
    with pytest.raises(BadClip, match="frames change from 64x64 yuv420p to 96x64 yuv420p at"):
        frames_of(tmp_path / "a.mp4")


def test_too_large_pictures_are_named_before_they_are_decoded(clip: Path) -> None:
    with pytest.raises(BadClip, match=r"176x144 pixels, more than data.decode.max_side=175"):
        frames_of(clip, decode=DecodeConfig(max_side=175))
    assert len(frames_of(clip, decode=DecodeConfig(max_side=176))) == 24


def test_a_file_that_cannot_be_read_is_not_the_clip_s_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode_to_arrays(Source(path=tmp_path / "gone.mp4", size=1), CONFIG)
    with pytest.raises(IsADirectoryError):
        decode_to_arrays(Source(path=tmp_path, size=1), CONFIG)


def test_one_frame_is_a_clip(tmp_path: Path) -> None:
    facts, arrays = decode_to_arrays(source_of(encode(tmp_path / "a.mp4", plain([80]), SHARP)), CONFIG)
    assert facts.num_frames == len(arrays[32]) == 1
    assert isinstance(facts, ClipFacts) and facts.source_size == (32, 32)
