"""The points of a sweep: a grid, random draws, or each draw at each point of a grid. Pure; torch is not imported.

A draw is a function of seed, field and its number: more draws, or another field, leave those that there are alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dalle2_video.config import Recipe
from dalle2_video.config_io import from_dict, to_dict
from launch.stages import STAGES, StageInfo

DIGITS = 4
"""Significant digits of a drawn number: what a person can type again."""
Point = Mapping[str, Any]
"""Values by the dotted path of a recipe's field."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Where a field's random values lie."""

    low: float
    high: float
    log: bool

    def at(self, share: float, *, integer: bool) -> float | int:
        """Return the value at a share in [0, 1) of the way; of integers each has the same share of a linear range."""
        if integer and not self.log:
            return min(int(self.high), math.floor(self.low + share * (self.high - self.low + 1)))
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        rounded = round(value) if integer else float(f"{value:.{DIGITS}g}")
        return min(max(rounded, int(self.low) if integer else self.low), int(self.high) if integer else self.high)


def points(
    recipe: Recipe, stage: str, *, grid: Sequence[str], ranges: Sequence[str], random: int, seed: int
) -> list[Point]:
    """Return the points, each different from all others.

    grid: FIELD=VALUE,VALUE; ranges: FIELD=LOW..HIGH or FIELD=log:LOW..HIGH; random: draws. Raises ValueError that names
    the field and what it can be.
    """
    if bool(ranges) != (random > 0):
        raise ValueError(f"--random {random} and --range {' '.join(ranges)}: give both, or only --grid")
    if not grid and not ranges:
        raise ValueError("nothing to sweep; give --grid FIELD=VALUE,VALUE or --random N --range FIELD=LOW..HIGH")
    info = STAGES[stage]
    listed: dict[str, list[Any]] = {}
    drawn: dict[str, tuple[Range, bool]] = {}
    for text in grid:
        path, value = _field("--grid", text, recipe, info)
        listed[path] = [_typed("--grid", path, _current(recipe, path), word) for word in _words(value)]
    for text in ranges:
        path, value = _field("--range", text, recipe, info)
        if path in listed:
            raise ValueError(f"--range {path}: it is in --grid too")
        current = _current(recipe, path)
        if isinstance(current, bool) or not isinstance(current, (int, float)):
            raise ValueError(f"--range {path}: {current!r} is no number; list its values: --grid {path}=...")
        drawn[path] = _range(text, value), isinstance(current, int)
    combinations = [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]
    draws = [
        {path: one.at(share(seed, path, number), integer=integer) for path, (one, integer) in drawn.items()}
        for number in range(max(1, random))
    ]
    found = [combination | draw for combination in combinations for draw in draws]
    return list({json.dumps(point, sort_keys=True): point for point in found}.values())


def share(seed: int, path: str, number: int) -> float:
    """Return the random number in [0, 1) of a field's draw."""
    key = f"{seed}/{path}/{number}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:7], "big") / 256**7


def applied(recipe: Recipe, point: Point) -> Recipe:
    """Return the recipe with a point's values; ValueError where they contradict each other."""
    changed = to_dict(recipe)
    for path, value in point.items():
        *folders, last = path.split(".")
        inner = changed
        for name in folders:
            inner = inner[name]
        inner[last] = value
    try:
        return from_dict(Recipe, changed)
    except ValueError as error:
        told = ", ".join(f"{path}={value}" for path, value in point.items())
        raise ValueError(f"point {told}: {str(error).removeprefix('stored Recipe: ')}") from error


def fields_of(recipe: Recipe, info: StageInfo) -> list[str]:
    """Return the dotted paths of what a stage's run is made from."""
    found: list[str] = []

    def walk(path: str, value: Any) -> None:
        if dataclasses.is_dataclass(value):
            for one in dataclasses.fields(value):
                walk(f"{path}.{one.name}", getattr(value, one.name))
        else:
            found.append(path)

    for part in info.parts:
        walk(part, getattr(recipe, part))
    return found


def _field(option: str, text: str, recipe: Recipe, info: StageInfo) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise ValueError(f"{option} {text!r}: write FIELD=VALUES, such as {info.name}.optim.lr=1e-4,3e-4")
    path = name.replace("-", "_")
    fields = fields_of(recipe, info)
    if path in fields:
        return path, value
    # The end of a path tells more of what was meant than its beginning.
    tail = path.rpartition(".")[2]
    near = [one for one in fields if one.rpartition(".")[2] == tail]
    near += difflib.get_close_matches(path, fields, n=4, cutoff=0.5)
    parts = ", ".join(f"{part}.*" if any(one.startswith(f"{part}.") for one in fields) else part for part in info.parts)
    hint = f"near: {', '.join(dict.fromkeys(near))}" if near else f"its fields are {parts}"
    raise ValueError(f"{option} {name}: a run of {info.name} is not made from such a field; {hint}")


def _current(recipe: Recipe, path: str) -> Any:
    value: Any = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _words(text: str) -> list[str]:
    """Split at commas that are in no brackets."""
    words, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            words.append("")
        else:
            words[-1] += character
    return words


def _typed(option: str, path: str, current: Any, word: str) -> Any:
    """Return a word as a value of the field's type."""
    try:
        value = json.loads(word)
    except ValueError:
        value = {"True": True, "False": False, "None": None}.get(word, word)
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # 1 and 1.0 are one value, and must be one identity
    expected: tuple[type, ...] = (list,) if isinstance(current, tuple) else (type(current),)
    fits = isinstance(value, expected) and isinstance(value, bool) == isinstance(current, bool)
    if current is not None and not fits:
        kind = {"tuple": "list, such as [1,2]"}.get(type(current).__name__, type(current).__name__)
        raise ValueError(f"{option} {path}: {word!r} is no {kind} (it is {current!r} in the recipe)")
    return value


def _range(text: str, value: str) -> Range:
    log, words = value.startswith("log:"), value.removeprefix("log:")
    low, dots, high = words.partition("..")
    try:
        found = Range(low=float(low), high=float(high), log=log)
    except ValueError:
        dots = ""
    if not dots or not (math.isfinite(found.low) and math.isfinite(found.high)):
        raise ValueError(f"--range {text!r}: write FIELD=LOW..HIGH or FIELD=log:LOW..HIGH, such as 1e-5..1e-3")
    if not found.low < found.high or (log and found.low <= 0):
        raise ValueError(f"--range {text!r}: LOW must be less than HIGH{', and greater than 0' if log else ''}")
    return found
