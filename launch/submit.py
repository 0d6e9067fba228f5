"""The shared flow of all launchers: command line -> recipe -> identity -> registry -> decision -> executor.

error: ...        exit code 2: the user can mend it; nothing was started and nothing half-made is left
run failed        exit code 1: the reason and the log are printed
Ctrl-C            the run is asked to save and stop (on this machine), exit code 130; the same command goes on
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from dalle2_video.data_config import DataConfig
from experiments import code_snapshot, files, identity, reconcile
from experiments.identity import Parent
from experiments.registry import Registry, default_home
from experiments.run import Run, RunSpec
from launch import array_progress, estimate, parents
from launch.arguments import Arguments, parse, to_dict_or_value
from launch.progress import follow
from launch.stages import STAGES, StageInfo
from launch.start import Order, job_name, start
from slurm import executor, run_state
from slurm.executor import Submission, Work

USER_ERROR = 2
MANIFEST, NOTES = "manifest.json", "notes.json"
INTERRUPTED = 130
console = Console(highlight=False, soft_wrap=True)


def main(stage: str, arguments: Sequence[str] | None = None) -> int:
    """Launch a stage; return the exit code."""
    try:
        return _launch(STAGES[stage], parse(STAGES[stage], sys.argv[1:] if arguments is None else arguments))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        print(f"error: {error}; free space or mend the permission, then run the same command again", file=sys.stderr)
        return USER_ERROR


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A run as it would be created."""

    spec: RunSpec
    num_tasks: int
    """Tasks of an array; 0 for a training."""
    num_clips: int
    """Clips that the tasks share out; 0 where their work is not clips."""
    manifest: list[list[Any]] | None
    """Preprocessing: every clip as `ClipFile.to_row` has it."""
    notes: list[str]
    """Preprocessing: what was odd about the input."""


def _launch(info: StageInfo, arguments: Arguments) -> int:
    registry = Registry(default_home())
    if info.training:
        _check_batch(info, arguments)
    try:
        planned = _plan(registry, info, arguments)
    except ValueError as error:
        if not arguments.options.dry_run:
            raise
        console.print(f"would not start: {error}")
        estimate.show(console, info, arguments)
        return 0
    if arguments.options.dry_run:
        return _dry_run(registry, info, arguments, planned)
    registry.check_writable()
    run = registry.create(planned.spec)
    try:
        if planned.manifest is not None:
            for note in planned.notes:
                console.print(f"[yellow]note[/yellow]: {escape(note)}")
            files.create_exclusive(run.folder / NOTES, files.encode(planned.notes))
            files.create_exclusive(run.folder / MANIFEST, files.encode_rows(planned.manifest))
        return _start(run, info, arguments, planned)
    except (FileNotFoundError, ValueError) as error:
        if (run.folder / "run.json").exists():
            raise
        raise ValueError(f"{run.name} was removed by somebody meanwhile; run the same command again") from error


def _check_batch(info: StageInfo, arguments: Arguments) -> None:
    optim, placement = getattr(arguments.recipe, info.name).optim, arguments.placement
    for nodes in {placement.nodes, placement.min_nodes or placement.nodes}:
        micro, accumulation = arguments.runtime.accumulation(optim.batch_size, nodes * placement.ranks)
        if info.whole_batch and accumulation > 1:
            raise ValueError(
                f"--micro-batch {micro}: the contrastive loss of {info.name} compares all {optim.batch_size} samples "
                f"of a batch and cannot be accumulated; leave --micro-batch out, or use more ranks"
            )


def _plan(registry: Registry, info: StageInfo, arguments: Arguments) -> _Planned:
    recipe = arguments.recipe
    manifest, source, inputs = None, None, {}
    notes: list[str] = []
    if info.name == "preprocess":
        manifest, source, notes = _scan(arguments.data_root, recipe.data)
        inputs = {"data_root": str(Path(arguments.data_root).absolute())}
    if info.name == "sample" and not recipe.sample.prompts:
        raise ValueError("--sample.prompts is empty; give one or more: --sample.prompts 'a red circle moving left'")

    def expected(stage: str) -> dict[str, Any] | None:
        parts = {part: getattr(recipe, part) for part in STAGES[stage].parts}
        return None if None in parts.values() else parts

    found = parents.resolve(registry, info, expected, arguments.parents, arguments.command)
    pinned: dict[str, Parent] = {stage: run.as_parent() for stage, run in found.items()}
    parts = {part: getattr(recipe, part) for part in info.parts}
    num_clips = _num_clips(info, manifest, found)
    return _Planned(
        spec=RunSpec(
            stage=info.name,
            recipe=recipe.name,
            id=identity.run_id(stage=info.name, config=parts, source=source, parents=pinned),
            config=_plain(parts),
            source=source,
            parents=pinned,
            inputs=inputs,
        ),
        num_tasks=recipe.sample.num_tasks if info.name == "sample" else -(-num_clips // recipe.data.clips_per_shard),
        num_clips=num_clips,
        manifest=manifest,
        notes=notes,
    )


def _num_clips(info: StageInfo, manifest: list[list[Any]] | None, found: dict[str, Run]) -> int:
    """Clips that an array's tasks share out; 0 where its work is not clips."""
    if info.training or info.name == "sample":
        return 0
    if manifest is None:
        manifest = files.read_json(found["preprocess"].folder / MANIFEST)
    assert manifest is not None
    return len(manifest)


def _plain(parts: dict[str, Any]) -> dict[str, Any]:
    return {part: to_dict_or_value(value) for part, value in parts.items()}


def _scan(data_root: str, data: DataConfig) -> tuple[list[list[Any]], str, list[str]]:
    from dalle2_video.data.celebv_text import fingerprint, scan_with_notes

    if not data_root:
        raise ValueError(
            "--data-root is missing: the folder that holds videos/ and texts/ as CelebV-Text lays them out, or the "
            "archives of them"
        )
    clips, notes = scan_with_notes(Path(data_root), data)
    return [clip.to_row(Path(data_root)) for clip in clips], fingerprint(clips), notes


def _start(run: Run, info: StageInfo, arguments: Arguments, planned: _Planned) -> int:
    """Start the run, or attach to it; return the exit code."""
    started = start(run, _order(info, arguments, planned), lambda text: console.print(escape(text)))
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
        console.print(f"follow it: {arguments.command(info.name)} --wait yes")
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


def _order(info: StageInfo, arguments: Arguments, planned: _Planned) -> Order:
    return Order(
        training=info.training,
        placement=arguments.placement,
        runtime=to_dict_or_value(arguments.runtime),
        tasks=arguments.array.tasks,
        parallel=arguments.array.parallel,
        num_tasks=planned.num_tasks,
        num_clips=planned.num_clips,
        data_root=str(Path(arguments.data_root).absolute()) if arguments.data_root else None,
        retry=arguments.options.retry,
    )


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
    print(f"error: {run.name}: {last.get('message', last['kind'])}\n(logs: {run.folder / 'logs'})", file=sys.stderr)
    return USER_ERROR if last.get("exit_code") == USER_ERROR else 1


def _report_done(run: Run) -> int:
    record = run.done()
    assert record is not None
    facts = ", ".join(f"{name} {record[name]}" for name in sorted(record) if name not in ("digest", "time", "folder"))
    console.print(
        f"[bold]{run.name}[/bold]: DONE{f' ({facts})' if facts else ''}\n  {record.get('folder', run.folder)}"
    )
    return 0


def _dry_run(registry: Registry, info: StageInfo, arguments: Arguments, planned: _Planned) -> int:
    folder = registry.folder_of(planned.spec)
    tasks_done = 0
    if (folder / "run.json").exists():
        run = Run(folder)
        try:
            run.check_drift(planned.spec.config)
        except ValueError as error:
            console.print(f"would not start: {error}", markup=False)
            return 0
        decision = run_state.decision(run, run.intents(), retry=arguments.options.retry)
        tasks_done = len(run.tasks_done())
        console.print(f"[bold]{run.name}[/bold]: {decision.action}: {decision.reason}")
    else:
        console.print(f"[bold]{info.name}/{folder.name}[/bold]: launch: a new run")
    for stage, parent in planned.spec.parents.items():
        console.print(f"  parent {stage}: {parent.id}, digest {parent.digest[:16]}")
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
            code=code_snapshot.folder(registry.home, "CODE"),
            groups=max(1, min(arguments.array.tasks, planned.num_tasks - tasks_done)),
            parallel=arguments.array.parallel,
        )
        console.print(executor.sbatch_text(work), markup=False)
    return 0
