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
_MOST_RESOLUTIONS = 20
_MOST_NOTES = 200
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
        "source_hours": round(float(seconds.sum()) / 3600, 4),
        "short_clips": {"count": sum(row["short"] for row in rows), "policy": config.short_clips},
        "cut_clips": int((seconds * config.fps >= config.max_frames + 1).sum()),
        "captions": {kind: count for kind, count in zip(CAPTION_KINDS, _per_kind(kinds), strict=True) if count},
        "captions_truncated": int((uncut_lengths > config.text_context).sum()),
        "caption_tokens": _caption_tokens(kinds, uncut_lengths, config.text_context),
        "joined_truncated": int((joined_lengths > config.text_context).sum()),
        "joined_tokens": _summary(joined_lengths),
        "histograms": {
            "stored_seconds": histogram(frames[good] / config.fps),
            "source_seconds": histogram(seconds),
            "source_fps": histogram(np.array([row["source_fps"] for row in kept], np.float64)),
            "caption_tokens": histogram(uncut_lengths),
        },
        "resolutions": _resolutions(kept),
        "bad_reasons": grouped_reasons(row["bad"] for row in rows if row["bad"] is not None),
        "notes": [*notes, *[f"{row['clip_id']}: {note}" for row in kept for note in row["notes"]][:_MOST_NOTES]],
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


def histogram(values: np.ndarray) -> dict[str, list[float]]:
    """Return {"edges", "counts"} of values, in round bins from the smallest to the largest; both empty of no values."""
    if len(values) == 0:
        return {"edges": [], "counts": []}
    low, high = float(values.min()), float(values.max())
    width = _round_width((high - low) / _MOST_BINS)
    first = np.floor(low / width)
    edges = (first + np.arange(int(np.floor(high / width) - first) + 2)) * width
    counts, _ = np.histogram(values, edges)
    return {"edges": [round(float(edge), 9) for edge in edges], "counts": counts.tolist()}


def _round_width(least: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is at least `least`; 1 for 0."""
    if least <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(least))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-12)))


def _resolutions(kept: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many clips have each of the most frequent source sizes; the others together as "other"."""
    counted = Counter("{}x{}".format(*row["source_size"]) for row in kept)
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    shown = dict(ordered[:_MOST_RESOLUTIONS])
    rest = sum(count for _, count in ordered[_MOST_RESOLUTIONS:])
    return shown | ({"other": rest} if rest else {})


def grouped_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Count reasons that differ in numbers and paths only as one, the most frequent first."""
    counted = Counter(re.sub(r"(/\S+|\d+(\.\d+)?)", "#", reason) for reason in reasons)
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))
