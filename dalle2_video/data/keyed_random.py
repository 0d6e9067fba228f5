"""Counter-based randomness: every random number is a pure function of (seed, purpose, global sample number).

Invariant: nothing here has state, so a resumed run, another batch composition and another world size see the same
order, crops, captions and noise. `order` is a permutation that is computed from the position, not stored. `batches`
chooses with it what a sample holds, `draws` makes its times, noise and dropped conditions as tensors. Imports no torch.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FEISTEL_ROUNDS = 8


def key(seed: int, purpose: str, *numbers: int) -> int:
    """Return 64 bits that depend on every argument; equal arguments give equal bits on every machine."""
    # The count and the free text last: no two different lists of arguments give the same text.
    text = "|".join((*map(str, (seed, len(numbers), *numbers)), purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele et al. 2014), elementwise over uint64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _bits(seed: int, purpose: str, samples: np.ndarray) -> np.ndarray:
    """Return uint64 of the shape of `samples`; samples: int64 >= 0."""
    counters = np.atleast_1d(np.asarray(samples, np.int64)).astype(np.uint64)
    # Mixed twice: consecutive counters under related keys must not give shifted copies of one sequence.
    inner = _mix((counters + np.uint64(1)) * _GOLDEN)
    return _mix(inner ^ np.uint64(key(seed, purpose))).reshape(np.shape(samples))


def uniform(seed: int, purpose: str, samples: np.ndarray) -> np.ndarray:
    """Return float64 in [0, 1), one for each global sample number in `samples` (int64, any shape)."""
    return (_bits(seed, purpose, samples) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(seed: int, purpose: str, samples: np.ndarray, high: int | np.ndarray) -> np.ndarray:
    """Return int64 in [0, high), one a sample; `high` > 0 is a number or an array of the shape of `samples`."""
    assert np.all(np.asarray(high) > 0), f"integers() wants high > 0, got {high}"
    return np.floor(uniform(seed, purpose, samples) * high).astype(np.int64)


def sample_position(samples: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Split global sample numbers into (epoch, position in the epoch) for a split of n clips; both int64."""
    epochs, positions = np.divmod(np.asarray(samples, np.int64), n)
    return epochs, positions


def image_numbers(seed: int, samples: np.ndarray, images: int) -> tuple[np.ndarray, int]:
    """Return the numbers (b, images) of the single frames that come along with samples (b,), and their draws' seed.

    They are samples of a training of their own, so that nothing of them is drawn as a video's is.
    """
    return np.asarray(samples, np.int64)[:, None] * images + np.arange(images), key(seed, "image")


def order(seed: int, epoch: int, n: int, positions: np.ndarray) -> np.ndarray:
    """Return the elements of the epoch's permutation of range(n) at `positions` (int64 in [0, n), any shape), int64.

    A balanced Feistel network over the next power of four, walked along its cycles until the value is below n
    (Black & Rogaway 2002): time and memory depend on the number of positions only, never on n.
    """
    positions = np.asarray(positions, np.int64)
    assert n > 0 and np.all((positions >= 0) & (positions < n)), f"positions must lie in [0, {n})"
    half = max(2, (max(n - 1, 1).bit_length() + 1) // 2)
    round_keys = np.array([key(seed, "order", epoch, step) for step in range(_FEISTEL_ROUNDS)], np.uint64)
    values = _feistel(positions.reshape(-1).astype(np.uint64), round_keys, half)
    outside = np.flatnonzero(values >= n)
    while outside.size:
        values[outside] = _feistel(values[outside], round_keys, half)
        outside = outside[values[outside] >= n]
    return values.astype(np.int64).reshape(positions.shape)


def _feistel(values: np.ndarray, round_keys: np.ndarray, half: int) -> np.ndarray:
    """Permute range(4**half), elementwise over uint64."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix((right + np.uint64(1)) * _GOLDEN ^ round_key) & mask)
    return (left << shift) | right
