"""celebvtext_info.json, which comes with the data set: where in its YouTube video each clip was cut.

`{"<clip id>.mp4": {"ytb_id": ..., "duration": {"start_sec": ..., "end_sec": ...}, ...}}`. It is not needed; where it is
found, it tells how long a clip should be and which clips are not there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

INFO_FILE = "celebvtext_info.json"
_NAMED = 3
"""Examples in a note."""


def expected_seconds(root: Path, identities: dict[str, str], notes: list[str]) -> dict[str, float]:
    """Return how long the file says that clips are, by clip id; adds to `notes` what else it says.

    identities: the clips that are there, clip id to YouTube id. Looks into the root and the folders just below it.
    Raises ValueError naming the file if it is broken.
    """
    path = next((file for file in (root / INFO_FILE, *sorted(root.glob(f"*/{INFO_FILE}"))) if file.is_file()), None)
    if path is None:
        return {}
    entries = _read(path)
    found, absent, odd, strangers = {}, [], [], []
    for name, entry in entries.items():
        clip_id = name.removesuffix(".mp4")
        if clip_id not in identities:
            absent.append(clip_id)
            continue
        seconds = _seconds(entry)
        if seconds is None:
            odd.append(clip_id)
        else:
            found[clip_id] = seconds
        if isinstance(entry, dict) and entry.get("ytb_id", identities[clip_id]) != identities[clip_id]:
            strangers.append(clip_id)
    for clip_ids, what in (
        (absent, f"of {len(entries)} clips listed in {path.name} are not there"),
        (odd, f"entries of {path.name} tell no duration"),
        (strangers, f"clips have another ytb_id in {path.name} than their name, by which they are split"),
    ):
        if clip_ids:
            notes.append(f"{len(clip_ids)} {what}: {examples(clip_ids)}")
    return found


def examples(names: Collection[str]) -> str:
    """Return the first few names in order, for a note."""
    return ", ".join(sorted(names)[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _read(path: Path) -> dict[str, Any]:
    remedy = "fetch it again, mend it, or remove it: it is not needed"
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}; {remedy}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path} holds no entries by clip; {remedy}")
    return entries


def _seconds(entry: Any) -> float | None:
    """Return the positive duration of an entry, None if it tells none."""
    try:
        seconds = float(entry["duration"]["end_sec"]) - float(entry["duration"]["start_sec"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
