import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle2_video.data.statistics import OTHER, checksum, grouped_reason, histogram, most_frequent, statistics
from dalle2_video.data_config import CAPTION_KINDS, DataConfig

CONFIG = DataConfig(frame_sizes=(8, 16), fps=8.0, min_frames=4, max_frames=40, size_frames=(40, 10), text_context=6)
LENGTHS = st.lists(st.integers(2, 400), min_size=1, max_size=60).map(lambda values: np.array(values, np.int32))


def clip(clip_id: str, frames: int, **facts: Any) -> dict[str, Any]:
    return {
        "clip_id": clip_id, "bad": None, "num_frames": frames, "source_fps": 24.0, "source_size": [512, 512],
        "seconds": frames / 8, "short": False, "captions": [["action", "it moves"]], "notes": [], **facts,
    }  # fmt: skip


def bad(clip_id: str, reason: str, *, short: bool = False) -> dict[str, Any]:
    nothing = {"source_fps": 0.0, "source_size": [0, 0], "seconds": 0.0, "captions": []}
    return clip(clip_id, 0, bad=reason, short=short, **nothing)


def count(rows: list[dict[str, Any]], held_out: list[bool] | None = None, **given: Any) -> dict[str, Any]:
    kinds = [CAPTION_KINDS.index(kind) for row in rows for kind, _ in row["captions"]]
    inputs = {
        "config": CONFIG,
        "held_out": np.array(held_out or [False] * len(rows), bool),
        "kinds": np.array(kinds, np.uint8),
        "uncut_lengths": np.full(len(kinds), 5, np.int32),
        "joined_lengths": np.full(sum(row["bad"] is None for row in rows), 5, np.int64),
        "notes": [],
    }
    return statistics(rows, **{**inputs, **given})


ROWS = [
    clip("aaaaaaaaaaa_0_0", 16),
    clip("aaaaaaaaaaa_1_0", 40, seconds=9.0, source_fps=30000 / 1001, notes=["lasts 9 s"]),
    clip("bbbbbbbbbbb_0_0", 4, short=True, source_size=[640, 480]),
    bad("ccccccccccc_0_0", "truncated: the last frame is at 3.21 s of 5.00 s"),
    bad("ccccccccccc_1_0", "truncated: the last frame is at 10.5 s of 12.00 s"),
]


def test_every_clip_is_counted_by_split_length_and_source() -> None:
    found = count(ROWS, [False, False, True, True, False], notes=["a folder has another name"])
    assert (found["clips"], found["bad"], found["train_clips"], found["val_clips"]) == (5, 2, 2, 1)
    assert found["identities"] == {"train": 1, "val": 1}
    assert found["shortest"] == {"train": 16, "val": 4}
    assert (found["frames"], found["frames_by_size"]) == (60, {"8": 60, "16": 10 + 10 + 4})
    assert found["source_hours"] == round((2 + 9 + 0.5) / 3600, 6)
    assert (found["cut_clips"], found["short_clips"]) == (1, {"count": 1, "policy": "leave_out"})
    assert found["frame_rates"] == {"24": 2, "29.97": 1}
    assert found["resolutions"] == {"512x512": 2, "640x480": 1}
    assert found["bad_reasons"] == {"truncated: the last frame is at # s of # s": 2}
    assert found["notes"] == ["a folder has another name", "aaaaaaaaaaa_1_0: lasts 9 s"]
    for name in ("stored_seconds", "source_seconds"):
        assert sum(found["histograms"][name]["counts"]) == 3


def test_a_split_without_clips_has_no_shortest() -> None:
    assert count(ROWS)["shortest"] == {"train": 4, "val": 0}


def test_caption_lengths_are_told_for_each_kind_that_there_is() -> None:
    rows = [clip("aaaaaaaaaaa_0_0", 16, captions=[["emotion", "calm"]] * 3 + [["action", "it moves"]])]
    found = count(rows, uncut_lengths=np.array([4, 6, 9, 7], np.int32), joined_lengths=np.array([14]))
    assert found["captions"] == {"action": 1, "emotion": 3}
    assert list(found["caption_tokens"]) == ["all", "action", "emotion"]
    emotion = {"count": 3, "mean": 6.33, "p50": 6, "p95": 9, "p99": 9, "max": 9, "share_cut": round(1 / 3, 4)}
    assert found["caption_tokens"]["emotion"] == emotion
    assert found["caption_tokens"]["all"]["share_cut"] == 0.5
    assert (found["captions_truncated"], found["joined_truncated"], found["joined_tokens"]["max"]) == (2, 1, 14)


def test_without_captions_there_are_no_lengths() -> None:
    found = count([clip("aaaaaaaaaaa_0_0", 16, captions=[])])
    assert (found["captions"], found["caption_tokens"]) == ({}, {})
    assert found["histograms"]["caption_tokens"] == {"edges": [], "counts": []}


@given(LENGTHS)
def test_a_context_of_the_quantile_holds_that_share_of_captions(lengths: np.ndarray) -> None:
    rows = [clip("aaaaaaaaaaa_0_0", 16, captions=[["action", "it moves"]] * len(lengths))]
    found = count(rows, uncut_lengths=lengths)["caption_tokens"]["action"]
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1)):
        assert (lengths <= found[name]).mean() >= share


@given(
    st.lists(st.floats(0, 1e5), min_size=1, max_size=80) | st.lists(st.integers(0, 300).map(lambda n: n / 10)),
    st.sampled_from([0.125, 0.5, 1]),
)
def test_a_histogram_has_every_value_in_its_bin(values: list[float], least: float) -> None:
    found = histogram(np.array(values), least)
    edges, counts = found["edges"], found["counts"]
    assert sum(counts) == len(values)
    if not values:
        assert edges == []
        return
    assert len(edges) == len(counts) + 1 <= 41
    assert counts[0] and counts[-1]
    assert min(np.diff(edges)) >= least * (1 - 1e-9)
    within = 1e-6 * max(1, edges[-1])  # a value that is an edge may be on either side of it
    assert edges[0] - within <= min(values) and max(values) <= edges[-1] + within
    for left, right, number in zip(edges, edges[1:], counts, strict=False):
        assert sum(left + within < value < right - within for value in values) <= number
        assert number <= sum(left - within <= value <= right + within for value in values)


def test_whole_numbers_have_no_bins_between_them() -> None:
    assert histogram(np.array([3, 3, 5], np.int32), 1) == {"edges": [3, 4, 5, 6], "counts": [2, 0, 1]}


@given(st.lists(st.sampled_from("abcdefg")), st.integers(1, 8))
def test_the_most_frequent_and_the_others_are_all(values: list[str], most: int) -> None:
    found = most_frequent(values, most)
    assert sum(found.values()) == len(values)
    shown = [number for name, number in found.items() if name != OTHER]
    assert len(shown) <= most and shown == sorted(shown, reverse=True)
    assert all(number == values.count(name) for name, number in found.items() if name != OTHER)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("damaged frame at 3.5 s", "damaged frame at 12 s", True),
        ("8192x4 pixels, more than 4096", "9000x2 pixels, more than 4096", True),
        ("caption file /a/b.txt has 5 bytes", "caption file texts/emotion/c-d.txt has 70 bytes", True),
        ("clip_a of no use", "clip_b of no use", True),
        ("x" * 50_000 + "1", "x" * 50_000 + "22", True),
        ("9 " + "y " * 2000, "12345 " + "y " * 2000, True),
        ("damaged frame at 3.5 s", "time stamps go back at 3.5 s", False),
    ],
)
def test_reasons_that_differ_in_id_number_or_path_are_one(one: str, other: str, same: bool) -> None:
    assert (grouped_reason(one, "clip_a") == grouped_reason(other, "clip_b")) is same


def test_notes_beyond_the_most_are_counted() -> None:
    rows = [clip(f"{number:011d}_0_0", 16, notes=["lasts longer"]) for number in range(250)]
    notes = count(rows, notes=["first"])["notes"]
    assert (len(notes), notes[0], notes[-1]) == (202, "first", "50 more notes of clips")


def test_the_statistics_survive_json_and_their_checksum_sees_a_change() -> None:
    found = count(ROWS)
    again = json.loads(json.dumps(found))
    assert again == found
    assert checksum(again) == checksum(found)
    again["resolutions"]["512x512"] += 1
    assert checksum(again) != checksum(found)
