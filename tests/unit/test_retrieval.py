"""Retrieval figures against brute force and closed cases; the interval holds what it should."""

from __future__ import annotations

import numpy as np
import pytest

from dalle2_video.data import keyed_random
from dalle2_video.evaluation import retrieval
from dalle2_video.evaluation.retrieval import Places, figures, places


def unit(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    vectors = rng.standard_normal((n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def one_each(n: int) -> np.ndarray:
    return np.arange(n)


def plain(places_of: Places, seed: int = 0) -> dict[str, float]:
    found = figures(places_of, one_each(len(places_of.better)), seed, resamples=20)
    return {name: one.value for name, one in found.items()}


@pytest.mark.parametrize(("n", "at_once"), [(1, 128), (7, 3), (50, 128), (130, 128), (130, 1)])
def test_places_are_those_of_sorting_every_list(n: int, at_once: int) -> None:
    rng = np.random.default_rng(n)
    video, text = unit(rng, n, 6), unit(rng, n, 6)
    text[n // 2 :] = (text[n // 2 :] + 3 * video[n // 2 :]) * 0.5  # half are found, and lengths do not matter
    of_text, of_video = places(video, text, at_once=at_once)
    similarity = text.astype(float) @ video.T.astype(float) / np.linalg.norm(text.astype(float), axis=1)[:, None]
    cosine_by_video = similarity.T
    for found, table in ((of_text, similarity), (of_video, cosine_by_video)):
        by_hand = [sorted(range(n), key=lambda other: -table[query, other]).index(query) for query in range(n)]
        assert found.better.tolist() == by_hand and not found.tied.any()
        assert np.array_equal(found.ranks(), np.array(by_hand) + 1.0)
        for k in (1, 5, 10):
            assert np.array_equal(found.hits(k), np.array(by_hand) < k)


def test_pairs_that_are_equal_come_first_and_the_reverse_last() -> None:
    video = np.eye(12, dtype=np.float32)
    for found in places(video, video):
        assert plain(found) == {"top1": 1.0, "top5": 1.0, "top10": 1.0, "mean_rank": 1.0, "median_rank": 1.0}
    for found in places(video, -video):
        assert plain(found) == {"top1": 0.0, "top5": 0.0, "top10": 0.0, "mean_rank": 12.0, "median_rank": 12.0}


def test_a_clip_that_maps_all_to_one_point_scores_chance() -> None:
    noise = 1e-7 * np.random.default_rng(0).standard_normal((40, 8))  # as two places of a batch differ
    video = (np.ones((40, 8)) + noise).astype(np.float32)
    for found in places(video, video[::-1].copy()):
        assert plain(found) == pytest.approx(
            {"top1": 1 / 40, "top5": 5 / 40, "top10": 10 / 40, "mean_rank": 20.5, "median_rank": 20.5}
        )


def test_clips_that_share_a_text_share_its_hits_in_expectation() -> None:
    video = np.eye(4, dtype=np.float32)
    video[1] = [0.6, 0.8, 0, 0]
    text = np.eye(4, dtype=np.float32)
    text[1] = text[0]
    of_text, of_video = places(video, text)
    # Text 0 = text 1 is nearest to video 0, then video 1; texts 0 and 1 are equally near to both of the videos.
    assert of_text.ranks().tolist() == [1, 2, 1, 1] and of_video.ranks().tolist() == [1.5, 1.5, 1, 1]
    assert of_video.hits(1).tolist() == [0.5, 0.5, 1, 1] and of_video.hits(5).tolist() == [1, 1, 1, 1]


def test_the_expectation_over_ties_is_that_of_drawing_among_them() -> None:
    rng = np.random.default_rng(0)
    found = Places(better=np.array([0, 3, 8]), tied=np.array([2, 4, 3]))
    drawn = found.better + 1 + rng.integers(0, found.tied + 1, (40_000, 3))
    assert np.abs(drawn.mean(0) - found.ranks()).max() < 0.05
    for k in (1, 5, 10):
        assert np.abs((drawn <= k).mean(0) - found.hits(k)).max() < 0.01


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_an_embedding_that_is_none_is_refused_and_never_ranks_first(bad: float) -> None:
    vectors = unit(np.random.default_rng(0), 5, 4)
    broken = vectors.copy()
    broken[3] = bad
    with pytest.raises(ValueError, match=r"1 of 5 video embeddings .*row 3"):
        places(broken, vectors)
    with pytest.raises(ValueError, match=r"1 of 5 text embeddings .*row 3"):
        places(vectors, broken)


def test_intervals_are_those_of_resampling_by_hand_and_follow_from_the_seed() -> None:
    rng = np.random.default_rng(3)
    found = Places(better=rng.integers(0, 20, 31), tied=rng.integers(0, 2, 31))
    persons = rng.integers(0, 9, 31)
    mine = figures(found, persons, seed=5, resamples=200)
    assert mine == figures(found, persons, seed=5, resamples=200) != figures(found, persons, seed=6, resamples=200)
    shuffled = rng.permutation(31)
    again = figures(
        Places(better=found.better[shuffled], tied=found.tied[shuffled]), persons[shuffled], 5, resamples=200
    )
    for name, one in mine.items():
        assert (again[name].value, again[name].low, again[name].high) == pytest.approx((one.value, one.low, one.high))

    names, which = np.unique(persons, return_inverse=True)
    drawn = []
    for number in range(200):
        picks = keyed_random.integers(5, "bootstrap", number * len(names) + np.arange(len(names)), len(names))
        clips = np.concatenate([np.flatnonzero(which == pick) for pick in picks])
        drawn.append([found.hits(1)[clips].mean(), found.ranks()[clips].mean(), np.median(found.ranks()[clips])])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    for place, name in enumerate(("top1", "mean_rank", "median_rank")):
        assert (mine[name].low, mine[name].high) == pytest.approx((low[place], high[place]))
        assert mine[name].low <= mine[name].value <= mine[name].high
    assert mine["median_rank"].value == np.median(found.ranks())


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = Places(better=np.where(rng.random(60) < 0.3, 0, 20), tied=np.zeros(60, np.int64))
        one = figures(found, one_each(60), seed=int(rng.integers(2**31)), resamples=200)["top1"]
        held += one.low <= 0.3 <= one.high
    assert 175 <= held <= 199


def test_clips_of_one_person_count_as_one_draw() -> None:
    better = np.repeat(np.random.default_rng(0).integers(0, 2, 20) * 20, 10)  # ten clips a person, all found or none
    found = Places(better=better, tied=np.zeros(200, np.int64))
    alone, together = (
        figures(found, groups, seed=0, resamples=400)["top1"]
        for groups in (one_each(200), np.repeat(np.arange(20), 10))
    )
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_figures_in_words() -> None:
    found = Places(better=np.array([0, 0, 3, 12]), tied=np.zeros(4, np.int64))
    said = retrieval.words(figures(found, one_each(4), seed=0), 4)
    assert said.startswith("top-1 50.0 % (0.0 to 100.0), top-5 75.0 % (") and said.endswith(" of 4")
    assert "median rank 2.5 (1 to " in said
