"""Is the job alive? Told from real processes, and from what squeue and sacct print; in doubt it is unknown."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.registry import Intent
from slurm import job_state
from slurm.local import process_record, start_ticks


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_running_process_is_alive_and_an_ended_one_is_gone(sleeper: subprocess.Popen) -> None:
    record = process_record(sleeper.pid)
    assert job_state.of_process(record) == "alive"
    sleeper.kill()
    sleeper.wait()
    assert job_state.of_process(record) == "gone"
    assert start_ticks(sleeper.pid) is None


def test_a_stopped_process_is_alive(sleeper: subprocess.Popen) -> None:
    record = process_record(sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    assert job_state.of_process(record) == "alive"


def test_a_zombie_is_gone(sleeper: subprocess.Popen) -> None:
    record = process_record(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # ended, but its parent has not asked how
    assert Path(f"/proc/{sleeper.pid}/stat").exists()
    assert job_state.of_process(record) == "gone"


def test_another_process_with_the_same_pid_is_not_taken_for_the_job(sleeper: subprocess.Popen) -> None:
    record = process_record(sleeper.pid)
    assert job_state.of_process(record | {"start_ticks": record["start_ticks"] - 1}) == "gone"


def test_a_record_of_a_process_that_was_gone_already_is_gone() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    record = process_record(ended.pid)
    assert record["start_ticks"] is None
    assert job_state.of_process(record) == "gone"


def test_a_name_with_spaces_and_brackets_does_not_confuse_the_start_time(tmp_path: Path) -> None:
    script = tmp_path / "a) R (b 1 2"
    script.symlink_to("/bin/sleep")
    process = subprocess.Popen([script, "60"])
    try:
        deadline = time.monotonic() + 5
        while ") R (" not in Path(f"/proc/{process.pid}/stat").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ") R (" in Path(f"/proc/{process.pid}/stat").read_text()
        assert job_state.of_process(process_record(process.pid)) == "alive"
    finally:
        process.kill()
        process.wait()


def test_a_process_of_another_host_is_unknown(sleeper: subprocess.Popen) -> None:
    record = process_record(sleeper.pid)
    assert job_state.of_process(record | {"host": f"not-{socket.gethostname()}"}) == "unknown"


def intent(job: dict[str, Any] | None, launcher: dict[str, Any]) -> Intent:
    return Intent(number=1, request={"launcher": launcher}, job=job)


def test_before_the_job_is_known_its_launcher_speaks_for_it_and_then_the_job(sleeper: subprocess.Popen) -> None:
    living, other = process_record(os.getpid()), process_record(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert job_state.of_intent(intent(None, living)) == "alive"
    assert job_state.of_intent(intent(None, other)) == "gone"
    assert job_state.of_intent(intent(living, other)) == "alive"
    assert job_state.of_intent(intent(other, living)) == "gone"


@pytest.mark.parametrize(
    ("squeue", "sacct", "answer"),
    [
        ("echo RUNNING", "exit 1", "alive"),
        ("echo PENDING", "exit 1", "alive"),
        ("echo COMPLETING", "echo COMPLETED", "alive"),
        ("echo COMPLETED; echo RUNNING", "exit 1", "alive"),
        ("echo COMPLETED; echo FAILED", "exit 1", "gone"),
        ("exit 1", "echo COMPLETED", "gone"),
        ("exit 1", "echo 'CANCELLED by 1000'; echo TIMEOUT", "gone"),
        ("exit 1", "echo NODE_FAIL; echo PENDING", "alive"),
        ("true", "echo RUNNING", "alive"),
        ("exit 1", "true", "unknown"),
        ("exit 1", "exit 1", "unknown"),
        ("true", "exit 1", "unknown"),
    ],
)
def test_a_slurm_job_is_what_squeue_says_and_else_what_sacct_says(
    squeue: str, sacct: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("squeue", squeue), ("sacct", sacct)):
        script = tmp_path / name
        # The last argument is the job asked about.
        script.write_text(f'#!/bin/sh\nfor last; do :; done\n[ "$last" = 4711 ] || exit 3\n{text}\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert job_state.of_slurm_job("4711") == answer
    assert job_state.of_intent(intent({"executor": "slurm", "id": "4711"}, process_record(os.getpid()))) == answer


def test_without_slurms_commands_a_slurm_job_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_state.of_slurm_job("4711") == "unknown"
