"""The undisturbed run, and what of a disturbed one is not as in it: export, newest checkpoint, metrics."""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments import files
from experiments.registry import Registry
from experiments.run import Run
from tools.bench.chaos_home import REPOSITORY, fresh_home
from tools.bench.chaos_run import Pace

OF_THE_MACHINE = ("time", "samples_per_second", "memory_gib", "_s")
"""Ends of the names of what a metrics record says of the machine and not of the training."""
SHOWN_METRICS = 3


def undisturbed(parents: Path, home: Path, command: Sequence[str], steps: int, interval: int) -> tuple[Run, Pace]:
    """Train once without any disturbance."""
    environment = os.environ | {"DALLE2_VIDEO_HOME": str(fresh_home(parents, home))}
    answer = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"the undisturbed run failed:\n{answer.stdout}\n{answer.stderr}")
    run = next(Registry(home).runs("prior"))
    records = [record["time"] for record in run.metrics() if record["split"] == "train"]
    between = statistics.median(after - before for before, after in pairwise(records))
    start_s = records[0] - run.attempt(1).claim["time"]
    return run, Pace(steps=steps, interval=interval, start_s=start_s, step_s=between)


def differences(run: Run, reference: Run) -> list[str]:
    """Return what of a done run is not as in the undisturbed one: export, newest checkpoint, metrics."""
    found = []
    record, expected = run.done(), reference.done()
    assert record is not None and expected is not None
    if record["digest"] != expected["digest"]:
        found.append("the digest of the exported weights")
    newest, newest_reference = run.commits()[-1].path, reference.commits()[-1].path
    for name, ours, theirs in (
        ("export", run.folder / "export", reference.folder / "export"),
        ("newest checkpoint", newest, newest_reference),
    ):
        if files.names_in(ours) != files.names_in(theirs):
            found.append(f"{name}: files {files.names_in(ours)}, undisturbed {files.names_in(theirs)}")
            continue
        changed = [path.name for path in theirs.iterdir() if (ours / path.name).read_bytes() != path.read_bytes()]
        found += [f"{name}: {file}" for file in changed]
    ours_metrics, theirs_metrics = _metrics(run), _metrics(reference)
    missing = object()
    keys = sorted(ours_metrics.keys() | theirs_metrics)
    unlike = [key for key in keys if ours_metrics.get(key, missing) != theirs_metrics.get(key, missing)]
    found += [f"metrics: {split} step {step}: {name}" for split, step, name in unlike[:SHOWN_METRICS]]
    return [f"{run.folder}: not as in the undisturbed run: {difference}" for difference in found]


def _metrics(run: Run) -> dict[tuple[str, int, str], Any]:
    """Return the values of the metrics by split, step and name."""
    return {
        (record["split"], record["step"], name): value
        for record in run.metrics()
        for name, value in record.items()
        if not name.endswith(OF_THE_MACHINE)
    }


def left_over(run: Run) -> int:
    """Return the bytes in hidden files and folders below a run."""
    hidden = (path for path in run.folder.rglob("*") if path.is_file())
    return sum(
        path.stat().st_size
        for path in hidden
        if any(part.startswith(".") for part in path.relative_to(run.folder).parts)
    )
