"""Starting a run that exists: decide, claim an intent, submit. Shared by all launchers and by `relaunch`.

Order of events, so that two launchers, or one that is killed anywhere, never make two jobs of a run: the decision is
made on the intents 1..n; n+1 is claimed exclusively; only its owner submits, and records the job as soon as it exists.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle2_video.config_io import to_dict
from experiments import code_snapshot
from experiments.identity import digest
from experiments.reconcile import Decision
from experiments.run import Intent, Run
from slurm import executor, job_state, run_state
from slurm.executor import Submission, Work
from slurm.local import process_record
from slurm.placement import Placement

REPOSITORY = Path(__file__).resolve().parents[1]
STOP_TIMEOUT_S = 120
SILENCE_S, ASK_AGAIN_S = 60.0, 10
"""How long, and how often, a controller that does not answer is asked what became of an earlier job."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Order:
    """How a run is to be started, if it has to be."""

    training: bool
    placement: Placement
    runtime: dict[str, Any]
    """`RuntimeConfig` as plain types; of an array nothing reads it."""
    tasks: int = 1
    """Jobs that share an array's missing tasks."""
    parallel: int = 0
    """Jobs of an array that run at once; 0 for no limit."""
    num_tasks: int = 0
    """Tasks of an array; 0 for a training."""
    num_clips: int = 0
    """Clips that the tasks share out; 0 where their work is not clips."""
    data_root: str | None = None
    """Where the files lie today: the same files in another place are the same run."""
    retry: bool = False
    """Go on although the run is poisoned, or an earlier job cannot be asked about."""
    code: str | None = None
    """Version of the code to run; None: a copy of this checkout."""
    dependency: str = ""
    """Slurm dependency of the job."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """What came of it."""

    decision: Decision
    """finished, attach or launch."""
    intent: Intent | None = None
    """The newest intent, the one that was submitted or attached to; None where the run was finished."""
    submission: Submission | None = None
    """What was submitted by this call."""


def start(run: Run, order: Order, say: Say) -> Started:
    """Bring a run to work unless it is done or at work.

    say: told what is waited for. Raises ValueError where the run is poisoned or nobody can tell whether it is at work,
    and where the job is refused.
    """
    deadline_s = time.monotonic() + SILENCE_S
    while True:
        intents = run.intents()
        decision = run_state.decision(run, intents, retry=order.retry)
        if decision.action == "unknown" and job_state.may_answer(intents[-1]) and time.monotonic() < deadline_s:
            say(f"{run.name}: Slurm does not answer; asking again in {ASK_AGAIN_S} s")
            time.sleep(ASK_AGAIN_S)
            continue
        if decision.action == "unknown":
            why = job_state.why_unknown(intents[-1])
            raise ValueError(
                f"{run.name}: an earlier job may be alive: {why}; or give --retry to start a new attempt (the old one "
                f"can then no longer commit)\n(its folder: {run.folder})"
            )
        if decision.action == "poisoned":
            raise ValueError(f"{run.name}: {decision.reason}\n(its folder: {run.folder})")
        if decision.action == "finished":
            return Started(decision=decision)
        if decision.action == "attach":
            if run.stop_requested():
                _wait_for_stop(run, say)
                continue
            return Started(decision=decision, intent=intents[-1])
        home = run.folder.parents[2]
        code = order.code or code_snapshot.take(home, REPOSITORY)
        number = len(intents) + 1
        if not run.claim_intent(number, _request(run, order, intents, code)):
            continue  # another launcher was quicker: look again
        run.clear_stop()
        say(f"{run.name}: {decision.reason}")
        if intents:
            _tell_of_new_code(run, number, intents[-1].request.get("code"), code, say)
            # Slurm may hold an earlier job that it requeued too often; nobody shall release it beside the new one.
            job_state.try_cancel_queued(intents[-1])
        submission = submit(run, number, order, code_snapshot.folder(home, code), say)
        return Started(decision=decision, intent=run.intent(number), submission=submission)


def submit(run: Run, number: int, order: Order, code: Path, say: Say) -> Submission:
    """Submit what an intent asks for; every job is on record as soon as it is known."""
    request = run.intent(number).request
    work = Work(
        run_folder=run.folder,
        name=request["job_name"],
        intent=number,
        training=order.training,
        placement=order.placement,
        code=code,
        groups=len(request["groups"]),
        parallel=order.parallel,
        dependency=order.dependency,
    )
    return executor.submit(work, on_job=lambda record: run.resolve_intent(number, record), say=say)


def job_name(run_folder: Path) -> str:
    """Name of a run's jobs: stage, id, and two bytes that tell one registry's run from another's."""
    return f"{run_folder.parent.name}-{run_folder.name.rpartition('-')[2]}.{digest(str(run_folder))[:4]}"


def share_out(missing: Sequence[int], jobs: int) -> list[list[int]]:
    """Return the tasks of each group: `jobs` groups, or one a task where there are fewer tasks.

    Without any task one empty group is left, which does the array's last step; a training's only group is that too.
    """
    groups = max(1, min(jobs, len(missing)))
    return [list(missing[group::groups]) for group in range(groups)]


def _request(run: Run, order: Order, intents: Sequence[Intent], code: str) -> dict[str, Any]:
    missing = sorted(set(range(order.num_tasks)) - run.tasks_done())
    return {
        "training": order.training,
        "executor": order.placement.resolved_cluster(),
        "job_name": job_name(run.folder),
        "code": code,
        "groups": share_out(missing, order.tasks),
        "num_tasks": order.num_tasks,
        "num_clips": order.num_clips,
        "parallel": order.parallel,
        "world_size": order.placement.world_size if order.training else 1,
        "runtime": order.runtime,
        "placement": to_dict(order.placement),
        "forgiven": run.newest_attempt() if order.retry else run_state.forgiven(intents),
        "data_root": order.data_root,
        "launcher": process_record(os.getpid()),
    }


def _tell_of_new_code(run: Run, number: int, old: str | None, new: str, say: Say) -> None:
    """Record, with the launch, how its code differs from that of the launch before."""
    if old in (None, new):
        return
    text = code_snapshot.difference(run.folder.parents[2], old, new)
    path = run.record_code_difference(number, text)
    changed = [line.split("/", 1)[1].split("\t")[0].strip() for line in text.splitlines() if line.startswith("+++ ")]
    say(f"  the code changed since launch {number - 1}: {', '.join(changed) or text.strip()} ({path})")


def _wait_for_stop(run: Run, say: Say) -> None:
    """Wait until the job that was asked to stop has gone; to attach to it would end with nothing at work."""
    say(f"{run.name}: was asked to stop; waiting for its job to save and end")
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while run_state.decision(run, run.intents(), retry=False).action == "attach":
        if time.monotonic() > deadline:
            raise ValueError(
                f"{run.name}: still stopping after {STOP_TIMEOUT_S} s; look: python tools/runs.py why {run.spec.id}"
            )
        time.sleep(1)
