"""A run's attempts and the times at which it waited for one, as plain values for a time-line."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.run import AttemptRecord, Intent, Run
from slurm.run_state import Standing
from tools import run_nodes

SILENT, AT_WORK = "without a word", "at work"


def attempts(
    run: Run,
    records: Sequence[AttemptRecord],
    standing: Standing,
    starts: Mapping[int, int],
    reached: Mapping[int, int],
    lost: Mapping[int, int],
) -> list[dict[str, Any]]:
    """Return the attempts in order.

    starts, reached, lost: step that an attempt began after, last step it did, steps done again, by number. `ended` is
    None of one at work; of one that died without a word it is the last time at which it was heard of.
    """
    found = []
    for record in records:
        claim, end = record.claim, record.end or {}
        job: dict[str, str] = claim.get("slurm") or {}
        began = claim.get("time", run.created)
        at_work = record.end is None and record.number in standing.at_work
        heard = end.get("time") if record.end is not None else (run.beat(record.number) or {}).get("time", began)
        found.append(
            {
                "number": record.number,
                "launch": claim.get("intent", 0),
                "group": claim.get("group", 0),
                "job": job.get("SLURM_JOB_ID"),
                "restart": int(job.get("SLURM_RESTART_COUNT", "0")),
                "nodes": run_nodes.nodes_of(record) or [str(claim.get("host", "?"))],
                "ranks": claim.get("world_size"),
                "began": began,
                "ended": None if at_work else heard,
                "kind": AT_WORK if at_work else end.get("kind", SILENT),
                "message": str(end.get("message", "")),
                "from_step": starts.get(record.number),
                "to_step": reached.get(record.number),
                "lost": lost.get(record.number, 0),
            }
        )
    return found


def waits(intents: Sequence[Intent], shown: Sequence[Mapping[str, Any]], *, queued: bool) -> list[dict[str, Any]]:
    """Return the times at which a job that was asked for was not at work: from a launch to its first attempt, from a
    requeue to the next; of a run that is `queued` the last one is still open (`to` is None).

    Each array group waits for itself; of many only the first wait of the launch and those after an attempt are there.
    """
    found: list[dict[str, Any]] = []
    for intent in intents:
        ours = [one for one in shown if one["launch"] == intent.number]
        asked, is_newest = intent.request.get("time"), intent is intents[-1]
        if asked is not None and intent.job is not None and (ours or (is_newest and queued)):
            first = min((one["began"] for one in ours), default=None)
            found.append({"from": asked, "to": first, "before": ours[0]["number"] if ours else None})
        groups: dict[int, list[Mapping[str, Any]]] = {}
        for one in ours:
            groups.setdefault(one["group"], []).append(one)
        for row in groups.values():
            for one, following in itertools.pairwise(row):
                if one["ended"] is not None:
                    found.append({"from": one["ended"], "to": following["began"], "before": following["number"]})
        ended = max((one["ended"] for one in ours if one["ended"] is not None), default=None)
        if is_newest and queued and ours and ended is not None:
            found.append({"from": ended, "to": None, "before": None})
    # Clocks of two hosts differ by a little; a wait that ended before it began was none.
    return [one for one in found if one["to"] is None or one["to"] > one["from"]]
