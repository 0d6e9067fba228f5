"""`launch/evaluate.py --watch ID`: each new checkpoint of a training is evaluated by a small job of its own.

Every evaluation is a run of the registry that pins the checkpoint by step and digest, so the watcher keeps nothing in
mind: stopped and started again, it finds what is done. Of several new checkpoints the newest is evaluated, one at a
time. When the training is done, the finished run is judged, and the watcher ends.
"""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape

from experiments import judged
from experiments.registry import Registry
from experiments.run import Commit, Run
from launch import judged as proposals
from launch.arguments import Arguments
from launch.proposal import Proposal, create, order
from launch.stages import STAGES
from launch.start import start
from slurm import run_state

POLL_S = 2.0
console = Console(highlight=False, soft_wrap=True)


def watch(registry: Registry, arguments: Arguments) -> int:
    """Evaluate until the run is done; return 0, or 1 where an evaluation failed."""
    target = registry.find(arguments.judged.watch)
    if not STAGES[target.stage].training or target.stage not in judged.JUDGED:
        trained = ", ".join(stage for stage in judged.JUDGED if STAGES[stage].training)
        raise ValueError(f"--watch {target.name}: checkpoints can be judged of {trained}; a finished run by --of ID")
    registry.check_writable()
    failed, seen, told = False, -1, ""
    while True:
        # In this order: a run that is found done has no checkpoint that comes later.
        done, commits = target.is_done(), target.commits()
        if done:
            return int(not _evaluated(registry, arguments, target, None) or failed)
        fresh = [commit for commit in commits if commit.step > seen and not _is_last(target, commit)]
        if fresh:
            seen = fresh[-1].step
            try:
                failed |= not _evaluated(registry, arguments, target, fresh[-1])
            except FileNotFoundError:
                console.print(f"step {seen}: its checkpoint was removed meanwhile", markup=False)
            continue
        standing = run_state.standing(target)
        words = f"{target.name}: {standing.state}; waiting for its next checkpoint"
        if words != told:
            console.print(words, markup=False)
            told = words
        time.sleep(POLL_S)


def _is_last(target: Run, commit: Commit) -> bool:
    """Tell whether a checkpoint is the training's last: the export that follows in seconds has the same weights."""
    beat = target.beat(target.newest_attempt()) or {}
    return commit.step >= beat.get("steps", float("inf"))


def _evaluated(registry: Registry, arguments: Arguments, target: Run, commit: Commit | None) -> bool:
    """Evaluate a checkpoint, or the finished run, and wait for it; return whether it came to figures.

    Raises FileNotFoundError where the checkpoint is gone.
    """
    proposal = proposals.propose(registry, arguments, target, commit)
    where = "finished" if commit is None else f"step {commit.step}"
    run = _begun(registry, arguments, proposal, commit)
    try:
        while not run.is_done() and run_state.standing(run).decision.action in ("attach", "unknown"):
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        if arguments.placement.resolved_cluster() == "local":
            run.request_stop()
        raise
    record = run.done()
    if record is None:
        end = next((one.end for one in reversed(run.attempts()) if one.end), None) or {}
        reason = end.get("message", "it ended without a word")
        console.print(f"{where}: {run.name} failed: {reason}; logs: {run.folder / 'logs'}", markup=False)
        return False
    judged.release(run)
    figures = [name for name in sorted(record) if isinstance(record[name], str) and name not in ("digest", "folder")]
    console.print(f"{where}: {run.name}: {escape(', '.join(f'{name} {record[name]}' for name in figures))}")
    return True


def _begun(registry: Registry, arguments: Arguments, proposal: Proposal, commit: Commit | None) -> Run:
    """Make the evaluation's run and start it, or attach to it."""
    run = create(registry, proposal, lambda _: None)
    if commit is not None and not run.is_done():
        judged.keep(run, commit)
    asked = order(STAGES[judged.STAGE], arguments, tasks=proposal.num_tasks, clips=proposal.num_clips)
    start(run, asked, lambda text: console.print(text, markup=False))
    return run
