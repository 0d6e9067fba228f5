"""What users see of jobs on a real Slurm, and what `tools/runs.py heal` does about them. Preprocessing: no torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from launching import REPOSITORY, TINY
from slurm_cluster import Cluster

from experiments.registry import Registry
from experiments.run import Run

HEAL = ("heal", "--older-than", "0h")


class User:
    """Somebody who launches preprocessing of the sample data, and looks."""

    def __init__(self, cluster: Cluster, home: Path, data: Path) -> None:
        self.cluster, self.home, self.data = cluster, home, data
        self.environment = cluster.environment | {"DALLE2_VIDEO_HOME": str(home)}

    def types(self, *command: str) -> str:
        """Type a command; return what it prints."""
        answer = subprocess.run(
            [sys.executable, *command], cwd=REPOSITORY, env=self.environment, capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    def launches(self, *more: str) -> None:
        cluster = ["--cluster", "sandbox", "--data-root", str(self.data), *TINY["data"]]
        self.types("launch/preprocess.py", *cluster, "--tasks", "1", *more)

    def runs(self, *command: str) -> str:
        return self.types("tools/runs.py", *command)

    def why(self) -> str:
        return self.runs("why", self.run.id)

    @property
    def run(self) -> Run:
        return next(Registry(self.home).runs("preprocess"))

    @property
    def job(self) -> str:
        job = self.run.intents()[-1].job
        assert job is not None
        return job["ids"][-1]

    def queue(self) -> str:
        return self.cluster.slurm("squeue", "--noheader", "--states=all", "--format=%F %T %r", f"--jobs={self.job}")

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            logs = [path.read_text()[-2000:] for path in (self.run.folder / "logs").glob("*.out")]
            assert time.monotonic() < deadline, f"waited in vain until {what}: {self.queue()}\n{logs}\n{self.why()}"
            time.sleep(0.2)


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path, sample_data: Path) -> User:
    return User(cluster, tmp_path / "home", sample_data)


@pytest.fixture
def hook(user: User) -> Iterator[list[str]]:
    """Texts that a webhook got, which the nodes of the cluster reach."""
    received: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("0.0.0.0", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # This machine's address as the nodes have it: last of the network in which the controller is first.
    controller = re.search(r"SlurmctldHost=ctl\(([\d.]+)\.1\)", (user.cluster.folder / "etc/slurm.conf").read_text())
    assert controller is not None
    address = f"{controller[1]}.254"
    user.environment |= {
        "DALLE2_VIDEO_WEBHOOK": f"http://{address}:{server.server_port}/T0PSECRET",
        "no_proxy": address,
    }
    yield received
    server.shutdown()
    server.server_close()


def test_a_held_job_is_told_and_a_cancelled_one_stays_cancelled(user: User) -> None:
    user.launches("--sbatch", "hold")
    assert f"Slurm job {user.job} waits: JobHeldUser: a user holds it; scontrol release {user.job}" in user.why()
    assert user.runs(*HEAL) == ""
    user.cluster.slurm("scancel", user.job)
    user.until(lambda: "it was cancelled by root (CANCELLED)" in user.why(), "accounting knows of it")
    assert user.runs(*HEAL) == "" and len(user.run.intents()) == 1
    assert "left alone: its job was cancelled by root" in user.runs(*HEAL, "--dry-run")


def test_what_slurm_gave_up_is_submitted_again_once_however_many_heal(user: User, hook: list[str]) -> None:
    # A node whose daemon has nowhere to put the job's script.
    spool = str(user.cluster.folder / "spool/n3")
    user.cluster.sandbox("in", "3", "mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", spool)
    try:
        user.launches("--exclude", "n[1-2]", "--notify", "webhook")
        first = user.job
        user.until(lambda: "launch failed requeued held" in user.queue(), "Slurm holds it")
    finally:
        user.cluster.sandbox("in", "3", "umount", spool)
    told = user.why()
    assert f"Slurm job {first} waits again: launch failed requeued held: Slurm holds it" in told
    assert "(partition low, exclude n[1-2])" in told
    both = [
        subprocess.Popen(
            [sys.executable, "tools/runs.py", *HEAL], cwd=REPOSITORY, env=user.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = "".join(process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0], said
    assert said.count("\n") == 1 and f": Slurm job {user.job}" in said, said
    assert user.job != first and len(user.run.intents()) == 2
    user.until(user.run.is_done, "the run is done")
    assert user.runs(*HEAL) == ""
    # The first from here, by whichever heal came first; the second from the node.
    user.until(lambda: len(hook) == 2, "both messages have come")
    assert "is failed.\nit was started again" in hook[0] and "is done." in hook[1]
    files = [path for path in user.home.rglob("*") if path.is_file()]
    assert all(b"T0PSECRET" not in path.read_bytes() for path in files)
    assert user.runs("logs", user.run.id).startswith(f"=== start 0 of Slurm job {user.job}, rank 0, on n3 ===\n")


def many_clips(data: Path, folder: Path) -> Path:
    """Link a data set's files under more names, so that there is work for some seconds."""
    for path in (one for one in data.rglob("*") if one.is_file()):
        place = folder / path.relative_to(data).parent
        place.mkdir(parents=True, exist_ok=True)
        for copy in range(8):
            # The first eleven characters of a name are who is seen.
            (place / f"copy{copy}{path.name}").hardlink_to(path)
    return folder


def test_the_starts_of_a_job_whose_node_failed_are_told_apart(
    cluster: Cluster, tmp_path: Path, sample_data: Path
) -> None:
    user = User(cluster, tmp_path / "home", many_clips(sample_data, tmp_path / "data"))
    user.launches("--exclude", "n[1-2]")
    user.until(lambda: user.run.attempts(), "an attempt is made")
    user.cluster.slurm("scontrol", "update", "NodeName=n3", "State=DOWN", "Reason=test")
    user.until(lambda: "RUNNING" not in user.queue(), "the job is off the node")
    log = user.run.folder / "logs" / f"{user.job}_0_log.out"
    user.until(lambda: len(user.run.attempts()) > 1 and log.read_text().count("=== start ") > 1, "it has started again")
    for attempt in user.run.attempts():
        restart = attempt.claim["slurm"].get("SLURM_RESTART_COUNT", "0")
        shown = user.runs("logs", user.run.id, "--attempt", str(attempt.number))
        assert shown.startswith(f"=== start {restart} of") and shown.count("=== start ") == 1
    told = user.why()
    assert "Attempt 1 (on n3, launch 1) began" in told and "Slurm says: a node failed (NODE_FAIL, on n3)" in told
    assert "Attempt 2 (on n3, launch 1, restart 1) began" in told
    cluster.slurm("scancel", user.job)
