"""A store whose writers die at any moment: what is visible is right, and the rerun ends with the same bytes.

Everything is what preprocessing runs, registry and publication included, but for decoding: frames are computed. A
process that has no threads yet is forked for each try, so that each operation on files can have its own crash.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import io
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dalle2_video.config_io import to_dict
from dalle2_video.data import preprocess
from dalle2_video.data.archives import Source
from dalle2_video.data.celebv_text import Caption, ClipFile, fingerprint
from dalle2_video.data.preprocess import ClipContent
from dalle2_video.data.preprocess_array import PreprocessArray
from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.store import Store, frames_name
from dalle2_video.data.video import BadClip, ClipFacts
from dalle2_video.data_config import CAPTION_KINDS, DataConfig
from dalle2_video.task_array import OnProgress, Published
from experiments import files
from experiments.registry import Registry
from experiments.run import Run, RunSpec
from slurm.array_job import Worker
from tools import verify_store

CONFIG = DataConfig(
    frame_sizes=(8, 16), min_frames=4, max_frames=10, size_frames=(10, 5), chunk_frames=4, clips_per_shard=3,
    vocab_size=300, text_context=8, val_fraction=0.0,
)  # fmt: skip
CLIPS = [
    ClipFile(clip_id=f"{identity * 11}_0_0", source=Source(path=Path("nowhere") / identity, size=1))
    for identity in "abcde"
]
BAD, BLACK = 1, 4
NEVER = 0


def frames_of(row: int, size: int) -> np.ndarray:
    """What the store must give back of a clip: (t, size, size, 3), of which a chunk is a part."""
    count = 0 if row == BAD else min(5 + row, CONFIG.frames_at(size))
    frames = np.random.default_rng((row, size)).integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    return frames * (row != BLACK)


def read_clip(row: int) -> ClipContent:
    if row == BAD:
        raise BadClip("made bad")
    facts = ClipFacts(num_frames=5 + row, source_fps=8.0, source_size=(32, 32), seconds=1.0)
    frames = {size: frames_of(row, size) for size in CONFIG.frame_sizes}
    captions = [Caption(kind=kind, text=f"{kind} of clip {row}") for kind in CAPTION_KINDS[:2]]
    return ClipContent(facts=facts, frames=frames, captions=captions)


class ComputedArray(PreprocessArray):
    """Preprocessing whose clips are computed instead of decoded."""

    def run_task(self, task: int, staging: Path, on_progress: OnProgress) -> tuple[Published, dict[str, Any]]:
        on_clip = self.on_clip(task, on_progress)
        result = preprocess.write_shards(task, self.clips, self.config, staging, read_clip, on_clip)
        return result.published, result.record


def new_run(home: Path) -> Run:
    spec = RunSpec(
        stage="preprocess", recipe="tiny", id="0123456789", config={"data": to_dict(CONFIG)},
        source=fingerprint(CLIPS), parents={},
    )  # fmt: skip
    run = Registry(home).create(spec)
    files.write_atomic(run.folder / "manifest.json", files.encode([clip.to_row(Path("nowhere")) for clip in CLIPS]))
    return run


def work(run: Run, group: int = 0) -> None:
    """Do what one process of the array does; of a group one lives at a time."""
    array = ComputedArray(root=run.folder / "store", data_root=Path("nowhere"), clips=CLIPS, config=CONFIG)
    worker = Worker(run, run.claim_attempt({"group": group}), array, group=group)
    assert worker.work(range(array.num_tasks), stop=lambda: False)


class Disk:
    """This process's changes to files, counted; before change `fatal` the machine goes down.

    Of every file that was written and not synced since, half is lost then; a write that is interrupted gets half way.
    """

    def __init__(self, root: Path, fatal: int) -> None:
        self.root, self.fatal, self.changes = root, fatal, 0
        self.unsynced: set[tuple[int, int]] = set()

    def install(self) -> None:
        for name in ("rename", "replace", "link", "unlink", "mkdir", "rmdir"):
            setattr(os, name, self._counted(getattr(os, name)))
        os.fsync = self._fsync
        io.open = builtins.open = self._open  # type: ignore[assignment]

    def before_change(self, interrupted: Callable[[], object] = lambda: None) -> None:
        self.changes += 1
        if self.changes == self.fatal:
            interrupted()
            for folder, _, names in os.walk(self.root):
                for path in (Path(folder, name) for name in names):
                    status = path.stat()
                    if (status.st_dev, status.st_ino) in self.unsynced:
                        os.truncate(path, status.st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def _counted(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            self.before_change()
            return change(*arguments, **more)

        return counted

    def _fsync(self, descriptor: int) -> None:
        """The real one is not needed: a killed process does not lose what it wrote."""
        self.before_change()
        self.unsynced.discard(_identity(descriptor))

    def _open(self, file: Any, mode: str = "r", buffering: int = -1, *text: Any, **more: Any) -> Any:
        if not set(mode) & set("wax+"):
            return _real_open(file, mode, buffering, *text, **more)
        self.before_change()
        raw = _RawFile(self, file, mode)
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, *text, **more)


class _RawFile(io.FileIO):
    def __init__(self, disk: Disk, file: Any, mode: str) -> None:
        super().__init__(file, mode.replace("b", "").replace("t", ""))
        self.disk = disk
        disk.unsynced.add(_identity(self.fileno()))

    def write(self, data: Any) -> int:
        whole = memoryview(data).cast("B")
        self.disk.unsynced.add(_identity(self.fileno()))
        self.disk.before_change(lambda: super(_RawFile, self).write(whole[: len(whole) // 2]))
        return super().write(whole)


_real_open = io.open


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def start(action: Callable[[], object]) -> int:
    """Fork a process that does this; return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def ending(pid: int) -> int:
    """Return a process's exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def content(run: Run) -> dict[str, bytes]:
    """Every visible file of the store, and the record of every task."""
    found = {}
    for top in ("store", "tasks"):
        for folder, folders, names in os.walk(run.folder / top):
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths = (Path(folder, name) for name in names if not name.startswith("."))
            found |= {str(path.relative_to(run.folder)): path.read_bytes() for path in paths}
    return found


def check_visible(run: Run, wanted: dict[str, bytes]) -> None:
    """Assert that a reader gets the right frames or is refused, whatever is missing."""
    done = run.done()  # before the files: another writer may finish meanwhile
    there = content(run)
    wrong = [name for name, data in there.items() if wanted.get(name) != data]
    assert not wrong, f"visible and not what an undisturbed run writes: {wrong}"
    assert done is None or there == wanted
    store_path = run.folder / "store"
    for size in CONFIG.frame_sizes:
        if (store_path / frames_name(size) / "zarr.json").exists():
            reader = ShardReader(store_path / frames_name(size))
            for row in range(len(CLIPS)):
                with contextlib.suppress(FileNotFoundError):
                    check_frames(reader, row, size)
    try:
        store = Store(store_path)
    except ValueError as error:
        assert "no store at" in str(error) or "is not finished" in str(error)
        return
    check_store(store)


def check_frames(reader: ShardReader, row: int, size: int) -> None:
    expected = frames_of(row, size)
    found = reader.read(row, 0, CONFIG.frames_at(size))
    assert (found[: len(expected)] == expected).all() and not found[len(expected) :].any(), (row, size)


def check_store(store: Store) -> None:
    assert store.usable("train").tolist() == [row for row in range(len(CLIPS)) if row != BAD]
    assert list(store.bad_clips()) == [CLIPS[BAD].clip_id]
    for row in store.usable("train").tolist():
        assert [caption.text for caption in store.captions_of(row)] == [f"{k} of clip {row}" for k in CAPTION_KINDS[:2]]
        for size in CONFIG.frame_sizes:
            assert store.num_frames_at(size, np.array(row)) == len(frames_of(row, size))
            check_frames(store.frames(size), row, size)


def check_finished(run: Run, wanted: dict[str, bytes], digest: str) -> None:
    assert content(run) == wanted
    done = run.done()
    assert done is not None and done["digest"] == digest


def reference(home: Path) -> tuple[dict[str, bytes], str]:
    """Return what an undisturbed run writes, and the digest it is pinned by."""
    frames_of(0, 8), np.unique(0)  # loads what numpy loads on demand, once for all processes that are forked later
    run = new_run(home)
    assert ending(start(lambda: work(run))) == 0
    check_store(Store(run.folder / "store"))
    verified(run)
    done = run.done()
    assert done is not None
    return content(run), done["digest"]


def verified(run: Run) -> None:
    def verify() -> None:
        found = verify_store.verify(verify_store.Target(store=run.folder / "store", run=run), workers=1)
        assert not found.damages, found.damages
        lengths = [len(frames_of(row, size)) for row in range(len(CLIPS)) for size in CONFIG.frame_sizes]
        assert found.checked["frame chunks"] == sum(-(-length // CONFIG.chunk_frames) for length in lengths)

    assert ending(start(verify)) == 0


def tries(folder: Path) -> Iterator[Run]:
    """Yield a new run again and again."""
    made = new_run(folder / "made")
    for number in itertools.count():
        if number:
            shutil.rmtree(folder / "try")
        shutil.copytree(made.folder, folder / "try")
        yield Run(folder / "try")


def crash_before_every_change(folder: Path, first: int, step: int) -> None:
    """Crash before the changes first, first + step, ...: the tests' two cores share them."""
    wanted, digest = reference(folder / "reference")
    phases = set()
    for fatal, run in zip(itertools.count(first, step), tries(folder), strict=False):

        def work_until(fatal: int, run: Run = run) -> None:
            Disk(run.folder, fatal).install()
            work(run)

        code = ending(start(functools.partial(work_until, fatal)))
        if code == 0:
            break
        assert code == -signal.SIGKILL, f"change {fatal}"
        check_visible(run, wanted)
        phases.add((run.prepared(), len(run.tasks_done()), (run.folder / "store/statistics.json").exists()))
        assert ending(start(functools.partial(work_until, NEVER))) == 0, f"after a crash before change {fatal}"
        check_finished(run, wanted, digest)
    # It died in every phase, and the last try was not disturbed.
    assert phases >= {(False, 0, False), (True, 0, False), (True, 1, False), (True, 2, False), (True, 2, True)}
    check_finished(run, wanted, digest)
    verified(run)
    print(f"crashed before {len(range(first, fatal, step))} changes")


def two_at_once(folder: Path) -> None:
    wanted, digest = reference(folder / "reference")
    for number, run in zip(range(6), tries(folder), strict=False):
        gate, opened = os.pipe()

        def after_the_gate(group: int, late_s: float, run: Run = run, gate: int = gate, opened: int = opened) -> None:
            os.close(opened)
            os.read(gate, 1)
            time.sleep(late_s)
            work(run, group)

        # the second comes at once at first, then ever later into what the first has staged
        pids = [start(functools.partial(after_the_gate, group, 0.01 * number * group)) for group in range(2)]
        os.close(opened)
        os.close(gate)
        assert [ending(pid) for pid in pids] == [0, 0]
        check_finished(run, wanted, digest)
        if number == 0:
            verified(run)


def kills_at_random_moments(folder: Path) -> None:
    wanted, digest = reference(folder / "reference")
    draw = random.Random(0)
    began = time.monotonic()
    whole_s = None
    killed = 0
    for run in itertools.islice(tries(folder), 8):
        if whole_s is None:
            began = time.monotonic()
            assert ending(start(lambda run=run: work(run))) == 0
            whole_s = time.monotonic() - began
            continue
        # The second works on beside the one that is killed, as the groups of an array do.
        pids = [start(functools.partial(work, run, group)) for group in range(2)]
        time.sleep(draw.random() * whole_s)
        os.kill(pids[0], signal.SIGKILL)
        killed += ending(pids[0]) == -signal.SIGKILL
        check_visible(run, wanted)
        assert ending(pids[1]) == 0
        assert ending(start(lambda run=run: work(run))) == 0
        check_finished(run, wanted, digest)
    assert killed > 0, "killed too late to prove anything"
    verified(run)


def in_processes_without_threads(action: Callable[..., None], *arguments: tuple[Any, ...]) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=action, args=of_one) for of_one in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes), "see the traceback above"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, where there is one: hundreds of tries make and remove files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as made:
        yield Path(made)


def test_a_crash_before_any_change_of_a_file_shows_nothing_wrong_and_the_rerun_ends_with_the_same_bytes(
    folder: Path,
) -> None:
    in_processes_without_threads(crash_before_every_change, (folder / "odd", 1, 2), (folder / "even", 2, 2))


def test_two_writers_of_the_same_tasks_at_once_make_the_same_store(folder: Path) -> None:
    in_processes_without_threads(two_at_once, (folder,))


def test_writers_killed_at_random_moments_leave_the_others_and_the_rerun_the_same_store(folder: Path) -> None:
    in_processes_without_threads(kills_at_random_moments, (folder,))
