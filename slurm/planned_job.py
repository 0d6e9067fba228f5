"""What a planned job does first: it finds out what its plan has become, and then is the job of that run.

    python -m slurm.planned_job PLAN_FOLDER INTENT GROUP

Slurm starts it once its parents' jobs have ended, however they ended. All parents are done: the run is made, or opened,
with an intent whose job is this one, and `slurm.job` goes on in the same allocation. A parent is at work again in
another job: this one waits for that. Else it ends with the reason on record, which names what is to be mended.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import plan
from experiments.plan import Plan, Verdict
from experiments.registry import Registry
from experiments.run import Run
from slurm import job, job_state, masked_output, plan_state, run_state
from slurm.local import process_record
from slurm.logs import folder_of

log = logging.getLogger(__name__)

LOOKS, PAUSE_S = 3, 2.0
"""Looks before anything but going on: another host's files may come late, and a job's last state too."""
ASKS, ASK_PAUSE_S = 20, 30.0
"""Questions to a queue that does not answer before the job gives up."""
RANKS_WAIT_S = 3600.0
GROUPS_WAIT_S = 60.0
"""How long others wait for the first rank, or the first group of an array, to decide."""
REMEDY = "; mend it, then run the same pipeline command"
_ASK_SLURM_TRIES = 5
_WAIT_TO_BE_KILLED_S = 3600.0


def main(plan_folder: str, intent: int, group: int = 0) -> None:
    """Become the job of the plan's run; the process ends here."""
    # Python starts with it ignored, for the sake of trainings; a job that merely waits has nothing to save.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    one = Plan(Path(plan_folder))
    became = become(one, intent, group)
    if became is None:
        sys.exit(1)
    run, number = became
    if number is None:
        return
    _own_up(one, intent, run, number)
    _log_into(run)
    job.main(str(run.folder), number, group)


def become(one: Plan, intent: int, group: int) -> tuple[Run, int | None] | None:
    """Return the run and its intent that this job is for, None as intent where nothing is left to do.

    None: there is none, for a reason that is on record.
    """
    if end := _recorded(one, intent):
        return end
    if int(os.environ.get("SLURM_PROCID", "0")):
        _wait_to_be_told(one, intent, RANKS_WAIT_S)
        return _recorded(one, intent)
    # A group whose first group has yet to begin, or is waiting again, decides for itself.
    if group and _wait_to_be_told(one, intent, random.uniform(0.5, 1.0) * GROUPS_WAIT_S):
        return _recorded(one, intent)
    try:
        return _decide(one, intent)
    except (ValueError, OSError) as error:
        log.exception("%s", one.name)
        _fail(one, intent, f"{one.stage}: {error}")
        return None


def _recorded(one: Plan, intent: int) -> tuple[Run, int | None] | None:
    """Return what this job became, by the word of its first rank or before Slurm requeued it."""
    end = one.end_of(intent)
    if end is None or end["kind"] != "became":
        return None
    return Registry(one.home).find(end["run"].rpartition("/")[2], one.stage), end["launch"]


def _wait_to_be_told(one: Plan, intent: int, timeout_s: float) -> bool:
    """Wait until the first rank, or group, has said what it makes of the plan; return whether it has."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        end = one.end_of(intent)
        if end is not None and (end["kind"] == "became" or end["restart"] == _restart()):
            return True
        time.sleep(1)
    return False


def _decide(one: Plan, intent: int) -> tuple[Run, int | None] | None:
    verdict = _settled_verdict(one)
    if verdict.action == "go":
        return _make_run(one, intent)
    if verdict.action == "wait":
        _wait_for(verdict.jobs)
        other = f"{verdict.reason} is at work in job {', '.join(verdict.jobs)}"
        _fail(one, intent, f"{other}, and Slurm did not requeue this one behind it", by_parents=True)
        return None
    why = f"{verdict.reason} (asked for {ASKS * ASK_PAUSE_S:.0f} s)" if verdict.action == "ask" else verdict.reason
    _fail(one, intent, why, by_parents=True)
    return None


def _settled_verdict(one: Plan) -> Verdict:
    looks = asks = 0
    while True:
        parents = plan_state.parents_of(Registry(one.home), one.spec.lineage, one.stage)
        verdict = plan.verdict(parents)
        log.info("%s: %s %s", one.name, verdict.action, verdict.reason)
        if verdict.action == "go":
            return verdict
        if verdict.action == "ask":
            asks += 1
            if asks > ASKS:
                return verdict
            time.sleep(ASK_PAUSE_S)
            continue
        looks += 1
        # Without a job to wait for: a launcher is about to submit one.
        if looks >= LOOKS and (verdict.action == "fail" or verdict.jobs):
            return verdict
        time.sleep(PAUSE_S)


def _make_run(one: Plan, intent: int) -> tuple[Run, int | None] | None:
    """Make or open the run, and claim an intent of it for this job unless that is needless."""
    registry = Registry(one.home)
    parents = plan_state.parents_of(registry, one.spec.lineage, one.stage)
    names = one.spec.lineage[one.stage].parents
    pins = {name: parent.pin for name, parent in zip(names, parents, strict=True) if parent.pin is not None}
    run = registry.create(plan.run_spec(one.spec, pins))
    asked = one.intent(intent)
    request: dict[str, Any] = asked.request
    mark = {"id": one.id, "intent": intent}
    while True:
        intents = run.intents()
        mine = [number for number, request in ((i.number, i.request) for i in intents) if request.get("plan") == mark]
        if mine:
            return _became(one, intent, run, mine[-1])
        decision = run_state.decision(run, intents, retry=request["retry"])
        if decision.action in ("poisoned", "unknown"):
            _fail(one, intent, f"{run.name}: {decision.reason}")
            return None
        if decision.action in ("finished", "attach"):
            log.info("%s: %s", run.name, decision.reason)
            return _became(one, intent, run, None)
        forgiven = run.newest_attempt() if request["retry"] else run_state.forgiven(intents)
        claimed = {name: value for name, value in request.items() if name not in ("retry", "time")} | {
            "forgiven": forgiven,
            "launcher": process_record(os.getpid()),
            "plan": mark,
            "job": asked.job or {"executor": "slurm", "ids": [_array_or_job()]},
        }
        if run.claim_intent(len(intents) + 1, claimed):
            run.clear_stop()
            return _became(one, intent, run, len(intents) + 1)


def _became(one: Plan, intent: int, run: Run, number: int | None) -> tuple[Run, int | None]:
    one.end(intent, "became", run=run.name, launch=number, restart=_restart())
    log.info("%s became %s, launch %s", one.name, run.name, number)
    return run, number


def _fail(one: Plan, intent: int, reason: str, *, by_parents: bool = False) -> None:
    one.end(intent, "failed", reason=reason, by_parents=by_parents, restart=_restart())
    log.error("%s%s", reason, REMEDY)


def _wait_for(jobs: Sequence[str]) -> None:
    """Give the nodes back until other jobs have ended; the process ends here, unless Slurm refuses.

    A job that runs cannot be given a dependency, so it is requeued first; should this process be killed in between,
    Slurm starts it again and it comes here again.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    me = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
    log.info("a parent is at work in job %s: waiting for it in the queue", ", ".join(jobs))
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not _asked(["scontrol", "requeue", me]):
        signal.signal(signal.SIGTERM, previous)
        return
    _asked(["scontrol", "update", f"JobId={me}", f"Dependency=afterany:{':'.join(jobs)}"])
    time.sleep(_WAIT_TO_BE_KILLED_S)
    sys.exit(1)


def _asked(command: list[str]) -> bool:
    for pause_s in range(_ASK_SLURM_TRIES):
        if job_state.ask(command) is not None:
            return True
        time.sleep(pause_s)
    return False


def _own_up(one: Plan, intent: int, run: Run, number: int) -> None:
    """Name this job in the run's intent, should its launcher still have been submitting the plan's further arrays."""
    known, mine = run.intent(number).job or {}, _array_or_job()
    if mine not in known["ids"]:
        planned = (one.intent(intent).job or {}).get("ids", ())
        run.resolve_intent(number, known | {"ids": list(dict.fromkeys([*known["ids"], *planned, mine]))})


def _log_into(run: Run) -> None:
    """Let this process write where the logs of the run's jobs are looked for."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    me = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    path = folder_of(run.folder) / f"{me}_{os.environ.get('SLURM_PROCID', '0')}_log.out"
    path.parent.mkdir(exist_ok=True)
    log.info("the log goes on in %s", path)
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _array_or_job() -> str:
    return os.environ.get("SLURM_ARRAY_JOB_ID", os.environ["SLURM_JOB_ID"])


def _restart() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


if __name__ == "__main__":
    masked_output.mask_secrets()
    main(sys.argv[1], int(sys.argv[2]), job.group_of(sys.argv[3]))
