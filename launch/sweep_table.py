"""What came of a sweep's points: a table for people, sweep.json for programs, plot.svg for the eye."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from rich.console import Console
from rich.table import Table

from experiments import files
from experiments.run import Run
from launch.sweep_points import Point

PANEL, HEIGHT, MARGIN, TOP = 240, 260, 56, 34
TICKS = 3
_COLOURS = {"done": "#0b62c4", "running": "#2a9d5c"}
_OTHER = "#d1491b"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One point and its run."""

    values: Point
    run: str
    """Name of the run."""
    id: str
    state: str
    """As `tools/runs.py` shows it; "new": never launched."""
    step: int = 0
    """Newest step on record."""
    best: float | None = None
    """Least validation loss, in units of the stage's loss."""
    best_step: int | None = None
    last: float | None = None
    """Newest validation loss."""
    train: float | None = None
    """Newest training loss."""


def result_of(values: Point, name: str, identity: str, run: Run | None, state: str) -> Result:
    """Return what is on record of a point; run: None where there is none yet."""
    records = run.metrics() if run is not None else []
    losses = [record for record in records if isinstance(record.get("loss"), float) and math.isfinite(record["loss"])]
    val = [(record["step"], record["loss"]) for record in losses if record.get("split") == "val"]
    train = [record["loss"] for record in losses if record.get("split", "train") == "train"]
    best = min(val, key=lambda pair: pair[1], default=(None, None))
    return Result(
        values=values,
        run=name,
        id=identity,
        state=state,
        step=max((record["step"] for record in records), default=0),
        best=best[1],
        best_step=best[0],
        last=val[-1][1] if val else None,
        train=train[-1] if train else None,
    )


def ordered(results: Sequence[Result]) -> list[Result]:
    """Best first; those without a validation loss last, by state."""
    return sorted(results, key=lambda one: (one.best is None, one.best or 0.0, one.state, one.id))


def show(console: Console, title: str, results: Sequence[Result]) -> None:
    """Print the table."""
    fields = list(results[0].values)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    short = _short(fields)
    for name in fields:
        table.add_column(short[name], justify="right", overflow="fold")
    for name in ("run", "state", "step", "best val", "at step", "last val", "train"):
        table.add_column(name, justify="left" if name in ("run", "state") else "right", no_wrap=True)
    for one in ordered(results):
        table.add_row(
            *(str(one.values[name]) for name in fields),
            one.id,
            one.state,
            str(one.step or ""),
            *(figure(number) for number in (one.best, one.best_step, one.last, one.train)),
        )
    console.print(table)


def figure(value: float | None) -> str:
    """Return a number as the table has it; "" for none."""
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.5g}"


def write(folder: Path, facts: dict[str, Any], results: Sequence[Result]) -> None:
    """Write sweep.json and plot.svg into the sweep's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    points = [asdict(one) | {"values": dict(one.values)} for one in ordered(results)]
    files.write_atomic(folder / "sweep.json", files.encode(facts | {"points": points}))
    files.write_atomic(folder / "plot.svg", plot(str(facts["name"]), results).encode())


def plot(title: str, results: Sequence[Result]) -> str:
    """Return an SVG: for each field a panel, its values against the least validation loss."""
    fields = list(results[0].values)
    known = [one for one in results if one.best is not None]
    width = PANEL * len(fields) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{MARGIN}" y="18" font-size="13">{escape(title)}: least validation loss, {len(known)} of '
        f"{len(results)} points</text>",
    ]
    losses = [one.best for one in known if one.best is not None] or [0.0]
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    bottom = HEIGHT - MARGIN

    def y(loss: float) -> float:
        return bottom - (loss - low) / span * (bottom - TOP)

    for number, field in enumerate(fields):
        left, right = MARGIN + number * PANEL, MARGIN + (number + 1) * PANEL - 24
        axis = _Axis([one.values[field] for one in results])
        parts.append(f'<path d="M{left} {TOP}V{bottom}H{right}" stroke="#888" fill="none"/>')
        parts.append(f'<text x="{(left + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(field)}</text>')
        if number == 0 and known:
            for tick in range(TICKS):
                loss = low + (high - low) * tick / (TICKS - 1)
                parts.append(f'<text x="{left - 5}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.4g}</text>')
        for label, place in axis.ticks():
            x = left + 10 + place * (right - left - 20)
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(label)}</text>')
        for one in known:
            assert one.best is not None
            x = left + 10 + axis.place(one.values[field]) * (right - left - 20)
            told = f"{one.id} {one.state} step {one.step}: {one.best:.5g}; " + ", ".join(
                f"{name} {value}" for name, value in one.values.items()
            )
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y(one.best):.1f}" r="4" fill="{_COLOURS.get(one.state, _OTHER)}" '
                f'fill-opacity="0.7"><title>{escape(told)}</title></circle>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    """Places of a field's values on a line: numbers by size, logarithmic where they span much; others by name."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        self._values: list[Any] = sorted(set(values) if self._numbers else {str(value) for value in values})
        first, last = self._values[0], self._values[-1]
        self._log = self._numbers and first > 0 and last / first >= 10

    def place(self, value: Any) -> float:
        """Share in [0, 1] of the way along the line."""
        if not self._numbers:
            return (self._values.index(str(value)) + 0.5) / len(self._values)
        low, high, here = (math.log(one) if self._log else one for one in (self._values[0], self._values[-1], value))
        return (here - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[str, float]]:
        """Labels and their places: all values where they are few."""
        shown = self._values if len(self._values) <= 5 else [self._values[0], self._values[-1]]
        return [(f"{one:.4g}" if isinstance(one, float) else str(one), self.place(one)) for one in shown]


def _short(fields: Sequence[str]) -> dict[str, str]:
    """Return the shortest ends of dotted paths that still differ."""
    found = {}
    for field in fields:
        words = field.split(".")
        ends = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
        found[field] = next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in fields) == 1)
    return found
