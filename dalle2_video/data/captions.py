"""Which text of a clip a training sample gets: one of its lines by weight, or one line of each kind, joined.

The choice is a pure function of (seed, global sample number), like everything of a sample. Invariant: a sequence is
start mark, text, end mark, padding, as the tokenizer made it; lines are joined whole or left out, never cut here.
`batches` asks for the rows of a sample and has them written into its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dalle2_video.data import keyed_random
from dalle2_video.data.store import Store
from dalle2_video.data.tokenizer import Tokenizer
from dalle2_video.data_config import CAPTION_KINDS, CaptionConfig

_MARKS = 2


def separator_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens that stand between two texts that are joined as if a space were between them.

    None where each word carries its own boundary (CLIP's tokenizer, WordPiece); the space alone in byte-level BPE.
    """

    def ids(text: str) -> list[int]:
        return tokenizer.backend.encode(text, add_special_tokens=False).ids

    if ids("a a") == ids("a") * 2:
        return ()
    # Not by encoding " ", of which a normalizer that strips leaves nothing.
    splitter, model = tokenizer.backend.pre_tokenizer, tokenizer.backend.model
    pieces = [piece for piece, _ in splitter.pre_tokenize_str(" ")] if splitter is not None else [" "]
    return tuple(token.id for piece in pieces for token in model.tokenize(piece))


def joined_length_bound(token_lengths: np.ndarray, kinds: np.ndarray, separator_length: int) -> int:
    """Return the length, marks included, of the longest text that joining one line of each kind of a clip can give.

    token_lengths: (n,) of the clip's n >= 1 lines, marks included; kinds: (n,) index in CAPTION_KINDS of each.
    """
    longest = [int(token_lengths[kinds == kind].max()) - _MARKS for kind in np.unique(kinds)]
    return sum(longest) + separator_length * (len(longest) - 1) + _MARKS


class Captions:
    """The captions of a store as a CaptionConfig wants them."""

    def __init__(self, store: Store, config: CaptionConfig) -> None:
        self._store = store
        self._joined = config.choose == "joined"
        weights = np.array(config.weights.by_kind(), np.float64)
        # Equal weights become 1 exactly, so that sums of them are exact and the draw is that of `integers`.
        self._weights = weights / weights.max()
        if self._joined:
            tokenizer = store.tokenizer()
            self._separator = separator_ids(tokenizer)
            self._start, self._end, self._pad = tokenizer.start, tokenizer.end, tokenizer.pad

    def choose(self, seed: int, samples: np.ndarray, clips: np.ndarray) -> list[list[int]]:
        """Return the rows of the store's captions whose text each sample has, first line first.

        samples: (b,) int64 global numbers; clips: (b,) rows of their clips, which have at least one caption.
        """
        if not self._joined:
            places = keyed_random.uniform(seed, "caption", samples).tolist()
            return [[self._one(int(clip), place)] for clip, place in zip(clips, places, strict=True)]
        draws = np.stack([keyed_random.uniform(seed, f"caption.{kind}", samples) for kind in CAPTION_KINDS], axis=1)
        return [self._one_of_each_kind(int(clip), of_sample) for clip, of_sample in zip(clips, draws, strict=True)]

    def write(self, rows: Sequence[int], out: np.ndarray) -> int:
        """Write the text of `rows` into out, (context,) of integers, padded; return its length with both marks.

        A line that does not fit whole behind those before it is left out; the first is always there, as it is stored.
        """
        tokens, lengths = self._store.tokens, self._store.token_lengths
        if len(rows) == 1:
            out[:] = tokens[rows[0]]
            return int(lengths[rows[0]])
        ids: list[int] = []
        for row in rows:
            line = [*(self._separator if ids else ()), *tokens[row, 1 : lengths[row] - 1].tolist()]
            if len(ids) + len(line) + _MARKS <= len(out):
                ids += line
        length = len(ids) + _MARKS
        out[:length] = [self._start, *ids, self._end]
        out[length:] = self._pad
        return length

    def _lines(self, clip: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Return the clip's first caption, and the kind and the weight of each of its captions."""
        first, last = (int(row) for row in self._store.caption_ranges[clip : clip + 2])
        assert first < last, f"clip {clip} has no caption"
        kinds = np.asarray(self._store.caption_kinds[first:last])
        weights = self._weights[kinds]
        return first, kinds, weights if weights.any() else np.ones(len(kinds))

    def _one(self, clip: int, place: float) -> int:
        """Return the caption at `place`, in [0, 1), of the clip's captions laid out by weight."""
        first, _, weights = self._lines(clip)
        ends = np.cumsum(weights)
        return first + int(np.searchsorted(ends, place * ends[-1], side="right"))

    def _one_of_each_kind(self, clip: int, draws: np.ndarray) -> list[int]:
        """Return a caption of each kind that has one of positive weight; draws: (kinds,) in [0, 1)."""
        first, kinds, weights = self._lines(clip)
        lines = (np.flatnonzero((kinds == kind) & (weights > 0)) for kind in range(len(CAPTION_KINDS)))
        return [first + int(of[int(draw * len(of))]) for of, draw in zip(lines, draws, strict=True) if len(of)]
