"""What happened to a run, in sentences: text from what the registry and Slurm say, for `tools/runs.py why`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from experiments import task_facts
from experiments.reconcile import State
from experiments.run import AttemptRecord, Commit, Intent, Run
from launch.array_progress import span
from slurm import accounting, notify
from slurm.accounting import Ended, Queued
from slurm.run_state import Standing
from tools import run_nodes

TOLD_ATTEMPTS = 8
TOLD_FILES = 5
WITHOUT_A_WORD = "without a word (killed, or its machine went away)"
_ORDINARY = (task_facts.EVENT, "start", "checkpoint")
"""Events in which nothing went wrong: told as sums or by the attempt itself."""
_NEXT: dict[State, str] = {
    "done": "Nothing is left to do.",
    "running": "It is at work; the same launch command attaches to it, and `tools/runs.py logs` shows its log.",
    "queued": "A job is there and has yet to start an attempt.",
    "stopped": "Nothing works on it; the same launch command goes on.",
    "failed": "Nothing works on it; mend the cause, then the same launch command goes on.",
    "poisoned": "A launch would refuse it.",
    "unknown": "A launch would refuse it.",
}


@dataclass(frozen=True, kw_only=True)
class SlurmWords:
    """What Slurm says of a run's jobs."""

    queue: Sequence[Queued] | None = ()
    """None: squeue does not answer, or knows none of them."""
    history: Sequence[Ended] | None = ()
    """None: sacct does not answer, or there is no accounting."""

    @classmethod
    def asked(cls, intents: Sequence[Intent]) -> SlurmWords:
        """Ask Slurm about the jobs of launches; of a run without any it is not asked."""
        jobs = {job for intent in intents for job in accounting.jobs_of(intent)}
        return cls(queue=accounting.queue(jobs), history=accounting.history(jobs)) if jobs else cls()


def end_of(attempt: AttemptRecord, standing: Standing) -> str:
    """Return how an attempt ended, in a few words."""
    if attempt.end is None:
        return "at work" if attempt.number in standing.at_work else f"ended {WITHOUT_A_WORD}"
    message = attempt.end.get("message", "").strip().splitlines()
    return f"{attempt.end['kind']}: {message[0]}" if message else attempt.end["kind"]


def story(run: Run, standing: Standing, slurm: SlurmWords, *, now: float) -> list[str]:
    """Return the sentences, oldest event first; now: seconds since the epoch."""
    spec, state = run.spec, standing.state
    parents = ", ".join(f"{name} {parent.id}" for name, parent in spec.parents.items())
    sentences = [
        f"Created {span(now - spec.created)} ago by {spec.creator} from recipe {spec.recipe}"
        + (f", on top of {parents}." if parents else ".")
    ]
    intents, attempts, commits, events = run.intents(), run.attempts(), run.commits(), run.events()
    for before, intent in zip([None, *intents], intents, strict=False):
        sentences.append(f"Launch {intent.number}, {span(now - intent.request['time'])} ago: {_launch(intent)}.")
        sentences += [*_new_code(run, before, intent), *_jobs(intent, standing, slurm, attempts)]
    if not intents:
        sentences.append("It was never launched: its launcher ended before that.")
    if slurm.history is None and any(map(accounting.jobs_of, intents)):
        sentences.append("Slurm's accounting (sacct) does not answer: how jobs ended that left no word is not known.")
    earlier = attempts[:-TOLD_ATTEMPTS]
    if earlier:
        kinds = Counter("silent" if attempt.end is None else attempt.end["kind"] for attempt in earlier)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        sentences.append(f"{len(earlier)} earlier attempts: {told}.")
    lost = steps_lost(*step_bounds(run, attempts, events))
    for attempt in attempts[len(earlier) :]:
        sentences.append(_attempt(attempt, commits, standing, slurm, lost.get(attempt.number, 0), now=now))
        sentences += _events([event for event in events if event["attempt"] == attempt.number], now=now)
    if len(lost) > 1:
        sentences.append(f"In all, {sum(lost.values())} steps were done more than once.")
    over = [attempt for attempt in attempts if attempt.number not in standing.at_work]
    starts = {attempt.number: _start(attempt, standing, slurm) for attempt in over}
    sentences += _nodes(over, [number for number, start in starts.items() if start and start.state == "NODE_FAIL"])
    if commits and state != "done":
        sentences.append(f"The newest commit is step {commits[-1].step}, made by attempt {commits[-1].attempt}.")
    if unsent := notify.unsent(run):
        sentences.append(f"Nobody could be told: {', '.join(unsent)}; the log says why.")
    if run.stop_requested() and state in ("running", "queued"):
        sentences.append("It was asked to save and stop, and has not done so yet.")
    why = f" Reason: {standing.decision.reason}." if state in ("poisoned", "unknown") else ""
    leaving = state == "stopped" and standing.decision.action == "attach"
    following = (
        "Its job is on its way out; once that is gone, the same launch command goes on." if leaving else _NEXT[state]
    )
    return [*sentences, f"Now it is {state}. {following}{why}"]


def steps_lost(starts: dict[int, int], reached: dict[int, int]) -> dict[int, int]:
    """Return how many steps the attempt after it did again, by the number of the attempt that lost them.

    starts: step that each attempt which got so far began after; reached: last step that each one did.
    """
    lost: dict[int, int] = {}
    for number, step in starts.items():
        before = max((other for other in reached if other < number), default=None)
        if before is not None and reached[before] > step:
            lost[before] = reached[before] - step
    return lost


def step_bounds(
    run: Run, attempts: Sequence[AttemptRecord], events: Sequence[dict[str, Any]]
) -> tuple[dict[int, int], dict[int, int]]:
    """Return the step that each attempt began after, and the last that it did, where these are known."""
    starts = {event["attempt"]: event["step"] for event in events if event["event"] == "start"}
    beats = {attempt.number: run.beat(attempt.number) or {} for attempt in attempts if attempt.number in starts}
    return starts, {number: beat["step"] for number, beat in beats.items() if "step" in beat}


def _events(events: Sequence[dict[str, Any]], *, now: float) -> list[str]:
    """Tell what happened in an attempt: what happened once in a sentence, what happened often by its last time."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["event"] not in _ORDINARY:
            kinds.setdefault(event["event"], []).append(event)
    told = []
    for kind, found in kinds.items():
        last = found[-1]
        often = f" {len(found)} times, the last" if len(found) > 1 else ""
        at = f" at step {last['step']}" if "step" in last else ""
        message = " ".join(str(last.get("message", "")).split()).rstrip(".")
        told.append(f"  {kind}{often}{at}, {span(now - last['time'])} ago{f': {message}' if message else ''}.")
    return told


def _launch(intent: Intent) -> str:
    """Tell what a launch asked for and what became of it."""
    job, asked = intent.job, intent.request.get("placement") or {}
    if job is None:
        return "not submitted"
    if job["executor"] != "slurm":
        return f"process {job['pid']} on {job['host']}"
    words = f"Slurm job{'s' * (len(job['ids']) > 1)} {', '.join(job['ids'])}"
    if intent.request.get("training") and asked.get("nodes"):
        nodes, ranks = asked["nodes"], intent.request.get("world_size", 0)
        fewest = f"{asked['min_nodes']} to " if asked.get("min_nodes") not in (None, nodes) else ""
        words += f" on {fewest}{nodes} node{'s' * (nodes > 1)}, {ranks} rank{'s' * (ranks > 1)}"
    elif not intent.request.get("training", True):
        groups = len(intent.request["groups"])
        words += f", {groups} group{'s' * (groups != 1)} of tasks"
    facts = [f"{name} {asked[name]}" for name in ("partition", "qos", "exclude") if asked.get(name)]
    return words + (f" ({', '.join(facts)})" if facts else "")


def _new_code(run: Run, before: Intent | None, intent: Intent) -> list[str]:
    """Tell where a launch ran other code than the one before."""
    old, new = (before.request.get("code") if before else None), intent.request.get("code")
    if old is None or old == new:
        return []
    path = run.folder / "intent" / f"{intent.number:04d}.code.diff"
    names = files_in_difference(path.read_text(errors="replace")) if path.exists() else []
    more = f" and {len(names) - TOLD_FILES} more" if len(names) > TOLD_FILES else ""
    which = f": {', '.join(names[:TOLD_FILES])}{more} ({path})" if names else ""
    return [f"  Its code is not that of launch {intent.number - 1}{which}."]


def files_in_difference(text: str) -> list[str]:
    """Return the files that a unified difference changes, adds or removes."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        if line.startswith(("--- ", "+++ ")):
            name = line[4:].split("\t")[0].strip()
            if name != "/dev/null":
                found[name.split("/", 1)[-1]] = None
    return list(found)


def _jobs(intent: Intent, standing: Standing, slurm: SlurmWords, attempts: Sequence[AttemptRecord]) -> list[str]:
    """Tell what Slurm says of a launch's jobs: why they wait, or how they ended, unless the run is done."""
    told = []
    for job in accounting.jobs_of(intent):
        here = [entry for entry in slurm.queue or () if entry.job == job]
        waiting = [entry for entry in here if entry.state == "PENDING"]
        for reason, entry in {entry.reason: entry for entry in waiting}.items():
            again = f" after {entry.restarts} restarts" if entry.restarts > 1 else " again" * (entry.restarts == 1)
            several = len([one for one in waiting if one.reason == reason]) > 1
            told.append(f"  Slurm job {job if several else entry.task} waits{again}: {accounting.wait_words(entry)}.")
        if here or standing.state == "done" or slurm.history is None:
            continue
        ends = accounting.last_ends(slurm.history, job)
        counted = Counter(accounting.end_words(end) for end in ends)
        if len(ends) == 1:
            told.append(f"  Slurm says of job {ends[0].task}: {next(iter(counted))}.")
        elif ends:
            words = ", ".join(f"{count} x {what}" for what, count in counted.most_common(TOLD_FILES))
            told.append(f"  Slurm says of the {len(ends)} tasks of job {job}: {words}.")
        elif _silent(intent, attempts):
            told.append(f"  Slurm's accounting knows job {job} no more: how it ended is not known.")
    return told


def _silent(intent: Intent, attempts: Collection[AttemptRecord]) -> bool:
    """Tell whether a launch left its end open: no attempt of it, or one without a word."""
    ours = [attempt for attempt in attempts if attempt.claim.get("intent") == intent.number]
    return not ours or any(attempt.end is None for attempt in ours)


def _attempt(
    attempt: AttemptRecord,
    commits: Sequence[Commit],
    standing: Standing,
    slurm: SlurmWords,
    lost: int,
    *,
    now: float,
) -> str:
    claim = attempt.claim
    job: dict[str, str] = claim.get("slurm") or {}
    restart = int(job.get("SLURM_RESTART_COUNT", "0"))
    where = job.get("SLURM_JOB_NODELIST") or claim["host"]
    facts = [f"on {where}", f"launch {claim['intent']}"]
    facts += [f"restart {restart}"] if restart else []
    facts += [f"group {claim['group']}"] if claim.get("group") else []
    began = f"Attempt {attempt.number} ({', '.join(facts)}) began "
    steps = [commit.step for commit in commits if commit.attempt == attempt.number]
    after = f"; of its commits step {steps[-1]} is kept" if steps else ""
    after += f"; {lost} step{'s' * (lost > 1)} of it had to be done again" if lost else ""
    outcome = end_of(attempt, standing).rstrip(".")
    start = _start(attempt, standing, slurm)
    # Of its own an attempt that got TERM knows no more than that it was stopped.
    if start is not None and (attempt.end is None or attempt.end["kind"] == "stopped"):
        outcome += f"; Slurm says: {accounting.end_words(start)}"
    if attempt.end is None:
        return f"{began}{span(now - claim['time'])} ago: {outcome}{after}."
    lasted = span(attempt.end["time"] - claim["time"])
    return f"{began}{span(now - claim['time'])} ago and ended after {lasted}: {outcome}{after}."


def _start(attempt: AttemptRecord, standing: Standing, slurm: SlurmWords) -> Ended | None:
    """Return what accounting has of the start of a job that was an attempt's; None where it is at work, or unknown."""
    job = attempt.claim.get("slurm") or {}
    if "SLURM_JOB_ID" not in job or attempt.number in standing.at_work:
        return None
    start = accounting.of_start(slurm.history or (), task_of(job), int(job.get("SLURM_RESTART_COUNT", "0")))
    return start if start is not None and start.over else None


def task_of(job: dict[str, str]) -> str:
    """Return the name of a job, or of an array's task, from the variables that its attempt's claim holds."""
    array = job.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{job['SLURM_ARRAY_TASK_ID']}" if array else job["SLURM_JOB_ID"]


def _nodes(attempts: Sequence[AttemptRecord], node_failures: Collection[int]) -> list[str]:
    """Tell which nodes the failures have in common; node_failures: attempts that Slurm ended for a node's failure."""
    return [
        f"Node {one.node} was in {one.failures} of {one.of} failures: exclude it with --exclude {one.node}, "
        "and tell who runs the cluster."
        for one in run_nodes.suspects(attempts, node_failures)
    ]
