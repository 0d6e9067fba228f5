"""Curves of any length in a bounded number of buckets, so that a page stays small and nothing extreme is lost.

A bucket is a number of records in a row: its first and last step, and the lowest, mean and highest of its finite
values. Invariant: the lowest and the highest of all finite values are among those of the buckets, each record is in
just one bucket, and a curve that is short enough is given value by value. The page draws the means as the line and
the lowest to highest as a band, and says how many records a bucket holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SHOWN_NONFINITE = 50
DIGITS = 6
"""Significant digits of a value on the page; float32 has seven."""


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """A curve in b buckets; arrays are (b,), values NaN where a bucket has no finite one."""

    first: np.ndarray
    """int64 step of the bucket's first record."""
    last: np.ndarray
    """int64 step of its last record."""
    low: np.ndarray
    mean: np.ndarray
    high: np.ndarray
    records: int
    """Records of the whole curve."""
    per_bucket: int
    """Records of a bucket; the last may hold fewer. 1: the curve is given value by value."""
    nonfinite: np.ndarray
    """int64 steps of the values that are NaN or infinite, all of them."""


def buckets(steps: np.ndarray, values: np.ndarray, most: int) -> Buckets:
    """Return a curve in at most `most` buckets.

    steps: (n,) int64, ascending; values: (n,) float64. n may be 0, most is 1 or more.
    """
    count = len(steps)
    per_bucket = max(1, -(-count // most))
    starts = np.arange(0, count, per_bucket)
    finite = np.isfinite(values)
    if per_bucket == 1:
        shown = np.where(finite, values, np.nan)
        return Buckets(
            first=steps, last=steps, low=shown, mean=shown, high=shown,
            records=count, per_bucket=1, nonfinite=steps[~finite],
        )  # fmt: skip
    ends = np.minimum(starts + per_bucket, count) - 1
    low = np.minimum.reduceat(np.where(finite, values, np.inf), starts)
    high = np.maximum.reduceat(np.where(finite, values, -np.inf), starts)
    counts = np.add.reduceat(finite.astype(np.int64), starts)
    # Each value is divided before it is summed: the sum of finite values may be infinite.
    shares = np.where(finite, values, 0.0) / np.repeat(np.maximum(counts, 1), np.diff([*starts, count]))
    mean = np.clip(np.add.reduceat(shares, starts), low, high)  # rounding can put it a bit outside
    empty = counts == 0
    low, mean, high = (np.where(empty, np.nan, column) for column in (low, mean, high))
    return Buckets(
        first=steps[starts], last=steps[ends], low=low, mean=mean, high=high,
        records=count, per_bucket=per_bucket, nonfinite=steps[~finite],
    )  # fmt: skip


def as_json(curve: Buckets) -> dict[str, Any]:
    """Return a curve as small JSON values.

    n: records; per: records a bucket; x: first step of each bucket, after the first as differences; w: last step minus
    first step; y, lo, hi: mean, lowest, highest, null where there is none; bad: how many values are not finite and the
    steps of the first of them. w, lo and hi are left out where a bucket is one record, bad where all is finite.
    """
    found: dict[str, Any] = {
        "n": curve.records,
        "per": curve.per_bucket,
        "x": np.diff(curve.first, prepend=0).tolist(),
        "y": _rounded(curve.mean),
    }
    if curve.per_bucket > 1:
        found |= {"w": (curve.last - curve.first).tolist(), "lo": _rounded(curve.low), "hi": _rounded(curve.high)}
    if len(curve.nonfinite):
        found["bad"] = {"count": len(curve.nonfinite), "steps": curve.nonfinite[:SHOWN_NONFINITE].tolist()}
    return found


def spark(points: Sequence[tuple[int, float]], most: int) -> list[float | None]:
    """Return the means of a curve in at most `most` buckets: for a picture of the size of a word."""
    if not points:
        return []
    steps, values = arrays(points)
    return _rounded(buckets(steps, values, most).mean, digits=4)


def arrays(points: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return points (step, value) as (n,) int64 and (n,) float64."""
    steps = np.fromiter((step for step, _ in points), np.int64, len(points))
    return steps, np.fromiter((value for _, value in points), np.float64, len(points))


def _rounded(values: np.ndarray, digits: int = DIGITS) -> list[float | int | None]:
    return [None if value != value else _short(float(f"{value:.{digits}g}")) for value in values.tolist()]


def _short(value: float) -> float | int:
    """Return a whole number as one: `3` takes two characters less than `3.0`."""
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
