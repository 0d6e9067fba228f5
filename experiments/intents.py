"""Launches of a run, or of a plan of one: what was asked for, and the job that it became.

A launcher writes its intent before it submits anything, and the job as soon as that is known; so a crash in between
loses neither, and of two launchers that saw the same state just one goes on.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import files

_INTENT = re.compile(r"(\d{4})\.json")


@dataclass(frozen=True, kw_only=True)
class Intent:
    """A launcher's will to run, written before anything is submitted; `job` once it is known."""

    number: int
    request: dict[str, Any]
    job: dict[str, Any] | None


class Launched:
    """A folder for which jobs are launched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def stage(self) -> str:
        """Stage, as the folder says."""
        return self.folder.parent.name

    @property
    def id(self) -> str:
        """Identity, as the folder's name says: it ends with it."""
        return self.folder.name.rpartition("-")[2]

    @property
    def name(self) -> str:
        """`stage/recipe-id`."""
        return f"{self.stage}/{self.folder.name}"

    def intents(self) -> list[Intent]:
        """All intents, oldest first."""
        return [self.intent(number) for number in self._intent_numbers()]

    def _intent_numbers(self) -> list[int]:
        names = files.names_in(f"{self.folder}/intent")
        return [int(match[1]) for name in names if (match := _INTENT.fullmatch(name))]

    def newest_intent(self) -> int:
        """Number of the newest intent; 0 where there is none."""
        return max(self._intent_numbers(), default=0)

    def intent(self, number: int) -> Intent:
        """Return one intent."""
        path = f"{self.folder}/intent/{number:04d}"
        request = files.read_record(f"{path}.json")
        if request is None:
            raise ValueError(f"{self.name} has no launch {number}; the run was removed, or its folder is damaged")
        # A job that claims an intent itself, in a plan's place, stands in the request: it is never without its job.
        job = files.read_record(f"{path}.job.json") or request.get("job")
        if job is not None and not _is_job(job):
            raise ValueError(f"{path}.job.json is damaged: it names no job")
        return Intent(number=number, request=request, job=job)

    def claim_intent(self, number: int, request: dict[str, Any]) -> bool:
        """Record the will to run before anything is submitted; False where another launcher took the number.

        A launcher decides on what intents 1..n say and then claims n+1: so of two launchers that saw the same state
        just one goes on.
        """
        whole = request | {"time": time.time()}
        return files.create_exclusive(self.folder / "intent" / f"{number:04d}.json", files.encode(whole))

    def resolve_intent(self, number: int, job: dict[str, Any]) -> None:
        """Record the job that an intent became."""
        files.write_atomic(self.folder / "intent" / f"{number:04d}.job.json", files.encode(job))


def _is_job(job: Any) -> bool:
    """Return whether a record names a local process, or jobs of Slurm by their ids."""
    if not isinstance(job, dict) or job.get("executor") not in ("local", "slurm"):
        return False
    ids = job.get("ids", [] if job["executor"] == "local" else None)
    return isinstance(ids, list) and all(isinstance(one, str) for one in ids)
