"""Following a run from outside: a progress bar fed by nothing but the run's files."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.run import Run
from launch.array_progress import ArrayWatch, note
from launch.stages import STAGES

POLL_S = 0.25
ALIVE_EVERY_S = 2.0
LINE_EVERY_S = 10.0
STARTING = "starting"


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
    watch = _Watch(run)
    asked_s = line_s = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal, expand=True) as progress:
        bar = progress.add_task(run.name, total=1.0, note=STARTING)
        while True:
            share, said = watch.status()
            progress.update(bar, completed=share, note=said)
            now = time.monotonic()
            if not console.is_terminal and now - line_s >= LINE_EVERY_S:
                line_s = now
                console.print(f"  {share:4.0%} {said}")
            if run.done() is not None:
                progress.update(bar, completed=1.0)
                return
            if now - asked_s >= ALIVE_EVERY_S:
                asked_s = now
                if not alive() and run.done() is None:
                    return
            time.sleep(POLL_S)


class _Watch:
    """Looks at one run again and again."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.array = None if STAGES[run.stage].training else ArrayWatch(run)

    def status(self) -> tuple[float, str]:
        """Return the share done, in [0, 1], and a note on it."""
        if self.array is not None:
            found = self.array.look()
            return (0.0, STARTING) if found is None or not (found.done or found.running) else (found.share, note(found))
        beats = map(self.run.beat, range(self.run.newest_attempt(), 0, -1))
        beat = next(filter(None, beats), None)
        if beat is None:
            return 0.0, STARTING
        latest = self.run.latest_training_metrics()
        loss = f" loss {latest['loss']:.3f} {latest['samples_per_second']:.0f}/s" if latest else ""
        return beat["step"] / beat["steps"], f"step {beat['step']}/{beat['steps']}{loss}"


def status(run: Run) -> tuple[float, str]:
    """Return the share done, in [0, 1], and a note on it."""
    return _Watch(run).status()
