"""Following a run from outside: a progress bar fed by nothing but the run's files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments import files
from experiments.registry import Run

POLL_S = 0.25
ALIVE_EVERY_S = 2.0
LINE_EVERY_S = 10.0


def follow(console: Console, run: Run, alive: Callable[[], bool]) -> None:
    """Show progress until the run is done or nothing works on it any more.

    On a terminal a bar; elsewhere a line every ten seconds.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    asked_s = line_s = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal, expand=True) as progress:
        bar = progress.add_task(run.name, total=1.0, note="starting")
        while True:
            share, note = status(run)
            progress.update(bar, completed=share, note=note)
            now = time.monotonic()
            if not console.is_terminal and now - line_s >= LINE_EVERY_S:
                line_s = now
                console.print(f"  {share:4.0%} {note}")
            if run.done() is not None:
                progress.update(bar, completed=1.0)
                return
            if now - asked_s >= ALIVE_EVERY_S:
                asked_s = now
                if not alive() and run.done() is None:
                    return
            time.sleep(POLL_S)


def status(run: Run) -> tuple[float, str]:
    """Return the share done, in [0, 1], and a note on it."""
    beats = _newest_beats(run)
    if not beats:
        return 0.0, "starting"
    if "steps" in beats[0]:
        beat = beats[0]
        latest = run.latest_training_metrics()
        note = f" loss {latest['loss']:.3f} {latest['samples_per_second']:.0f}/s" if latest else ""
        return beat["step"] / beat["steps"], f"step {beat['step']}/{beat['steps']}{note}"
    done = len(run.tasks_done())
    total = max(1, sum(beat["of"] for beat in beats) or done)
    return min(1.0, sum(beat["tasks"] for beat in beats) / total), f"{done} tasks done"


def _newest_beats(run: Run) -> list[dict[str, Any]]:
    """Return the newest beat of each group (one for a training)."""
    newest: dict[int, dict[str, Any]] = {}
    for name in files.names_in(run.folder):
        if name.startswith("beat."):
            try:
                beat = json.loads((run.folder / name).read_text())
            except ValueError:
                continue  # caught in the middle of being written
            newest[beat.get("group", 0)] = beat
    return list(newest.values())
