"""`tools/runs.py list --watch`: what it shows is true at each look, and only what may have changed is read again."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from registry_fixtures import make_spec
from rich.console import Console

from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run
from slurm import run_state
from slurm.local import process_record
from tools import runs, runs_watch
from tools.bench.many_runs import write_runs

REPOSITORY = Path(__file__).resolve().parents[2]
GONE = {"executor": "local", "host": socket.gethostname(), "pid": 2**22 + 1, "start_ticks": 1}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return Registry(tmp_path / "home")


def options(*arguments: str) -> argparse.Namespace:
    return runs._parser().parse_args(["list", "--watch", *arguments])


def drawn(watch: runs_watch.Watch, width: int = 160, height: int = 30) -> str:
    console = Console(width=width, height=height, file=(text := io.StringIO()))
    console.print(watch.table(console))
    return text.getvalue()


def at_work_on_slurm(registry: Registry, job: dict[str, object]) -> Run:
    """A run at work: three quarters done, at two steps of four samples a second, started again twice."""
    run = registry.create(make_spec())
    run.claim_intent(1, {"launcher": GONE, "groups": [[]], "training": True})
    run.resolve_intent(1, job)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_RESTART_COUNT": "2"}
    attempt = run.claim_attempt({"intent": 1, "group": 0, "slurm": slurm})
    attempt.beat({"step": 90, "steps": 120})
    attempt.append("metrics", {"split": "train", "step": 90, "samples": 360, "loss": 0.25, "samples_per_second": 8.0})
    return run


def test_the_table_tells_progress_rate_time_left_loss_nodes_and_restarts(registry: Registry) -> None:
    run = at_work_on_slurm(registry, process_record(os.getpid()))
    watch = runs_watch.Watch(registry, options())
    (line,) = [line for line in drawn(watch).splitlines() if run.name in line]
    assert line.split() == [run.name, "running", "90/120", "8/s", "15", "s", "0.25", "n[1-2]", "2", "at", "work"]
    run.resolve_intent(1, GONE)
    (line,) = [line for line in drawn(watch).splitlines() if run.name in line]
    assert "failed" in line and "8/s" not in line and "n[1-2]" not in line


def test_what_needs_somebody_comes_first_and_what_has_no_room_is_counted(registry: Registry) -> None:
    write_runs(registry, 40, job=process_record(os.getpid()))
    watch = runs_watch.Watch(registry, options())
    text = drawn(watch, height=16)
    states = [line.split()[1] for line in text.splitlines() if "tiny-" in line]
    assert states == ["running"] * 4 + ["failed"] * 4 + ["stopped"] * 2
    assert "and 30 more" in text and len(text.splitlines()) <= 16
    assert max(map(len, drawn(watch, width=70).splitlines())) <= 70
    only = runs_watch.Watch(registry, options("3", "--state", "stopped", "--limit", "2"))
    assert [line.split()[1] for line in drawn(only).splitlines() if "tiny-" in line] == ["stopped"] * 2


def settled(registry: Registry) -> tuple[runs_watch.Standings, list[Run]]:
    standings, found = runs_watch.Standings(), list(registry.runs())
    for _ in range(2):
        standings(found)
    return standings, found


def test_only_runs_that_changed_or_are_at_work_are_read_again(registry: Registry) -> None:
    write_runs(registry, 40, job=process_record(os.getpid()))
    standings, found = settled(registry)
    standings(found)
    assert standings.read == 4
    by_state = {state: [run for run, one in zip(found, standings(found), strict=True) if one.state == state]
                for state in ("failed", "stopped", "done")}  # fmt: skip
    by_state["failed"][0].claim_attempt({"intent": 1, "group": 0}).end("stopped")
    by_state["stopped"][0].mark_done({"digest": "d"})
    told = dict(zip([run.name for run in found], standings(found), strict=True))
    assert standings.read == 6
    assert told[by_state["failed"][0].name].state == "stopped" and told[by_state["stopped"][0].name].state == "done"
    standings(found)
    assert standings.read == 6  # once more, since the clock may have ticked in between
    standings(found)
    assert standings.read == 4


@pytest.mark.parametrize("change", ["intent", "job", "attempt", "commit", "task", "undone"])
def test_whatever_a_state_depends_on_is_seen(registry: Registry, change: str) -> None:
    write_runs(registry, 9)
    standings, found = settled(registry)
    run = next(run for run in found if run.id.endswith("7"))
    match change:
        case "intent":
            run.claim_intent(2, {"launcher": process_record(os.getpid()), "groups": [[]], "training": True})
        case "job":
            run.resolve_intent(1, process_record(os.getpid()))
        case "attempt":
            run.claim_attempt({"intent": 1, "group": 0})
        case "commit":
            (run.folder / "checkpoints/step-00000150.a0002").mkdir()
        case "task":
            (run.folder / "tasks").mkdir()
        case "undone":
            run = next(run for run in found if run.is_done())
            (run.folder / "DONE").unlink()
    told = dict(zip([run.name for run in found], standings(found), strict=True))
    assert told[run.name] == run_state.standings([run])[0]
    assert standings.read == 1


def test_of_thousands_of_runs_only_those_that_may_have_changed_are_read_again(registry: Registry) -> None:
    write_runs(registry, 2000, job=process_record(os.getpid()))
    watch = runs_watch.Watch(registry, options())
    drawn(watch), drawn(watch)
    drawn(watch)
    assert watch.standings.read == 200


def test_a_pipe_is_refused_with_what_to_do(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.main(["list", "--watch"]) == 2
    assert "needs a terminal; to print the list once: python tools/runs.py list" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "0.1", "soon", "nan", "inf"])
def test_a_length_of_time_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(text)
    assert "must be a number of seconds, 0.5 or more" in capsys.readouterr().err


def test_a_run_that_is_removed_while_it_is_read_ends_nothing(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_runs(registry, 3)

    def gone(*_: object) -> None:
        raise ValueError("clip/tiny-0 has no launch 1; the run was removed, or its folder is damaged")

    watch = runs_watch.Watch(registry, options())
    with monkeypatch.context() as patched:
        patched.setattr(runs_watch.run_facts.Looker, "look", gone)
        assert "the run was removed" in drawn(watch)
    assert "tiny-0000000002" in drawn(watch)


def test_on_a_terminal_it_stays_and_ctrl_c_ends_it(registry: Registry) -> None:
    run = at_work_on_slurm(registry, process_record(os.getpid()))
    ours, theirs = pty.openpty()
    command = [sys.executable, str(REPOSITORY / "tools/runs.py"), "list", "--watch", "0.5"]
    environment = os.environ | {HOME_VARIABLE: str(registry.home), "TERM": "xterm", "COLUMNS": "140", "LINES": "20"}

    def take_terminal() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        # A shell's background jobs have it ignored, and so would all that they start.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
        preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while shown.count(run.name.encode()) < 2:
            shown += os.read(ours, 65536)
        assert b"90/120" in shown
        (run.folder / "beat.0001").write_text(json.dumps({"step": 91, "steps": 120}))
        while b"91/120" not in shown:
            shown += os.read(ours, 65536)
        os.write(ours, b"\x03")
        # What it still has to say is read, or it could not end; then its side of the terminal is closed.
        with contextlib.suppress(OSError):
            while os.read(ours, 65536):
                pass
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(ours)
