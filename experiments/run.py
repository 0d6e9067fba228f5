"""One run folder: what was tried, what was committed, what is done.

Everything that others rely on is a file that was published whole; state is derived from files and never stored. One
attempt is one process group's try at a run; its number is claimed exclusively and is the fencing token: whoever finds
a higher number may not commit any more. This module never imports torch, so that listing is quick on a login node.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dalle2_video import json_file
from experiments import files, identity, secret_words
from experiments.identity import Parent
from experiments.intents import Intent as Intent  # part of what a run is made of
from experiments.intents import Launched

EndKind = Literal["done", "preempted", "timeout", "stopped", "error", "hang"]
_TAIL_BYTES = 16384
_CLAIM = re.compile(r"(\d+)\.json")
_COMMIT = re.compile(r"step-(\d+)\.a(\d+)")


class Superseded(RuntimeError):  # noqa: N818 - a state, not a defect of the caller
    """A newer attempt owns the run; this one may not commit."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """The immutable description of a run, as in run.json."""

    stage: str
    recipe: str
    id: str
    config: dict[str, Any]
    source: str | None
    parents: dict[str, Parent]
    """By role, as in `identity.run_id`."""
    inputs: dict[str, str] = field(default_factory=dict)
    schema: int = identity.SCHEMA
    creator: str = ""
    created: float = 0.0
    tracking_id: str = ""
    """Random id given at creation, under which an experiment tracker knows the run over all attempts. No part of the
    identity; empty in runs that were made before there was one."""


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """One try: what it claimed and, once it ended with a word, how."""

    number: int
    claim: dict[str, Any]
    end: dict[str, Any] | None


@dataclass(frozen=True, order=True, kw_only=True)
class Commit:
    """A committed checkpoint folder."""

    step: int
    attempt: int
    path: Path


class Run(Launched):
    """One run folder."""

    def __init__(self, folder: Path, created: float | None = None) -> None:
        """created: what a registry that looked already has found."""
        if created is None:
            created = created_time(folder)
            files.follow_group_mode(folder.parents[2])
        if created is None:
            raise ValueError(f"{folder} is not a run folder: it has no run.json")
        super().__init__(folder)
        self.created = created
        """When run.json was written, by the file system's clock, in seconds since the epoch."""

    @functools.cached_property
    def spec(self) -> RunSpec:
        """The immutable description, read when it is first asked for: listing thousands of runs needs few of them."""
        stored = files.read_record(self.folder / "run.json")
        if stored is None:
            raise ValueError(f"{self.folder} is gone: the run was removed")
        with json_file.as_written_here(self.folder / "run.json", "move the folder away"):
            stored["parents"] = {name: Parent(**parent) for name, parent in stored["parents"].items()}
            pins = [text for pin in stored["parents"].values() for text in (pin.stage, pin.id, pin.digest)]
            if not all(isinstance(text, str) for text in pins):
                raise TypeError(f"stage, id or digest of a parent is no text: {pins}")
            return RunSpec(**stored)

    def check_drift(self, config: dict[str, Any]) -> None:
        """Raise ValueError with the differences where the run's config means something else than `config`.

        config: what today's code makes of a command line that leads to this run's identity. A default changed since.
        """
        changed = identity.drift(self.spec.config, json.loads(json.dumps(config)))
        if not changed:
            return
        flags = [
            f"--{one.path.replace('_', '-')} {_words(one.old)}" for one in changed if one.new is not identity.ABSENT
        ]
        remedies = ["to go on with it, return to the code that created it"]
        remedies += (
            [f"to start a run with its values, give them: {' '.join(flags)}"] if len(flags) == len(changed) else []
        )
        remedies += [f"to start one with today's, move this folder out of the registry: {self.folder}"]
        listed = "\n  ".join(map(str, changed))
        raise ValueError(
            f"run {self.name} was created when defaults were different:\n  {listed}\n" + ";\n".join(remedies)
        )

    def done(self) -> dict[str, Any] | None:
        """Return the record of completion, with the digest that children pin, or None."""
        return files.read_record(self.folder / "DONE")

    def is_done(self) -> bool:
        """Return whether the run is done, without reading the record."""
        return os.path.exists(f"{self.folder}/DONE")  # noqa: PTH110 - asked of every run of a registry

    def mark_done(self, record: dict[str, Any]) -> None:
        """Record completion; the first record stays."""
        files.create_exclusive(self.folder / "DONE", files.encode(record | {"time": time.time()}))

    def as_parent(self) -> Parent:
        """Pin this finished run for a child."""
        record = self.done()
        assert record is not None, f"{self.name} is not done"
        return Parent(stage=self.spec.stage, id=self.spec.id, digest=record["digest"])

    def attempts(self, newest: int | None = None) -> list[AttemptRecord]:
        """All attempts in order, or just the newest few."""
        names = set(files.names_in(f"{self.folder}/attempts"))
        numbers = _attempt_numbers(names)
        return [self._attempt(number, names) for number in (numbers if newest is None else numbers[-newest:])]

    def attempt(self, number: int) -> AttemptRecord:
        """Return one attempt."""
        return self._attempt(number, set(files.names_in(self.folder / "attempts")))

    def _attempt(self, number: int, names: set[str]) -> AttemptRecord:
        """Return one attempt; names: what is in the folder, so that an end that is not there is not looked for."""
        folder, end = f"{self.folder}/attempts", f"{number:04d}.end.json"
        return AttemptRecord(
            number=number,
            claim=files.read_record(f"{folder}/{number:04d}.json") or {},
            end=files.read_record(f"{folder}/{end}") if end in names else None,
        )

    def open_attempts(self) -> list[AttemptRecord]:
        """Attempts that have not ended with a word, in order; the others' files are not read."""
        names = set(files.names_in(self.folder / "attempts"))
        return [
            self._attempt(number, names) for number in _attempt_numbers(names) if f"{number:04d}.end.json" not in names
        ]

    def num_attempts(self) -> int:
        """Attempts so far, counted without reading them."""
        return len(_attempt_numbers(files.names_in(f"{self.folder}/attempts")))

    def newest_attempt(self) -> int:
        """Number of the newest attempt; 0 where there is none."""
        return max(_attempt_numbers(files.names_in(self.folder / "attempts")), default=0)

    def claim_attempt(self, claim: dict[str, Any]) -> Attempt:
        """Claim the next attempt number; whoever held a lower one may not commit from now on."""
        host = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        while True:
            number = self.newest_attempt() + 1
            path = self.folder / "attempts" / f"{number:04d}.json"
            if files.create_exclusive(path, files.encode(host | claim)):
                return Attempt(self, number)

    def commits(self) -> list[Commit]:
        """Committed checkpoints, oldest first: by step, then by attempt."""
        folder = f"{self.folder}/checkpoints"
        matches = [(name, _COMMIT.fullmatch(name)) for name in files.names_in(folder)]
        found = [
            Commit(step=int(match[1]), attempt=int(match[2]), path=Path(folder, name))
            for name, match in matches
            if match
        ]
        return sorted(found)

    def record_code_difference(self, number: int, text: str) -> Path:
        """Record how the code of a launch differs from that of the launch before; return the file."""
        path = self.folder / "intent" / f"{number:04d}.code.diff"
        files.write_atomic(path, secret_words.redacted(text).encode())
        return path

    def prepared(self) -> bool:
        """Return whether an array's first step is done, without which no task can start."""
        return (self.folder / "prepared.json").exists()

    def mark_prepared(self) -> None:
        """Record an array's first step as done."""
        files.create_exclusive(self.folder / "prepared.json", files.encode({}))

    def task_file(self, task: int) -> Path:
        """Where an array run records a task as finished."""
        return self.folder / "tasks" / f"{task:05d}.json"

    def task_record(self, task: int) -> dict[str, Any] | None:
        """Return the record of one task of an array run, None where it is not finished."""
        return files.read_record(self.task_file(task))

    def task_records(self) -> dict[int, dict[str, Any]]:
        """Records of the finished tasks of an array run, by task."""
        return {task: self.task_record(task) or {} for task in sorted(self.tasks_done())}

    def tasks_done(self) -> set[int]:
        """Finished tasks of an array run, without reading their records."""
        return {int(name.removesuffix(".json")) for name in files.names_in(self.folder / "tasks")}

    def finish_task(self, task: int, record: dict[str, Any]) -> None:
        """Record a task as finished; the first record stays."""
        files.create_exclusive(self.task_file(task), files.encode(record))

    def forget_tasks(self, tasks: Iterable[int], *, preparation: bool = False) -> None:
        """Remove the records of tasks, with `preparation` also that of the first step: a launch does them again.

        DONE goes last: killed in between, the run still counts as done and nothing joins records that are not whole.
        """
        gone = [self.folder / "prepared.json"] if preparation else []
        for file in [*gone, *(self.task_file(task) for task in sorted(set(tasks))), self.folder / "DONE"]:
            if file.exists():
                file.unlink()
                files.fsync_folder(file.parent)

    def stop_requested(self) -> bool:
        """Return whether somebody asked the run to stop."""
        return (self.folder / "STOP").exists()

    def request_stop(self) -> None:
        """Ask the run to save and stop."""
        files.write_atomic(self.folder / "STOP", b"")

    def clear_stop(self) -> None:
        """Take the request back; a new launch does."""
        (self.folder / "STOP").unlink(missing_ok=True)

    def save_requested(self) -> bool:
        """Return whether somebody asked the run for a checkpoint now."""
        return (self.folder / "SAVE").exists()

    def request_save(self) -> None:
        """Ask the run for a checkpoint now."""
        files.write_atomic(self.folder / "SAVE", b"")

    def clear_save(self) -> None:
        """Take the request back; a new checkpoint does."""
        (self.folder / "SAVE").unlink(missing_ok=True)

    def beat(self, attempt: int) -> dict[str, Any] | None:
        """Return what an attempt said last, None where it said nothing yet or is saying it just now."""
        try:
            return files.read_record(f"{self.folder}/beat.{attempt:04d}")
        except ValueError:
            return None

    def events(self) -> list[dict[str, Any]]:
        """Events of all attempts, by attempt, whose number is added as `attempt`."""
        found = []
        for name in files.names_in(self.folder):
            if match := re.fullmatch(r"events\.(\d+)\.jsonl", name):
                found += [record | {"attempt": int(match[1])} for record in read_jsonl(self.folder / name)]
        return found

    def metrics(self) -> list[dict[str, Any]]:
        """Training metrics of all attempts by step; where a step was done twice, the later attempt's record counts."""
        merged: dict[tuple[int, str], dict[str, Any]] = {}
        for name in files.names_in(self.folder):
            if name.startswith("metrics.") and name.endswith(".jsonl"):
                with json_file.as_written_here(self.folder / name, "move the file away"):
                    for record in read_jsonl(self.folder / name):
                        merged[record["step"], record.get("split", "train")] = record
        with json_file.as_written_here(self.folder / "metrics.*.jsonl", "move the one away whose steps are no numbers"):
            return [merged[key] for key in sorted(merged)]

    def latest_training_metrics(self) -> dict[str, Any] | None:
        """Return the newest training record, found from the end of the newest file: cheap however long the run is."""
        names = [name for name in files.names_in(self.folder) if name.startswith("metrics.")]
        if not names:
            return None
        with (self.folder / names[-1]).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            # The first line may be cut by the seek, and the last not whole yet.
            lines = file.read().split(b"\n")[:-1]
        try:
            for line in reversed(lines):
                if line.startswith(b"{") and (record := json.loads(line))["split"] == "train":
                    return record
        except (ValueError, KeyError, RecursionError) as error:
            raise ValueError(f"{self.folder / names[-1]} is damaged: {error!r}") from error
        return None


class Attempt:
    """A claimed attempt: the only writer of its own files."""

    def __init__(self, run: Run, number: int) -> None:
        self.run = run
        self.number = number

    def superseded(self) -> bool:
        """Return whether a newer attempt exists."""
        return self.run.newest_attempt() > self.number

    def stage(self, parent: Path) -> Path:
        """Return a new hidden folder in `parent` to write into what will be published there."""
        return files.staging_folder(parent, f"{self.run.spec.id}-{self.number:04d}")

    def stage_commit(self) -> Path:
        """Return a new hidden folder to write a checkpoint into."""
        return self.stage(self.run.folder / "checkpoints")

    def remove_leftovers(self, parent: Path, *, group: int = 0) -> None:
        """Remove what attempts of this run that were killed had staged in `parent`.

        group: this attempt's array group, of which it is the only living one; attempts of other groups that have not
        ended may be at work.
        """
        at_work = {attempt.number for attempt in self.run.open_attempts() if attempt.claim.get("group", 0) != group}
        of_run = f"{self.run.spec.id}-"
        kept = tuple(f".staging-{of_run}{number:04d}-" for number in {*at_work, self.number})
        for folder in files.staged_by(parent, of_run):
            if not folder.name.startswith(kept):
                shutil.rmtree(folder, ignore_errors=True)

    def commit(self, step: int, staged: Path) -> Commit:
        """Publish a checkpoint. Raises Superseded where a newer attempt owns the run."""
        if self.superseded():
            shutil.rmtree(staged, ignore_errors=True)
            raise Superseded(f"attempt {self.number} of {self.run.name}: a newer attempt owns the run")
        final = self.run.folder / "checkpoints" / f"step-{step:08d}.a{self.number:04d}"
        files.publish(staged, final)
        return Commit(step=step, attempt=self.number, path=final)

    def append(self, kind: Literal["metrics", "events"], record: dict[str, Any]) -> None:
        """Append a record to this attempt's metrics or events; its time is now unless it has one."""
        # What went wrong may quote an address or a command line.
        told = secret_words.redacted_record(record) if kind == "events" else record
        line = json.dumps({"time": time.time()} | told, sort_keys=True)
        with (self.run.folder / f"{kind}.{self.number:04d}.jsonl").open("a") as file:
            file.write(line + "\n")

    def beat(self, status: dict[str, Any]) -> None:
        """Tell watchers that the attempt lives and how far it is."""
        (self.run.folder / f"beat.{self.number:04d}").write_text(json.dumps(status | {"time": time.time()}))

    def end(self, kind: EndKind, **details: Any) -> None:
        """Record how the attempt ended; the first record stays."""
        path = self.run.folder / "attempts" / f"{self.number:04d}.end.json"
        told = {"kind": kind, "time": time.time()} | secret_words.redacted_record(details)
        files.create_exclusive(path, files.encode(told))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Records of a JSON-lines file; a last line that is not whole yet is left out. ValueError names a damaged line."""
    records = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number} is damaged: {error}") from error
                if not isinstance(record, dict):
                    raise ValueError(f"{path}, line {number} is no record")
                records.append(record)
    return records


def created_time(folder: Path | str) -> float | None:
    """Return when a run was created; None where the folder is no run's."""
    try:
        return os.stat(f"{folder}/run.json").st_mtime  # noqa: PTH116 - asked of every run of a registry
    except (FileNotFoundError, NotADirectoryError):
        return None


def _attempt_numbers(names: Iterable[str]) -> list[int]:
    return sorted(int(match[1]) for name in names if (match := _CLAIM.fullmatch(name)))


def _words(value: Any) -> str:
    """Return a value as the command line takes it."""
    return " ".join(shlex.quote(str(word)) for word in (value if isinstance(value, list) else [value]))
