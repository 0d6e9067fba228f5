"""Files become visible whole or not at all, and of many who want the same name just one gets it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from registry_fixtures import make_spec

from experiments import files
from experiments.registry import Registry
from experiments.run import Run
from tools import registry_garbage

GONE = {"executor": "local", "host": socket.gethostname(), "pid": 2**22 + 1, "start_ticks": 1}

RACERS = 4
ROUNDS = 25


Race = Callable[[Callable[..., Any], Path], list[Any]]


@pytest.fixture(scope="module")
def race() -> Iterator[Race]:
    """Run `contender(barrier, racer, folder)` in several processes at once; return what each returned."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(RACERS) as pool:
        barrier = manager.Barrier(RACERS, timeout=60)
        yield lambda contender, folder: pool.starmap(
            contender, [(barrier, racer, folder) for racer in range(RACERS)], chunksize=1
        )


def create_rounds(barrier: Any, racer: int, folder: Path) -> list[bool]:
    won = []
    for number in range(ROUNDS):
        barrier.wait()
        won.append(files.create_exclusive(folder / f"{number}.json", files.encode({"racer": racer})))
    return won


def claim_attempts(barrier: Any, racer: int, folder: Path) -> list[int]:
    run = Run(folder)
    barrier.wait()
    return [run.claim_attempt({"racer": racer}).number for _ in range(ROUNDS)]


def claim_intents(barrier: Any, racer: int, folder: Path) -> list[int]:
    run = Run(folder)
    won = []
    for number in range(1, ROUNDS + 1):
        barrier.wait()
        if run.claim_intent(number, {"racer": racer}):
            won.append(number)
    return won


def test_exactly_one_process_creates_each_file_and_its_content_is_there(race: Race, tmp_path: Path) -> None:
    results = race(create_rounds, tmp_path)
    for number in range(ROUNDS):
        winners = [racer for racer in range(RACERS) if results[racer][number]]
        assert len(winners) == 1
        assert files.read_json(tmp_path / f"{number}.json") == {"racer": winners[0]}


def test_processes_that_claim_attempts_at_once_get_every_number_once(race: Race, tmp_path: Path) -> None:
    run = Registry(tmp_path).create(make_spec())
    results = race(claim_attempts, run.folder)
    assert sorted(number for numbers in results for number in numbers) == list(range(1, RACERS * ROUNDS + 1))
    for attempt in run.attempts():
        assert attempt.number in results[attempt.claim["racer"]]


def test_of_launchers_that_claim_the_same_intent_just_one_goes_on(race: Race, tmp_path: Path) -> None:
    run = Registry(tmp_path).create(make_spec())
    results = race(claim_intents, run.folder)
    assert sorted(number for numbers in results for number in numbers) == list(range(1, ROUNDS + 1))
    for intent in run.intents():
        assert intent.number in results[intent.request["racer"]]


SHARED_GROUP, ANN, BEN = 60100, 60001, 60002
"""A unix group and two users of it; they need no names."""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own; the umask is back afterwards."""
    before = os.umask(0o022)
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
    os.umask(before)


def as_user(uid: int, work: Callable[[], None]) -> None:
    """Do something in a process of another user of the group, whose umask lets nobody else write."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([SHARED_GROUP])
            os.setgid(uid)
            os.setuid(uid)
            os.umask(0o022)
            for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
                os.environ.pop(name, None)
            work()
        except BaseException:
            os.write(write, traceback.format_exc().encode()[-4000:])
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, said


def commit_steps(run: Run, *steps: int) -> int:
    attempt = run.claim_attempt({"intent": 1, "group": 0})
    for step in steps:
        staged = attempt.stage_commit()
        (staged / "weights").write_text(str(step))
        attempt.commit(step, staged)
    attempt.append("metrics", {"step": 1})
    attempt.end("preempted")
    return attempt.number


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as two users")
def test_what_one_member_of_a_group_makes_another_goes_on_with_stops_and_tidies(open_folder: Path) -> None:
    home = open_folder / "home"
    home.mkdir()
    os.chown(home, -1, SHARED_GROUP)
    home.chmod(0o2770)
    spec, other = make_spec(), make_spec(id="aaaa000001")

    def ann_starts() -> None:
        run = Registry(home).create(spec)
        assert run.spec.creator.startswith(f"uid{ANN}@")
        run.claim_intent(1, {"launcher": GONE, "groups": [[]], "training": True})
        assert commit_steps(run, 10, 20, 30) == 1

    def ben_goes_on() -> None:
        run = Registry(home).create(spec)
        run.request_stop()
        assert commit_steps(run, 40) == 2
        assert [registry_garbage.remove(garbage) for garbage in registry_garbage.find(Registry(home))] == [True, True]
        assert [commit.step for commit in run.commits()] == [30, 40]
        failed = Registry(home).create(other)
        failed.claim_intent(1, {"launcher": GONE, "groups": [[]], "training": True})
        failed.claim_attempt({"intent": 1, "group": 0}).end("error")

    def ann_tidies() -> None:
        run = Registry(home).create(spec)
        assert run.stop_requested()
        run.clear_stop()
        assert run.claim_intent(2, {"launcher": GONE, "groups": [[]], "training": True})
        assert commit_steps(run, 50) == 3
        found = registry_garbage.find(Registry(home), whole_runs=True)
        assert all(registry_garbage.remove(garbage) for garbage in found) and len(found) == 2
        assert [run.id for run in Registry(home).runs()] == [spec.id]
        assert [commit.step for commit in run.commits()] == [40, 50]

    for uid, work in ((ANN, ann_starts), (BEN, ben_goes_on), (ANN, ann_tidies)):
        as_user(uid, work)
    owners = set()
    for path in home.rglob("*"):
        found = path.stat()
        owners.add(found.st_uid)
        assert found.st_gid == SHARED_GROUP, path
        assert stat.S_IMODE(found.st_mode) == (0o2775 if path.is_dir() else 0o664), path
    assert owners == {ANN, BEN}


@pytest.mark.parametrize(("mode", "mask"), [(0o770, 0o077), (0o770, 0o022), (0o755, 0o027)])
def test_the_umask_follows_the_home_for_the_group_and_the_user_for_others(
    open_folder: Path, mode: int, mask: int
) -> None:
    open_folder.chmod(mode)
    os.umask(mask)
    files.follow_group_mode(open_folder)
    (open_folder / "folder").mkdir()
    files.write_atomic(open_folder / "file", b"")
    expected = mask & ~0o070 if mode & 0o020 else mask
    assert stat.S_IMODE((open_folder / "folder").stat().st_mode) == 0o777 & ~expected
    assert stat.S_IMODE((open_folder / "file").stat().st_mode) == 0o666 & ~expected


def write_on_a_full_disk(path: Path, how: str) -> None:
    """Write more than this process may, as on a full disk or over quota."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        (files.write_atomic if how == "write_atomic" else files.create_exclusive)(path, b"x" * 100_000)
    except OSError as error:
        sys.exit(error.errno)


@pytest.mark.parametrize("how", ["write_atomic", "create_exclusive"])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path: Path, how: str, old: bytes | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    code = f"import test_files as t, pathlib; t.write_on_a_full_disk(pathlib.Path({str(path)!r}), {how!r})"
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    ended = subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {folders}; {code}"], check=False)
    assert ended.returncode == errno.EFBIG
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if old is None else ["file"])
    assert old is None or path.read_bytes() == old


def test_write_atomic_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    files.write_atomic(path, b"1")
    files.write_atomic(path, b"2")
    assert path.read_bytes() == b"2"
    assert [entry.name for entry in path.parent.iterdir()] == ["b"]


def test_create_exclusive_keeps_the_first_content(tmp_path: Path) -> None:
    assert files.create_exclusive(tmp_path / "a", b"1")
    assert not files.create_exclusive(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_publish_moves_a_folder_whole_and_refuses_to_replace_one(tmp_path: Path) -> None:
    for content in ("first", "second"):
        staged = files.staging_folder(tmp_path)
        assert files.names_in(tmp_path) == (["final"] if content == "second" else [])
        (staged / "file").write_text(content)
        if content == "first":
            files.publish(staged, tmp_path / "final")
            assert not staged.exists()
        else:
            with pytest.raises(FileExistsError):
                files.publish(staged, tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "first"


def test_publish_replaces_a_file(tmp_path: Path) -> None:
    for content in ("first", "second"):
        staged = files.staging_folder(tmp_path) / "shard"
        staged.write_text(content)
        files.publish(staged, tmp_path / "store" / "shard")
    assert (tmp_path / "store" / "shard").read_text() == "second"


def test_remove_tree_takes_everything_and_does_not_mind_what_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("c")
    files.remove_tree(tmp_path / "a")
    files.remove_tree(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_readers_take_missing_files_for_absent_and_see_no_hidden_names(tmp_path: Path) -> None:
    assert files.read_json(tmp_path / "none.json") is None
    assert files.names_in(tmp_path / "none") == []
    files.staging_folder(tmp_path)
    (tmp_path / "b").write_bytes(files.encode({"ü": [1]}))
    (tmp_path / "a").touch()
    assert files.names_in(tmp_path) == ["a", "b"]
    assert files.read_json(tmp_path / "b") == {"ü": [1]}


def test_a_damaged_file_is_an_error_and_not_absent(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"torn\.json is no JSON: Expecting value"):
        files.read_json(tmp_path / "torn.json")
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        files.read_json(tmp_path)
