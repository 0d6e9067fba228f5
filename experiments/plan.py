"""A plan: a run whose identity is not known yet, because its parents, whose digests enter it, are not done yet.

    $DALLE2_VIDEO_HOME/plans/<stage>/<recipe>-<planid>/
    plan.json              immutable: stage, recipe, config, and what leads to each ancestor (`Link`)
    intent/0001.json       launches, as a run has them; 0001.end.json: what the job of this launch did about the plan

A plan names its ancestors by what they are made from, not by what they are: as soon as an ancestor's own parents are
done its identity can be computed, and the registry says whether it is planned, at work, failed or done. So a plan never
has to be changed when another plan becomes a run, and the same command leads to the same plan at any time.
"""

from __future__ import annotations

import functools
import getpass
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dalle2_video import json_file
from experiments import files, identity
from experiments.identity import Parent
from experiments.intents import Launched
from experiments.run import RunSpec

FOLDER = "plans"
TEACHER = "teacher"
"""Role of the parent that a student learns from: a run of the student's own stage, which no other role can be."""
EndKind = Literal["became", "failed"]


@dataclass(frozen=True, kw_only=True)
class Link:
    """What leads to one stage's run: a run that is known, or a config on top of other links."""

    stage: str
    run: str = ""
    """Id of the run where it is known."""
    config: dict[str, Any] = field(default_factory=dict)
    """What enters the identity: `identity.without_defaults` of the recipe's parts."""
    parents: tuple[str, ...] = ()
    """Names of its parents' links, ancestors first; each is there too."""


Lineage = Mapping[str, Link]
"""Links by name, ancestors first. A link's name is its stage; of a student's teacher `teacher_of` the student's."""


@dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """The immutable description of a plan, as in plan.json."""

    stage: str
    recipe: str
    id: str
    config: dict[str, Any]
    """The full config that the run will have."""
    lineage: Lineage
    """Of the stage itself and all its ancestors."""
    inputs: dict[str, str] = field(default_factory=dict)
    schema: int = identity.SCHEMA
    creator: str = ""
    created: float = 0.0


def teacher_of(name: str) -> str:
    """Name of the link to the teacher of a link: `decoder.teacher`, of a teacher's own `decoder.teacher.teacher`."""
    return f"{name}.{TEACHER}"


def role_of(name: str) -> str:
    """Role that the run of a link has among its child's parents: its stage, or `TEACHER`."""
    return name.rpartition(".")[2]


def plan_id(lineage: Lineage, stage: str) -> str:
    """Identity of the plan of a stage: that of everything which leads to it."""
    return _promise(lineage, stage)[: identity.ID_LENGTH]


def _promise(lineage: Lineage, name: str) -> str:
    link = lineage[name]
    if link.run:
        return identity.digest({"stage": link.stage, "run": link.run})
    return identity.digest(
        {
            "schema": identity.SCHEMA,
            "stage": link.stage,
            "config": link.config,
            "parents": {role_of(parent): _promise(lineage, parent) for parent in link.parents},
        }
    )


def part_of(lineage: Lineage, stage: str) -> dict[str, Link]:
    """Return the links that lead to a stage, its own last."""
    needed: set[str] = set()
    waiting = [stage]
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting += lineage[name].parents
    return {name: link for name, link in lineage.items() if name in needed}


def run_id(link: Link, parents: Mapping[str, Parent]) -> str:
    """Identity of a link's run, now that its parents are done; parents: by the names of their links."""
    if link.run:
        return link.run
    pinned = {role_of(name): parents[name] for name in link.parents}
    return identity.run_id(stage=link.stage, config=link.config, source=None, parents=pinned)


def run_spec(plan: PlanSpec, parents: Mapping[str, Parent]) -> RunSpec:
    """Return the run that a plan becomes; parents: by the names of their links."""
    link = plan.lineage[plan.stage]
    return RunSpec(
        stage=plan.stage,
        recipe=plan.recipe,
        id=run_id(link, parents),
        config=plan.config,
        source=None,
        parents={role_of(name): parents[name] for name in link.parents},
        inputs=plan.inputs,
    )


class Plan(Launched):
    """One plan's folder."""

    @functools.cached_property
    def spec(self) -> PlanSpec:
        """The immutable description."""
        stored = files.read_record(self.folder / "plan.json")
        if stored is None:
            raise ValueError(f"{self.folder} is no plan: it has no plan.json")
        with json_file.as_written_here(self.folder / "plan.json", "move the folder away"):
            links = {
                name: Link(**link | {"parents": tuple(link["parents"])}) for name, link in stored.pop("lineage").items()
            }
            # JSON's objects are sorted by name; ancestors come first in whatever order leads there.
            return PlanSpec(**stored, lineage=_ordered(links))

    @property
    def home(self) -> Path:
        """The registry's folder."""
        return self.folder.parents[2]

    def end_of(self, intent: int) -> dict[str, Any] | None:
        """Return what the job of a launch did about the plan, None before it did anything."""
        return files.read_record(self._end_file(intent))

    def end(self, intent: int, kind: EndKind, **details: Any) -> None:
        """Record what the job of a launch did: the run it became, or why it could not become one."""
        files.write_atomic(self._end_file(intent), files.encode({"kind": kind, "time": time.time()} | details))

    def _end_file(self, intent: int) -> Path:
        return self.folder / "intent" / f"{intent:04d}.end.json"


def create(home: Path, spec: PlanSpec) -> Plan:
    """Create the plan, or open the one that has this identity."""
    found = find(home, spec.stage, spec.id)
    if found is not None:
        return found
    folder = home / FOLDER / spec.stage / f"{spec.recipe}-{spec.id}"
    staged = files.staging_folder(folder.parent)
    try:
        made = {"creator": f"{_user()}@{socket.gethostname()}", "created": time.time()}
        (staged / "plan.json").write_bytes(files.encode(asdict(spec) | made))
        for name in ("intent", "logs"):
            (staged / name).mkdir()
        try:
            files.publish(staged, folder)
        except OSError:
            if not folder.exists():  # another launcher was quicker: the same id is the same plan
                raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Plan(folder)


def find(home: Path, stage: str, identity: str) -> Plan | None:
    """Return the plan of this identity, None where there is none. The recipe's name is no part of it."""
    folder = home / FOLDER / stage
    there = [name for name in files.names_in(folder) if name.endswith(f"-{identity}")]
    return Plan(folder / there[0]) if there else None


def plans(home: Path, stage: str | None = None) -> Iterator[Plan]:
    """Yield the plans, of one stage or of all."""
    for name in [stage] if stage else files.names_in(home / FOLDER):
        for folder in files.names_in(home / FOLDER / name):
            yield Plan(home / FOLDER / name / folder)


def _ordered(links: Mapping[str, Link]) -> dict[str, Link]:
    """Return links so that each comes after its parents. Raises LookupError where a parent is not there."""
    found: dict[str, Link] = {}
    while len(found) < len(links):
        ready = [name for name in sorted(links) if name not in found and found.keys() >= set(links[name].parents)]
        if not ready:
            raise LookupError(f"links that lead nowhere: {sorted(links.keys() - found.keys())}")
        found |= {name: links[name] for name in ready}
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container a user may have a number and no name
        return "somebody"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a stage of a lineage stands: a run, or what is planned of one."""

    stage: str
    name: str
    """`clip/tiny-0123456789`; of what is no run yet its stage."""
    state: Literal["done", "alive", "ended", "unknown"]
    """ended: nothing works on it and nothing will by itself; unknown: the queue did not answer."""
    pin: Parent | None = None
    """The finished run."""
    made_from: Mapping[str, Parent] = field(default_factory=dict)
    """What the finished run pinned itself."""
    jobs: tuple[str, ...] = ()
    """Slurm jobs at work on it; empty while a launcher is about to submit."""
    planned: bool = False
    """Alive as a plan, whose job has yet to begin."""
    attempted: bool = True
    """False: neither a run nor a plan was ever launched."""
    reason: str = ""
    """Why it ended or is not known, as a sentence that names what is to be mended: itself, or an ancestor. Of one that
    is alive: why no job can wait for it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of a plan."""

    action: Literal["go", "wait", "ask", "fail"]
    """go: all parents are done; wait: for jobs; ask: again, the queue did not answer; fail: for a reason."""
    jobs: tuple[str, ...] = ()
    reason: str = ""


def verdict(parents: Sequence[Standing]) -> Verdict:
    """Decide what becomes of a plan, by its parents, ancestors first: so the first that ended names the root."""
    for parent in parents:
        if parent.state == "ended":
            return Verdict(action="fail", reason=parent.reason)
    for parent in parents:
        if parent.state == "unknown":
            return Verdict(action="ask", reason=parent.reason)
    waited_for = [parent for parent in parents if parent.state == "alive"]
    for parent in waited_for:
        if parent.reason:
            return Verdict(action="fail", reason=parent.reason)
    if waited_for:
        jobs = {job: None for parent in waited_for for job in parent.jobs}
        return Verdict(action="wait", jobs=tuple(jobs), reason=", ".join(parent.name for parent in waited_for))
    pins = {parent.stage: parent.pin for parent in parents}
    for parent in parents:
        for stage, pinned in parent.made_from.items():
            if stage in pins and pins[stage] != pinned:
                mine = pins[stage]
                assert mine is not None
                return Verdict(
                    action="fail",
                    reason=f"{parent.name} was made from {stage} {pinned.id} ({pinned.digest[:8]}), the others from "
                    f"{stage} {mine.id} ({mine.digest[:8]})",
                )
    return Verdict(action="go")
