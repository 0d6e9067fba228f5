"""`tools/runs.py compare`: what two runs were told, what they were built on, and how they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.files import write_atomic
from experiments.identity import differences
from experiments.run import Run
from slurm import run_state
from tools.runs_curves import COLOURS, Curve, sparklines, svg
from tools.runs_show import figure

SPARKLINE_WIDTH = 60
_NO_METRIC = ("split", "time", "step", "samples")

Metrics = dict[tuple[str, str], list[tuple[int, float]]]
"""Points by (split, metric)."""


def show(console: Console, runs: tuple[Run, Run], picture: Path | None) -> int:
    """Print the comparison, and draw both losses into an SVG file where one is named."""
    first, second = runs
    if first.folder == second.folder:
        raise ValueError(f"{first.name} is the same run twice")
    if picture is not None and (not picture.absolute().parent.is_dir() or picture.is_dir()):
        raise ValueError(f"--svg {picture} must be a file in a folder that exists")
    standings = run_state.standings(runs)
    rows = [("state", *(standing.state for standing in standings))]
    rows += [(one.path, _shown(one.old), _shown(one.new)) for one in differences(_told(first), _told(second))]
    found = (metrics_of(first), metrics_of(second))
    for split, name in sorted(found[0].keys() | found[1].keys()):
        rows.append((f"{split} {name}", *(_newest(metrics.get((split, name), [])) for metrics in found)))
    table = Table(box=None, pad_edge=False)
    for title in ("", first.name, second.name):
        table.add_column(escape(title), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    for key in sorted(found[0].keys() & found[1].keys()):
        lines = sparklines([metrics[key] for metrics in found], SPARKLINE_WIDTH)
        console.print(f"\n{' '.join(key)}", markup=False)
        for run, line, metrics in zip(runs, lines, found, strict=True):
            ends = f"{figure(metrics[key][0][1])} -> {figure(metrics[key][-1][1])}"
            console.print(f"  {line}  {run.id}  {ends}", soft_wrap=True, markup=False)
    if picture is not None:
        write_atomic(picture.absolute(), _picture(runs, found).encode())
        console.print(f"\n{picture}", soft_wrap=True, markup=False)
    return 0


def metrics_of(run: Run) -> Metrics:
    """Return a run's metrics by split and name, each by step."""
    found: Metrics = {}
    for record in run.metrics():
        for name, value in record.items():
            if name not in _NO_METRIC and isinstance(value, (int, float)) and not isinstance(value, bool):
                found.setdefault((record.get("split", "train"), name), []).append((record["step"], value))
    return found


def _told(run: Run) -> dict[str, Any]:
    """Return what a run was told, as one value: config, parents with their digests, source and inputs."""
    spec = run.spec
    parents = {name: f"{parent.id}, digest {parent.digest[:16]}" for name, parent in spec.parents.items()}
    told = {"stage": spec.stage, "recipe": spec.recipe, "parent": parents, "input": spec.inputs} | spec.config
    return told | ({"source": spec.source[:16]} if spec.source else {})


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _newest(points: list[tuple[int, float]]) -> str:
    return f"{figure(points[-1][1])} (step {points[-1][0]})" if points else ""


def _picture(runs: tuple[Run, Run], found: tuple[Metrics, Metrics]) -> str:
    curves = [
        Curve(label=f"{run.id} {split}", points=metrics[split, "loss"], colour=colour, dashed=split == "val")
        for run, metrics, colour in zip(runs, found, COLOURS, strict=True)
        for split in ("train", "val")
        if (split, "loss") in metrics
    ]
    return svg(f"{runs[0].name} and {runs[1].name}", "loss", curves)
