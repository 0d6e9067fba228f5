"""Points of a sweep: each combination once, draws within their range, the same draws whatever else is asked for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import identity
from launch.arguments import load_recipe
from launch.stages import STAGES
from launch.sweep_points import applied, fields_of, points, share

TINY = load_recipe("tiny")
LR, DECAY, STEPS = "prior.optim.lr", "prior.optim.weight_decay", "prior.optim.steps"
numbers = st.floats(1e-6, 1e3)


def sweep(grid: list[str] = [], ranges: list[str] = [], random: int = 0, seed: int = 0) -> list[dict]:  # noqa: B006
    return [dict(point) for point in points(TINY, "prior", grid=grid, ranges=ranges, random=random, seed=seed)]


@settings(deadline=None)
@given(
    lrs=st.lists(numbers, min_size=1, max_size=4, unique=True),
    steps=st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True),
)
def test_a_grid_holds_each_combination_once(lrs: list[float], steps: list[int]) -> None:
    found = sweep([f"{LR}={','.join(map(str, lrs))}", f"{STEPS}={','.join(map(str, steps))}"])
    assert len(found) == len(lrs) * len(steps)
    assert {(point[LR], point[STEPS]) for point in found} == {(lr, step) for lr in lrs for step in steps}


@settings(deadline=None)
@given(low=numbers, factor=st.floats(1.01, 1e4), log=st.booleans(), seed=st.integers(0, 2**40))
def test_draws_lie_within_their_range(low: float, factor: float, log: bool, seed: int) -> None:
    high = low * factor
    for point in sweep(ranges=[f"{LR}={'log:' * log}{low!r}..{high!r}"], random=5, seed=seed):
        assert low <= point[LR] <= high


@settings(deadline=None)
@given(low=st.integers(1, 20), width=st.integers(1, 30), log=st.booleans())
def test_draws_of_an_integer_are_integers_and_reach_both_ends(low: int, width: int, log: bool) -> None:
    drawn = {point[STEPS] for point in sweep(ranges=[f"{STEPS}={'log:' * log}{low}..{low + width}"], random=40)}
    assert all(isinstance(value, int) and low <= value <= low + width for value in drawn)
    many = {point[STEPS] for point in sweep(ranges=[f"{STEPS}={low}..{low + 2}"], random=100)}
    assert many == {low, low + 1, low + 2}


@settings(deadline=None)
@given(count=st.integers(1, 8), more=st.integers(0, 8), seed=st.integers(0, 9))
def test_more_draws_and_other_fields_leave_those_that_are_there_alone(count: int, more: int, seed: int) -> None:
    first = sweep(ranges=[f"{LR}=log:1e-5..1e-1"], random=count, seed=seed)
    both = sweep(ranges=[f"{DECAY}=0..0.5", f"{LR}=log:1e-5..1e-1"], random=count + more, seed=seed)
    assert [point[LR] for point in both][:count] == [point[LR] for point in first]
    assert sweep(ranges=[f"{LR}=log:1e-5..1e-1"], random=count, seed=seed + 1) != first


@settings(deadline=None, max_examples=20)
@given(path=st.text("abc.", max_size=8), seed=st.integers(0, 99))
def test_shares_are_even(path: str, seed: int) -> None:
    drawn = [share(seed, path, number) for number in range(400)]
    assert all(0 <= one < 1 for one in drawn)
    assert abs(sum(drawn) / len(drawn) - 0.5) < 6 / math.sqrt(12 * len(drawn))


@settings(deadline=None, max_examples=20)
@given(lrs=st.lists(numbers, min_size=1, max_size=3, unique=True), random=st.integers(1, 3))
def test_each_point_is_an_identity_of_its_own_and_types_back(lrs: list[float], random: int) -> None:
    grid, ranges = [f"{LR}={','.join(map(str, lrs))}"], [f"{DECAY}=0..1"]
    found = sweep(grid, ranges, random)
    assert len(found) == len(lrs) * random
    ids = set()
    for point in found:
        recipe = applied(TINY, point)
        typed = sweep([f"{name}={value}" for name, value in point.items()])
        assert applied(TINY, typed[0]) == recipe
        ids.add(identity.digest(identity.without_defaults(recipe.prior)))
    assert len(ids) == len(found)


def test_the_recipes_own_value_is_the_recipe() -> None:
    value = TINY.prior.optim.lr
    assert applied(TINY, sweep([f"{LR}={value}"])[0]) == TINY


def test_an_integer_for_a_float_is_the_same_point() -> None:
    assert sweep([f"{DECAY}=1,1.0,2"]) == [{DECAY: 1.0}, {DECAY: 2.0}]


def test_lists_and_words_are_values() -> None:
    assert sweep(["prior.optim.betas=[0.9,0.99],[0.8,0.9]"]) == [
        {"prior.optim.betas": [0.9, 0.99]}, {"prior.optim.betas": [0.8, 0.9]},
    ]  # fmt: skip
    recipe = applied(TINY, sweep(["prior.optim.lr-decay=cosine"])[0])
    assert recipe.prior is not None and recipe.prior.optim.lr_decay == "cosine"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"grid": ["prior.optm.lr=1"]}, "near: prior.optim.lr"),
        ({"grid": ["prior.model.dim=1"]}, "near: prior.transformer.dim"),
        ({"grid": ["clip.optim.lr=1"]}, "a run of prior is not made from such a field; near: prior.optim.lr"),
        ({"grid": ["xyzzy=1"]}, "its fields are seed, captions.\\*, prior.\\*"),
        ({"grid": ["prior.optim.lr=fast"]}, "'fast' is no float"),
        ({"grid": ["prior.optim.steps=1.5"]}, "'1.5' is no int"),
        ({"grid": ["prior.optim.betas=0.9"]}, "is no list"),
        ({"grid": ["prior.optim.lr"]}, "write FIELD=VALUES"),
        ({}, "nothing to sweep"),
        ({"random": 3, "grid": ["prior.optim.lr=1"]}, "give both"),
        ({"ranges": ["prior.optim.lr=1..2"]}, "give both"),
        ({"ranges": ["prior.optim.lr=2..1"], "random": 1}, "LOW must be less than HIGH"),
        ({"ranges": ["prior.optim.lr=log:0..1"], "random": 1}, "greater than 0"),
        ({"ranges": ["prior.optim.lr=1,2"], "random": 1}, "FIELD=LOW..HIGH"),
        ({"ranges": ["prior.optim.lr_decay=1..2"], "random": 1}, "is no number"),
        ({"ranges": ["prior.optim.lr=1..2"], "grid": ["prior.optim.lr=1"], "random": 1}, "in --grid too"),
    ],
)
def test_what_cannot_be_swept_is_named(asked: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sweep(**asked)


def test_a_value_that_the_recipe_refuses_names_the_point() -> None:
    with pytest.raises(ValueError, match=r"point prior.optim.steps=-1: OptimConfig.steps=-1 must be greater than 0"):
        applied(TINY, sweep([f"{STEPS}=-1"])[0])


def test_every_field_of_a_stage_can_be_named() -> None:
    for stage, info in STAGES.items():
        if info.training and getattr(TINY, stage) is not None:
            for path in fields_of(TINY, info):
                assert path.partition(".")[0] in info.parts
