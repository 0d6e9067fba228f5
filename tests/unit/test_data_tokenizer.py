from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dalle2_video.data.tokenizer import Tokenizer, from_folder, train_bpe

TEXTS = [
    f"The {age} {who} {verb} slowly"
    for age in ("young", "old")
    for who in ("woman", "man")
    for verb in ("smiles", "nods")
]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(TEXTS, 320)


def test_training_is_deterministic_and_ignores_the_order_of_texts(bpe: Tokenizer) -> None:
    assert train_bpe(TEXTS, 320).to_json() == bpe.to_json() == train_bpe(TEXTS[::-1], 320).to_json()


def test_marks_frame_the_text_and_padding_follows(bpe: Tokenizer) -> None:
    tokens, lengths, uncut = bpe.encode(["", "a man nods"], 32)
    assert (tokens.dtype, lengths.dtype, uncut.dtype) == (np.int32,) * 3
    assert (bpe.pad, bpe.start, bpe.end) == (0, 1, 2)
    assert tokens[0, :3].tolist() == [1, 2, 0]
    assert lengths[0] == 2
    assert tokens[1, 0] == 1
    assert tokens[1, lengths[1] - 1] == 2
    assert (tokens[1, lengths[1] :] == 0).all()
    assert uncut.tolist() == lengths.tolist()


def test_the_end_mark_stays_where_text_is_cut(bpe: Tokenizer) -> None:
    tokens, lengths, uncut = bpe.encode(["word " * 50, "a"], 8)
    assert (uncut > lengths).tolist() == [True, False]
    assert uncut[0] == bpe.encode(["word " * 50], 400)[1][0]
    assert lengths[0] == 8
    assert tokens[0, -1] == bpe.end


def test_text_exactly_as_long_as_the_context_is_not_truncated(bpe: Tokenizer) -> None:
    _, lengths, _ = bpe.encode(["a man nods"], 64)
    _, exact, uncut = bpe.encode(["a man nods"], int(lengths[0]))
    assert exact[0] == lengths[0]
    assert uncut[0] == exact[0]


def test_case_white_space_and_composition_do_not_matter(bpe: Tokenizer) -> None:
    tokens, _, _ = bpe.encode(["Caf\u00e9 au  lait", "  cafe\u0301\tau lait\n"], 40)
    assert tokens[0].tolist() == tokens[1].tolist()


def test_any_text_can_be_encoded_and_read_back(bpe: Tokenizer) -> None:
    for text in ("笑う 🎥 ñ", "\x00\x01 ~", "zzz qqq"):
        tokens, lengths, _ = bpe.encode([text], 64)
        assert tokens.max() < bpe.vocab_size
        assert bpe.backend.decode(tokens[0, 1 : lengths[0] - 1].tolist()) == text


def test_a_caption_that_spells_a_mark_does_not_become_one(bpe: Tokenizer) -> None:
    tokens, lengths, _ = bpe.encode(["a <end> b <pad>"], 64)
    assert not np.isin(tokens[0, 1 : lengths[0] - 1], [bpe.pad, bpe.start, bpe.end]).any()


def test_json_carries_the_whole_tokenizer(bpe: Tokenizer) -> None:
    copy = Tokenizer.from_json(bpe.to_json())
    assert (copy.pad, copy.start, copy.end, copy.vocab_size) == (bpe.pad, bpe.start, bpe.end, bpe.vocab_size)
    for found, expected in zip(
        copy.encode(["an <end> old man"], 24), bpe.encode(["an <end> old man"], 24), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1, "tokenizer": {}, "start": 1, "end": 2, "pad": 0}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.from_json(text)


def save_hugging_face_folder(folder: Path, **marks: str) -> None:
    backend = Backend(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "man": 3, "<unk>": 4}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **marks).save_pretrained(folder)


def test_a_hugging_face_folder_brings_its_own_marks(tmp_path: Path) -> None:
    save_hugging_face_folder(tmp_path, bos_token="<s>", eos_token="</s>")
    loaded = from_folder(tmp_path)
    tokens, lengths, _ = loaded.encode(["a man"], 6)
    assert tokens[0].tolist() == [0, 2, 3, 1, 1, 1]  # padded with the end mark, as it has no padding token
    assert lengths[0] == 4
    assert Tokenizer.from_json(loaded.to_json()).encode(["a man"], 6)[0].tolist() == tokens.tolist()


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing does not exist.*--data\.tokenizer"):
        from_folder(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty cannot be loaded"):
        from_folder(tmp_path / "empty")
    save_hugging_face_folder(tmp_path / "unmarked", eos_token="</s>")
    with pytest.raises(ValueError, match="unmarked defines no start"):
        from_folder(tmp_path / "unmarked")
