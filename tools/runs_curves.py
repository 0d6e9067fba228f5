"""Curves of two runs, side by side: a line of blocks for the terminal, a picture as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

Points = Sequence[tuple[int, float]]
"""(step, value), by step."""

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 50, 45
TICKS = 5
COLOURS = ("#0b62c4", "#d1491b")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of the picture."""

    label: str
    points: Points
    colour: str
    dashed: bool = False


def finite(points: Points) -> list[tuple[int, float]]:
    """Return the points that can be drawn."""
    return [(step, value) for step, value in points if math.isfinite(value)]


def sparklines(curves: Sequence[Points], width: int) -> list[str]:
    """Return each curve as `width` blocks on common axes; a blank where it has no point."""
    drawn = [finite(points) for points in curves]
    steps = [step for points in drawn for step, _ in points]
    values = [value for points in drawn for _, value in points]
    if not steps:
        return [" " * width for _ in curves]
    first, low = min(steps), min(values)
    length, height = max(steps) - first or 1, max(values) - low or 1.0
    lines = []
    for points in drawn:
        bins: dict[int, list[float]] = {}
        for step, value in points:
            bins.setdefault(min(width - 1, (step - first) * width // length), []).append(value)
        means = {place: sum(found) / len(found) for place, found in bins.items()}
        level = {place: round((mean - low) / height * (len(BLOCKS) - 1)) for place, mean in means.items()}
        lines.append("".join(BLOCKS[level[place]] if place in level else " " for place in range(width)))
    return lines


def svg(title: str, y_label: str, curves: Sequence[Curve]) -> str:
    """Return a picture of curves over the step. Raises ValueError where there is nothing to draw."""
    drawn = [(curve, finite(curve.points)) for curve in curves]
    steps = [step for _, points in drawn for step, _ in points]
    values = [value for _, points in drawn for _, value in points]
    if not steps:
        raise ValueError("neither run has a loss that can be drawn yet")
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    if high == low:
        low, high = low - 0.5, high + 0.5
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(step: float) -> float:
        return LEFT + (step - first) / ((last - first) or 1) * inner_width

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * inner_height

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{WIDTH / 2}" y="18" text-anchor="middle" font-size="14">{escape(title)}</text>',
        f'<text x="{LEFT + inner_width / 2}" y="{HEIGHT - 8}" text-anchor="middle">step</text>',
        f'<text transform="translate(14 {TOP + inner_height / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
    ]
    for tick in range(TICKS):
        value, step = low + (high - low) * tick / (TICKS - 1), first + (last - first) * tick / (TICKS - 1)
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>',
            f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>',
            f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step:.0f}</text>',
        ]
    for number, (curve, points) in enumerate(drawn):
        dashes = ' stroke-dasharray="6 4"' if curve.dashed else ""
        style = f'stroke="{curve.colour}"{dashes} stroke-width="1.5" fill="none"'
        place = LEFT + number * inner_width / len(drawn)
        line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        parts += [
            f'<polyline points="{line}" {style}/>',
            f'<line x1="{place:.0f}" x2="{place + 20:.0f}" y1="34" y2="34" {style}/>',
            f'<text x="{place + 25:.0f}" y="38">{escape(curve.label)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
