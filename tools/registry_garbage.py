"""What of a registry nobody needs any more: superseded checkpoints, leftovers of the dead, runs that came to nothing.

Never the newest commit of a run (of an unfinished one the newest two), a milestone, an export, a run that another one
was built on, or anything of a run that is alive in the queue or cannot be asked about. What the queue says is asked
after the leftovers were listed, so that whoever starts meanwhile has made none of them. A whole run is removed behind
a claimed intent, as a launcher would start it: of a removal and a launch at the same moment one gives way.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import files, plan
from experiments.intents import Launched
from experiments.milestones import Milestones
from experiments.registry import Registry
from experiments.run import Commit, Run
from launch.stages import STAGES
from slurm import plan_state, run_state
from slurm.local import process_record
from slurm.run_state import Standing

DAY_S = 86400.0
KEPT_UNFINISHED, KEPT_DONE = 2, 1
_PLACES = ("", "attempts", "intent", "tasks", "checkpoints", "store", "samples", "evaluation", "logs")
"""Folders of a run in which files are made under a hidden name first."""
_STAGED = re.compile(r"\.staging-([0-9a-z]+)-\d+-[0-9a-f]{32}")
_REMOVED = re.compile(r"\.removed-[0-9a-f]{32}")
_UNOWNED = re.compile(r"\.staging--[0-9a-f]{32}|\.probe-[0-9a-f]{32}|\..+\.[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """Something that can go."""

    path: Path
    why: str
    bytes: int
    run: Run | None = None
    """Run that must not have been launched since; None where nobody can want it back."""
    intents: int = 0
    """Intents of the run when it was looked at."""
    whole: bool = False
    """The whole run."""


def find(registry: Registry, *, older_than_s: float = 0.0, whole_runs: bool = False) -> list[Garbage]:
    """Return what can go.

    older_than_s: leave alone every run in which something changed since; whole_runs: also runs that failed or were
    never launched and have neither a commit, nor a finished task, nor a child.
    """
    now = time.time()
    runs = list(registry.runs())
    leftovers = list(_hidden(registry, runs))
    standings = dict(zip((run.id for run in runs), run_state.standings(runs), strict=True))
    pinned = {parent.id for run in runs for parent in run.spec.parents.values()} if whole_runs else set()
    found = []
    for path in leftovers:
        age_s = now - _mtime(path)
        why = _leftover(path.name, standings, old=age_s >= DAY_S)
        if why is not None and age_s >= older_than_s:
            found.append(Garbage(path=path, why=why, bytes=size_of(path)))
    for run in runs:
        standing = standings[run.id]
        if not standing.idle or now - _changed(run) < older_than_s:
            continue
        seen = run.newest_intent()
        if whole_runs and run.id not in pinned and (reason := _came_to_nothing(run, standing, now)):
            found.append(
                Garbage(path=run.folder, why=reason, bytes=size_of(run.folder), run=run, intents=seen, whole=True)
            )
            continue
        kept = KEPT_DONE if standing.state == "done" else KEPT_UNFINISHED
        for commit in _superseded(run, kept):
            why = f"checkpoint, not among the newest {kept}" if kept > 1 else "checkpoint of a finished run"
            found.append(Garbage(path=commit.path, why=why, bytes=size_of(commit.path), run=run, intents=seen))
    found += _spent_plans(registry, runs, now - max(DAY_S, older_than_s), whole_runs=whole_runs)
    found += _unused_code(registry, runs, now, older_than_s)
    return found


def _spent_plans(registry: Registry, runs: Sequence[Run], before: float, *, whole_runs: bool) -> Iterator[Garbage]:
    """Yield plans that changed last before `before` and became a run that is done; with `whole_runs` also failed ones.

    A plan whose run is not done stays: the job of the run may be requeued, and is found by its plan.
    """
    unfinished = {run.name for run in runs if not run.is_done()}
    there = list(plan.plans(registry.home))
    for one, where in zip(there, plan_state.standings(there), strict=True):
        if max(_mtime(one.folder / name) for name in ("plan.json", "intent")) > before:
            continue
        if where.state == "became" and where.run not in unfinished:
            yield Garbage(path=one.folder, why="plan of a run that is done", bytes=size_of(one.folder))
        elif whole_runs and where.state in ("failed", "lost"):
            yield Garbage(path=one.folder, why="plan that came to nothing", bytes=size_of(one.folder))


def _unused_code(registry: Registry, runs: Sequence[Run], now: float, older_than_s: float) -> Iterator[Garbage]:
    """Yield copies of code that no launch names, because its run was removed or its launcher died before it claimed."""
    launched: Sequence[Launched] = [*runs, *plan.plans(registry.home)]
    used = {intent.request.get("code") for one in launched for intent in one.intents()}
    root = registry.home / "code"
    for name in files.names_in(root):
        # A launcher may be about to claim: it copies first.
        if name not in used and now - _mtime(root / name) >= max(DAY_S, older_than_s):
            yield Garbage(path=root / name, why="code that no launch names", bytes=size_of(root / name))


def remove(garbage: Garbage) -> bool:
    """Remove it, unless its run was launched meanwhile. Raises OSError where it may not be removed."""
    run = garbage.run
    if run is not None and run.newest_intent() != garbage.intents:
        return False
    if run is not None and garbage.whole and not _claimed(run, garbage.intents):
        return False
    if garbage.path.is_dir():
        files.remove_tree(garbage.path)
    else:
        garbage.path.unlink(missing_ok=True)
    return True


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    sizes = path.lstat().st_size if path.is_file() else 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                sizes += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - a store has many files
            except FileNotFoundError:
                continue  # its owner is at it too
    return sizes


def _hidden(registry: Registry, runs: Sequence[Run]) -> Iterator[Path]:
    stages = [registry.home / "runs" / stage for stage in files.names_in(registry.home / "runs")]
    for folder in (
        registry.home,
        registry.home / "code",
        *stages,
        *(run.folder / place for run in runs for place in _PLACES),
    ):
        try:
            with os.scandir(folder) as entries:
                yield from (folder / entry.name for entry in entries if entry.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            continue


def _leftover(name: str, standings: dict[str, Standing], *, old: bool) -> str | None:
    """Return why a hidden file or folder can go, or None; old: nobody can be at it any more."""
    if _REMOVED.fullmatch(name):
        return "left half removed"
    if match := _STAGED.fullmatch(name):
        owner = standings.get(match[1])
        # Of a finished array one group may still be about to find that another one has finished it.
        over = old if owner is None or owner.state == "done" else owner.idle
        return "staged by an attempt that is over" if over else None
    return "left by a process that was killed" if old and _UNOWNED.fullmatch(name) else None


def _superseded(run: Run, kept: int) -> list[Commit]:
    """Return the commits that are neither among the newest `kept` nor milestones.

    One that an attempt found damaged, and said so, counts for none: what it went on from instead stays.
    """
    commits = run.commits()
    if len(commits) <= kept:
        return []
    damage = "".join(event["message"] for event in run.events() if event["event"] == "damaged checkpoint")
    sound = [commit for commit in commits if commit.path.name not in damage] or commits
    number = run.newest_intent()
    every = run.intent(number).request.get("runtime", {}).get("keep_every", 0) if number else 0
    milestones = Milestones(run, every)
    return [commit for commit in commits[: commits.index(sound[-kept:][0])] if commit not in milestones]


def _came_to_nothing(run: Run, standing: Standing, now: float) -> str | None:
    """Return why a whole run can go, or None."""
    if run.commits() or run.tasks_done() or standing.state == "done":
        return None
    if standing.state in ("failed", "poisoned"):
        return f"{standing.state} without a commit"
    # Its launcher may be about to launch it.
    return "never launched" if not run.newest_intent() and now - run.created >= DAY_S else None


def _changed(run: Run) -> float:
    """Time of the last change of what lies in the run's folder."""
    return max(map(_mtime, [run.folder, *(run.folder / name for name in files.names_in(run.folder))]))


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:  # somebody else tidies up at the same time
        return time.time()


def _claimed(run: Run, intents: int) -> bool:
    """Claim the run as a launcher does; False where one was quicker."""
    last: dict[str, Any] = run.intent(intents).request if intents else {}
    empty = {"training": STAGES[run.stage].training, "num_tasks": 0, "world_size": 1, "runtime": {}, "placement": {}}
    request = empty | last | {"groups": [], "removal": True, "launcher": process_record(os.getpid())}
    if not run.claim_intent(intents + 1, request):
        return False
    return not (run.is_done() or run.commits() or run.tasks_done())
