from hypothesis import given, settings
from hypothesis import strategies as st

from dalle2_video.data.batches import batch_samples
from dalle2_video.data.celebv_text import identity_of, is_validation
from dalle2_video.data.embeddings import window_starts

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
    assert starts == [start for start in range(0, 600, hop) if start + span <= num_frames]
