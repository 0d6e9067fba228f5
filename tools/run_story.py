"""What happened to a run, in sentences: pure text from what the registry holds, for `tools/runs.py why`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from experiments import task_facts
from experiments.reconcile import State
from experiments.run import AttemptRecord, Commit, Run
from launch.array_progress import span
from slurm.run_state import Standing

TOLD_ATTEMPTS = 8
WITHOUT_A_WORD = "without a word (killed, or its machine went away)"
_NEXT: dict[State, str] = {
    "done": "Nothing is left to do.",
    "running": "It is at work; the same launch command attaches to it, and `tools/runs.py logs` shows its log.",
    "queued": "A job is there and has yet to start an attempt.",
    "stopped": "Nothing works on it; the same launch command goes on.",
    "failed": "Nothing works on it; mend the cause, then the same launch command goes on.",
    "poisoned": "A launch would refuse it.",
    "unknown": "A launch would refuse it.",
}


def end_of(attempt: AttemptRecord, standing: Standing) -> str:
    """Return how an attempt ended, in a few words."""
    if attempt.end is None:
        return "at work" if attempt.number in standing.at_work else f"ended {WITHOUT_A_WORD}"
    message = attempt.end.get("message", "").strip().splitlines()
    return f"{attempt.end['kind']}: {message[0]}" if message else attempt.end["kind"]


def story(run: Run, standing: Standing, *, now: float) -> list[str]:
    """Return the sentences, oldest event first; now: seconds since the epoch."""
    spec, state = run.spec, standing.state
    parents = ", ".join(f"{name} {parent.id}" for name, parent in spec.parents.items())
    sentences = [
        f"Created {span(now - spec.created)} ago by {spec.creator} from recipe {spec.recipe}"
        + (f", on top of {parents}." if parents else ".")
    ]
    intents = run.intents()
    for intent in intents:
        sentences.append(f"Launch {intent.number}, {span(now - intent.request['time'])} ago: {_job(intent.job)}.")
    if not intents:
        sentences.append("It was never launched: its launcher ended before that.")
    attempts, commits = run.attempts(), run.commits()
    earlier = attempts[:-TOLD_ATTEMPTS]
    if earlier:
        kinds = Counter("silent" if attempt.end is None else attempt.end["kind"] for attempt in earlier)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        sentences.append(f"{len(earlier)} earlier attempts: {told}.")
    events = run.events()
    for attempt in attempts[len(earlier) :]:
        sentences.append(_attempt(attempt, commits, standing, now=now))
        sentences += _events([event for event in events if event["attempt"] == attempt.number], now=now)
    if commits and state != "done":
        sentences.append(f"The newest commit is step {commits[-1].step}, made by attempt {commits[-1].attempt}.")
    if run.stop_requested() and state in ("running", "queued"):
        sentences.append("It was asked to save and stop, and has not done so yet.")
    why = f" Reason: {standing.decision.reason}." if state in ("poisoned", "unknown") else ""
    leaving = state == "stopped" and standing.decision.action == "attach"
    following = (
        "Its job is on its way out; once that is gone, the same launch command goes on." if leaving else _NEXT[state]
    )
    return [*sentences, f"Now it is {state}. {following}{why}"]


def _events(events: Sequence[dict[str, Any]], *, now: float) -> list[str]:
    """Tell what happened in an attempt: what happened once in a sentence, what happened often by its last time."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["event"] != task_facts.EVENT:  # the sum of a finished task, which nothing went wrong in
            kinds.setdefault(event["event"], []).append(event)
    told = []
    for kind, found in kinds.items():
        last = found[-1]
        often = f" {len(found)} times, the last" if len(found) > 1 else ""
        at = f" at step {last['step']}" if "step" in last else ""
        message = " ".join(str(last.get("message", "")).split()).rstrip(".")
        told.append(f"  {kind}{often}{at}, {span(now - last['time'])} ago{f': {message}' if message else ''}.")
    return told


def _job(job: dict[str, Any] | None) -> str:
    if job is None:
        return "not submitted"
    return (
        f"Slurm job {', '.join(job['ids'])}" if job["executor"] == "slurm" else f"process {job['pid']} on {job['host']}"
    )


def _attempt(attempt: AttemptRecord, commits: Sequence[Commit], standing: Standing, *, now: float) -> str:
    claim = attempt.claim
    group = f", group {claim['group']}" if claim.get("group") else ""
    began = f"Attempt {attempt.number} (on {claim['host']}, launch {claim['intent']}{group}) began "
    steps = [commit.step for commit in commits if commit.attempt == attempt.number]
    committed = f"; of its commits step {steps[-1]} is kept" if steps else ""
    outcome = end_of(attempt, standing).rstrip(".")
    if attempt.end is None:
        return f"{began}{span(now - claim['time'])} ago: {outcome}{committed}."
    lasted = span(attempt.end["time"] - claim["time"])
    return f"{began}{span(now - claim['time'])} ago and ended after {lasted}: {outcome}{committed}."
