import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle2_video.data import keyed_random
from dalle2_video.data.draws import Draws
from dalle2_video.data.keyed_random import integers, key, order, sample_position, uniform

seeds = st.integers(0, 2**31)
samples = st.lists(st.integers(0, 2**40), min_size=1, max_size=6, unique=True)


@settings(deadline=None)
@given(seeds, st.integers(0, 1000), st.integers(1, 700))
def test_order_is_a_permutation_of_any_length(seed: int, epoch: int, n: int) -> None:
    found = order(seed, epoch, n, np.arange(n))
    assert np.array_equal(np.sort(found), np.arange(n))


@settings(deadline=None)
@given(seeds, st.integers(1, 2**40), st.data())
def test_order_of_a_position_does_not_depend_on_the_others(seed: int, n: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8)))
    together = order(seed, 3, n, positions)
    assert np.all((together >= 0) & (together < n))
    assert together.tolist() == [int(order(seed, 3, n, position)) for position in positions]
    assert len(set(together.tolist())) == len(set(positions.tolist()))


@settings(deadline=None)
@given(seeds, seeds, st.integers(0, 1000))
def test_order_differs_between_epochs_and_seeds(seed: int, other: int, epoch: int) -> None:
    one = order(seed, epoch, 1000, np.arange(1000))
    for two in [order(seed, epoch + 1, 1000, np.arange(1000))] + [order(other, epoch, 1000, np.arange(1000))] * (
        seed != other
    ):
        assert (one == two).mean() < 0.02  # 0.001 expected of independent permutations


def test_every_element_comes_to_every_position_equally_often() -> None:
    n, epochs = 7, 3500
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), order(0, epoch, n, np.arange(n))] += 1
    deviation = (counts - epochs / n) / np.sqrt(epochs / n)
    assert np.abs(deviation).max() < 4.5


def test_neighbours_are_scattered() -> None:
    found = order(5, 0, 100_000, np.arange(100_000))
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(found, np.arange(100_000))[0, 1]) < 0.02


@settings(deadline=None)
@given(st.integers(0, 2**50), st.integers(1, 10**6))
def test_sample_positions_count_through_epochs(sample: int, n: int) -> None:
    epoch, position = sample_position(np.array([sample]), n)
    assert 0 <= position[0] < n
    assert epoch[0] * n + position[0] == sample


def test_choosing_what_a_sample_holds_needs_no_torch() -> None:
    code = "import dalle2_video.data.keyed_random, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


def test_keys_are_the_same_on_every_machine_and_separate_their_arguments() -> None:
    assert key(0, "noise", 1, 2) == 0x39156CFD7843ADB4
    assert len({key(1, "a", 12), key(1, "a", 1, 2), key(11, "a", 2), key(1, "b", 12), key(1, "a|12"), key(1, "a")}) == 6


@settings(deadline=None)
@given(seeds, samples)
def test_a_sample_s_numbers_do_not_depend_on_its_batch(seed: int, numbers: list[int]) -> None:
    batch = Draws(seed, torch.tensor(numbers), "cpu")
    for row, number in enumerate(numbers):
        alone = Draws(seed, torch.tensor([number]), "cpu")
        assert torch.equal(batch.normal("noise", (2, 3))[row], alone.normal("noise", (2, 3))[0])
        assert torch.equal(batch.uniform("time")[row], alone.uniform("time")[0])
        assert torch.equal(batch.keep("text", 0.5)[row], alone.keep("text", 0.5)[0])
        assert uniform(seed, "crop", np.array(numbers))[row] == uniform(seed, "crop", np.array([number]))[0]


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(0, 2**40))
def test_purposes_samples_and_seeds_give_other_numbers(seed: int, sample: int) -> None:
    base = Draws(seed, torch.tensor([sample, sample + 1]), "cpu")
    noise = base.normal("noise", (4,))
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, base.normal("augmentation", (4,)))
    assert not torch.equal(noise, Draws(seed + 1, base_samples(sample), "cpu").normal("noise", (4,)))
    assert uniform(seed, "a", np.array([sample]))[0] != uniform(seed, "b", np.array([sample]))[0]


def base_samples(sample: int) -> torch.Tensor:
    return torch.tensor([sample, sample + 1])


def test_draws_have_the_promised_types_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    draws = Draws(0, torch.arange(5), "cpu")
    assert (draws.normal("a", (3, 2)).shape, draws.normal("a", (3, 2)).dtype) == ((5, 3, 2), torch.float32)
    assert (draws.uniform("a").shape, draws.uniform("a").dtype) == ((5,), torch.float32)
    assert draws.keep("a", 0.1).dtype == torch.bool
    assert torch.equal(torch.get_rng_state(), state)


def test_distributions_are_what_they_claim() -> None:
    draws = Draws(1, torch.arange(20_000), "cpu")
    times = draws.uniform("time")
    assert 0 <= times.min() < 1e-3
    assert 1 - 1e-3 < times.max() < 1
    histogram = torch.histc(times, 20, 0, 1)
    assert (histogram - 1000).abs().max() < 5 * 1000**0.5
    assert abs(np.corrcoef(times[:-1], times[1:])[0, 1]) < 0.03
    assert abs(draws.keep("text", 0.1).float().mean().item() - 0.9) < 0.01
    assert draws.keep("text", 0.0).all()
    assert not draws.keep("text", 1.0).any()
    noise = Draws(1, torch.arange(400), "cpu").normal("noise", (100,))
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.std().item() - 1) < 0.02
    assert abs(np.corrcoef(noise[:-1].flatten(), noise[1:].flatten())[0, 1]) < 0.02
    chosen = integers(2, "caption", np.arange(30_000), np.where(np.arange(30_000) % 2, 3, 7))
    assert np.all(np.abs(np.bincount(chosen[1::2], minlength=3) - 5000) < 350)
    assert np.all(np.abs(np.bincount(chosen[::2], minlength=7) - 15000 / 7) < 250)


def test_float32_uniform_never_reaches_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed_random, "_bits", lambda *_: np.full(1, 2**64 - 1, np.uint64))
    assert Draws(0, torch.tensor([0]), "cpu").uniform("time").item() < 1
    assert uniform(0, "time", np.array([0]))[0] < 1
    assert integers(0, "time", np.array([0]), 10).tolist() == [9]
