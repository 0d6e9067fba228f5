"""`tools/runs.py gc`: removes what nobody needs and never what somebody may, also while runs are being launched."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_fixtures import make_run, make_spec

from experiments import files
from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Attempt, Run
from launch.arguments import load_recipe
from slurm.local import process_record
from tools import registry_garbage, runs
from tools.runs_gc import size

GONE = {"executor": "local", "host": socket.gethostname(), "pid": 2**22 + 1, "start_ticks": 1}
ELSEWHERE = GONE | {"host": "another-host"}
CONTENT = b"x" * 1000


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return Registry(tmp_path / "home")


def trained(
    registry: Registry,
    name: str,
    job: dict[str, Any],
    steps: Sequence[int] = (),
    *,
    end: str | None = "error",
    keep_every: int = 0,
) -> Run:
    """Return a run of one attempt that left commits of these steps, a kilobyte each."""
    run = registry.create(make_spec(id=name))
    request = {"launcher": GONE, "groups": [[]], "training": True, "runtime": {"keep_every": keep_every}}
    run.claim_intent(1, request)
    run.resolve_intent(1, job)
    attempt = run.claim_attempt({"intent": 1, "group": 0, "supervised": True})
    for step in steps:
        folder = run.folder / "checkpoints" / f"step-{step:08d}.a0001"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(CONTENT)
    if end is not None:
        attempt.end(end)  # type: ignore[arg-type]
    return run


def steps_of(run: Run) -> list[int]:
    return [commit.step for commit in run.commits()]


def gc(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert runs.main(["gc", *arguments]) == 0
    return capsys.readouterr().out


def everything(home: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in home.rglob("*")}


def test_the_newest_two_checkpoints_and_milestones_stay(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(registry, "aaaa000001", GONE, [10, 20, 30, 40, 50, 60], keep_every=20)
    before = everything(registry.home)
    said = gc(capsys, "--dry-run")
    assert everything(registry.home) == before
    assert said.count("would remove") == 2 and "would free 2.0 KiB" in said
    said = gc(capsys)
    assert steps_of(run) == [20, 40, 50, 60]
    assert "removed runs/clip/tiny-aaaa000001/checkpoints/step-00000010.a0001" in said and "freed 2.0 KiB" in said
    assert gc(capsys) == "freed 0 bytes\n"


def test_a_milestone_stays_where_a_later_launch_says_nothing_of_milestones(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(registry, "aaaa000001", GONE, [10, 20, 30, 40, 50, 60], keep_every=20)
    run.claim_intent(2, {"launcher": GONE, "groups": [[]], "training": True, "runtime": {}})
    run.resolve_intent(2, GONE)
    run.claim_attempt({"intent": 2, "group": 0, "supervised": True}).end("stopped")
    (run.folder / "checkpoints" / "step-00000040.a0002").mkdir()
    gc(capsys)
    assert [(commit.step, commit.attempt) for commit in run.commits()] == [(20, 1), (40, 1), (50, 1), (60, 1)]


def test_checkpoints_that_an_attempt_found_damaged_do_not_count_as_kept(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(registry, "aaaa000001", GONE, [10, 20, 30, 40, 50])
    for step in (40, 50):
        path = run.folder / "checkpoints" / f"step-{step:08d}.a0001"
        event = {"event": "damaged checkpoint", "message": f"{path}/weights: checksum differs from the manifest"}
        Attempt(run, 1).append("events", event)
    gc(capsys)
    assert steps_of(run) == [20, 30, 40, 50]


def test_a_finished_run_keeps_its_export_and_the_last_checkpoint(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(registry, "aaaa000001", GONE, [10, 20], end="done")
    (run.folder / "export").mkdir()
    (run.folder / "export" / "weights").write_bytes(CONTENT)
    run.mark_done({"digest": "d"})
    gc(capsys, "--runs")
    assert steps_of(run) == [20] and (run.folder / "export" / "weights").exists()


@pytest.mark.parametrize("job", [process_record(os.getpid()), ELSEWHERE])
def test_nothing_is_removed_of_a_run_that_is_alive_or_may_be(
    job: dict[str, Any], registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(registry, "aaaa000001", job, [10, 20, 30, 40], end=None)
    (run.folder / "checkpoints" / f".staging-{run.id}-0001-{'a' * 32}").mkdir()
    before = everything(registry.home)
    gc(capsys, "--runs")
    assert everything(registry.home) == before


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_run(registry, load_recipe("tiny"), "preprocess")
    dead = trained(registry, "aaaa000001", GONE, [10], end=None)
    alive = trained(registry, "bbbb000001", process_record(os.getpid()), [10], end=None)
    place = store.folder / "store"
    place.mkdir()
    gone, kept = [], []
    for owner, found in ((dead, gone), (alive, kept)):
        for folder in (place, owner.folder / "checkpoints"):
            staged = folder / f".staging-{owner.id}-0001-{'a' * 32}"
            staged.mkdir()
            (staged / "shard").write_bytes(CONTENT)
            found.append(staged)
    half_removed = dead.folder / "checkpoints" / f".removed-{'b' * 32}"
    half_removed.mkdir()
    old = [
        registry.home / "runs" / "clip" / f".staging--{'c' * 32}",
        dead.folder / "attempts" / f".0002.json.{'d' * 32}",
        place / f".staging-ffffffffff-0001-{'e' * 32}",
    ]
    for path in old:
        path.mkdir() if path.name.startswith(".staging") else path.touch()
    kept += [registry.home / "runs" / "clip" / f".staging--{'1' * 32}", store.folder / ".hidden"]
    for path in kept[-2:]:
        path.mkdir()
    yesterday = time.time() - 1.5 * registry_garbage.DAY_S
    for path in [*old, kept[-1]]:
        os.utime(path, (yesterday, yesterday))
    said = gc(capsys)
    assert not any(path.exists() for path in [*gone, half_removed, *old])
    assert all(path.exists() for path in kept)
    assert said.count("staged by an attempt that is over") == 3 and "freed 2.0 KiB" in said


def test_whole_runs_go_only_on_request_and_if_they_came_to_nothing(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = trained(registry, "aaaa000001", GONE)
    with_commit = trained(registry, "aaaa000002", GONE, [10])
    stopped = trained(registry, "aaaa000003", GONE, end="stopped")
    with_child = trained(registry, "aaaa000004", GONE, end="done")
    with_child.mark_done({"digest": "d"})
    make_run(registry, load_recipe("tiny"), "embed", [with_child])
    (with_child.folder / "DONE").unlink()
    with_child.claim_attempt({"intent": 1, "group": 0}).end("error")
    with_task = trained(registry, "aaaa000005", GONE)
    with_task.finish_task(0, {})
    just_created = registry.create(make_spec(id="aaaa000006"))
    never_launched = registry.create(make_spec(id="aaaa000007"))
    long_ago = time.time() - 2 * registry_garbage.DAY_S
    os.utime(never_launched.folder / "run.json", (long_ago, long_ago))
    gc(capsys)
    assert failed.folder.exists() and never_launched.folder.exists()
    said = gc(capsys, "--runs")
    assert not failed.folder.exists() and not never_launched.folder.exists()
    assert "failed without a commit" in said and "never launched" in said
    for run in (with_commit, stopped, with_child, with_task, just_created):
        assert run.folder.exists(), run.name
    assert files.names_in(registry.home / "runs" / "clip") == [f"tiny-aaaa00000{number}" for number in (2, 3, 4, 5, 6)]


def test_what_changed_lately_can_be_left_alone(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(registry, "aaaa000001", GONE, [10, 20, 30])
    failed = trained(registry, "bbbb000001", GONE)
    gc(capsys, "--older-than", "1", "--runs")
    assert steps_of(run) == [10, 20, 30] and failed.folder.exists()
    long_ago = time.time() - 2 * registry_garbage.DAY_S
    for path in (run.folder, *run.folder.iterdir()):
        os.utime(path, (long_ago, long_ago))
    gc(capsys, "--older-than", "1", "--runs")
    assert steps_of(run) == [20, 30] and failed.folder.exists()
    assert runs.main(["gc", "--older-than", "-1"]) == 2


def test_a_run_that_is_launched_meanwhile_is_left_alone(registry: Registry) -> None:
    resumed = trained(registry, "aaaa000001", GONE, [10, 20, 30])
    failed = trained(registry, "bbbb000001", GONE)
    found = registry_garbage.find(registry, whole_runs=True)
    assert len(found) == 2
    for run in (resumed, failed):
        run.claim_intent(2, {"launcher": process_record(os.getpid()), "groups": [[]], "training": True})
    assert [registry_garbage.remove(garbage) for garbage in found] == [False, False]
    assert steps_of(resumed) == [10, 20, 30] and failed.folder.exists()


def remove_all(home: Path, barrier: Any) -> list[str]:
    found = registry_garbage.find(Registry(home), whole_runs=True)
    removed = []
    for garbage in sorted(found, key=lambda one: one.path):
        barrier.wait()
        if registry_garbage.remove(garbage):
            removed.append(garbage.path.name)
    return removed


def launch_all(home: Path, barrier: Any) -> list[str]:
    found = sorted(Registry(home).runs("clip"), key=lambda run: run.folder)
    launched = []
    for run in found:
        barrier.wait()
        try:
            if run.claim_intent(2, {"launcher": process_record(os.getpid()), "groups": [[]], "training": True}):
                launched.append(run.folder.name)
        except FileNotFoundError:
            continue
    return launched


def test_of_a_removal_and_a_launch_at_the_same_moment_one_gives_way(registry: Registry) -> None:
    names = [trained(registry, f"aaaa{number:06d}", GONE).folder.name for number in range(20)]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2, timeout=60)
        removing = pool.apply_async(remove_all, (registry.home, barrier))
        launching = pool.apply_async(launch_all, (registry.home, barrier))
        removed, launched = removing.get(60), launching.get(60)
    assert sorted([*removed, *launched]) == names
    assert files.names_in(registry.home / "runs" / "clip") == launched


def test_what_may_not_be_removed_is_told_and_the_rest_goes(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (trained(registry, name, GONE, [10, 20, 30]) for name in ("aaaa000001", "bbbb000001"))
    real = files.remove_tree

    def refuse(folder: Path) -> None:
        if first.folder in folder.parents:
            raise PermissionError(13, "Permission denied")
        real(folder)

    monkeypatch.setattr(files, "remove_tree", refuse)  # root may remove everything
    assert runs.main(["gc"]) == 1
    assert "could not remove runs/clip/tiny-aaaa000001" in capsys.readouterr().err
    assert steps_of(second) == [20, 30]


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.integers(0, 40), unique=True, max_size=6),
    keep_every=st.integers(0, 10),
    alive=st.booleans(),
    done=st.booleans(),
)
def test_the_newest_checkpoint_is_never_removed(
    steps: list[int], keep_every: int, alive: bool, done: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    registry = Registry(tmp_path_factory.mktemp("home"))
    job = process_record(os.getpid()) if alive else GONE
    run = trained(registry, "aaaa000001", job, steps, keep_every=keep_every)
    if done:
        run.mark_done({"digest": "d"})
    for garbage in registry_garbage.find(registry, whole_runs=True):
        assert registry_garbage.remove(garbage)
    left = steps_of(run) if run.folder.exists() else []
    expected = sorted(steps)
    if done or not alive:
        newest = expected[-1:] if done else expected[-2:]
        expected = [step for step in expected if step in newest or (keep_every and step % keep_every == 0)]
    assert left == expected
    assert run.folder.exists() == (done or alive or bool(steps))


def test_code_that_no_launch_names_goes_after_a_day(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    used, unused, fresh = (registry.home / "code" / name for name in ("aaaa", "bbbb", "cccc"))
    for folder in (used, unused, fresh):
        (folder / "slurm").mkdir(parents=True)
        (folder / "slurm/job.py").write_bytes(CONTENT)
    for folder in (used, unused):
        os.utime(folder, (1e9, 1e9))
    run = registry.create(make_spec(id="0000000001"))
    run.claim_intent(1, {"launcher": GONE, "groups": [[]], "training": True, "runtime": {}, "code": "aaaa"})
    assert runs.main(["gc"]) == 0
    assert "code/bbbb: code that no launch names, 1000 bytes" in capsys.readouterr().out
    assert used.is_dir() and fresh.is_dir() and not unused.exists()


def test_sizes_are_told_in_the_unit_a_person_would_choose() -> None:
    assert [size(number) for number in (0, 1023, 1024, 5 << 20, 3 << 40)] == [
        *("0 bytes", "1023 bytes", "1.0 KiB", "5.0 MiB", "3.0 TiB")
    ]
