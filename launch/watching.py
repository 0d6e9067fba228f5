"""`launch/evaluate.py --watch ID`, `launch/sample.py --watch ID`: a small job of its own for each new checkpoint.

Every evaluation or sampling is a run of the registry that pins the checkpoint by step and digest, so the watcher keeps
nothing in mind: stopped and started again, it finds what is done. Of several new checkpoints the newest is taken, one
at a time. When the training is done, the finished run is judged or sampled, and the watcher ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from experiments import judged, kept_checkpoint
from experiments.registry import Registry, default_home
from experiments.run import Commit, Run
from launch import judged as judging
from launch import previews, submit
from launch.arguments import Arguments, parse
from launch.console import Console
from launch.proposal import Proposal, create, order
from launch.stages import STAGES
from launch.start import start
from slurm import run_state

POLL_S = 2.0
Propose = Callable[[Registry, Arguments, Run, Commit | None], Proposal]
PROPOSE: dict[str, Propose] = {"evaluate": judging.propose, "sample": previews.propose}
"""By stage: the run that it makes of a checkpoint, or of the finished run."""
WATCHED: dict[str, tuple[str, ...]] = {
    "evaluate": tuple(stage for stage in judged.JUDGED if STAGES[stage].training),
    "sample": previews.PREVIEWED,
}
"""By stage: the trainings whose checkpoints it takes."""
console = Console(highlight=False, soft_wrap=True)


def main(stage: str, arguments: Sequence[str] | None = None) -> int:
    """Launch a stage that can watch a training; return the exit code."""
    typed = sys.argv[1:] if arguments is None else arguments
    return submit.guarded(lambda: _run(stage, parse(STAGES[stage], typed)))


def _run(stage: str, arguments: Arguments) -> int:
    if not arguments.watch:
        return submit.launch(STAGES[stage], arguments)
    if arguments.options.dry_run:
        raise ValueError(f"--watch has no dry run; launch/{stage}.py --dry-run shows what is made of a finished run")
    if arguments.after:
        raise ValueError(f"--after --watch {arguments.watch}: a training is watched as it goes on; leave --after out")
    try:
        return watch(Registry(default_home()), stage, arguments)
    except KeyboardInterrupt:
        return submit.INTERRUPTED


def watch(registry: Registry, stage: str, arguments: Arguments) -> int:
    """Evaluate or sample until the run is done; return 0, or 1 where one of these failed."""
    target = registry.find(arguments.watch)
    if target.stage not in WATCHED[stage]:
        raise ValueError(f"--watch {target.name}: {stage} takes checkpoints of {', '.join(WATCHED[stage])} runs")
    registry.check_writable()
    failed, seen, told = False, -1, ""
    while True:
        # In this order: a run that is found done has no checkpoint that comes later.
        done, commits = target.is_done(), target.commits()
        if done:
            return int(not _made(registry, stage, arguments, target, None) or failed)
        fresh = [commit for commit in commits if commit.step > seen and not _is_last(target, commit)]
        if fresh:
            seen = fresh[-1].step
            try:
                failed |= not _made(registry, stage, arguments, target, fresh[-1])
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


def _made(registry: Registry, stage: str, arguments: Arguments, target: Run, commit: Commit | None) -> bool:
    """Evaluate or sample a checkpoint, or the finished run, and wait for it; return whether it was done.

    Raises FileNotFoundError where the checkpoint is gone.
    """
    proposal = PROPOSE[stage](registry, arguments, target, commit)
    where = "finished" if commit is None else f"step {commit.step}"
    run = _begun(registry, arguments, proposal, commit)
    try:
        while not run.is_done() and run_state.standing(run).decision.action in ("attach", "unknown"):
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        if arguments.placement.resolved_cluster() == "local":
            run.request_stop()
        raise
    if not run.is_done():
        end = next((one.end for one in reversed(run.attempts()) if one.end), None) or {}
        reason = end.get("message", "it ended without a word")
        console.print(f"{where}: {run.name} failed: {reason}; logs: {run.folder / 'logs'}", markup=False)
        return False
    kept_checkpoint.release(run)
    console.print(f"{where}: {run.name}{submit.done_words(run)}", markup=False)
    return True


def _begun(registry: Registry, arguments: Arguments, proposal: Proposal, commit: Commit | None) -> Run:
    """Make the run and start it, or attach to it."""
    run = create(registry, proposal, lambda _: None)
    if commit is not None and not run.is_done():
        kept_checkpoint.keep(run, commit)
    asked = order(STAGES[run.stage], arguments, tasks=proposal.num_tasks, clips=proposal.num_clips)
    start(run, asked, lambda text: console.print(text, markup=False))
    return run
