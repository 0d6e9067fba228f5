"""Intervals of figures by bootstrap over groups: clips of one person, or videos of one prompt, are drawn together.

Draws follow from (seed, number of the draw) alone. Pure NumPy, without matrix products, whose last bits depend on the
number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dalle2_video.data import keyed_random

CONFIDENCE = 0.95
RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured number and its 95 % interval."""

    value: float
    low: float
    high: float

    def words(self) -> str:
        """Return it for people: `0.31 (0.28 to 0.35)`."""
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def numbered(groups: Any) -> np.ndarray:
    """Return (n,) int64 numbers from 0 on of groups of any comparable kind, equal ones for members of one group."""
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    return numbers.reshape(-1)


def resampled_groups(size: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Yield how often each of `size` groups is there when as many are drawn with replacement: (size,) int64."""
    for number in range(resamples):
        picks = keyed_random.integers(seed, "bootstrap", number * size + np.arange(size), size)
        yield np.bincount(picks, minlength=size)


def resampled(groups: np.ndarray, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Yield the weights (n,) int64 of items in each resample of their groups; groups: as `numbered` gives them."""
    for weights in resampled_groups(int(groups.max()) + 1, seed, resamples):
        yield weights[groups]


def interval(value: float, drawn: np.ndarray) -> Figure:
    """Return a figure with the percentile interval of its resampled values (r,)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Figure(value=float(value), low=float(low), high=float(high))


def interval_around(value: float, drawn: np.ndarray) -> Figure:
    """Return a figure of 0 or more with the spread of its resampled values laid around it.

    For an estimate that duplicates alone make larger, such as a distance of distributions: the resampled values have
    the right spread about a mean that is too high.
    """
    moved = interval(value, drawn - drawn.mean() + value)
    return Figure(value=moved.value, low=max(0.0, moved.low), high=max(0.0, moved.high))


def means(
    columns: Mapping[str, np.ndarray], groups: Any, seed: int, *, resamples: int = RESAMPLES
) -> dict[str, Figure]:
    """Return the mean of each column, (n,) finite numbers, with its interval; groups: (n,) of anything comparable."""
    table_kn = np.stack([np.asarray(column, np.float64) for column in columns.values()])
    values = table_kn.mean(axis=1)
    drawn = np.stack(
        [(table_kn * weights).sum(axis=1) / weights.sum() for weights in resampled(numbered(groups), seed, resamples)]
    )
    return {
        name: interval(value, of_column) for name, value, of_column in zip(columns, values, drawn.T, strict=True)
    }  # fmt: skip
