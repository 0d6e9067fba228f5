"""Where plans stand: the registry's files and the queue's word brought together, as `run_state` does of runs.

A stage of a plan's lineage is looked for from its ancestors on: where its parents are done its identity is known, and
the run of this identity speaks; before that its plan does. Only reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments import files, plan, reconcile
from experiments.intents import Intent
from experiments.plan import Lineage, Plan, Standing
from experiments.reconcile import Liveness
from experiments.registry import Registry
from experiments.run import Run
from slurm import job_state, logs, run_state

WORDS = 300
"""Characters that are quoted of an error."""

State = Literal["waiting", "became", "failed", "lost", "unknown"]


@dataclass(frozen=True, kw_only=True)
class PlanStanding:
    """Where a plan stands."""

    state: State
    """waiting: its job is in the queue; became: a run, which speaks for itself; failed: for a reason on record; lost:
    its job left the queue before it began, or was never submitted; unknown: the queue did not answer."""
    reason: str = ""
    run: str = ""
    """Name of the run that it became."""
    jobs: tuple[str, ...] = ()
    """Slurm jobs of the newest launch."""


def standings(plans: Sequence[Plan]) -> list[PlanStanding]:
    """Tell where each of many plans stands, asking the queue once."""
    intents = {
        number: one.intent(newest) for number, one in enumerate(plans) if (newest := one.newest_intent())
    }  # fmt: skip
    open_ones = {number: intent for number, intent in intents.items() if plans[number].end_of(intent.number) is None}
    liveness = job_state.of_intents(open_ones) if open_ones else {}
    # The records are read after the queue was asked: a job records its end and then goes.
    return [told(one, intents.get(number), liveness.get(number)) for number, one in enumerate(plans)]


def standing(one: Plan) -> PlanStanding:
    """Tell where a plan stands."""
    return standings([one])[0]


def told(one: Plan, intent: Intent | None, liveness: Liveness | None) -> PlanStanding:
    """Tell where a plan stands by its newest intent and what the queue said of it."""
    if intent is None:
        return PlanStanding(state="lost", reason=f"{one.stage} is planned, but its job was never submitted")
    jobs = tuple((intent.job or {}).get("ids", ()))
    end = one.end_of(intent.number)
    if end is not None:
        return PlanStanding(state=end["kind"], reason=end.get("reason", ""), run=end.get("run", ""), jobs=jobs)
    if liveness == "alive":
        return PlanStanding(state="waiting", jobs=jobs)
    words = f"job{'s' * (len(jobs) > 1)} {', '.join(jobs)}" if jobs else "its submission"
    if liveness == "unknown":
        return PlanStanding(state="unknown", reason=f"{one.stage}: nobody can tell of {words}", jobs=jobs)
    reason = f"{one.stage} was not made: {words} left the queue before it began (cancelled?)"
    return PlanStanding(state="lost", reason=reason, jobs=jobs)


def look(registry: Registry, lineage: Lineage, known: Mapping[str, Standing] | None = None) -> dict[str, Standing]:
    """Tell where each stage of a lineage stands; those in `known` are not looked at again."""
    found = dict(known or {})
    for stage in lineage:
        if stage not in found:
            found[stage] = _of_stage(registry, lineage, stage, found)
    return found


def parents_of(registry: Registry, lineage: Lineage, stage: str) -> list[Standing]:
    """Tell where the parents of a stage stand, in the order of its link's parents."""
    found = look(registry, {name: link for name, link in plan.part_of(lineage, stage).items() if name != stage})
    return [found[name] for name in lineage[stage].parents]


def _of_stage(registry: Registry, lineage: Lineage, stage: str, found: Mapping[str, Standing]) -> Standing:
    link = lineage[stage]
    pins = {name: pin for name in link.parents if (pin := found[name].pin) is not None}
    run = _run(registry, link.stage, plan.run_id(link, pins)) if len(pins) == len(link.parents) else None
    of_run = _of_run(run) if run is not None and (run.is_done() or run.newest_intent()) else None
    if of_run is not None and of_run.state != "ended":
        return of_run
    # Its job may be about to make the run, or to go on with it.
    one = plan.find(registry.home, link.stage, plan.plan_id(lineage, stage))
    of_plan = _of_plan(one) if one is not None else None
    if of_plan is not None and (of_run is None or of_plan.state == "alive"):
        return of_plan
    if of_run is not None:
        return of_run
    name = f"{stage.replace('.', ' ')} {link.run}".rstrip()
    reason = f"{name}: nothing was submitted that makes it (launch/{link.stage}.py does, launch/pipeline.py all stages)"
    return Standing(stage=link.stage, name=name, state="ended", attempted=False, reason=reason)


def _run(registry: Registry, stage: str, identity: str) -> Run | None:
    """Return the run of an identity, None where there is none."""
    folder = registry.home / "runs" / stage
    there = [name for name in files.names_in(folder) if name.endswith(f"-{identity}")]
    whole = [name for name in there if Path(folder, name, "run.json").exists()]
    return Run(folder / whole[0]) if whole else None


def _of_run(run: Run) -> Standing:
    files.names_in(run.folder)  # a network file system may else remember for a while that there was no DONE
    where = run_state.standing(run)
    if where.state == "done":
        return Standing(
            stage=run.stage, name=run.name, state="done", pin=run.as_parent(), made_from=run.spec.parents
        )  # fmt: skip
    intents = run.intents()
    job = intents[-1].job if intents else None
    if where.state == "unknown":
        reason = f"{run.name}: nobody can tell of its job"
        return Standing(stage=run.stage, name=run.name, state="unknown", reason=reason)
    if where.decision.action == "attach":
        if job is not None and job["executor"] != "slurm":
            where_it_is = f"process {job['pid']} on {job['host']}"
            reason = f"{run.name} is at work outside Slurm ({where_it_is}): no job can wait for it"
            return Standing(stage=run.stage, name=run.name, state="alive", reason=reason)
        return Standing(
            stage=run.stage, name=run.name, state="alive", jobs=tuple(job["ids"]) if job is not None else ()
        )  # fmt: skip
    return Standing(stage=run.stage, name=run.name, state="ended", reason=_why_ended(run, where))


def _why_ended(run: Run, where: run_state.Standing) -> str:
    if where.state == "poisoned":
        return f"{run.name} failed: {_short(where.decision.reason)}"
    if where.state == "stopped" and not any(one.claim.get("intent") == run.newest_intent() for one in where.attempts):
        log = logs.of_job(run)
        words = logs.last_words(log).strip() if log is not None else ""
        why = f": {_short(words.splitlines()[-1])} (log: {log})" if words else " (cancelled?)"
        return f"{run.name}: its job ended before an attempt began{why}"
    if where.state == "stopped":
        return f"{run.name} was stopped or cancelled before it was done"
    ends = [attempt.end for attempt in reconcile.newest_of_groups(where.attempts)]
    bad = [end for end in ends if end is None or end["kind"] not in reconcile.FREE_ENDS]
    said = next((end for end in reversed(bad) if end), None)
    message = said.get("message", said["kind"]) if said else "it ended without a word"
    return f"{run.name} failed: {_short(message)}"


def _of_plan(one: Plan) -> Standing:
    where, name = standing(one), f"{one.stage} (planned)"
    if where.state == "waiting":
        return Standing(stage=one.stage, name=name, state="alive", jobs=where.jobs, planned=True)
    if where.state == "unknown":
        return Standing(stage=one.stage, name=name, state="unknown", reason=where.reason)
    reason = where.reason
    if where.state == "became":
        # The run is not the one that its parents lead to today, or it was removed.
        reason = f"{where.run} was made from other parents than there are now"
    elif where.state == "failed":
        # The root cause stays, however long the chain is.
        reason = f"{one.stage} was not made, because {_root(reason)}"
    return Standing(stage=one.stage, name=name, state="ended", reason=reason)


def _root(reason: str) -> str:
    return reason.rpartition(" was not made, because ")[2]


def _short(text: str) -> str:
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= WORDS else f"{line[:WORDS]}..."
