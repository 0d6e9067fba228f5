"""One run as plain values for the page: a row of the overview, and all the rest for the page of the run.

Everything comes from the readers that `tools/runs.py` uses, so that the report says what the terminal says. A part of a
run that is damaged is left out and named; the rest of the report stays.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments import task_facts
from experiments.identity import Parent
from experiments.run import AttemptRecord, Run
from launch.stages import STAGES
from slurm.run_state import Standing
from tools import run_facts, run_story
from tools.report_page import attempts as attempt_records
from tools.report_page import clips, figures, series, stores
from tools.report_page.text import plain, visible
from tools.run_story import SlurmWords
from tools.runs_compare import Metrics, metrics_of
from tools.runs_list import last_end, progress

BUDGET = 400_000
"""Buckets of all curves of a page; at 30 bytes or less a bucket, 12 MB."""
_USUAL_CURVES = 16
"""Curves of a training, for sharing out the budget before any is read."""
FEWEST, MOST = 60, 1500
SPARK = 40
SHOWN_ATTEMPTS = 200
SHOWN_EVENTS = 100
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, OSError)
"""What reading a file raises that holds something else than it should."""


def buckets_per_curve(runs: int) -> int:
    """Return how many buckets a curve may have on a page of so many runs."""
    return max(FEWEST, min(MOST, BUDGET // (_USUAL_CURVES * max(1, runs))))


@dataclass(frozen=True, kw_only=True)
class Collected:
    """One run for the page."""

    row: dict[str, Any]
    """What the overview shows of it."""
    detail: str
    """JSON of what the page of the run shows, see `_detail`."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a run is looked at."""

    standing: Standing
    slurm: SlurmWords
    digests: Mapping[str, str | None]
    """Digest of each finished run of the registry by id; None where it is not finished."""
    now: float
    most_buckets: int
    most_clips: int


def collect(run: Run, look: Look) -> Collected:
    """Return what the page shows of a run."""
    damaged: list[str] = []

    def part(name: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except DAMAGE as error:
            damaged.append(f"{name}: {type(error).__name__}: {error}")
            return None

    metrics: Metrics = part("metrics", lambda: metrics_of(run)) or {}
    records: list[AttemptRecord] = part("attempts", run.attempts) or []
    events: list[dict[str, Any]] = part("events", run.events) or []
    detail = part("run", lambda: _detail(run, look, records, events, part)) or {}
    row = part("overview", lambda: _row(run, look, metrics, records)) or _bare(run, look)
    curves = part("curves", lambda: _curves(metrics, look.most_buckets)) or {}
    detail = plain(detail | {"damaged": damaged}) | {"curves": curves}
    row["damaged"] = len(damaged)
    text = json.dumps(detail, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    row["version"] = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Collected(row=plain(row), detail=text)


def _bare(run: Run, look: Look) -> dict[str, Any]:
    """Return the row of a run of which no more can be read."""
    return {
        "id": run.id, "name": run.name, "stage": run.stage, "recipe": "", "state": look.standing.state, "reason": "",
        "created": run.created, "creator": "", "parents": [], "share": 0.0, "progress": "", "loss": None, "val": None,
        "spark": [], "why": "", "done": None, "of": None,
        "attempts": 0, "ends": {}, "nodes": "", "rate": None, "left_s": None, "training": False,
    }  # fmt: skip


def _row(run: Run, look: Look, metrics: Metrics, records: Sequence[AttemptRecord]) -> dict[str, Any]:
    spec, state = run.spec, look.standing.state
    facts = run_facts.Looker().look(run, state)
    ends = Counter((one.end or {}).get("kind", "silent") for one in records if one.number not in look.standing.at_work)
    loss, val = metrics.get(("train", "loss"), []), metrics.get(("val", "loss"), [])
    return _bare(run, look) | {
        "recipe": spec.recipe,
        "reason": look.standing.decision.reason if state in ("poisoned", "unknown") else "",
        "created": spec.created or run.created,
        "creator": spec.creator,
        "parents": [_parent(role, parent, look.digests) for role, parent in spec.parents.items()],
        "why": last_end(look.standing) if state in ("failed", "poisoned", "stopped") else "",
        "done": facts.done,
        "of": facts.of,
        "share": 1.0 if state == "done" else facts.share,
        "progress": progress(run, state),
        "loss": loss[-1][1] if loss else None,
        "val": val[-1][1] if val else None,
        "spark": series.spark(loss, SPARK),
        "attempts": len(records),
        "ends": dict(ends),
        "nodes": run_facts.nodes(look.standing),
        "rate": facts.per_second,
        "left_s": facts.left_s,
        "training": STAGES[run.stage].training,
    }


def _parent(role: str, parent: Parent, digests: Mapping[str, str | None]) -> dict[str, Any]:
    """Return a pinned parent and whether it still is what was pinned; a checkpoint was, while the run went on."""
    now = digests.get(parent.id)
    pinned = "ok" if now == parent.digest else "changed" if now else "unfinished" if parent.id in digests else "gone"
    if parent.step is not None and pinned != "gone":
        pinned = "ok"
    return {"role": role, "stage": parent.stage, "id": parent.id, "step": parent.step, "pinned": pinned}


def _detail(
    run: Run,
    look: Look,
    records: Sequence[AttemptRecord],
    events: Sequence[dict[str, Any]],
    part: Callable[[str, Callable[[], Any]], Any],
) -> dict[str, Any]:
    spec, intents = run.spec, run.intents()
    starts, reached = run_story.step_bounds(run, records, events)
    lost = run_story.steps_lost(starts, reached)
    shown = attempt_records.attempts(run, records[-SHOWN_ATTEMPTS:], look.standing, starts, reached, lost)
    return {
        "folder": str(run.folder),
        "config": spec.config,
        "inputs": spec.inputs,
        "source": spec.source,
        "done": run.done(),
        "story": part(
            "story", lambda: run_story.story(run, look.standing, look.slurm, now=look.now)
        ),
        "attempts": shown,
        "attempts_left_out": len(records) - len(shown),
        "waits": attempt_records.waits(intents, shown, queued=look.standing.state == "queued"),
        "marks": [[number, step] for number, step in sorted(starts.items()) if step],
        "commits": [commit.step for commit in run.commits()],
        "events": _notable(events),
        "evaluation": part("evaluation", lambda: figures.evaluation(run.folder / "evaluation")),
        "clips": part("samples", lambda: clips.clips(run.folder / "samples", look.most_clips)),
        "store": part("store", lambda: stores.store(run)) if run.stage == "preprocess" else None,
    }  # fmt: skip


def _curves(metrics: Metrics, most: int) -> dict[str, dict[str, Any]]:
    """Return each curve by split and name; names are made visible here, since the rest of it is a million numbers."""
    found: dict[str, dict[str, Any]] = {}
    for (split, name), points in sorted(metrics.items()):
        curve = series.as_json(series.buckets(*series.arrays(points), most))
        found.setdefault(visible(split), {})[visible(name)] = curve
    return found


def _notable(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the newest events in which something happened that is not everyday."""
    told = [event for event in events if event.get("event") not in (task_facts.EVENT, "start", "checkpoint")]
    return {
        "of": len(told),
        "shown": [
            {
                "event": event.get("event"), "attempt": event["attempt"], "time": event.get("time"),
                "step": event.get("step"), "message": str(event.get("message", "")),
            }
            for event in told[-SHOWN_EVENTS:]
        ],
    }  # fmt: skip
