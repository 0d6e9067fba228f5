"""`tools/runs.py lineage`: the tree from the store to the samples in which a run stands.

A run hangs below each parent that none of its other parents was made from; the second time only its name is shown.
"""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from experiments.identity import Parent
from experiments.registry import Registry
from experiments.run import Run
from launch.stages import STAGES
from slurm import run_state
from slurm.run_state import Standing

DIGEST_LENGTH = 10


def show(console: Console, registry: Registry, run: Run) -> int:
    """Print the tree of a run's ancestors and descendants."""
    runs = {one.id: one for one in registry.runs()}
    family = related(runs, run.id)
    children: dict[str, list[str]] = defaultdict(list)
    for one in family:
        for parent in direct(runs, one):
            children[parent].append(one)
    roots = [one for one in family if not runs[one].spec.parents] if family else []
    # A parent that was removed still is where its child comes from.
    roots += sorted({parent for one in family for parent in direct(runs, one) if parent not in runs})
    known = [runs[one] for one in family]
    standings = dict(zip(family, run_state.standings(known), strict=True))
    shown: set[str] = set()

    def add(tree: Tree, one: str) -> None:
        if one not in runs:
            node = tree.add(f"{one} [red](not in this registry)[/]")
        elif one in shown:
            tree.add(f"{escape(runs[one].name)} [dim](above)[/]")
            return
        else:
            node = tree.add(_label(runs, runs[one], standings[one], asked=one == run.id))
        shown.add(one)
        for child in sorted(children[one], key=lambda child: (_order(runs[child]), runs[child].created)):
            add(node, child)

    top = Tree(str(registry.home), hide_root=True)
    for root in roots:
        add(top, root)
    console.print(top, soft_wrap=True)
    return 0


def related(runs: dict[str, Run], asked: str) -> list[str]:
    """Return the run with its ancestors and descendants, by id."""
    above = _ancestors(runs, asked)
    return [one for one in runs if one == asked or one in above or asked in _ancestors(runs, one)]


def _ancestors(runs: dict[str, Run], one: str) -> set[str]:
    found: set[str] = set()
    todo = [one]
    while todo:
        current = todo.pop()
        fresh = {parent.id for parent in runs[current].spec.parents.values()} - found if current in runs else set()
        found |= fresh
        todo += fresh
    return found


def direct(runs: dict[str, Run], one: str) -> set[str]:
    """Return the parents that no other parent was made from."""
    parents = {parent.id for parent in runs[one].spec.parents.values()}
    return parents - {older for parent in parents for older in _ancestors(runs, parent)}


def _order(run: Run) -> int:
    return list(STAGES).index(run.stage)


def _label(runs: dict[str, Run], run: Run, standing: Standing, *, asked: bool) -> str:
    record = run.done()
    name = f"[bold reverse]{escape(run.name)}[/]" if asked else escape(run.name)
    digest = f" digest {record['digest'][:DIGEST_LENGTH]}" if record else ""
    return f"{name} {standing.state}{digest}{''.join(_broken(runs, parent) for parent in run.spec.parents.values())}"


def _broken(runs: dict[str, Run], pinned: Parent) -> str:
    """Tell where a parent is not any more what was pinned; a checkpoint was while the run went on."""
    if pinned.step is not None:
        return f" (of step {pinned.step})"
    record = runs[pinned.id].done() if pinned.id in runs else None
    if record is not None and record["digest"] == pinned.digest:
        return ""
    now = f"digest {record['digest'][:DIGEST_LENGTH]}" if record else "not finished" if pinned.id in runs else "gone"
    return f" [red](pinned {pinned.stage} {pinned.digest[:DIGEST_LENGTH]}, which is now {now})[/]"
