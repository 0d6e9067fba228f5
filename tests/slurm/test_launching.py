"""One run, one job: whatever happens to launchers, on a real Slurm. Arrays of preprocessing, which need no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import REPOSITORY, TINY
from slurm_cluster import Cluster

from experiments import code_snapshot
from experiments.registry import Registry
from experiments.run import Run


class Launcher:
    """Preprocessing of the sample data on the cluster, launched as a user does."""

    def __init__(self, cluster: Cluster, home: Path, data: Path, repository: Path = REPOSITORY) -> None:
        self.cluster, self.home, self.repository = cluster, home, repository
        self.command = [
            sys.executable, "launch/preprocess.py", "--cluster", "sandbox", "--data-root", str(data), *TINY["data"]
        ]  # fmt: skip
        self.environment = cluster.environment | {"DALLE2_VIDEO_HOME": str(home)}

    def launch(self, *more: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Type the command; path: a folder whose programs come first."""
        environment = dict(self.environment)
        if path is not None:
            environment["PATH"] = f"{path}:{environment['PATH']}"
        return subprocess.run(
            [*self.command, *more], cwd=self.repository, env=environment, capture_output=True, text=True
        )

    @property
    def run(self) -> Run:
        return next(Registry(self.home).runs("preprocess"))

    def jobs(self) -> set[str]:
        """Ids of the run's jobs that Slurm knows of, ended ones included."""
        names = {intent.request["job_name"] for intent in self.run.intents()}
        asked = self.cluster.slurm("squeue", "--noheader", "--states=all", f"--name={','.join(names)}", "--format=%F")
        return set(asked.split())

    def until_done(self, timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.run.is_done():
            logs = "\n".join(path.read_text()[-2000:] for path in (self.run.folder / "logs").glob("*.out"))
            assert time.monotonic() < deadline, f"not done: {self.run.attempts()}\n{logs}"
            time.sleep(0.3)


@pytest.fixture
def launcher(cluster: Cluster, tmp_path: Path, sample_data: Path) -> Launcher:
    return Launcher(cluster, tmp_path / "home", sample_data)


def program(folder: Path, name: str, text: str) -> Path:
    """Put a shell script in front of the real program of this name, which it finds in $REAL; return its folder."""
    folder.mkdir(exist_ok=True)
    script = folder / name
    script.write_text(f"#!/bin/bash\nREAL={shutil.which(name)}\n{text}\n")
    script.chmod(0o755)
    return folder


def test_a_launcher_killed_before_sbatch_leaves_nothing_and_one_killed_after_it_one_job(
    launcher: Launcher, tmp_path: Path
) -> None:
    before = program(tmp_path / "before", "sbatch", "kill -KILL $PPID")
    assert launcher.launch(path=before).returncode == -9
    assert launcher.run.intents()[-1].job is None and launcher.jobs() == set()

    after = program(tmp_path / "after", "sbatch", '$REAL "$@"; kill -KILL $PPID')
    assert launcher.launch("--sbatch", "hold", path=after).returncode == -9
    assert launcher.run.intents()[-1].job is None and len(launcher.jobs()) == 1
    answer = launcher.launch()
    assert answer.returncode == 0 and "running or queued already" in answer.stdout
    assert len(launcher.jobs()) == 1 and len(launcher.run.intents()) == 2

    (job,) = launcher.jobs()
    launcher.cluster.slurm("scontrol", "release", job)
    launcher.until_done()
    # The job said itself which one it is.
    assert launcher.run.intents()[-1].job is not None
    assert "done already" in launcher.launch().stdout or "DONE" in launcher.launch().stdout
    assert len(launcher.jobs()) == 1


def test_two_launchers_at_the_same_moment_make_one_job(launcher: Launcher) -> None:
    both = [
        subprocess.Popen(launcher.command, cwd=REPOSITORY, env=launcher.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    launcher.until_done()
    assert len(launcher.jobs()) == 1 and len(launcher.run.intents()) == 1


def test_a_controller_that_is_down_is_waited_for_and_an_answer_that_was_lost_makes_no_second_job(
    launcher: Launcher, tmp_path: Path
) -> None:
    # The first call fails as where nothing listens; the second comes through, but its answer is lost.
    words = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    lost = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    count = tmp_path / "count"
    flaky = program(
        tmp_path / "flaky",
        "sbatch",
        f'echo x >> {count}\ncase $(wc -l < {count}) in 1) echo "{words}" >&2; exit 1;; '
        f'2) $REAL "$@" >/dev/null; echo "{lost}" >&2; exit 1;; *) exec $REAL "$@";; esac',
    )
    answer = launcher.launch(path=flaky)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("Slurm's controller does not take jobs") == 2
    launcher.until_done()
    assert len(launcher.jobs()) == 1 and count.read_text().count("x") == 2


def test_edits_after_submission_do_not_reach_a_queued_job_and_a_new_launch_takes_and_records_them(
    cluster: Cluster, tmp_path: Path, sample_data: Path
) -> None:
    checkout = tmp_path / "checkout"
    for package in ("dalle2_video", "experiments", "slurm", "launch"):
        shutil.copytree(REPOSITORY / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    launcher = Launcher(cluster, tmp_path / "home", sample_data, repository=checkout)
    assert launcher.launch("--sbatch", "hold").returncode == 0
    job_py = checkout / "slurm/job.py"
    whole = job_py.read_text()
    job_py.write_text("raise SystemExit('the edit')\n")
    (job,) = launcher.jobs()
    cluster.slurm("scontrol", "release", job)
    launcher.until_done()
    first = launcher.run.intents()[0].request["code"]
    assert (code_snapshot.folder(launcher.home, first) / "slurm/job.py").read_text() == whole

    job_py.write_text(whole + "\n# an edit\n")
    launcher.run.forget_tasks([0])
    answer = launcher.launch()
    assert answer.returncode == 0 and "the code changed since launch 1: slurm/job.py" in answer.stdout, answer
    launcher.until_done()
    second = launcher.run.intents()[1].request["code"]
    assert second != first
    assert "+# an edit" in (launcher.run.folder / "intent/0002.code.diff").read_text()


def test_a_run_of_an_array_that_lost_its_controller_state_is_submitted_again(launcher: Launcher) -> None:
    """The accounting is asked of nothing that the controller can tell: a job that it forgot is gone."""
    assert launcher.launch("--sbatch", "hold").returncode == 0
    (job,) = launcher.jobs()
    launcher.cluster.slurm("scancel", job)
    no_accounting = program(launcher.home / "bin", "sacct", "echo 'sacct: error: not there' >&2; exit 1")
    answer = launcher.launch(path=no_accounting)
    assert answer.returncode == 0, answer.stderr
    launcher.until_done()
    assert len(launcher.run.intents()) == 2


def test_an_option_that_sbatch_does_not_know_is_refused_in_its_words_and_nothing_is_left(launcher: Launcher) -> None:
    answer = launcher.launch("--sbatch", "reservation=nowhere")
    assert answer.returncode == 2
    assert "sbatch refused the job" in answer.stderr and "reservation" in answer.stderr.lower()
    assert launcher.launch().returncode == 0
    launcher.until_done()


def test_a_job_runs_without_anything_in_the_folder_that_it_was_launched_from(launcher: Launcher) -> None:
    assert launcher.launch("--env", "DALLE2_TEST=it's", "--setup", "test -n hello").returncode == 0
    launcher.until_done()
    script = next((launcher.run.folder / "logs").glob("*_submission.sh")).read_text()
    assert "export DALLE2_TEST='it'\"'\"'s'" in script and os.sep + "code" + os.sep in script
    assert not list(launcher.run.folder.rglob("*.pkl"))
