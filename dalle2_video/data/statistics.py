"""What a store holds, in numbers: lengths, rates, resolutions, captions, what was left out and why.

Counted once, when the store is finished, from the records of all tasks; statistics.json keeps it and `store_page` shows
it. Invariant: every clip is counted, as good or as bad; nothing is dropped without a number here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dalle2_video.data.celebv_text import identity_of
from dalle2_video.data_config import CAPTION_KINDS, DataConfig

_MOST_BINS = 40
_MOST_VALUES = 20
_MOST_REASONS = 50
_MOST_NOTES = 200
_MOST_CHARACTERS, _REASON_CHARACTERS = 2000, 200
"""Of a reason: looked at, and kept of what results."""
_LEAST_SECONDS = 0.5
OTHER = "other"
"""Name under which the rarer values of a table are counted together."""
_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def statistics(
    rows: Sequence[dict[str, Any]],
    *,
    config: DataConfig,
    held_out: np.ndarray,
    kinds: np.ndarray,
    uncut_lengths: np.ndarray,
    joined_lengths: np.ndarray,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return JSON-able numbers of a store.

    rows: the clips' records (see `preprocess`), in order; held_out: (N,) bool; kinds: (M,) index in CAPTION_KINDS of
    each caption; uncut_lengths: (M,) tokens of each caption before cutting; joined_lengths: (good clips,) tokens of the
    longest text that joining a line of each kind can give; notes: what the scan of the input had to say.
    """
    good = np.array([row["bad"] is None for row in rows], bool)
    frames = np.array([row["num_frames"] for row in rows], np.int64)
    kept = [row for row in rows if row["bad"] is None]
    of_split = {"train": good & ~held_out, "val": good & held_out}
    seconds = np.array([row["seconds"] for row in kept], np.float64)
    of_clips = [f"{row['clip_id']}: {note}" for row in kept for note in row["notes"]]
    left = [f"{len(of_clips) - _MOST_NOTES:,} more notes of clips"] if len(of_clips) > _MOST_NOTES else []
    return {
        "clips": len(rows),
        "bad": int((~good).sum()),
        **{f"{split}_clips": int(of.sum()) for split, of in of_split.items()},
        "identities": {
            split: len({identity_of(rows[row]["clip_id"]) for row in np.flatnonzero(of).tolist()})
            for split, of in of_split.items()
        },
        "shortest": {split: int(frames[of].min()) if of.any() else 0 for split, of in of_split.items()},
        "frames": int(frames.sum()),
        "frames_by_size": {
            str(size): int(np.minimum(frames, config.frames_at(size)).sum()) for size in config.frame_sizes
        },
        "source_hours": round(float(seconds.sum()) / 3600, 6),
        "short_clips": {"count": sum(row["short"] for row in rows), "policy": config.short_clips},
        "cut_clips": int((seconds * config.fps >= config.max_frames + 1).sum()),
        "captions": {kind: count for kind, count in zip(CAPTION_KINDS, _per_kind(kinds), strict=True) if count},
        "captions_truncated": int((uncut_lengths > config.text_context).sum()),
        "caption_tokens": _caption_tokens(kinds, uncut_lengths, config.text_context),
        "joined_truncated": int((joined_lengths > config.text_context).sum()),
        "joined_tokens": _summary(joined_lengths),
        "histograms": {
            "stored_seconds": histogram(frames[good] / config.fps, max(_LEAST_SECONDS, 1 / config.fps)),
            "source_seconds": histogram(seconds, _LEAST_SECONDS),
            "caption_tokens": histogram(uncut_lengths, 1),
        },
        "frame_rates": most_frequent(
            (f"{row['source_fps']:.2f}".rstrip("0").rstrip(".") for row in kept), _MOST_VALUES
        ),
        "resolutions": most_frequent(("{}x{}".format(*row["source_size"]) for row in kept), _MOST_VALUES),
        "bad_reasons": most_frequent(
            (grouped_reason(row["bad"], row["clip_id"]) for row in rows if row["bad"] is not None), _MOST_REASONS
        ),
        "notes": [*notes, *of_clips[:_MOST_NOTES], *left],
    }


def checksum(counted: dict[str, Any]) -> str:
    """Return sha256 hexadecimal of everything else in statistics.json: much of it cannot be counted again later."""
    rest = {name: value for name, value in counted.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _per_kind(kinds: np.ndarray) -> list[int]:
    return np.bincount(kinds, minlength=len(CAPTION_KINDS)).tolist()


def _summary(lengths: np.ndarray) -> dict[str, float]:
    """Mean, quantiles and largest of some lengths, all 0 of none."""
    if len(lengths) == 0:
        return dict.fromkeys(("mean", *_QUANTILES, "max"), 0)
    quantiles = np.quantile(lengths, list(_QUANTILES.values()), method="higher").astype(int).tolist()
    of_quantile = dict(zip(_QUANTILES, quantiles, strict=True))
    return {"mean": round(float(lengths.mean()), 2), **of_quantile, "max": int(lengths.max())}


def _caption_tokens(kinds: np.ndarray, uncut_lengths: np.ndarray, context: int) -> dict[str, dict[str, float]]:
    """Return for each kind that there is, and for all together, lengths in tokens and the share that was cut."""
    found = {}
    for name, lengths in [
        ("all", uncut_lengths),
        *((kind, uncut_lengths[kinds == number]) for number, kind in enumerate(CAPTION_KINDS)),
    ]:
        if len(lengths):
            cut = round(float((lengths > context).mean()), 4)
            found[name] = {"count": len(lengths), **_summary(lengths), "share_cut": cut}
    return found


def histogram(values: np.ndarray, least_width: float) -> dict[str, list[float]]:
    """Return {"edges", "counts"} of (n,) finite values, in at most 40 round bins from the smallest to the largest.

    Bin i is edges[i] <= value < edges[i + 1], each at least `least_width` wide, which keeps whole numbers from bins
    that cannot hold one. Both lists are empty of no values.
    """
    if len(values) == 0:
        return {"edges": [], "counts": []}
    # Two fewer than allowed: the first and the last bin may stick out.
    width = _round_width(max(least_width, float(values.max() - values.min()) / (_MOST_BINS - 2)))
    bins = np.floor(values / width).astype(np.int64)
    first = int(bins.min())
    counts = np.bincount(bins - first)
    edges = (first + np.arange(len(counts) + 1)) * width
    return {"edges": [round(edge, 9) for edge in edges.tolist()], "counts": counts.tolist()}


def _round_width(least: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is at least `least`, greater than 0."""
    power = 10.0 ** np.floor(np.log10(least))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-12)))


def most_frequent(values: Iterable[str], most: int) -> dict[str, int]:
    """Count values, the most frequent first; those beyond `most` together as OTHER, last."""
    ordered = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[most:])
    return dict(ordered[:most]) | ({OTHER: rest} if rest else {})


def grouped_reason(reason: str, clip_id: str) -> str:
    """Return a reason with "#" for the clip's id, paths and numbers: equal for clips that are bad in the same way."""
    words = reason.replace(clip_id, "#")[:_MOST_CHARACTERS]
    return re.sub(r"(?:[\w.~#-]*/)+[\w.~#-]*|\d+(?:\.\d+)?", "#", words)[:_REASON_CHARACTERS]
