"""The kernel distance against brute force and scikit-learn's kernel; it has no bias, which the usual mean has."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel

from dalle2_video.evaluation import kernel


def of_definition(a: np.ndarray, b: np.ndarray) -> float:
    """Binkowski et al. 2018, eq. 4, with the kernel as their code takes it from scikit-learn."""
    xx, yy, xy = (polynomial_kernel(*pair, degree=3, gamma=None, coef0=1) for pair in ((a, a), (b, b), (a, b)))
    m, n = len(a), len(b)
    return (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (n * (n - 1)) - 2 * xy.mean()


@pytest.mark.parametrize(("n", "m", "at_once"), [(2, 2, 1024), (17, 9, 4), (30, 40, 1024)])
def test_it_is_the_unbiased_estimate_of_the_paper(
    n: int, m: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "ROWS_AT_ONCE", at_once)
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal((n, 5)), rng.standard_normal((m, 5)) + 0.5
    assert kernel.mmd2(a, b) == pytest.approx(of_definition(a, b), rel=1e-12)
    assert kernel.mmd2(b, a) == pytest.approx(of_definition(a, b), rel=1e-9)
    assert kernel.mmd2(a[::-1], b) == pytest.approx(kernel.mmd2(a, b), rel=1e-9)


def test_its_mean_over_all_small_sets_of_a_finite_population_is_the_population_s() -> None:
    # Without bias means: over all pairs of sets of two and two it averages to MMD^2 of the populations, exactly.
    rng = np.random.default_rng(0)
    p, q = rng.standard_normal((5, 3)), rng.standard_normal((5, 3)) + 1

    def mean_kernel(a: np.ndarray, b: np.ndarray, *, distinct: bool) -> float:
        table = (a @ b.T / 3 + 1) ** 3
        return (table.sum() - np.trace(table) * distinct) / (table.size - len(table) * distinct)

    expected = (
        mean_kernel(p, p, distinct=True) + mean_kernel(q, q, distinct=True) - 2 * mean_kernel(p, q, distinct=False)
    )
    pairs = list(itertools.combinations(range(5), 2))
    found = [kernel.mmd2(p[list(one)], q[list(other)]) for one in pairs for other in pairs]
    assert np.mean(found) == pytest.approx(expected, rel=1e-9)


def test_equal_distributions_are_at_0_however_few_the_samples_are_and_may_be_below() -> None:
    rng = np.random.default_rng(1)
    found = [kernel.mmd2(rng.standard_normal((6, 4)), rng.standard_normal((5, 4))) for _ in range(2000)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(2000) and min(found) < 0


def test_pairs_within_a_group_do_not_count() -> None:
    rng = np.random.default_rng(2)
    centres, others = rng.standard_normal((6, 3)), rng.standard_normal((4, 3))
    groups, other_groups = np.arange(6).repeat(3), np.array(list("aaabbbcccddd"))
    # Members that are all but the same say no more than one of them.
    a, b = centres.repeat(3, axis=0), others.repeat(3, axis=0)
    assert kernel.mmd2(a, b, groups, other_groups) == pytest.approx(kernel.mmd2(centres, others), rel=1e-12)
    assert kernel.mmd2(a, b) > kernel.mmd2(centres, others) + 0.01
    ragged = [0, 0, 0, 1, 1, 2, 3, 3, 4, 5]
    pairs = [(i, j) for i in range(10) for j in range(10) if ragged[i] != ragged[j]]
    x = rng.standard_normal((10, 3))
    within = np.mean([(x[i] @ x[j] / 3 + 1) ** 3 for i, j in pairs])
    found = kernel.mmd2(x, others, ragged)
    yy = (others @ others.T / 3 + 1) ** 3
    expected = within + (yy.sum() - np.trace(yy)) / 12 - 2 * ((x @ others.T / 3 + 1) ** 3).mean()
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_interval_holds_the_value_and_narrows_with_more_samples() -> None:
    rng = np.random.default_rng(3)

    def of(n: int) -> tuple[float, float, float]:
        one = kernel.figure(
            rng.standard_normal((n, 3)), rng.standard_normal((n, 3)) + 1, np.arange(n), np.arange(n), 0, resamples=200
        )
        assert one.low < one.value < one.high
        return one.low, one.value, one.high

    few, many = of(30), of(480)
    assert many[2] - many[0] < 0.5 * (few[2] - few[0]) and few[0] < many[1] < few[2]


def test_a_set_of_one_group_is_refused() -> None:
    with pytest.raises(AssertionError, match="two groups"):
        kernel.mmd2(np.ones((3, 2)), np.ones((3, 2)), [0, 0, 0])
