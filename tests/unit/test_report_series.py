"""Curves made small: nothing extreme is lost, no record is counted twice or not at all."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.report_page import series

VALUES = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), max_size=400)


def curve(values: list[float], most: int) -> series.Buckets:
    return series.buckets(np.arange(len(values), dtype=np.int64) * 10 + 5, np.array(values, np.float64), most)


@given(VALUES, st.integers(1, 60))
def test_lowest_and_highest_are_kept_and_each_record_is_in_one_bucket(values: list[float], most: int) -> None:
    found = curve(values, most)
    assert len(found.first) <= most
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        assert np.nanmin(found.low) == min(finite)
        assert np.nanmax(found.high) == max(finite)
    assert found.records == len(values)
    assert len(found.nonfinite) == len(values) - len(finite)
    places = [(step - 5) // 10 for pair in zip(found.first, found.last, strict=True) for step in pair]
    covered = [place for first, last in zip(places[::2], places[1::2], strict=True) for place in range(first, last + 1)]
    assert covered == list(range(len(values)))


@given(VALUES, st.integers(1, 60))
def test_each_bucket_says_what_lies_in_it(values: list[float], most: int) -> None:
    found = curve(values, most)
    for number, start in enumerate(range(0, len(values), found.per_bucket)):
        inside = [value for value in values[start : start + found.per_bucket] if math.isfinite(value)]
        low, mean, high = found.low[number], found.mean[number], found.high[number]
        if not inside:
            assert np.isnan([low, mean, high]).all()
            continue
        assert (low, high) == (min(inside), max(inside))
        assert low <= mean <= high
        assert mean == pytest.approx(math.fsum(value / len(inside) for value in inside), rel=1e-9, abs=1e-300)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_a_short_curve_is_given_value_by_value(values: list[float]) -> None:
    stored = series.as_json(curve(values, 60))
    assert (stored["n"], stored["per"]) == (len(values), 1)
    assert stored["y"] == pytest.approx(values, rel=1e-5)
    assert np.cumsum(stored["x"]).tolist() == [10 * place + 5 for place in range(len(values))]
    assert "lo" not in stored and "bad" not in stored


@given(VALUES, st.integers(1, 60))
def test_what_is_stored_is_json_without_nan(values: list[float], most: int) -> None:
    text = json.dumps(series.as_json(curve(values, most)), allow_nan=False)
    stored = json.loads(text)
    assert stored.get("bad", {"count": 0})["count"] == sum(not math.isfinite(value) for value in values)


def test_one_spike_of_a_million_records_is_seen() -> None:
    values = np.zeros(1_000_000)
    values[777_777] = 9.0
    stored = series.as_json(series.buckets(np.arange(1_000_000), values, 1000))
    assert len(stored["y"]) == 1000 and max(stored["hi"]) == 9 and stored["per"] == 1000
    assert stored["hi"].index(9) == 777


def test_spark_of_nothing_is_nothing() -> None:
    assert series.spark([], 40) == []
    assert series.spark([(1, 2.0), (2, float("nan"))], 40) == [2, None]
