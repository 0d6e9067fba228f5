"""The shared flow of all launchers: command line -> recipe -> identity -> registry -> decision -> executor.

error: ...        exit code 2: the user can mend it; nothing was started and nothing half-made is left
run failed        exit code 1: the reason and the log are printed
Ctrl-C            the run is asked to save and stop (on this machine), exit code 130; the same command goes on
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rich.markup import escape

from experiments import code_snapshot, plan, reconcile
from experiments.registry import Registry, default_home
from experiments.run import Run
from launch import array_progress, estimate, judged, plans
from launch.arguments import Arguments, parse
from launch.console import Console, leave_closed_pipe, print_error
from launch.progress import follow
from launch.proposal import Proposal, check_batch, check_students_teacher, create, order, propose
from launch.stages import STAGES, StageInfo
from launch.start import REPOSITORY, job_name, start
from slurm import executor, run_state
from slurm.executor import Submission, Work

USER_ERROR = 2
INTERRUPTED = 130
console = Console(highlight=False, soft_wrap=True)


def main(stage: str, arguments: Sequence[str] | None = None) -> int:
    """Launch a stage; return the exit code."""
    return guarded(
        lambda: launch(STAGES[stage], parse(STAGES[stage], sys.argv[1:] if arguments is None else arguments))
    )


def guarded(work: Callable[[], int]) -> int:
    """Return a launcher's exit code; what its user can mend is an error message and exit code 2."""
    try:
        return work()
    except ValueError as error:
        print_error(error)
        return USER_ERROR
    except BrokenPipeError:
        return leave_closed_pipe()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        print_error(f"{error}; free space or mend the permission, then run the same command again")
        return USER_ERROR


def launch(info: StageInfo, arguments: Arguments) -> int:
    """Launch a stage as a parsed command line asks; return the exit code."""
    registry = Registry(default_home())
    check_batch(info, arguments)
    if arguments.options.dump_deepspeed_config:
        print(json.dumps(estimate.deepspeed_config(info, arguments), indent=1))
        return 0
    if arguments.after and arguments.of:
        raise ValueError(f"--after --of {arguments.of}: a run that is named must be done; leave --after out")
    if arguments.after:
        return _launch_behind(registry, info, arguments)
    try:
        proposal = _proposal(registry, info, arguments)
    except ValueError as error:
        if not arguments.options.dry_run:
            raise
        console.print(f"would not start: {error}", markup=False)
        estimate.show(console, info, arguments)
        return 0
    if arguments.options.dry_run:
        return _dry_run(registry, info, arguments, proposal)
    registry.check_writable()
    folder = registry.folder_of(proposal.spec)
    try:
        run = create(registry, proposal, lambda text: console.print(f"[yellow]note[/yellow]: {escape(text)}"))
        return _start(run, info, arguments, proposal)
    except (FileNotFoundError, ValueError) as error:
        if (folder / "run.json").exists():
            raise
        name = f"{info.name}/{folder.name}"
        raise ValueError(f"{name} was removed by somebody meanwhile; run the same command again") from error


def _proposal(registry: Registry, info: StageInfo, arguments: Arguments) -> Proposal:
    if not arguments.of:
        return propose(registry, info, arguments)
    return judged.propose(registry, arguments, registry.find(arguments.of))


def _launch_behind(registry: Registry, info: StageInfo, arguments: Arguments) -> int:
    """Queue a stage behind parents that are not done yet; return the exit code."""
    if arguments.placement.resolved_cluster() == "local":
        raise ValueError(
            "--after needs Slurm's queue; on this machine launch/pipeline.py runs what is missing, stage after stage"
        )
    found = {role: registry.find(given, info.roles[role]) for role, given in arguments.parents.items()}
    check_students_teacher(info, arguments.recipe, found.get(plan.TEACHER), arguments.parents)
    named = {plan.teacher_of(info.name) if role == plan.TEACHER else role: run.id for role, run in found.items()}
    store = named.get("preprocess") or getattr(plans.store_run(registry, arguments.recipe), "id", None)
    if store is None:
        raise ValueError(
            f"no preprocess run matches this recipe in {registry.home}; make one: {arguments.command('preprocess')}"
        )
    links = plans.chain_lineage(arguments.recipe, (info.name,), store, named)
    if arguments.options.dry_run:
        words, verdict = plans.would(registry, info, links)
        console.print(escape(words))
        if verdict.action != "go":
            estimate.show(console, info, arguments)
            return 0
        return launch(info, replace(arguments, after=False))
    registry.check_writable()
    brought = plans.bring(registry, info, arguments, links, lambda text: console.print(escape(text)))
    console.print(escape(brought.words()))
    console.print(f"the same command goes on from here: {arguments.typed}")
    return 0


def _start(run: Run, info: StageInfo, arguments: Arguments, proposal: Proposal) -> int:
    """Start the run, or attach to it; return the exit code."""
    asked = order(info, arguments, tasks=proposal.num_tasks, clips=proposal.num_clips)
    started = start(run, asked, lambda text: console.print(escape(text)))
    if started.decision.action == "finished":
        return _report_done(run)
    if started.submission is None:
        assert started.intent is not None
        job = started.intent.job
        console.print(f"[bold]{run.name}[/bold]: {started.decision.reason}")
        console.print(f"  {job_words(job) if job else 'about to be submitted'}; logs: {run.folder / 'logs'}")
    else:
        _tell(run, started.submission, len(run.intents()[-1].request["groups"]), training=info.training)
    local = arguments.placement.resolved_cluster() == "local"
    if arguments.options.wait == "no" or (arguments.options.wait == "auto" and not local):
        console.print(f"follow it: {arguments.typed} --wait yes")
        return 0
    return _wait(run, stop_on_interrupt=local)


def _tell(run: Run, submission: Submission, groups: int, *, training: bool) -> None:
    what = job_words(submission.record)
    if not training:
        what += f", {submission.groups} group{'s' * (submission.groups != 1)} of tasks"
    console.print(f"  {what}; logs: {run.folder / 'logs'}")
    if submission.refused:
        print(
            f"caution: sbatch refused {groups - submission.groups} of {groups} groups: {submission.refused}\n"
            "The others run; once they have ended, the same command submits what is missing (fewer jobs: --tasks)",
            file=sys.stderr,
        )


def job_words(job: dict[str, Any]) -> str:
    """Return what a job record names, for people."""
    if job["executor"] == "slurm":
        return f"Slurm job{'s' * (len(job['ids']) > 1)} {', '.join(job['ids'])}"
    return f"process {job['pid']}"


def _wait(run: Run, *, stop_on_interrupt: bool) -> int:
    def alive() -> bool:
        return run_state.decision(run, run.intents(), retry=False).action == "attach"

    try:
        follow(console, run, alive)
    except KeyboardInterrupt:
        if stop_on_interrupt:
            run.request_stop()
            console.print("\nasked to save and stop; the same command goes on from there")
        return INTERRUPTED
    if run.done() is not None:
        return _report_done(run)
    if not run.intents():
        raise FileNotFoundError(run.folder)
    intent = run.intents()[-1]
    silent = {"kind": "error", "message": "it ended without a word"}
    ours = [attempt for attempt in run.attempts() if attempt.claim["intent"] == intent.number]
    ends = [attempt.end or silent for attempt in reconcile.newest_of_groups(ours)]
    failures = [end for end in ends if end["kind"] not in reconcile.FREE_ENDS]
    if not failures and (run.stop_requested() or any(end["kind"] == "stopped" for end in ends)):
        console.print("stopped; the same command goes on from there")
        return 0
    if ends and not failures and not intent.request["training"]:
        tasks = array_progress.num_tasks(intent)
        left = f"{tasks - len(run.tasks_done())} of {tasks} tasks are left; the same command goes on with them"
        failures = [{"kind": "error", "message": left}]
    # Of an array's groups the one that tells what to mend.
    ends = failures or ends or [silent]
    last = next((end for end in ends if end.get("exit_code") == USER_ERROR), ends[-1])
    print_error(f"{run.name}: {last.get('message', last['kind'])}\n(logs: {run.folder / 'logs'})")
    return USER_ERROR if last.get("exit_code") == USER_ERROR else 1


def _report_done(run: Run) -> int:
    console.print(f"[bold]{run.name}[/bold]: DONE{escape(done_words(run))}")
    return 0


def done_words(run: Run) -> str:
    """Return what came of a finished run, and where it lies."""
    record = run.done()
    assert record is not None
    facts = ", ".join(f"{name} {record[name]}" for name in sorted(record) if name not in ("digest", "time", "folder"))
    return f"{f' ({facts})' if facts else ''}\n  {record.get('folder', run.folder)}"


def _dry_run(registry: Registry, info: StageInfo, arguments: Arguments, proposal: Proposal) -> int:
    folder = registry.folder_of(proposal.spec)
    tasks_done = 0
    if (folder / "run.json").exists():
        run = Run(folder)
        try:
            run.check_drift(proposal.spec.config)
        except ValueError as error:
            console.print(f"would not start: {error}", markup=False)
            return 0
        decision = run_state.decision(run, run.intents(), retry=arguments.options.retry)
        tasks_done = len(run.tasks_done())
        console.print(f"[bold]{run.name}[/bold]: {decision.action}: {decision.reason}")
    else:
        console.print(f"[bold]{info.name}/{folder.name}[/bold]: launch: a new run")
    for role, parent in proposal.spec.parents.items():
        console.print(f"  parent {role}: {parent.id}, digest {parent.digest[:16]}")
    estimate.show(console, info, arguments)
    if info.name == "preprocess":
        from launch import preprocess_estimate  # loads the decoder, which no other launcher needs

        preprocess_estimate.show(console, arguments, registry.home, tasks_done)
    if arguments.placement.resolved_cluster() == "slurm":
        work = Work(
            run_folder=folder,
            name=job_name(folder),
            intent=1,
            training=info.training,
            placement=arguments.placement,
            code=code_snapshot.folder(registry.home, code_snapshot.version(REPOSITORY)),
            groups=max(1, min(arguments.array.tasks, proposal.num_tasks - tasks_done)),
            parallel=arguments.array.parallel,
        )
        console.print(executor.sbatch_text(work), markup=False)
    return 0
