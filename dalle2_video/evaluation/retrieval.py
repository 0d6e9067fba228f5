"""Retrieval between videos and their texts: each is a query, ranked over all of the other kind, with intervals.

Ties count by expectation: a query whose own counterpart is as similar as t others has the rank that drawing among them
would give on average, and as many hits. So a CLIP that maps everything to one point scores chance, and no order of the
clips can help. Everything here is pure NumPy; counts do not depend on how the work is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dalle2_video.evaluation.intervals import RESAMPLES, Figure, interval, numbered, resampled

TIE = 1e-5
"""Cosines that differ by no more are a tie: embeddings of one text at two places of a batch differ by rounding."""
TOP = (1, 5, 10)
QUERIES_AT_ONCE = 128
"""Rows of the similarity matrix that are there at once, so that memory grows with n and not with its square."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where each query's own counterpart stands among all; both (n,) int64."""

    better: np.ndarray
    """Others that are more similar to the query."""
    tied: np.ndarray
    """Others that are as similar."""

    def ranks(self) -> np.ndarray:
        """Expected rank of each query's own counterpart, 1 the best: (n,) float64."""
        return 1.0 + self.better + self.tied / 2

    def hits(self, k: int) -> np.ndarray:
        """Probability that each query's own counterpart is among the first k: (n,) float64."""
        return np.clip((k - self.better) / (self.tied + 1), 0.0, 1.0)


def places(video_nd: np.ndarray, text_nd: np.ndarray, *, at_once: int = QUERIES_AT_ONCE) -> tuple[Places, Places]:
    """Return the places text -> video (each text is a query) and video -> text, by cosine.

    video_nd, text_nd: (n, d) of floats, pairs at the same row, of any length but 0. Takes O(n^2 d) time and O(n d +
    at_once n) memory. Raises ValueError naming the first row that is not finite or has no direction.
    """
    assert video_nd.ndim == 2 and video_nd.shape == text_nd.shape, (video_nd.shape, text_nd.shape)
    video, text = _directions(video_nd, "video"), _directions(text_nd, "text")
    own = np.einsum("nd,nd->n", video, text)
    n = len(own)
    of_text, of_video = (Places(better=np.zeros(n, np.int64), tied=np.zeros(n, np.int64)) for _ in range(2))
    for first in range(0, n, at_once):
        rows = slice(first, first + at_once)
        similarity = text[rows] @ video.T
        for found, mine, axis, where in ((of_text, own[rows, None], 1, rows), (of_video, own[None], 0, slice(None))):
            above = similarity - mine
            found.better[where] += np.count_nonzero(above > TIE, axis=axis)
            found.tied[where] += np.count_nonzero(np.abs(above) <= TIE, axis=axis)
    for found in (of_text, of_video):
        found.tied[:] -= 1  # each met itself once
    return of_text, of_video


def _directions(vectors_nd: np.ndarray, kind: str) -> np.ndarray:
    """Return unit vectors in float64."""
    vectors = vectors_nd.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(vectors)} {kind} embeddings are not finite or 0 (first: row {bad[0]}); look at the "
            "CLIP run's losses: python tools/runs.py show ID"
        )
    return vectors


def figures(found: Places, groups: np.ndarray, seed: int, *, resamples: int = RESAMPLES) -> dict[str, Figure]:
    """Return top1, top5 and top10, in [0, 1], mean_rank and median_rank with percentile bootstrap intervals.

    groups: (n,) of anything comparable: clips of one group (a person) are drawn together, since they are not
    independent. What is ranked among stays as it is. Draws follow from (seed, number of the draw) alone, so that both
    directions have the same. The interval of a top-k that is 0 or 1 for every clip is that point, at any n.
    """
    n = len(found.better)
    assert n > 0 and len(groups) == n, (n, len(groups))
    order = np.argsort(found.ranks(), kind="stable")  # for medians
    columns_kn = np.stack([*(found.hits(k) for k in TOP), found.ranks()])[:, order]
    ranks = columns_kn[-1]

    def measured(weights: np.ndarray) -> np.ndarray:
        # Not by a matrix product, whose last bits depend on the number of threads.
        means = (columns_kn * weights).sum(axis=1) / weights.sum()
        return np.append(means, _weighted_median(ranks, weights))

    drawn = np.stack([measured(weights[order]) for weights in resampled(numbered(groups), seed, resamples)])
    names = [*(f"top{k}" for k in TOP), "mean_rank", "median_rank"]
    values = measured(np.ones(n, np.int64))
    return {name: interval(value, of_name) for name, value, of_name in zip(names, values, drawn.T, strict=True)}


def _weighted_median(ascending: np.ndarray, weights: np.ndarray) -> float:
    """Return the median of values of which each is there `weights` times; the middle of the two middle ones."""
    ends = np.cumsum(weights)
    total = int(ends[-1])
    middle = np.searchsorted(ends, [(total + 1) // 2, total // 2 + 1])
    return float(ascending[middle].mean())


def words(of_direction: dict[str, Figure], n: int) -> str:
    """Return figures for people: `top-1 45.8 % (29.2 to 66.7), top-5 ..., median rank 2 (1 to 4) of 24`."""
    shares = [
        f"top-{k} {100 * one.value:.1f} % ({100 * one.low:.1f} to {100 * one.high:.1f})"
        for k, one in ((k, of_direction[f"top{k}"]) for k in TOP)
    ]
    median = of_direction["median_rank"]
    return f"{', '.join(shares)}, median rank {median.value:g} ({median.low:g} to {median.high:g}) of {n}"
