"""Figures of the judges from what tasks found: closed cases, and groups."""

from __future__ import annotations

import numpy as np
import pytest

from dalle2_video.evaluation.intervals import means
from dalle2_video.evaluation.prior_judge import cosines, unrelated


def test_cosines_of_a_perfect_prior_are_those_of_the_true_embeddings() -> None:
    rng = np.random.default_rng(0)
    video, text = rng.standard_normal((2, 20, 8)).astype(np.float32)
    found = cosines(3 * video, video, text, [str(n) for n in range(20)])  # lengths do not matter
    assert found["cosine_true"] == pytest.approx(np.ones(20))
    assert found["cosine_text"] == pytest.approx(found["cosine_text_of_true"])


def test_unrelated_texts_are_all_that_are_not_the_clip_s_own() -> None:
    rng = np.random.default_rng(1)
    sampled, text = rng.standard_normal((2, 6, 4))
    texts = ["a", "b", "a", "c", "b", "a"]
    unit = sampled / np.linalg.norm(sampled, axis=1, keepdims=True)
    directions = text / np.linalg.norm(text, axis=1, keepdims=True)
    expected = [np.mean([unit[i] @ directions[j] for j in range(6) if texts[j] != texts[i]]) for i in range(6)]
    assert cosines(sampled, sampled, text, texts)["cosine_unrelated"] == pytest.approx(expected)
    assert unrelated(unit, directions, ["a"] * 6) is None
    assert "cosine_unrelated" not in cosines(sampled, sampled, text, ["a"] * 6)


def test_means_have_the_interval_of_drawing_groups() -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal(400)
    alone = means({"x": values}, np.arange(400), 0)["x"]
    assert alone.value == pytest.approx(values.mean())
    assert alone.high - alone.low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    copies = means({"x": values.repeat(4)}, np.arange(400).repeat(4), 0)["x"]
    assert (copies.value, copies.low, copies.high) == pytest.approx((alone.value, alone.low, alone.high))
    one = means({"x": values[:3]}, ["same"] * 3, 0)["x"]
    assert one.low == one.value == one.high
    assert means({"x": values}, np.arange(400), 1)["x"].low != alone.low


def test_an_interval_of_a_mean_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for seed in range(100):
        persons = rng.standard_normal(40)
        values = (persons[:, None] + 0.1 * rng.standard_normal((40, 3))).reshape(-1)
        one = means({"x": values}, np.arange(40).repeat(3), seed, resamples=200)["x"]
        held += one.low <= 0 <= one.high
    assert 86 <= held <= 100
