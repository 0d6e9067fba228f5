"""How many clips the finished tasks of an array went through and which were bad, without reading their captions.

A preprocessing task's record holds every caption, hundreds of kilobytes; a reader that only counts would read half a
gigabyte. So a worker sums a task up in an event just before it records it. The record alone says that the task is
finished, and where the event is missing (power went before it was durable) the record is read after all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from experiments.run import Run

EVENT = "task"


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """One finished task."""

    clips: int
    """Clips that the task went through; 0 where its work is not clips."""
    bad: dict[str, str]
    """Reason by the id of each clip that is bad."""


def event_of(task: int, record: dict[str, Any]) -> dict[str, Any]:
    """Return the event that sums up a task's record."""
    facts = _facts(record)
    return {"event": EVENT, "task": task, "clips": facts.clips, "bad": facts.bad}


def read_facts(run: Run, tasks: Iterable[int]) -> dict[int, TaskFacts]:
    """Return the facts of finished tasks, by task."""
    told = {event["task"]: event for event in run.events() if event["event"] == EVENT}
    found = {}
    for task in tasks:
        if task in told:
            found[task] = TaskFacts(clips=told[task]["clips"], bad=told[task]["bad"])
        else:
            found[task] = _facts(run.task_record(task) or {})
    return found


def _facts(record: dict[str, Any]) -> TaskFacts:
    clips = record.get("clips", 0)
    if isinstance(clips, int):
        return TaskFacts(clips=clips, bad={})
    bad = {clip["clip_id"]: clip["bad"] for clip in clips if clip["bad"] is not None}
    return TaskFacts(clips=len(clips), bad=bad)
