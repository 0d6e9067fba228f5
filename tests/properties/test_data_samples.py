from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle2_video.data.batches import batch_samples
from dalle2_video.data.captions import Captions
from dalle2_video.data.celebv_text import identity_of, is_validation
from dalle2_video.data.embeddings import window_starts
from dalle2_video.data.keyed_random import order, sample_position
from dalle2_video.data_config import CAPTION_KINDS, CaptionConfig, CaptionWeights

worlds = st.sampled_from([1, 2, 3, 4, 6])
identities = st.text("abcdefghijklmnopqrstuvwxyzABCDEF0123456789-_", min_size=11, max_size=11)


@settings(deadline=None)
@given(st.integers(0, 10**6), worlds, st.integers(1, 5), st.integers(1, 4))
def test_ranks_share_a_step_s_samples_without_overlap(step: int, world: int, micro: int, accumulation: int) -> None:
    size = world * micro * accumulation
    shares = [batch_samples(step, size, rank, world, micro, accumulation) for rank in range(world)]
    assert all([len(batch) for batch in share] == [micro] * accumulation for share in shares)
    numbers = [number for share in shares for batch in share for number in batch]
    assert sorted(numbers) == list(range(step * size, (step + 1) * size))


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_every_world_size_sees_the_same_samples_in_a_step(step: int, micro: int) -> None:
    size = 12 * micro
    of_world = [
        {
            n
            for rank in range(world)
            for batch in batch_samples(step, size, rank, world, micro, 12 // world)
            for n in batch
        }
        for world in (1, 2, 3, 4, 6)
    ]
    assert all(samples == of_world[0] for samples in of_world)


@settings(deadline=None)
@given(identities, st.integers(0, 99), st.integers(0, 99), st.floats(0, 0.99))
def test_all_clips_of_an_identity_are_in_one_split(identity: str, one: int, two: int, fraction: float) -> None:
    first, second = (identity_of(f"{identity}_{n}_0") for n in (one, two))
    assert first == second == identity
    assert is_validation(first, fraction) == is_validation(second, fraction)


@settings(deadline=None)
@given(st.lists(identities, min_size=1, max_size=30, unique=True), st.floats(0, 0.5), st.floats(0, 0.49))
def test_a_larger_fraction_only_adds_identities(found: list[str], fraction: float, more: float) -> None:
    held = {identity for identity in found if is_validation(identity, fraction)}
    assert held <= {identity for identity in found if is_validation(identity, fraction + more)}
    assert not any(is_validation(identity, 0.0) for identity in found)


def test_the_held_out_share_is_the_fraction() -> None:
    held = sum(is_validation(f"{number:011d}", 0.05) for number in range(20_000))
    assert abs(held - 1000) < 150


@settings(deadline=None)
@given(st.integers(0, 600), st.integers(1, 64), st.integers(1, 32))
def test_windows_fit_and_none_is_left_out(num_frames: int, span: int, hop: int) -> None:
    starts = window_starts(num_frames, span, hop).tolist()
    fitting = [start for start in range(0, 600, hop) if start + span <= num_frames]
    assert starts == (fitting or [0] * (num_frames > 0))  # a short clip has its first, however few its frames


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(0, 2**31), st.integers(0, 5), worlds, st.integers(1, 3), st.integers(1, 3))
def test_ranks_and_micro_batches_together_visit_each_clip_once_an_epoch(
    n: int, seed: int, epoch: int, world: int, micro: int, accumulation: int
) -> None:
    size = world * micro * accumulation
    steps = range(epoch * n // size, -(-(epoch + 1) * n // size))
    numbers = np.array(
        [
            number
            for step in steps
            for rank in range(world)
            for batch in batch_samples(step, size, rank, world, micro, accumulation)
            for number in batch
        ]
    )
    epochs, positions = sample_position(numbers, n)
    clips = order(seed, epoch, n, positions[epochs == epoch])
    assert sorted(clips.tolist()) == list(range(n))


positive = st.floats(0.01, 100.0)
weights = st.tuples(*[st.one_of(st.just(0.0), positive)] * len(CAPTION_KINDS)).filter(any)


@dataclass
class Lines:
    """As much of a store as the choice of a caption reads: one clip with these kinds of lines."""

    kinds: list[int]

    @property
    def caption_kinds(self) -> np.ndarray:
        return np.array(self.kinds, np.uint8)

    @property
    def caption_ranges(self) -> np.ndarray:
        return np.array([0, len(self.kinds)])


def drawn(kinds: list[int], by_kind: tuple[float, ...], seed: int, count: int) -> list[int]:
    """Return the lines that `count` samples get of a clip with lines of these kinds."""
    config = CaptionConfig(weights=CaptionWeights(**dict(zip(CAPTION_KINDS, by_kind, strict=True))))
    captions = Captions(Lines(kinds), config)  # type: ignore[arg-type]
    return [row for (row,) in captions.choose(seed, np.arange(count), np.zeros(count, np.int64))]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), weights, st.integers(0, 2**31))
def test_a_kind_without_weight_is_never_drawn(kinds: list[int], by_kind: tuple[float, ...], seed: int) -> None:
    allowed = {n for n, kind in enumerate(kinds) if by_kind[kind] > 0} or set(range(len(kinds)))
    assert set(drawn(kinds, by_kind, seed, 50)) <= allowed


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "by_kind", [(1, 1, 1, 1, 1, 1), (5, 1, 0.5, 0, 2, 1), (0, 0, 1e-3, 3e-3, 0, 0), (1e6, 1e5, 0, 0, 0, 0)]
)
def test_lines_come_as_often_as_their_weights_say(by_kind: tuple[float, ...], seed: int) -> None:
    kinds = [0, 0, 0, 1, 1, 2, 3, 4, 5, 5]
    count = 4000
    expected = np.array([by_kind[kind] for kind in kinds], np.float64)
    expected *= count / expected.sum()
    found = np.bincount(drawn(kinds, by_kind, seed, count), minlength=len(kinds))
    assert (found[expected == 0] == 0).all()
    positive = expected > 0
    chi_square = ((found - expected)[positive] ** 2 / expected[positive]).sum()
    freedom = positive.sum() - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom) + 4  # one in ten thousand is above
