"""Text to token ids, with the tokenizer as a part of the store: one JSON string holds all of it.

Invariant: a sequence is start mark, text, end mark, padding; the end mark is always there, also where the text was cut,
because the text encoder reads its output at the end mark. The default is a byte-level BPE (Sennrich et al. 2016; bytes
as in GPT-2) trained on the data set's captions: any text can be encoded, none is unknown. Tokenising happens in
preprocessing and for prompts, never in the training loop.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

_SPECIALS = ("<pad>", "<start>", "<end>")
_FORMAT = 1
_BATCH = 4096


class Tokenizer:
    """A `tokenizers.Tokenizer` with its start, end and padding ids."""

    def __init__(self, backend: tokenizers.Tokenizer, *, start: int, end: int, pad: int) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # a caption that spells "<end>" must not end there
        self.backend, self.start, self.end, self.pad = backend, start, end, pad
        known = len(backend.get_vocab(with_added_tokens=True))
        if not max(start, end, pad) < self.vocab_size <= 2 * known or min(start, end, pad) < 0:
            raise ValueError(  # the tables of a model have a row for each id
                f"start, end and padding are {start}, {end} and {pad}, and the highest id is {self.vocab_size - 1} of "
                f"{known} tokens: ids must be dense, and the marks among them"
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included: every id is below."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[str], context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return tokens (n, context) int32, lengths (n,) int32 and uncut lengths (n,) int32; marks are counted.

        A text was cut where its uncut length is above `context`.
        """
        assert context >= 2, "the context must hold the start and the end mark"
        tokens = np.full((len(texts), context), self.pad, np.int32)
        lengths = np.zeros(len(texts), np.int32)
        uncut = np.zeros(len(texts), np.int32)
        for first in range(0, len(texts), _BATCH):
            batch = self.backend.encode_batch(list(texts[first : first + _BATCH]), add_special_tokens=False)
            for row, encoding in enumerate(batch, start=first):
                ids = encoding.ids[: context - 2]
                uncut[row] = len(encoding.ids) + 2
                lengths[row] = len(ids) + 2
                tokens[row, : lengths[row]] = [self.start, *ids, self.end]
        return tokens, lengths, uncut

    def to_json(self) -> str:
        """Return everything needed to build this tokenizer again, as one JSON string."""
        marks = {"start": self.start, "end": self.end, "pad": self.pad}
        return json.dumps({"format": _FORMAT, **marks, "tokenizer": json.loads(self.backend.to_str())})

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Build the tokenizer that `to_json` wrote. Raises ValueError for anything else."""
        try:
            values = json.loads(text)
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']!r}, wanted {_FORMAT}")
            backend = tokenizers.Tokenizer.from_buffer(json.dumps(values["tokenizer"]).encode())
            return cls(backend, **{name: int(values[name]) for name in ("start", "end", "pad")})
        except Exception as error:  # the library raises the base class
            raise ValueError(f"not a tokenizer.json of this suite: {error!r}") from error

    @classmethod
    def read(cls, path: Path) -> Tokenizer:
        """Read the file that holds what `to_json` wrote. Raises ValueError naming it for anything else."""
        try:
            return cls.from_json(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE of at most `vocab_size` ids (259 or more); <pad>=0, <start>=1, <end>=2.

    Text is NFC-normalised, lower-cased and its white space squeezed. The result depends on the texts only, not on their
    order.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    assert [backend.token_to_id(name) for name in _SPECIALS] == [0, 1, 2]
    return Tokenizer(backend, pad=0, start=1, end=2)


def from_folder(folder: Path) -> Tokenizer:
    """Load any Hugging Face tokenizer folder, offline. Raises ValueError naming the folder if it cannot be used."""
    if not folder.is_dir():
        raise ValueError(f'tokenizer folder {folder} does not exist; set --data.tokenizer to a folder or to "bpe"')
    import transformers  # a second to import, and only this needs it

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises the base class too
        raise ValueError(f"tokenizer folder {folder} cannot be loaded: {error!r}") from error
    if not loaded.is_fast:
        raise ValueError(f"tokenizer folder {folder} has no tokenizer.json; save it with a fast tokenizer")
    start = loaded.bos_token_id if loaded.bos_token_id is not None else loaded.cls_token_id
    end = loaded.eos_token_id if loaded.eos_token_id is not None else loaded.sep_token_id
    if start is None or end is None:
        raise ValueError(
            f"tokenizer folder {folder} defines no {'start (bos, cls)' if start is None else 'end (eos, sep)'} token; "
            "choose another tokenizer or add it to tokenizer_config.json"
        )
    pad = loaded.pad_token_id if loaded.pad_token_id is not None else end
    backend = tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    try:
        return Tokenizer(backend, start=start, end=end, pad=pad)
    except ValueError as error:
        raise ValueError(f"tokenizer folder {folder} cannot be used: {error}") from error
