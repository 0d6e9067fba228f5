"""Plans for people: what `tools/runs.py list` adds about stages that are queued behind others, and `why` of one."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape

from experiments import plan
from experiments.plan import Plan
from experiments.registry import Registry
from launch.array_progress import span
from slurm import plan_state
from slurm.plan_state import PlanStanding

REMEDY = "mend it, then run the same pipeline command"


def show(console: Console, registry: Registry, stage: str | None = None) -> None:
    """Print a line for each plan that is no run yet; nothing where there is none."""
    there = [one for one in plan.plans(registry.home, stage) if not _became(one)]
    lines = []
    for one, where in zip(there, plan_state.standings(there), strict=True):
        if where.state == "waiting":
            lines.append(f"{one.name}  waiting in the queue: {_jobs(where)}, {_behind(one)}")
        elif where.state != "became" and _still(registry, one):
            lines.append(f"{one.name}  {where.state}: {where.reason}; {REMEDY}")
    if lines:
        console.print("\nplanned, with an identity of their own as soon as their parents are done:")
    for line in lines:
        console.print(f"  {escape(line)}", soft_wrap=True)


def find(registry: Registry, reference: str) -> Plan | None:
    """Return the one plan whose id or folder name starts with `reference`, with or without its stage."""
    stage, _, name = reference.rpartition("/")
    found = [
        one
        for one in plan.plans(registry.home, stage or None)
        if name and (one.id.startswith(name) or one.folder.name.startswith(name))
    ]
    return found[0] if len(found) == 1 else None


def why(console: Console, registry: Registry, one: Plan) -> int:
    """Print a plan's story; return the exit code."""
    now, where = time.time(), plan_state.standing(one)
    console.print(f"[bold]{one.name}[/bold] (a plan)", soft_wrap=True)
    parents = ", ".join(one.spec.lineage[one.stage].parents)
    told = [f"Planned {span(now - one.spec.created)} ago by {one.spec.creator}, behind {parents}."]
    for intent in one.intents():
        ids = (intent.job or {}).get("ids")
        job = f"Slurm job {', '.join(ids)}" if ids else "not submitted"
        end = one.end_of(intent.number)
        what = "" if end is None else f"; it became {end['run']}" if end["kind"] == "became" else f"; {end['reason']}"
        told.append(f"Launch {intent.number}, {span(now - intent.request['time'])} ago: {job}{what}.")
    for parent in plan_state.parents_of(registry, one.spec.lineage, one.stage):
        jobs = f", job {', '.join(parent.jobs)}" if parent.jobs else ""
        told.append(f"  {parent.name}: {parent.reason or parent.state}{jobs}.")
    told.append(f"Logs: {one.folder / 'logs'}")
    following = {
        "waiting": f"It waits in the queue: {_jobs(where)}.",
        "became": f"It became {where.run}: python tools/runs.py why {where.run}",
        "unknown": "Nobody can tell of its job now.",
    }.get(where.state, f"Nothing works on it: {where.reason}; {REMEDY}.")
    for sentence in [*told, following]:
        console.print(escape(sentence), soft_wrap=True)
    return 0


def _became(one: Plan) -> bool:
    number = one.newest_intent()
    end = one.end_of(number) if number else None
    return end is not None and end["kind"] == "became"


def _still(registry: Registry, one: Plan) -> bool:
    """Whether the stage is still missing: an ordinary launch may have made it since."""
    return plan_state.look(registry, one.spec.lineage)[one.stage].state in ("ended", "unknown")


def _jobs(where: PlanStanding) -> str:
    return f"job{'s' * (len(where.jobs) > 1)} {', '.join(where.jobs)}" if where.jobs else "about to be submitted"


def _behind(one: Plan) -> str:
    after = one.intent(one.newest_intent()).request["after"]
    return f"behind job{'s' * (len(after) > 1)} {', '.join(after)}" if after else "behind nothing any more"
