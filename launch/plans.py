"""Bringing one stage of a chain to work, whatever its parents are at: used by `--after` and by `launch/pipeline.py`.

All parents are done: an ordinary launch. They are at work or planned: a plan, whose job waits for theirs in the queue
and becomes the run's when it starts (`slurm/planned_job.py`). They ended without being done: refused with the reason.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dalle2_video.config import Recipe
from dalle2_video.config_io import from_dict, to_dict
from experiments import code_snapshot, files, identity, plan
from experiments.plan import Lineage, Link, Plan, PlanSpec, Standing
from experiments.registry import Registry
from experiments.run import Run
from launch import parents
from launch.arguments import Arguments, teachers_recipe
from launch.proposal import MANIFEST, check_batch, create, inputs_of, num_tasks, order, parts_of, plain, propose
from launch.stages import STAGES, StageInfo, lineage
from launch.start import REPOSITORY, Order, Say, job_name, share_out, start
from slurm import executor, plan_state
from slurm.executor import Submission, Work
from slurm.local import process_record
from slurm.placement import Placement

ABOUT_TO_SUBMIT_S = 330.0
"""How long a launcher may be at submitting a parent's job; it goes on trying for five minutes."""
MODULE = "slurm.planned_job"


@dataclass(frozen=True, kw_only=True)
class Brought:
    """What came of a stage."""

    action: Literal["done", "attached", "submitted", "planned"]
    name: str
    """`prior/tiny-0123456789`, of a plan `prior (planned)`."""
    jobs: tuple[str, ...] = ()
    submission: Submission | None = None
    reason: str = ""
    """What a planned one waits for."""

    def words(self) -> str:
        """Tell it."""
        jobs = f"Slurm job{'s' * (len(self.jobs) > 1)} {', '.join(self.jobs)}"
        said = {
            "done": "done already",
            "attached": f"at work or queued already, {jobs}",
            "submitted": jobs,
            "planned": f"{jobs}, {self.reason}",
        }[self.action]
        refused = self.submission.refused if self.submission is not None else ""
        return f"{self.name}: {said}" + (f"; caution: sbatch refused a part of it: {refused}" if refused else "")


def chain_lineage(recipe: Recipe, stages: tuple[str, ...], store: str, named: Mapping[str, str]) -> Lineage:
    """Return the links of stages and all their ancestors.

    store: id of the preprocess run; named: ids of runs that the user wants, by the names of their links.
    """
    known = {"preprocess": store, **named}
    found: dict[str, Link] = {}

    def add(name: str, stage: str, recipe: Recipe) -> None:
        parts = parts_of(recipe, stage)
        if None in parts.values():
            return
        if name in known:
            found[name] = Link(stage=stage, run=known[name])
            return
        there = tuple(parent for parent in STAGES[stage].parents if None not in parts_of(recipe, parent).values())
        of_teacher = teachers_recipe(recipe, stage)
        if of_teacher is not None:
            add(plan.teacher_of(name), stage, of_teacher)
            there += (plan.teacher_of(name),)
        found[name] = Link(stage=stage, config=identity.without_defaults(parts), parents=there)

    for stage in [name for last in stages for name in lineage(last)]:
        add(stage, stage, recipe)
    return found


def store_run(registry: Registry, recipe: Recipe) -> Run | None:
    """Return the preprocess run that matches the recipe: the newest finished one, else the newest, else None."""
    matching = [run for run in registry.runs("preprocess") if parents.made_from(run, parts_of(recipe, "preprocess"))]
    finished = [(done["time"], run) for run in matching if (done := run.done()) is not None]
    if finished:
        return max(finished, key=lambda pair: pair[0])[1]
    return max(matching, key=lambda run: run.created, default=None)


def bring(
    registry: Registry,
    info: StageInfo,
    arguments: Arguments,
    links: Lineage,
    say: Say,
    known: Mapping[str, Standing] | None = None,
) -> Brought:
    """Bring a stage to work on Slurm unless it is done or at work.

    known: stages that were looked at just before; say: told what is waited for. Raises ValueError where it cannot be.
    """
    check_batch(info, arguments)
    mine = plan.part_of(links, info.name)
    found = _look(registry, mine, known or {}, say)
    verdict = plan.verdict([found[name] for name in mine[info.name].parents])
    own = found[info.name]
    if own.state == "done":
        return Brought(action="done", name=own.name)
    if own.state == "alive" and (own.planned or verdict.action != "go"):
        return Brought(action="attached", name=own.name, jobs=own.jobs)
    if verdict.action == "go":
        named = {plan.role_of(name): _id(found[name]) for name in mine[info.name].parents}
        return _launch(registry, info, arguments, named, say)
    if verdict.action == "wait":
        return _plan(registry, info, arguments, mine, found, verdict, say)
    raise ValueError(f"{info.name} was not submitted: {verdict.reason}")


def _look(registry: Registry, links: Lineage, known: Mapping[str, Standing], say: Say) -> dict[str, Standing]:
    """Look at stages; a job that is about to be submitted by another launcher is waited for."""
    deadline_s = time.monotonic() + ABOUT_TO_SUBMIT_S
    said = False
    while True:
        found = plan_state.look(registry, links, {name: one for name, one in known.items() if one.jobs or one.pin})
        coming = [one.name for one in found.values() if one.state == "alive" and not one.jobs and not one.reason]
        if not coming or time.monotonic() > deadline_s:
            return found
        if not said:
            say(f"another launcher is submitting {', '.join(coming)}; waiting for its job")
            said = True
        time.sleep(0.5)


def _id(parent: Standing) -> str:
    assert parent.pin is not None
    return parent.pin.id


def _launch(
    registry: Registry, info: StageInfo, arguments: Arguments, named: Mapping[str, str], say: Say, dependency: str = ""
) -> Brought:
    proposal = propose(registry, info, replace(arguments, parents=dict(named)))
    run = create(registry, proposal, lambda text: say(f"note: {text}"))
    asked = order(
        info, arguments, tasks=proposal.num_tasks, clips=proposal.num_clips, dependency=dependency
    )  # fmt: skip
    started = start(run, asked, say)
    if started.decision.action == "finished":
        return Brought(action="done", name=run.name)
    assert started.intent is not None
    record = started.submission.record if started.submission else started.intent.job or {}
    return Brought(
        action="submitted" if started.submission else "attached",
        name=run.name,
        jobs=tuple(record.get("ids", ())),
        submission=started.submission,
    )


def _plan(
    registry: Registry,
    info: StageInfo,
    arguments: Arguments,
    links: Lineage,
    found: Mapping[str, Standing],
    verdict: plan.Verdict,
    say: Say,
) -> Brought:
    recipe = arguments.recipe
    clips = 0
    if not info.training and info.name != "sample":
        store = registry.find(links["preprocess"].run, "preprocess")
        clips = len(files.read_json(store.folder / MANIFEST) or ())
    one = plan.create(
        registry.home,
        PlanSpec(
            stage=info.name,
            recipe=recipe.name,
            id=plan.plan_id(links, info.name),
            config=plain(parts_of(recipe, info.name)),
            lineage=links,
            inputs=inputs_of(recipe, info.name),
        ),
    )
    asked = order(info, arguments, tasks=num_tasks(info, recipe, clips), clips=clips)
    name, waits = f"{info.name} (planned)", f"behind {verdict.reason}"
    started = start_plan(one, asked, verdict.jobs, functools.partial(_again, registry, one), say)
    if isinstance(started, Standing):
        return Brought(action="done" if started.state == "done" else "attached", name=started.name, jobs=started.jobs)
    return Brought(
        action="planned", name=name, jobs=tuple(started.record["ids"]), submission=started, reason=waits
    )  # fmt: skip


def start_plan(
    one: Plan, asked: Order, after: tuple[str, ...], look: Callable[[], Standing], say: Say
) -> Submission | Standing:
    """Submit a plan's job behind other jobs, unless it is there; then return where the stage stands.

    As with runs, a launcher decides on intents 1..n and claims n+1, and its owner alone submits.
    """
    while True:
        intents = one.intents()
        where = plan_state.standing(one)
        if where.state == "waiting":
            return Standing(
                stage=one.stage, name=f"{one.stage} (planned)", state="alive", jobs=where.jobs, planned=True
            )  # fmt: skip
        if where.state == "became" and (now := look()).state in ("done", "alive"):
            return now
        if where.state == "unknown" and not asked.retry:
            raise ValueError(f"{where.reason}; run the command where the queue answers, or give --retry")
        code = asked.code or code_snapshot.take(one.home, REPOSITORY)
        number = len(intents) + 1
        if not one.claim_intent(number, _request(one, asked, after, code)):
            continue
        waits = [f"afterany:{':'.join(after)}"] if after else []
        if asked.training:
            waits.append("singleton")  # as for any training: a second job of one launch waits for the first
        work = Work(
            run_folder=one.folder,
            name=job_name(one.folder),
            intent=number,
            training=asked.training,
            placement=asked.placement,
            code=code_snapshot.folder(one.home, code),
            groups=len(one.intent(number).request["groups"]),
            parallel=asked.parallel,
            dependency=",".join(waits),
            module=MODULE,
        )
        return executor.submit(work, on_job=lambda record: one.resolve_intent(number, record), say=say)  # noqa: B023


def _request(one: Plan, asked: Order, after: tuple[str, ...], code: str) -> dict[str, object]:
    """What a run's intent asks for, so that the job can claim one with it."""
    return {
        "training": asked.training,
        "executor": "slurm",
        "job_name": job_name(one.folder),
        "code": code,
        "groups": share_out(range(asked.num_tasks), asked.tasks),
        "num_tasks": asked.num_tasks,
        "num_clips": asked.num_clips,
        "parallel": asked.parallel,
        "world_size": asked.placement.world_size if asked.training else 1,
        "runtime": asked.runtime,
        "placement": to_dict(asked.placement),
        "data_root": asked.data_root,
        "launcher": process_record(os.getpid()),
        "after": list(after),
        "retry": asked.retry,
    }


def to_mend(registry: Registry, chosen: Callable[[Plan], bool]) -> Iterator[tuple[Plan, plan.Verdict]]:
    """Yield the plans that ended because of a parent which is done or at work again, parents first.

    A plan whose job was cancelled, or that failed by itself, is left to its user. chosen: which to look at. What the
    caller submits in between counts: it is what the next one waits for.
    """
    for stage in STAGES:
        for one in filter(chosen, plan.plans(registry.home, stage)):
            newest = one.newest_intent()
            end = one.end_of(newest) if newest else None
            if end is None or end["kind"] != "failed" or not end["by_parents"]:
                continue
            links = one.spec.lineage
            found = plan_state.look(registry, links)
            verdict = plan.verdict([found[name] for name in links[stage].parents])
            if found[stage].state == "ended" and verdict.action in ("go", "wait"):
                yield one, verdict


def mend(registry: Registry, one: Plan, verdict: plan.Verdict, say: Say) -> Brought | None:
    """Submit a plan again as it was last, for `tools/runs.py heal`; None where another launcher was quicker."""
    asked = _order_of(one, one.newest_intent())
    again = start_plan(one, asked, verdict.jobs, functools.partial(_again, registry, one), say)
    if isinstance(again, Standing):
        return None
    reason = f"behind {verdict.reason}" if verdict.jobs else "its parents are done"
    jobs = tuple(again.record["ids"])
    return Brought(action="planned", name=f"{one.stage} (planned)", jobs=jobs, submission=again, reason=reason)


def _again(registry: Registry, one: Plan) -> Standing:
    return plan_state.look(registry, one.spec.lineage)[one.stage]


def _order_of(one: Plan, number: int) -> Order:
    """Return the order of a plan's launch, with the code of that launch."""
    request = one.intent(number).request
    code = request["code"]
    return Order(
        training=request["training"],
        placement=from_dict(Placement, request["placement"]),
        runtime=request["runtime"],
        tasks=len(request["groups"]),
        parallel=request["parallel"],
        num_tasks=request["num_tasks"],
        num_clips=request["num_clips"],
        code=code if code_snapshot.folder(one.home, code).is_dir() else None,
    )


def would(
    registry: Registry, info: StageInfo, links: Lineage, known: dict[str, Standing] | None = None, *, slurm: bool = True
) -> tuple[str, plan.Verdict]:
    """Tell what `bring` would do, for a dry run; what it finds done or at work is added to `known`."""
    known = {} if known is None else known
    found = plan_state.look(registry, plan.part_of(links, info.name), known)
    own, verdict = found[info.name], plan.verdict([found[name] for name in links[info.name].parents])
    if own.state in ("done", "alive"):
        known[info.name] = own
        jobs = f", Slurm job {', '.join(own.jobs)}" if own.jobs else ""
        return f"{own.name}: {'done' if own.state == 'done' else 'at work or queued'} already{jobs}", verdict
    before = f" ({own.reason})" if own.attempted else ""
    if verdict.action in ("fail", "ask"):
        said = f"would not start: {verdict.reason}"
    elif verdict.action == "go":
        said = f"would be launched{' again' if before else ''}{before}"
    else:
        said = f"would {'be queued behind' if slurm else 'follow'} {verdict.reason}{before}"
    return f"{own.name}: {said}", verdict
