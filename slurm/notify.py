"""Telling people that a run is done, poisoned, hangs or has failed: by mail and by a webhook.

Best effort: nothing is raised into a training, each message has a few seconds, and one that could not be sent is a
line in the log. Each event is told once over all ranks and attempts: whoever creates its file in `notified/` tells it.
Compute nodes often have no way out; what they could not send, `tools/runs.py heal` sends from where it runs.
"""

from __future__ import annotations

import logging
import socket
from typing import Any, Literal

from experiments import files, reconcile
from experiments.run import Run
from slurm import delivery

log = logging.getLogger(__name__)

Event = Literal["done", "poisoned", "hang", "failed"]
LONGEST_REASON = 1500
FOLDER, SENT, AGAIN = "notified", ".sent", ".again"


def targets_of(run: Run) -> tuple[str, ...]:
    """Return whom the newest launch of a run asked to tell."""
    number = run.newest_intent()
    return tuple((run.intent(number).request.get("placement") or {}).get("notify") or ()) if number else ()


def try_tell(run: Run, event: Event, reason: str = "", *, occasion: str = "") -> bool:
    """Tell whom the newest launch named, once; return whether all of them were. Never raises.

    reason: in words; occasion: tells one event of a kind from the next of the same run, such as `attempt-0003`.
    """
    try:
        targets = targets_of(run)
        if not targets:
            return False
        subject = f"{run.name}: {event}"
        record = {"event": event, "subject": subject, "text": message(run, event, reason), "targets": targets}
        name = f"{event}-{occasion}" if occasion else event
        if not files.create_exclusive(run.folder / FOLDER / f"{name}.json", files.encode(record)):
            return False
        return _send_record(run, name, record)
    except Exception as error:
        log.warning("nobody could be told that %s is %s: %s", run.name, event, delivery.in_short(error))
        return False


def try_tell_poisoned(run: Run) -> None:
    """Tell of a run that its failures have just poisoned; of any other run nothing. Never raises."""
    try:
        number = run.newest_intent()
        if not targets_of(run):
            return
        forgiven = run.intent(number).request.get("forgiven", 0)
        failures = reconcile.poison(run.attempts(), run.commits(), after=forgiven)
        if failures:
            message = (failures[0].end or {}).get("message", "it ended without a word")
            reason = f"{len(failures)} attempts in a row failed without a new commit; the last: {message}"
            try_tell(run, "poisoned", reason, occasion=of_launch(number))
    except Exception as error:
        log.warning("whether %s is poisoned could not be told: %s", run.name, delivery.in_short(error))


def of_launch(number: int) -> str:
    """Return the occasion of an event that comes once a launch."""
    return f"launch-{number:04d}"


def try_again(run: Run) -> list[str]:
    """Send once more what could not be sent by a node; return the names of what was now. Never raises."""
    told = []
    for name in unsent(run):
        if (run.folder / FOLDER / (name + AGAIN)).exists():
            continue
        try:
            record = files.read_json(run.folder / FOLDER / f"{name}.json")
            # Once: with a target that is gone for good every call would try it for ever.
            if (
                record
                and files.create_exclusive(run.folder / FOLDER / (name + AGAIN), b"")
                and _send_record(run, name, record)
            ):
                told.append(name)
        except Exception as error:
            log.warning("%s: %s could not be told: %s", run.name, name, delivery.in_short(error))
    return told


def unsent(run: Run) -> list[str]:
    """Return the events that could not be told to everybody."""
    names = set(files.names_in(run.folder / FOLDER))
    told = (one.removesuffix(".json") for one in names if one.endswith(".json"))
    return sorted(name for name in told if name + SENT not in names)


def message(run: Run, event: Event, reason: str) -> str:
    """Return what is told: the event, its reason, where to look."""
    lines = [f"{run.name} is {event}." if event != "hang" else f"{run.name} hangs."]
    if shortened := "".join(one if one.isprintable() or one == "\n" else " " for one in reason)[
        :LONGEST_REASON
    ].strip():
        lines.append(shortened)
    return "\n".join([*lines, f"python tools/runs.py why {run.id}", f"{socket.gethostname()}:{run.folder}"])


def _send_record(run: Run, name: str, record: dict[str, Any]) -> bool:
    """Send a message to all its targets; return whether all took it, which is then on record."""
    failures = delivery.send(record["targets"], record["subject"], record["text"])
    for target, failure in failures.items():
        log.warning("%s: %s could not be told to %s: %s", run.name, name, target, failure)
    if not failures:
        files.create_exclusive(run.folder / FOLDER / (name + SENT), b"")
    return not failures
