"""Which line of a clip is its text, how often, and how lines are joined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from dalle2_video.data import keyed_random
from dalle2_video.data.captions import Captions, joined_length_bound, separator_ids
from dalle2_video.data.store import Store
from dalle2_video.data.tokenizer import Tokenizer, train_bpe
from dalle2_video.data_config import CAPTION_KINDS, CaptionConfig, CaptionWeights

NOTHING = dict.fromkeys(CAPTION_KINDS, 0.0)


@pytest.fixture(scope="module")
def store(store_path: Path) -> Store:
    return Store(store_path)


def rows_of(store: Store, clip: int, config: CaptionConfig, count: int = 200, seed: int = 0) -> list[list[int]]:
    return Captions(store, config).choose(seed, np.arange(count), np.full(count, clip))


def kinds_of(store: Store, rows: list[list[int]]) -> list[tuple[str, ...]]:
    return [tuple(CAPTION_KINDS[store.caption_kinds[row]] for row in of_sample) for of_sample in rows]


def decoded(store: Store, config: CaptionConfig, rows: list[int], context: int = 64) -> str:
    out = np.empty(context, np.int64)
    length = Captions(store, config).write(rows, out)
    tokenizer = store.tokenizer()
    assert (out[0], out[length - 1]) == (tokenizer.start, tokenizer.end)
    assert (out[length:] == tokenizer.pad).all()
    return tokenizer.backend.decode(out[1 : length - 1].tolist())


@pytest.mark.parametrize("weight", [1.0, 0.3, 7.0])
def test_equal_weights_draw_the_lines_that_older_runs_drew(store: Store, weight: float) -> None:
    clips, samples = np.resize(store.usable("train"), 300), np.arange(300)
    first, last = store.caption_ranges[clips], store.caption_ranges[clips + 1]
    expected = first + keyed_random.integers(4, "caption", samples, last - first)
    config = CaptionConfig(weights=CaptionWeights(**dict.fromkeys(CAPTION_KINDS, weight)))
    assert Captions(store, config).choose(4, samples, clips) == [[row] for row in expected]


def test_a_kind_of_weight_zero_is_never_drawn_and_every_other_line_is(store: Store) -> None:
    clip = int(store.usable("train")[0])
    config = CaptionConfig(weights=CaptionWeights(action=0, light_color=0, emotion=0.001))
    kinds = {kinds[0] for kinds in kinds_of(store, rows_of(store, clip, config, 20_000))}
    assert kinds == {"appearance", "emotion", "light_direction", "light_intensity"}


def test_a_clip_without_a_line_of_positive_weight_uses_all_its_lines(store: Store) -> None:
    rows = np.flatnonzero(store.caption_kinds == CAPTION_KINDS.index("action"))
    clip = int(np.searchsorted(store.caption_ranges, rows[0], side="right")) - 1
    only = CaptionWeights(**NOTHING | {"action": 1.0})

    class WithoutAction:
        """The store, but for this clip's range of captions, which ends before its action line."""

        tokens, token_lengths, caption_kinds = store.tokens, store.token_lengths, store.caption_kinds
        caption_ranges, tokenizer = np.array(store.caption_ranges), store.tokenizer

    WithoutAction.caption_ranges[clip + 1] = rows[0]
    lines = set(range(store.caption_ranges[clip], rows[0]))
    assert lines
    found = rows_of(WithoutAction, clip, CaptionConfig(weights=only))  # type: ignore[arg-type]
    assert {row for of_sample in found for row in of_sample} == lines
    joined = rows_of(WithoutAction, clip, CaptionConfig(choose="joined", weights=only))  # type: ignore[arg-type]
    assert {row for of_sample in joined for row in of_sample} == lines


def test_joined_takes_one_line_of_each_kind_in_their_order_and_varies_them(store: Store) -> None:
    clip = int(store.usable("train")[0])
    rows = rows_of(store, clip, CaptionConfig(choose="joined"))
    assert set(kinds_of(store, rows)) == {CAPTION_KINDS}
    assert len({of_sample[0] for of_sample in rows}) == 2  # two lines on appearance
    without = CaptionConfig(choose="joined", weights=CaptionWeights(appearance=0, light_direction=0))
    assert set(kinds_of(store, rows_of(store, clip, without))) == {
        ("action", "emotion", "light_intensity", "light_color")
    }


def test_joined_text_reads_as_its_lines_with_a_space_between(store: Store) -> None:
    clip = int(store.usable("train")[0])
    config = CaptionConfig(
        choose="joined", weights=CaptionWeights(**NOTHING | {"emotion": 1, "light_intensity": 1, "light_color": 1})
    )
    for rows in rows_of(store, clip, config, 3):
        assert decoded(store, config, rows) == "calm bright warm"


def test_a_line_that_does_not_fit_is_left_out_whole_and_shorter_ones_behind_it_are_not(store: Store) -> None:
    clip = int(store.usable("train")[0])
    config = CaptionConfig(choose="joined")
    rows = rows_of(store, clip, config, 1)[0]
    lines = {CAPTION_KINDS[store.caption_kinds[row]]: row for row in rows}
    chosen = [lines["emotion"], lines["light_direction"], lines["light_intensity"]]  # calm, light from the left, bright
    lengths = [int(store.token_lengths[row]) - 2 for row in chosen]
    space = len(separator_ids(store.tokenizer()))
    whole = sum(lengths) + 2 * space + 2
    assert decoded(store, config, chosen, whole) == "calm light from the left bright"
    assert decoded(store, config, chosen, whole - 1) == "calm light from the left"
    assert lengths[1] > lengths[2]
    assert decoded(store, config, chosen, lengths[0] + lengths[2] + space + 2) == "calm bright"
    assert decoded(store, config, chosen, lengths[0] + 2) == "calm"


def test_a_first_line_that_was_cut_when_it_was_stored_stands_alone_as_it_is(store: Store) -> None:
    row = int(store.token_lengths.argmax())
    out = np.empty(store.token_lengths[row], np.int64)  # a context that the line fills, as one does that was cut
    assert Captions(store, CaptionConfig(choose="joined")).write([row, row - 1, row - 2], out) == len(out)
    np.testing.assert_array_equal(out, store.tokens[row, : len(out)])


def test_a_choice_depends_on_the_sample_alone(store: Store) -> None:
    clips = np.resize(store.usable("train"), 50)
    for config in (CaptionConfig(), CaptionConfig(choose="joined")):
        captions = Captions(store, config)
        together = captions.choose(0, np.arange(50), clips)
        assert together == [captions.choose(0, np.array([n]), clips[n : n + 1])[0] for n in range(50)]
        assert together != captions.choose(1, np.arange(50), clips)


# Joining as the tokenizer would


def word_level(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    backend = tokenizers.Tokenizer(
        models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}, unk_token="<pad>")
    )
    backend.pre_tokenizer = pre_tokenizer
    return Tokenizer(backend, start=1, end=2, pad=0)


def end_of_word_bpe() -> Tokenizer:
    """CLIP's way: the end of a word is a part of its last token."""
    backend = tokenizers.Tokenizer(
        models.BPE({"a": 0, "a</w>": 1, "<s>": 2, "</s>": 3, "<pad>": 4}, [], end_of_word_suffix="</w>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, start=2, end=3, pad=4)


def test_where_words_carry_their_boundary_nothing_stands_between_lines() -> None:
    assert separator_ids(word_level(pre_tokenizers.Whitespace())) == ()
    assert separator_ids(end_of_word_bpe()) == ()


def test_byte_level_bpe_has_a_space_between_lines() -> None:
    tokenizer = train_bpe(["a red square", "a calm face"] * 3, 300)
    ids = separator_ids(tokenizer)
    line = tokenizer.backend.encode("red").ids
    assert tokenizer.backend.decode([*line, *ids, *line]) == "red red"


def test_the_bound_is_the_length_of_the_longest_joined_text(store: Store) -> None:
    clip = int(store.usable("train")[0])
    own = slice(*store.caption_range(clip))
    space = len(separator_ids(store.tokenizer()))
    bound = joined_length_bound(store.token_lengths[own], store.caption_kinds[own], space)
    captions, out = Captions(store, CaptionConfig(choose="joined")), np.empty(bound, np.int64)
    lengths = {captions.write(rows, out) for rows in captions.choose(0, np.arange(50), np.full(50, clip))}
    assert max(lengths) == bound
    assert joined_length_bound(np.array([5, 9, 4]), np.array([0, 0, 3]), 1) == 7 + 1 + 2 + 2
    assert joined_length_bound(np.array([2]), np.array([5]), 1) == 2
