"""The index of a very large store without its frames: what opening, drawing and shuffling have to cope with.

The tables that sampling reads (frames, ranges of captions, rows of the splits, ids) hold real values; what lies behind
a caption (tokens, texts) is one sparse file of zeros each, so that 100 million clips take 4.1 GB and under a minute.
Every twentieth clip is for validation, none is bad, and no shard exists: reading frames raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from dalle2_video.data.store import BAD_CLIPS_FILE, STATISTICS_FILE, TOKENIZER_FILE
from dalle2_video.data.store_arrays import create_frames, create_table, group_attributes
from dalle2_video.data.tokenizer import train_bpe
from dalle2_video.data_config import DataConfig

_ROWS_AT_ONCE = 1 << 20
_ID_DIGITS = 11
_VALIDATION_EVERY = 20


def make_index(path: Path, num_clips: int, captions_per_clip: int, config: DataConfig | None = None) -> Path:
    """Write a finished store of `num_clips` clips without frames into `path`, which must not exist; return it.

    num_clips: 2 or more, so that both splits have one.
    """
    config = config or DataConfig()
    path.mkdir(parents=True)
    captions, held_out = num_clips * captions_per_clip, -(-num_clips // _VALIDATION_EVERY)
    lengths = config.max_frames - config.min_frames + 1

    def table(
        name: str, dtype: str, shape: tuple[int, ...], values: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        """Write rows 0, 1, ... as `values` has them, or zeros that take no room."""
        with create_table(path, name, shape, dtype).open("wb") as file:
            if values is None:
                file.truncate(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
                return
            for first in range(0, shape[0], _ROWS_AT_ONCE):
                rows = np.arange(first, min(first + _ROWS_AT_ONCE, shape[0]), dtype=np.int64)
                values(rows).astype(dtype).tofile(file)

    def digits(rows: np.ndarray) -> np.ndarray:
        powers = 10 ** np.arange(_ID_DIGITS - 1, -1, -1)
        ids = np.tile(np.frombuffer(b"0" * _ID_DIGITS + b"_0_0", np.uint8), (len(rows), 1))
        ids[:, :_ID_DIGITS] += (rows[:, None] // powers % 10).astype(np.uint8)
        return ids

    table("num_frames", "int32", (num_clips,), lambda rows: config.min_frames + rows // _VALIDATION_EVERY % lengths)
    table("source_fps", "float64", (num_clips,))
    table("source_size", "int32", (num_clips, 2))
    table("is_validation", "bool", (num_clips,), lambda rows: rows % _VALIDATION_EVERY == 0)
    table("train_rows", "int64", (num_clips - held_out,), lambda rows: rows + rows // (_VALIDATION_EVERY - 1) + 1)
    table("val_rows", "int64", (held_out,), lambda rows: rows * _VALIDATION_EVERY)
    table("caption_ranges", "int64", (num_clips + 1,), lambda rows: rows * captions_per_clip)
    table("caption_kinds", "uint8", (captions,))
    table("tokens", "int32", (captions, config.text_context))
    table("token_lengths", "int32", (captions,))
    table("captions_offsets", "int64", (captions + 1,))
    table("captions_bytes", "uint8", (0,))
    id_bytes = _ID_DIGITS + 4
    table("clip_ids_offsets", "int64", (num_clips + 1,), lambda rows: rows * id_bytes)
    with create_table(path, "clip_ids_bytes", (num_clips * id_bytes,), "uint8").open("wb") as file:
        for first in range(0, num_clips, _ROWS_AT_ONCE):
            digits(np.arange(first, min(first + _ROWS_AT_ONCE, num_clips), dtype=np.int64)).tofile(file)

    for size in config.frame_sizes:
        create_frames(path, size, num_clips, config)
    zarr.create_group(str(path), attributes=group_attributes(config, num_clips, "simulated"))
    (path / TOKENIZER_FILE).write_text(train_bpe(["a simulated index"], config.vocab_size).to_json())
    (path / BAD_CLIPS_FILE).write_text("{}")
    statistics = {"clips": num_clips, "shortest": dict.fromkeys(("train", "val"), config.min_frames)}
    (path / STATISTICS_FILE).write_text(json.dumps(statistics))
    return path
