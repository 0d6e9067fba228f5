"""How long a report of 200 runs takes to make, and how long until a browser shows it.

    python tools/bench/report.py [--quick] [--json FILE] [--scratch FOLDER]

The registry is written as launchers and jobs leave it; each run has two attempts that overlap, as after a preemption,
and a dozen metrics a record. Making it is the command as a user types it, wall time. Opening it is Debian's Chromium,
from the request for the file until the table of runs and its curves have been painted; a run's page likewise, from the
click. Keys of the JSON:

    build_200_runs_s      tools/report.py
    open_200_runs_s       until the overview is painted
    open_run_s            from there until a run's curves are painted
    page_mb               size of the file
    points                values of metrics in the registry (10^6 with --quick, 1.3 x 10^7 without)
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from playwright.sync_api import Browser, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(REPOSITORY)

from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run
from tools.bench.many_runs import write_runs
from tools.bench.timing import ROUNDS, BenchArguments, Goal, Results, interleaved, publish

GOALS = {"open_200_runs_s": Goal(high=2.0)}
RUNS = 200
RECORDS, QUICK_RECORDS = 5000, 385
"""Records of a run; each holds METRICS values."""
METRICS = 13
_NAMES = ("loss", "grad_norm", "lr", "samples_per_second", "step_s", "data_s", "checkpoint_s", "memory_gib", "skipped",
          "samples", "accuracy", "logit_scale", "clip_fraction")  # fmt: skip
_PAINTED = """() => new Promise((done) => {
    const look = () => document.querySelector(%s) ? requestAnimationFrame(() => setTimeout(done)) : setTimeout(look, 2);
    look();
})"""


@dataclass(frozen=True, kw_only=True)
class Arguments(BenchArguments):
    """What this bench takes."""

    scratch: Path | None = None
    """Folder for the registry; default: the system's."""


class Bench:
    """A registry, its report and a browser."""

    def __init__(self, folder: Path, records: int) -> None:
        """records: of each run."""
        self.home, self.file = folder / "home", folder / "report.html"
        write_runs(Registry(self.home), RUNS)
        for number, run in enumerate(Registry(self.home).runs()):
            write_metrics(run, records, seed=number)

    def build(self) -> float:
        """Make the report."""
        started = time.perf_counter()
        command = [sys.executable, "tools/report.py", "--out", str(self.file)]
        subprocess.run(
            command, cwd=REPOSITORY, env=os.environ | {HOME_VARIABLE: str(self.home)}, check=True, capture_output=True
        )
        return time.perf_counter() - started

    def open(self, browser: Browser) -> tuple[float, float]:
        """Open it in a new window; return the seconds until the overview and from there until a run were painted."""
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        try:
            started = time.perf_counter()
            page.goto(self.file.as_uri(), wait_until="commit")
            page.evaluate(_PAINTED % json.dumps("main[data-view] table.runs"))
            overview = time.perf_counter()
            page.evaluate("document.querySelector('table.runs tbody th a').click()")
            page.evaluate(_PAINTED % json.dumps("main .plot path.line"))
            return overview - started, time.perf_counter() - overview
        finally:
            page.close()


def write_metrics(run: Run, records: int, *, seed: int) -> None:
    """Give a run so many records: two attempts, of which the second does the last tenth of the first again."""
    values = np.random.default_rng(seed).lognormal(size=(records, METRICS)).cumsum(axis=0)
    lines = [
        json.dumps(
            {"split": "train", "step": 10 * (place + 1), "time": 1e9 + place} | dict(zip(_NAMES, row, strict=True))
        )
        for place, row in enumerate(values.tolist())
    ]
    half = records // 2
    for attempt, part in ((1, lines[: half + records // 10]), (2, lines[half:])):
        (run.folder / f"metrics.{attempt:04d}.jsonl").write_text("\n".join(part) + "\n")


def main(arguments: Arguments) -> int:
    """Run the bench; return the exit code."""
    records = QUICK_RECORDS if arguments.quick else RECORDS
    results = Results(unit="s")
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        bench = Bench(Path(folder), records)
        results.rounds["tools/report.py"] = interleaved({"build": bench.build})["build"]
        results.figures["build_200_runs_s"] = statistics.median(results.rounds["tools/report.py"])
        chromium = shutil.which("chromium")
        if chromium is None:
            results.absent |= dict.fromkeys(("open_200_runs_s", "open_run_s"), "Debian's package chromium is not there")
        else:
            _measure_opening(bench, chromium, results)
        results.figures["page_mb"] = bench.file.stat().st_size / 1e6
    results.figures["points"] = RUNS * records * METRICS
    publish(results, GOALS, arguments)
    return 0


def _measure_opening(bench: Bench, chromium: str, results: Results) -> None:
    with sync_playwright() as playwright:
        # Root in a container has no sandbox to offer; the page is the bench's own.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        bench.open(browser)  # the browser's own start is not the page's
        seconds = [bench.open(browser) for _ in range(ROUNDS)]
        browser.close()
    results.rounds["overview"], results.rounds["a run"] = map(list, zip(*seconds, strict=True))
    for name, key in (("overview", "open_200_runs_s"), ("a run", "open_run_s")):
        results.figures[key] = statistics.median(results.rounds[name])


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
