"""`tools/runs.py show`: all that is on record of one run."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments import judged
from experiments.registry import Registry
from experiments.run import Run
from launch.array_progress import ArrayWatch, span
from launch.stages import STAGES
from slurm import run_state
from slurm.run_state import Standing
from tools.run_story import end_of
from tools.runs_list import failed, progress

SHOWN_BAD = 20
SHOWN_ATTEMPTS = 10


def show(console: Console, run: Run) -> int:
    """Print it."""
    spec, standing = run.spec, run_state.standing(run)
    facts: list[tuple[str, str]] = [
        ("run", run.name),
        ("state", f"{standing.state} ({standing.decision.reason})"),
        ("progress", progress(run, standing.state)),
        ("folder", str(run.folder)),
        ("created", f"{clock(spec.created)} by {spec.creator}"),
    ]
    for name, parent in spec.parents.items():
        step = "" if parent.step is None else f" at step {parent.step}"
        facts.append(("parent", f"{name} {parent.id}{step}, digest {parent.digest[:16]}"))
    facts += [("source", spec.source[:16])] if spec.source else []
    facts += [("input", f"{name} = {value}") for name, value in spec.inputs.items()]
    facts += [("config", line) for line in leaves(spec.config)]
    if not STAGES[spec.stage].training:
        facts += _array(run, standing)
    facts += _attempts(run, standing)
    facts += [("commit", f"step {commit.step}, attempt {commit.attempt}") for commit in run.commits()]
    newest = {record.get("split", "train"): record for record in run.metrics()}
    for split, record in newest.items():
        shown = ", ".join(f"{name} {figure(record[name])}" for name in sorted(record) if name not in ("split", "time"))
        facts.append((f"metrics, {split}", shown))
    for name, value in sorted((run.done() or {}).items()):
        facts.append(("done", f"{name} = {clock(value) if name == 'time' else value}"))
    facts += _judgements(run)
    facts += _previews(run)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    last = ""
    for title, value in facts:
        table.add_row("" if title == last else title, escape(value))
        last = title
    console.print(table)
    return 0


def _judgements(run: Run) -> list[tuple[str, str]]:
    """Return the evaluations that judged the run, by step."""
    facts = []
    for one in judged.judgements(Registry(run.folder.parents[2]), run):
        where = "finished" if one.step is None else f"step {one.step}"
        said = ", ".join(f"{name} {figure(float(found['value']))}" for name, found in one.figures()) or "not done"
        facts.append(("evaluation", f"{where}: {one.evaluation.name}: {said}"))
    return facts


def _previews(run: Run) -> list[tuple[str, str]]:
    """Return the sample runs of the run's checkpoints, by step."""
    found = []
    for sample in Registry(run.folder.parents[2]).runs("sample"):
        pin = sample.spec.parents.get(run.stage)
        if pin is not None and pin.id == run.id and pin.step is not None:
            found.append((pin.step, sample.name))
    return [("videos", f"step {step}: {name}") for step, name in sorted(found)]


def _array(run: Run, standing: Standing) -> list[tuple[str, str]]:
    """Return how far an array is: tasks, clips, and the first bad clips with their reasons."""
    found = ArrayWatch(run).look()
    if found is None:
        return []
    running = min(len(standing.at_work), found.tasks - found.done)
    queued = found.tasks - found.done - running if standing.decision.action == "attach" else 0
    left = found.tasks - found.done - running - queued
    parts = [(found.done, "done"), (running, "running"), (queued, "queued"), (left, "left for the next launch")]
    facts = [("tasks", f"{found.tasks}: " + ", ".join(f"{number} {what}" for number, what in parts if number))]
    if standing.state == "running" and found.left_s is not None:
        unit = "clips" if found.all_clips else "tasks"
        facts.append(("rate", f"{found.per_second:.3g} {unit}/s, {span(found.left_s)} left"))
    if found.all_clips:
        facts.append(("clips", f"{found.clips} of {found.all_clips}, {len(found.bad)} of them bad"))
    bad = list(found.bad.items())
    facts += [("bad clips", f"{clip}: {reason}") for clip, reason in bad[:SHOWN_BAD]]
    if len(bad) > SHOWN_BAD:
        whole = run.folder / "store" / "bad_clips.json"
        where = whole if whole.exists() else f"the events.*.jsonl in {run.folder}"
        facts.append(("bad clips", f"and {len(bad) - SHOWN_BAD} more; all of them: {where}"))
    return facts


def _attempts(run: Run, standing: Standing) -> list[tuple[str, str]]:
    """Return the attempts, of many a sum and the newest that failed."""
    attempts = run.attempts()
    shown = attempts
    facts = []
    if len(attempts) > SHOWN_ATTEMPTS:
        kinds = Counter(end_of(attempt, standing).split(":")[0] for attempt in attempts)
        facts.append(("attempts", f"{len(attempts)}: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())))
        shown = [one for one in attempts if failed(one) and one.number not in standing.at_work][-SHOWN_ATTEMPTS:]
    for attempt in shown:
        facts.append((f"attempt {attempt.number}", f"{clock(attempt.claim['time'])} {end_of(attempt, standing)}"))
    return facts


def leaves(value: Any, path: str = "") -> list[str]:
    """Return a config as lines of `a.b = value`."""
    if isinstance(value, dict) and value:
        return [line for key, item in value.items() for line in leaves(item, f"{path}.{key}" if path else key)]
    return [f"{path} = {json.dumps(value, ensure_ascii=False)}"]


def clock(seconds: float) -> str:
    """Return a time, in seconds since the epoch, as the local clock showed it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def figure(value: Any) -> str:
    """Return a metric as a reader wants it."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
