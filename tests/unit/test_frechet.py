"""The Fréchet distance against closed forms, the usual formula by scipy, and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle2_video.evaluation import frechet
from dalle2_video.evaluation.intervals import CONFIDENCE


def by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    """As pytorch-fid and clean-fid compute it."""
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2)
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s1 + s2 - 2 * root.real))


def features(seed: int, n: int, d: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + rng.standard_normal(d)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), d=st.integers(2, 12), more=st.tuples(st.integers(2, 60), st.integers(2, 60)))
def test_it_is_the_usual_formula_where_that_is_sound(seed: int, d: int, more: tuple[int, int]) -> None:
    a, b = features(seed, d + more[0], d), features(seed + 1, d + more[1], d)
    expected = by_scipy(a, b)
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert frechet.distance(b, a) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_gaussians_whose_covariances_commute_have_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    one, other = rng.uniform(0, 3, (2, 6))
    one[0] = other[1] = 0.0  # singular, which sqrtm of the product takes badly
    mean = rng.standard_normal((2, 6))
    expected = ((mean[0] - mean[1]) ** 2).sum() + ((np.sqrt(one) - np.sqrt(other)) ** 2).sum()
    found = frechet.of_gaussians(mean[0], turn * one @ turn.T, mean[1], turn * other @ turn.T)
    assert found == pytest.approx(expected, rel=1e-7)


def test_sets_of_samples_have_the_distance_of_their_moments() -> None:
    a, b = features(1, 30, 5), features(2, 50, 5)
    found = frechet.of_gaussians(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    assert frechet.distance(a, b) == pytest.approx(found, rel=1e-9)


def test_fewer_samples_than_features_need_no_correction() -> None:
    # In a subspace the answer is known: that of the coordinates in it, however many dimensions are empty.
    rng = np.random.default_rng(3)
    a, b = features(4, 9, 4), features(5, 7, 4)
    basis = np.linalg.qr(rng.standard_normal((200, 4)))[0]
    assert frechet.distance(a @ basis.T, b @ basis.T) == pytest.approx(frechet.distance(a, b), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(2, 20), shift=st.floats(-1e3, 1e3), scale=st.floats(1e-3, 1e3))
def test_it_does_not_depend_on_the_frame_of_reference(seed: int, n: int, shift: float, scale: float) -> None:
    a, b = features(seed, n, 6), features(seed + 1, n + 3, 6)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((6, 6)))[0]
    expected = frechet.distance(a, b)
    moved = frechet.distance((a @ turn + shift) * scale, (b @ turn + shift)[::-1] * scale)
    assert moved == pytest.approx(scale**2 * expected, rel=1e-5, abs=1e-7 * scale**2)
    assert 0 <= frechet.distance(a, a) < 1e-9 * np.var(a) * a.size


def test_large_means_do_not_eat_the_covariances() -> None:
    a, b = features(6, 40, 5), features(7, 40, 5)
    far = frechet.distance((a + 1e5).astype(np.float64), (b + 1e5).astype(np.float64))
    assert far == pytest.approx(frechet.distance(a, b), rel=1e-6)
    assert frechet.distance(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(
        frechet.distance(a, b), rel=1e-5
    )


def test_a_weight_is_that_many_copies() -> None:
    a, b = features(8, 10, 3), features(9, 12, 3)
    weights = np.array([0, 2, 1, 0, 3, 1, 0, 0, 2, 1])
    assert frechet.distance(a, b, weights) == pytest.approx(frechet.distance(a.repeat(weights, axis=0), b), rel=1e-9)


def test_the_interval_lies_about_the_value_and_holds_that_of_other_samples_as_often_as_it_says() -> None:
    rng = np.random.default_rng(10)
    reference = rng.standard_normal((400, 2)) * 1.5
    mean = np.mean([frechet.distance(reference, rng.standard_normal((60, 2))) for _ in range(200)])
    held = 0
    for seed in range(40):
        drawn = rng.standard_normal((60, 2))
        one = frechet.figure(reference, drawn, np.arange(400), np.arange(60), seed, resamples=60)
        assert one.low <= one.value <= one.high and one.value == frechet.distance(reference, drawn)
        held += one.low <= mean <= one.high
    assert held / 40 > CONFIDENCE - 0.15


def test_members_of_a_group_widen_the_interval_and_draws_follow_from_the_seed() -> None:
    a, b = features(11, 80, 2), features(12, 40, 2)

    def width(copies: int) -> float:
        one = frechet.figure(a, b.repeat(copies, axis=0), np.arange(80), np.arange(40).repeat(copies), 0, resamples=100)
        return one.high - one.low

    alone = frechet.figure(a, b.repeat(4, axis=0), np.arange(80), np.arange(160), 0, resamples=100)
    assert width(4) == pytest.approx(width(1), rel=0.15) and alone.high - alone.low < 0.8 * width(4)
    again = [frechet.figure(a, b, np.arange(80), np.arange(40), seed, resamples=20) for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]
