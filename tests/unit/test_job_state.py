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
from registry_fixtures import squeue_rows

from experiments.run import Intent
from slurm import job_state
from slurm.local import process_record, start_ticks

GONE = {"host": socket.gethostname(), "pid": 2**22 + 1, "start_ticks": 1}


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


def held(reason: str) -> str:
    return f"printf '%-24s%-24s%-48s\\n' 4711 PENDING '{reason}'"


@pytest.mark.parametrize(
    ("squeue", "sacct", "answer"),
    [
        (squeue_rows(("4711", "RUNNING")), "exit 1", "alive"),
        (squeue_rows(("4711", "PENDING")), "exit 1", "alive"),
        (squeue_rows(("4711", "COMPLETING")), "echo '4711|COMPLETED'", "alive"),
        (squeue_rows(("4711", "COMPLETED"), ("4711", "RUNNING")), "exit 1", "alive"),
        (squeue_rows(("4711", "COMPLETED"), ("4711", "FAILED")), "exit 1", "gone"),
        # The controller is the truth: what it does not know is gone, whatever the accounting has or lacks.
        ("true", "exit 1", "gone"),
        ("true", "echo '4711|RUNNING'", "gone"),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "exit 1", "gone"),
        # Where it does not answer, the accounting may.
        ("exit 1", "echo '4711|COMPLETED'", "gone"),
        ("exit 1", "echo '4711_0|CANCELLED by 1000'; echo '4711_1|TIMEOUT'", "gone"),
        ("exit 1", "echo '4711_0|NODE_FAIL'; echo '4711_[1-9]|PENDING'", "alive"),
        ("exit 1", "true", "unknown"),
        ("exit 1", "exit 1", "unknown"),
        # Held by Slurm itself, for good: only a new submission helps. Held by somebody: it waits.
        (held("JobHoldMaxRequeue"), "exit 1", "gone"),
        (held("launch failed requeued held"), "exit 1", "gone"),
        (held("JobHeldAdmin"), "exit 1", "alive"),
        (held("JobHeldUser"), "exit 1", "alive"),
    ],
)
def test_a_slurm_job_is_what_squeue_says_and_else_what_sacct_says(
    squeue: str, sacct: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "--jobs=4711", squeue=squeue, sacct=sacct)
    assert job_state.of_intent(intent({"executor": "slurm", "ids": ["4711"]}, process_record(os.getpid()))) == answer


@pytest.mark.parametrize(
    ("squeue", "sacct", "answer"),
    [
        (squeue_rows(("4711", "COMPLETED"), ("4712", "PENDING")), "exit 1", "alive"),
        ("exit 1", "echo '4711_0|COMPLETED'; echo '4712_0|RUNNING'", "alive"),
        ("exit 1", "echo '4711_0|COMPLETED'; echo '4712_0|FAILED'", "gone"),
        # Nobody knows of the second: that it ended cannot be said.
        ("exit 1", "echo '4711_0|COMPLETED'; echo '4711_1|COMPLETED'", "unknown"),
    ],
)
def test_of_several_slurm_jobs_all_must_have_ended(
    squeue: str, sacct: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "--jobs=4711,4712", squeue=squeue, sacct=sacct)
    job = {"executor": "slurm", "ids": ["4711", "4712"]}
    assert job_state.of_intent(intent(job, process_record(os.getpid()))) == answer


def test_a_job_of_another_cluster_is_unknown_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "#!/bin/sh\necho 'ClusterName = here'\n"
    for name, text in (("scontrol", script), ("squeue", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job = {"executor": "slurm", "ids": ["4711"]}
    launcher = process_record(os.getpid())
    assert job_state.of_intent(intent(job | {"cluster": "here"}, launcher)) == "gone"
    assert job_state.of_intent(intent(job | {"cluster": "elsewhere"}, launcher)) == "unknown"


@pytest.mark.parametrize(
    ("host", "age_s", "squeue", "answer"),
    [
        ("here", 1.0, "echo '4711|dalle2-video:1:0'", "alive"),
        ("here", 1.0, "echo '4711|dalle2-video:11:0'", "gone"),  # another launch's
        ("here", 1.0, "true", "gone"),
        ("here", 1.0, "exit 1", "unknown"),
        ("elsewhere", 1.0, "true", "unknown"),
        ("elsewhere", 1.0, "echo '4711|dalle2-video:1:0'", "alive"),
        ("elsewhere", 2 * job_state.SUBMISSION_S, "true", "gone"),
    ],
)
def test_a_job_whose_launcher_died_before_it_could_record_it_is_found_in_the_queue(
    host: str, age_s: float, squeue: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living = squeue_rows(("4711", "RUNNING"))
    script = tmp_path / "squeue"
    script.write_text(
        f"#!/bin/sh\nfor last; do :; done\ncase $last in --name=prior-abc.1234) {squeue};; *) {living};; esac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    launcher = GONE if host == "here" else GONE | {"host": "elsewhere"}
    request = {"launcher": launcher, "executor": "slurm", "job_name": "prior-abc.1234", "time": time.time() - age_s}
    assert job_state.of_intent(Intent(number=1, request=request, job=None)) == answer


def test_only_what_has_not_started_is_taken_out_of_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "4712", scancel=f'echo "$@" > {tmp_path}/asked')
    launcher = process_record(os.getpid())
    job_state.try_cancel_queued(intent(launcher, launcher))
    job_state.try_cancel_queued(intent(None, launcher))
    assert not (tmp_path / "asked").exists()
    job_state.try_cancel_queued(intent({"executor": "slurm", "ids": ["4711", "4712"]}, launcher))
    assert (tmp_path / "asked").read_text() == "--state=PENDING 4711 4712\n"


@pytest.mark.parametrize(
    ("scontrol", "size"),
    [
        ("echo 'MailProg = /bin/mail'; echo 'MaxArraySize            = 2001'", 2001),
        ("echo 'MaxArraySize = 0'", 1),
        ("echo 'no such line'", 1001),
        ("exit 1", 1001),
    ],
)
def test_the_size_of_an_array_is_the_clusters_and_else_slurms_default(
    scontrol: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "config", scontrol=scontrol)
    assert job_state.max_array_size() == size


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, last: str, **commands: str) -> None:
    """Put Slurm's commands on the path, which answer where their last argument is the expected one."""
    for name, text in commands.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nfor last; do :; done\n[ "$last" = {last} ] || exit 3\n{text}\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_without_slurms_commands_a_slurm_job_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job = {"executor": "slurm", "ids": ["4711"]}
    assert job_state.of_intent(intent(job, process_record(os.getpid()))) == "unknown"
