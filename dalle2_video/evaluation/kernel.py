"""Kernel distance of two sets of features: the unbiased estimate of MMD^2 with the kernel (x y / d + 1)^3.

Bińkowski et al. 2018 (KID), over all pairs and not over random subsets. Pairs within one group (a clip, a person, a
prompt) are left out, as those of a sample with itself are there: they are not independent, and counting them would make
sets of few groups look far apart. So its expectation does not depend on the number of samples, and it is 0 for equal
distributions; a single value may be below 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dalle2_video.data import keyed_random
from dalle2_video.evaluation.intervals import RESAMPLES, Figure, interval, numbered, resampled_groups

ROWS_AT_ONCE = 1024
"""Rows of the kernel matrix that are there at once."""


def figure(
    real_nd: np.ndarray,
    generated_md: np.ndarray,
    real_groups: Any,
    generated_groups: Any,
    seed: int,
    *,
    resamples: int = RESAMPLES,
) -> Figure:
    """Return MMD^2 with an interval by bootstrap over the groups of both sets, of two groups or more each.

    real_nd, generated_md: (n, d) and (m, d) of floats; groups: (n,) and (m,) of anything comparable.
    """
    real, generated = numbered(real_groups), numbered(generated_groups)
    sums = _Sums(real_nd, generated_md, real, generated)
    drawn = [
        sums.mmd2(*weights)
        for weights in zip(
            resampled_groups(int(real.max()) + 1, keyed_random.key(seed, "real"), resamples),
            resampled_groups(int(generated.max()) + 1, keyed_random.key(seed, "generated"), resamples),
            strict=True,
        )
        if min(map(np.count_nonzero, weights)) > 1  # one group alone has no pairs
    ]
    return interval(sums.mmd2(), np.array(drawn))


def mmd2(real_nd: np.ndarray, generated_md: np.ndarray, real_groups: Any = None, generated_groups: Any = None) -> float:
    """Return the unbiased MMD^2 of two sets; groups: None where each sample is one."""
    groups = [
        np.arange(len(features)) if of_features is None else numbered(of_features)
        for features, of_features in ((real_nd, real_groups), (generated_md, generated_groups))
    ]
    return _Sums(real_nd, generated_md, *groups).mmd2()


class _Sums:
    """The kernel summed over the pairs of each two groups, of which every resample is made."""

    def __init__(self, a_nd: np.ndarray, b_md: np.ndarray, a_groups: np.ndarray, b_groups: np.ndarray) -> None:
        assert a_nd.ndim == b_md.ndim == 2 and a_nd.shape[1] == b_md.shape[1], (a_nd.shape, b_md.shape)
        self.sizes = [np.bincount(groups).astype(np.float64) for groups in (a_groups, b_groups)]
        assert min(map(len, self.sizes)) > 1, "an unbiased estimate takes two groups or more"
        self.within = [_summed(x, x, of, of) for x, of in ((a_nd, a_groups), (b_md, b_groups))]
        for sums in self.within:
            np.fill_diagonal(sums, 0.0)
        self.between = _summed(a_nd, b_md, a_groups, b_groups)

    def mmd2(self, a_weights: np.ndarray | None = None, b_weights: np.ndarray | None = None) -> float:
        """Return MMD^2; weights: how often each group is there."""
        weights = [
            np.ones(len(sizes)) if of_groups is None else of_groups.astype(np.float64)
            for sizes, of_groups in zip(self.sizes, (a_weights, b_weights), strict=True)
        ]
        counts = [weight * sizes for weight, sizes in zip(weights, self.sizes, strict=True)]
        found = 0.0
        for sums, weight, count in zip(self.within, weights, counts, strict=True):
            pairs = count.sum() ** 2 - (count**2).sum()
            found += _bilinear(sums, weight, weight) / pairs
        return float(found - 2 * _bilinear(self.between, *weights) / (counts[0].sum() * counts[1].sum()))


def _bilinear(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.float64:
    # Not by matrix products, whose last bits depend on the number of threads.
    return ((table * columns).sum(axis=1) * rows).sum()


def _summed(a_nd: np.ndarray, b_md: np.ndarray, a_groups: np.ndarray, b_groups: np.ndarray) -> np.ndarray:
    """Return the kernel of all pairs, summed by group: (groups of a, groups of b) float64."""
    a, b = (torch.from_numpy(np.ascontiguousarray(x, np.float64)) for x in (a_nd, b_md))
    of_a, of_b = torch.from_numpy(a_groups), torch.from_numpy(b_groups)
    found = torch.zeros(int(a_groups.max()) + 1, int(b_groups.max()) + 1, dtype=torch.float64)
    for first in range(0, len(a), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        kernel = (a[rows] @ b.T / a.shape[1] + 1) ** 3
        by_group = torch.zeros(len(kernel), found.shape[1], dtype=torch.float64).index_add_(1, of_b, kernel)
        found.index_add_(0, of_a[rows], by_group)
    return found.numpy()
