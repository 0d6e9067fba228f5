import random
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from data_fixtures import write_mp4
from hypothesis import given
from hypothesis import strategies as st

from dalle2_video.data.archives import Source
from dalle2_video.data.needless import with_neighbours
from dalle2_video.data.video import decode_to_arrays
from dalle2_video.data_config import DataConfig


@dataclass
class Stamp:
    """All that is looked at of a packet."""

    pts: int | None


@given(times=st.lists(st.integers(-500, 5000), max_size=150, unique=True), shuffle=st.integers(0, 2**32))
def test_neighbours_are_those_in_time_whatever_the_order_of_decoding(times: list[int], shuffle: int) -> None:
    ordered = sorted(times)
    groups = [ordered[i : i + 16] for i in range(0, len(ordered), 16)]  # no codec reorders by more
    for group in groups:
        random.Random(shuffle).shuffle(group)
    stream = [Stamp(pts) for group in groups for pts in group] + [Stamp(None)]
    found = list(with_neighbours(stream))  # type: ignore[arg-type]
    assert [stamp for stamp, _ in found] == stream
    expected = {
        own: (before, own, after) for before, own, after in zip(ordered, ordered[1:], ordered[2:], strict=False)
    }
    for stamp, around in found:
        assert around == expected.get(stamp.pts)  # type: ignore[call-overload]


def test_frames_that_are_not_stored_are_not_decoded_and_the_stored_ones_are_the_same(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "a.mp4", seconds=4, fps=25, preset="medium")
    config = DataConfig(frame_sizes=(32,), fps=8.0, min_frames=1)
    facts, frames = decode_to_arrays(Source.of_file(path), config)
    # At the source's rate every frame is stored, so that none is skipped: frame k at 8 fps is the one nearest k / 8 s.
    _, every = decode_to_arrays(Source.of_file(path), DataConfig(frame_sizes=(32,), fps=25.0, min_frames=1))
    assert facts.num_frames == 32
    nearest = [min(range(100), key=lambda number: (abs(number / 25 - k / 8), number)) for k in range(32)]
    np.testing.assert_array_equal(frames[32], every[32][nearest])
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        assert sum(1 for _ in container.decode(video=0)) < 80, "nothing could have been skipped"
