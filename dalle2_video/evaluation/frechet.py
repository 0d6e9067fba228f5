"""Fréchet distance of two sets of features, taken for Gaussians (Heusel et al. 2017, eq. 6; Unterthiner et al. 2018).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

With S = R^T R the trace of that root is the sum of the singular values of R1 R2^T. So no root of a product that is not
symmetric is taken, nothing becomes complex, singular covariances need no correction, and the error is that of rounding
even where there are fewer samples than features. All in float64.
The value is biased upward, the more the fewer samples there are: compare at equal numbers, or see `kernel`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dalle2_video.data import keyed_random
from dalle2_video.evaluation.intervals import Figure, interval_around, numbered, resampled

RESAMPLES = 200
"""Fewer than of means: each costs a decomposition of the features."""


def of_gaussians(mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray) -> float:
    """Return the distance of two Gaussians; means (d,), covariances (d, d) symmetric and not negative."""
    means = [torch.from_numpy(np.asarray(mean, np.float64)) for mean in (mean_a, mean_b)]
    roots = []
    for covariance in (covariance_a, covariance_b):
        values, vectors = torch.linalg.eigh(torch.from_numpy(np.asarray(covariance, np.float64)))
        roots.append(values.clamp(min=0).sqrt()[:, None] * vectors.T)
    return _distance(means[0], roots[0], means[1], roots[1])


def distance(
    a_nd: np.ndarray, b_md: np.ndarray, a_weights: np.ndarray | None = None, b_weights: np.ndarray | None = None
) -> float:
    """Return the distance of two sets of features with their unbiased covariances, 0 or more.

    a_nd, b_md: (n, d) and (m, d) of floats, two rows or more each; weights: how often each row is there.
    """
    return _distance(*_moments(a_nd, a_weights), *_moments(b_md, b_weights))


def figure(
    real_nd: np.ndarray,
    generated_md: np.ndarray,
    real_groups: Any,
    generated_groups: Any,
    seed: int,
    *,
    resamples: int = RESAMPLES,
) -> Figure:
    """Return the distance with an interval by bootstrap over the groups of both sets.

    groups: (n,) and (m,) of anything comparable.
    """
    draws = zip(
        resampled(numbered(real_groups), keyed_random.key(seed, "real"), resamples),
        resampled(numbered(generated_groups), keyed_random.key(seed, "generated"), resamples),
        strict=True,
    )
    # A draw of one row has no covariance.
    drawn = [distance(real_nd, generated_md, *weights) for weights in draws if min(map(np.sum, weights)) > 1]
    return interval_around(distance(real_nd, generated_md), np.array(drawn))


def _moments(features_nd: np.ndarray, weights: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """Return the mean (d,) and a root R (k, d) of the covariance, R^T R."""
    assert features_nd.ndim == 2, features_nd.shape
    features = torch.from_numpy(np.ascontiguousarray(features_nd, np.float64))
    counts = torch.ones(len(features), dtype=torch.float64)
    if weights is not None:
        there = weights > 0
        features, counts = features[torch.from_numpy(there)], torch.from_numpy(weights[there].astype(np.float64))
    total = counts.sum()
    assert total > 1, "a covariance takes two samples or more"
    mean = (features * counts[:, None]).sum(0) / total
    centred = (features - mean) * (counts[:, None] / (total - 1)).sqrt()
    if len(centred) > centred.shape[1]:
        centred = torch.linalg.qr(centred, mode="r").R
    return mean, centred


def _distance(mean_a: Tensor, root_a: Tensor, mean_b: Tensor, root_b: Tensor) -> float:
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    found = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return max(0.0, found.item())
