"""The last step of preprocessing: the records of all tasks become the tables, texts and statistics of a finished store.

Invariant: what it writes depends on the records only, so that two processes that join at once write the same bytes.
statistics.json comes last: its presence says that the store is finished.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dalle2_video.data.captions import joined_length_bound, separator_ids
from dalle2_video.data.celebv_text import Caption, ClipFile, identity_of, is_validation
from dalle2_video.data.preprocess import ClipRecord, num_tasks
from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.statistics import checksum, statistics
from dalle2_video.data.store import BAD_CLIPS_FILE, PAGE_FILE, SHARDS_FILE, STATISTICS_FILE, TOKENIZER_FILE, frames_name
from dalle2_video.data.store_arrays import Published, published_from, write_array, write_texts
from dalle2_video.data.store_page import contact_sheet, example_size, page
from dalle2_video.data.tokenizer import from_folder, train_bpe
from dalle2_video.data_config import CAPTION_KINDS, DataConfig


def finish(
    records: list[dict[str, Any]],
    clips: Sequence[ClipFile],
    config: DataConfig,
    store: Path,
    staging: Path,
    notes: Sequence[str] = (),
) -> Published:
    """Write text, tokens, tokenizer, per-clip arrays, bad list and statistics; returns what to publish, in order.

    store: where the tasks' shards were published; notes: what the scan of the input had to say. Raises ValueError if a
    task's record is missing or belongs to other clips, or if all clips are bad.
    """
    rows = _rows(records, clips, config)
    bad = {row["clip_id"]: row["bad"] for row in rows if row["bad"] is not None}
    if len(bad) == len(rows):
        reasons = "\n".join(f"  {clip_id}: {reason}" for clip_id, reason in list(bad.items())[:5])
        raise ValueError(f"all {len(rows)} clips are bad; nothing to train on. First reasons:\n{reasons}")
    texts = [text for row in rows for _, text in row["captions"]]
    kinds = np.array([CAPTION_KINDS.index(kind) for row in rows for kind, _ in row["captions"]], np.uint8)
    ranges = np.cumsum([0, *(len(row["captions"]) for row in rows)], dtype=np.int64)
    tokenizer = (
        train_bpe(texts, config.vocab_size) if config.tokenizer == "bpe" else from_folder(Path(config.tokenizer))
    )
    tokens, token_lengths, uncut_lengths = tokenizer.encode(texts, config.text_context)
    separator = len(separator_ids(tokenizer))
    joined = [
        joined_length_bound(uncut_lengths[first:last], kinds[first:last], separator)
        for first, last in pairwise(ranges.tolist())
        if first < last
    ]
    held_out = np.array([is_validation(identity_of(row["clip_id"]), config.val_fraction) for row in rows], bool)
    good = np.array([row["bad"] is None for row in rows], bool)
    arrays: dict[str, np.ndarray] = {
        "num_frames": np.array([row["num_frames"] for row in rows], np.int32),
        "source_fps": np.array([row["source_fps"] for row in rows], np.float64),
        "source_size": np.array([row["source_size"] for row in rows], np.int32),
        "is_validation": held_out,
        "train_rows": np.flatnonzero(good & ~held_out).astype(np.int64),
        "val_rows": np.flatnonzero(good & held_out).astype(np.int64),
        "caption_ranges": ranges,
        "caption_kinds": kinds,
        "tokens": tokens,
        "token_lengths": token_lengths,
    }
    for name, values in arrays.items():
        write_array(staging, name, values)
    write_texts(staging, "clip_ids", [row["clip_id"] for row in rows])
    write_texts(staging, "captions", texts)
    (staging / TOKENIZER_FILE).write_text(tokenizer.to_json())
    (staging / BAD_CLIPS_FILE).write_text(json.dumps(bad, indent=1, ensure_ascii=False))
    counted = statistics(
        rows,
        config=config,
        held_out=held_out,
        kinds=kinds,
        uncut_lengths=uncut_lengths,
        joined_lengths=np.array(joined, np.int64),
        notes=notes,
    )
    counted["vocab_size"] = tokenizer.vocab_size
    shards = {str(record["task"]): record["shards"] for record in sorted(records, key=lambda record: record["task"])}
    (staging / SHARDS_FILE).write_text(json.dumps(shards, indent=1))
    counted["checksum"] = checksum(counted)
    sizes = {
        size: sum(record["shards"].get(str(size), {"bytes": 0})["bytes"] for record in records)
        for size in config.frame_sizes
    }
    shown = example_size(config)
    examples = contact_sheet(
        ShardReader(store / frames_name(shown)),
        np.minimum(arrays["num_frames"], config.frames_at(shown)),
        lambda row: (rows[row]["clip_id"], [Caption(kind=kind, text=text) for kind, text in rows[row]["captions"]]),
    )
    (staging / PAGE_FILE).write_text(page(counted, config, examples, bad, sizes))
    published = published_from(staging)
    # Last of all: its presence says that the store is finished.
    (staging / STATISTICS_FILE).write_text(json.dumps(counted, indent=1))
    return [*published, (staging / STATISTICS_FILE, STATISTICS_FILE)]


def _rows(records: list[dict[str, Any]], clips: Sequence[ClipFile], config: DataConfig) -> list[ClipRecord]:
    by_task = {record["task"]: record for record in records}
    missing = [task for task in range(num_tasks(len(clips), config)) if task not in by_task]
    if missing:
        raise ValueError(f"tasks without a record: {missing[:20]}; run the same preprocessing command again")
    rows = [row for task in sorted(by_task) for row in by_task[task]["clips"]]
    if [row["clip_id"] for row in rows] != [clip.clip_id for clip in clips]:
        raise ValueError("the tasks' records are of other clips than the data set now holds; preprocess it anew")
    return rows
