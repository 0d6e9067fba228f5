"""What an evaluation measured, whatever it measured: every number with an interval, by its place in evaluation.json.

A figure is an object with a number `value` and, if there is an interval, `low` and `high`; where such objects lie
nested in others, the path names them (`text_to_video / top1`). All else in the file is what it was measured on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import files

EVALUATION, RANKS = "evaluation.json", "ranks.jsonl"
SHOWN_RANKS = 10


def evaluation(folder: Path) -> dict[str, Any] | None:
    """Return `figures` [path, value, low, high], `facts` [path, value], `ranks` and the runs `judged`.

    None where nothing is there. Raises ValueError where the file is no object.
    """
    stored = files.read_json(folder / EVALUATION)
    if stored is None:
        return None
    if not isinstance(stored, dict):
        raise ValueError(f"{folder / EVALUATION} is not an object")
    judged = stored.get("made_from")
    judged = judged if isinstance(judged, dict) else {}
    rest = {key: value for key, value in stored.items() if key != "made_from"}
    return {
        "judged": {
            stage: {"id": one.get("id"), "step": one.get("step")}
            for stage, one in judged.items()
            if isinstance(one, dict)
        },
        "figures": [[list(path), *numbers] for path, numbers in _figures(rest)],
        "facts": [[" / ".join(path), value] for path, value in _facts(rest)],
        "ranks": _ranks(folder / RANKS),
    }


def is_figure(value: Any) -> bool:
    """Tell whether a value of evaluation.json is a measured number."""
    return isinstance(value, Mapping) and _number(value.get("value"))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _figures(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    if is_figure(value):
        yield path, [value["value"], *(value[end] if _number(value.get(end)) else None for end in ("low", "high"))]
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _figures(item, (*path, str(key)))


def _facts(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if is_figure(value):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _facts(item, (*path, str(key)))
    elif isinstance(value, list):
        yield path, ", ".join(item if isinstance(item, str) else json.dumps(item) for item in value)
    else:
        yield path, value


def _ranks(path: Path) -> dict[str, Any] | None:
    """Return the best and the worst clips, by the mean of their two ranks; None where there are none."""
    if not path.is_file():
        return None
    with path.open() as file:
        rows = [row for line in file if isinstance(row := json.loads(line), dict) and _ranked(row)]
    rows.sort(key=lambda row: row["text_to_video"] + row["video_to_text"])
    if not rows:
        return None
    shown = [
        {"clip": row.get("clip"), "text": row.get("text"), "ranks": [row["text_to_video"], row["video_to_text"]]}
        for row in (rows if len(rows) <= 2 * SHOWN_RANKS else [*rows[:SHOWN_RANKS], *rows[-SHOWN_RANKS:]])
    ]
    return {"of": len(rows), "shown": shown}


def _ranked(row: Mapping[str, Any]) -> bool:
    return _number(row.get("text_to_video")) and _number(row.get("video_to_text"))
