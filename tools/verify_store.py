"""Read all of a store and say what is damaged; with --repair, have the launchers make just that again.

    python tools/verify_store.py ID_OR_FOLDER [--workers 4] [--repair [--data-root DIR]]

ID: of a preprocess run, as in `python tools/runs.py list`; FOLDER: the run's, its store's, or a store copied alone.
Exit code 0: sound; 1: damaged (also after --repair, until the printed commands have run); 2: the user has to mend
something first. A repair removes the records of damaged tasks, then DONE: the launcher finds these tasks undone, makes
the same bytes again and with them the digest that all children pin.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dalle2_video.config_io import from_dict
from dalle2_video.data import verification, verification_shards
from dalle2_video.data.celebv_text import ClipFile, fingerprint, read_manifest
from dalle2_video.data.verification import RecordSummary
from dalle2_video.data.verification_tables import (
    CHECKS,
    Damage,
    Findings,
    Subject,
    count_captions,
    read_json_file,
    table_or_none,
)
from dalle2_video.data_config import DataConfig
from experiments import identity
from experiments.registry import Registry, default_home
from experiments.run import Run
from launch.console import Console, print_error
from launch.parents import IMPORT_COMMAND, IMPORTED_CLIPS
from tools.store_repair import children_of, finished_embeddings, repair, task_file

DAMAGED = 1
USER_ERROR = 2
INTERRUPTED = 130
PIPE_COLUMNS = 180
Unit = Callable[[], Findings]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    try:
        if options.workers < 1:
            raise ValueError(f"--workers {options.workers} must be 1 or more")
        target = find_target(options.store)
        if options.repair and target.run is None:
            raise ValueError(f"{target.store} is not the store of a run, so nothing can make it again; copy it anew")
        found = verify(target, options.workers)
        _show(console, target, found)
        if not found.damages:
            return 0
        if options.repair:
            assert target.run is not None
            commands = repair(target.run, found.damages, options.data_root)
            console.print("removed; to make what is missing, type:", soft_wrap=True)
            for command in commands:
                console.print(f"  {escape(command)}", soft_wrap=True)
        elif target.run is not None:
            console.print("to have it made again, give --repair", soft_wrap=True)
        return DAMAGED
    except ValueError as error:
        print_error(error)
        return USER_ERROR
    except BrokenProcessPool:
        print("error: a checking process died (out of memory?); give fewer --workers", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/verify_store.py", description="Check every byte of a store.")
    parser.add_argument("store", metavar="ID_OR_FOLDER", help="a preprocess run's id or folder, or a store's folder")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--workers", type=int, default=cores, help="processes, 1 or more (default: %(default)s, all cores)"
    )
    parser.add_argument(
        "--repair", action="store_true", help="remove the records of what is damaged, then say what to type"
    )
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="with --repair: where the data set lies, if it has moved"
    )
    return parser


@dataclass(frozen=True, kw_only=True)
class Target:
    """A store, and the run that made it where that is known."""

    store: Path
    run: Run | None

    @property
    def home(self) -> Path:
        """Folder that file names are shown relative to."""
        return self.store if self.run is None else self.run.folder


def find_target(reference: str) -> Target:
    """Return the store that the user means. Raises ValueError if there is none or if it is not finished."""
    path = Path(reference).absolute()
    if path.is_dir():
        folder = next((folder for folder in (path, path.parent) if (folder / "run.json").is_file()), None)
        if folder is None:
            return Target(store=path, run=None)
        try:
            run = Run(folder)
        except json.JSONDecodeError as error:
            raise ValueError(f"{folder / 'run.json'} is damaged: {error}") from error
    else:
        stage, _, name = reference.rpartition("/")
        run = Registry(default_home()).find(name, stage or None)
    if run.spec.stage != "preprocess":
        parent = run.spec.parents.get("preprocess")
        remedy = f"; its store: python tools/verify_store.py {parent.id}" if parent else ""
        raise ValueError(f"{run.name} is not a preprocess run{remedy}")
    if not (run.folder / "DONE").exists():
        raise ValueError(f"{run.name} is not finished; finish it, see: python tools/runs.py why {run.spec.id}")
    return Target(store=run.folder / "store", run=run)


def verify(target: Target, workers: int) -> Findings:
    """Check everything, in `workers` processes."""
    found = Findings()
    summary: RecordSummary | None = None
    record_files: list[Path] = []
    if target.run is None:
        subject = _subject_alone(target.store)
    else:
        subject, summary, record_files = _subject_of(target.run, found)
    units = _units(subject, summary, record_files)
    units += _embedding_units(subject, target.run, found)
    found.add(verification.check_layout(subject))
    found.add(_run_all(units, workers))
    truncated = found.truncated if found.checked["tokens"] == subject.num_captions else None
    known = summary if subject.records_trusted else None
    found.add(verification.check_statistics(subject, known, truncated))
    if not subject.records_trusted and not any(damage.check == "task records" for damage in found.damages):
        assert target.run is not None
        _blame_digest(target.run, record_files, found)
    found.damages.sort(key=lambda damage: (CHECKS.index(damage.check), damage.file))
    return found


def _subject_alone(store: Path) -> Subject:
    """Return what a store says of itself."""
    try:
        attributes = read_json_file(store / "zarr.json")["attributes"]
        config = from_dict(DataConfig, attributes["data"])
        num_clips = int(attributes["num_clips"])
        return Subject(
            store=store,
            config=config,
            num_clips=num_clips,
            num_captions=count_captions(store, config, num_clips),
            fingerprint=attributes["fingerprint"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"no store at {store}, or one that cannot say what it holds: {error}") from error


def _subject_of(run: Run, found: Findings) -> tuple[Subject, RecordSummary | None, list[Path]]:
    """Return what the run's records say the store must be, and the records' files in order of tasks."""
    data = from_dict(DataConfig, run.spec.config["data"])
    manifest = _manifest(run, found)
    num_clips = _subject_alone(run.folder / "store").num_clips if manifest is None else len(manifest)
    record_files = [task_file(run, task) for task in range(-(-num_clips // data.clips_per_shard))]
    clip_ids = None if manifest is None else [clip.clip_id for clip in manifest]
    of_records, summary = verification.check_records(record_files, clip_ids, data)
    found.add(of_records)
    trusted = summary is not None and _check_pins(run, record_files, found)
    counted = None if summary is None else sum(summary.caption_counts)
    if not trusted:
        stored = count_captions(run.folder / "store", data, num_clips)
        counted = counted if stored is None else stored
    subject = Subject(
        store=run.folder / "store",
        config=data,
        num_clips=num_clips,
        num_captions=counted,
        fingerprint=run.spec.source or "",
        records_trusted=trusted,
    )
    return subject, summary, record_files


def _manifest(run: Run, found: Findings) -> list[ClipFile] | None:
    file = run.folder / "manifest.json"
    found.checked["registry"] += 1
    try:
        clips = read_manifest(file, Path())
        wanted = run.spec.source
        if IMPORT_COMMAND in run.spec.inputs:  # whose source is that of other files; older ones do not tell the clips'
            wanted = run.spec.inputs.get(IMPORTED_CLIPS)
        if wanted is not None and fingerprint(clips) != wanted:
            raise ValueError("is not the list of clips that the run was created for")
        return clips
    except (OSError, ValueError) as error:
        found.blame("registry", file, str(error), "remove")
        return None


def _check_pins(run: Run, record_files: Sequence[Path], found: Findings) -> bool:
    """Compare DONE's digest with that of the records, and the children's pins with both; return whether DONE agrees."""
    digest = identity.digest([json.loads(file.read_bytes()) for file in record_files])
    found.checked["registry"] += 1
    try:
        pinned = read_json_file(run.folder / "DONE")["digest"]
    except (ValueError, KeyError, TypeError) as error:
        found.blame("registry", run.folder / "DONE", str(error), "join")
        pinned = digest
    for child in children_of(run):
        pin = child.spec.parents["preprocess"].digest
        found.checked["registry"] += 1
        if pin not in (digest, pinned):
            what = f"{child.name} was made from a store of digest {pin[:16]}, this one has {digest[:16]}"
            found.blame("registry", child.folder / "run.json", what, "nothing")
    return pinned == digest


def _blame_digest(run: Run, record_files: Sequence[Path], found: Findings) -> None:
    """Find who is wrong where DONE has another digest than the records, all of which agree with the store."""
    done = run.done() or {}
    if done.get("digest") in {child.spec.parents["preprocess"].digest for child in children_of(run)}:
        what = "the digest that children pin is not that of the task records, and nothing else tells which changed"
        for task, file in enumerate(record_files):
            found.blame("task records", file, what, "task", task=task)
    else:
        found.blame("registry", run.folder / "DONE", "its digest is not that of the task records", "join")


def _units(subject: Subject, summary: RecordSummary | None, record_files: list[Path]) -> list[Unit]:
    """Return the checks that can run side by side."""
    config = subject.config
    tasks = -(-subject.num_clips // config.clips_per_shard)
    ranges = table_or_none(subject, "caption_ranges")
    if summary is not None and (subject.records_trusted or ranges is None):
        firsts = [0, *accumulate(summary.caption_counts)][:tasks]
    else:
        firsts = [0 if ranges is None else int(ranges[task * config.clips_per_shard]) for task in range(tasks)]
    files: list[Path | None] = [*record_files] or [None] * tasks
    trusted = record_files if subject.records_trusted else []
    units: list[Unit] = [functools.partial(verification.check_tokenizer, subject, trusted)]
    for task, (first, file) in enumerate(zip(firsts, files, strict=True)):
        units.append(functools.partial(verification.check_task, subject, task, first, file))
    return units


def _embedding_units(subject: Subject, run: Run | None, found: Findings) -> list[Unit]:
    """Check the metadata of all embeddings and return the checks of their shards."""
    finished = {} if run is None else finished_embeddings(run)
    units: list[Unit] = []
    for name in sorted({*verification_shards.embeddings_names(subject.store), *finished}):
        of_name, spec = verification_shards.check_embeddings(subject, name)
        found.add(of_name)
        if spec is None:
            continue
        for shard in range(spec.num_shards):
            sha256 = None
            if name in finished:
                file = task_file(finished[name], shard)
                found.checked["task records"] += 1
                try:
                    sha256 = str(read_json_file(file)["sha256"])
                except (ValueError, KeyError, TypeError) as error:
                    found.blame("task records", file, str(error), "task", task=shard, embeddings=name)
                    continue
            units.append(functools.partial(verification_shards.check_embeddings_shard, subject, spec, shard, sha256))
    return units


def _run_all(units: list[Unit], workers: int) -> Findings:
    """Run the units with a progress bar, in processes of their own or, for one worker, in this one."""
    found = Findings()
    columns = (TextColumn("verify"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        work = bar.add_task("verify", total=len(units))
        for of_unit in _in_processes(units, workers) if workers > 1 else (unit() for unit in units):
            found.add(of_unit)
            bar.advance(work)
    return found


def _in_processes(units: list[Unit], workers: int) -> Iterator[Findings]:
    # Not by fork: the progress bar has a thread.
    with ProcessPoolExecutor(min(workers, len(units)), get_context("spawn"), initializer=_start_worker) as pool:
        try:
            for future in as_completed([pool.submit(unit) for unit in units]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the pool
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already


def _show(console: Console, target: Target, found: Findings) -> None:
    damaged = Counter(damage.check for damage in found.damages)
    console.print(f"[bold]{escape(str(target.home))}[/bold]", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("check")
    table.add_column("looked at", justify="right")
    table.add_column("damaged", justify="right")
    for check in CHECKS:
        count = damaged[check]
        table.add_row(check, f"{found.checked[check]:,}", f"[bold red]{count}[/]" if count else "[green]0[/]")
    console.print(table)
    for damage in found.damages:
        console.print(f"[red]damaged[/] {escape(_shown(target, damage))}: {escape(damage.what)}", soft_wrap=True)
    files = len({damage.file for damage in found.damages})
    console.print(f"[bold red]{files} files are damaged[/]" if files else "[bold green]sound[/]")


def _shown(target: Target, damage: Damage) -> str:
    inside = damage.file.is_relative_to(target.home)
    return str(damage.file.relative_to(target.home) if inside else damage.file)


if __name__ == "__main__":
    sys.exit(main())
