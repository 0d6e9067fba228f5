"""The chain queued at once, on a real Slurm: one job a stage, a failure told all the way down, one command goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import REPOSITORY, TINY
from slurm_cluster import Cluster

from experiments import plan
from experiments.plan import Plan
from experiments.registry import Registry
from experiments.run import Run

STAGES = ("preprocess", "clip", "embed", "prior", "decoder", "temporal_sr", "sample")
PLANNED = STAGES[1:]
PROMPT = ["--sample.prompts", "a red circle moving left"]
FLAGS = [flag for part in TINY.values() for flag in part]
PLACE = ["--cluster", "slurm", "--partition", "low"]
PRIOR = [*TINY["data"], *TINY["clip"], *TINY["prior"]]


class User:
    """Somebody at the cluster, with a registry."""

    def __init__(self, cluster: Cluster, home: Path, data: Path) -> None:
        self.cluster, self.home, self.data = cluster, home, data
        self.registry = Registry(home)

    def begin(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, f"launch/{script}.py", *PLACE, *arguments]
        environment = self.cluster.environment | {"DALLE2_VIDEO_HOME": str(self.home)}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=pipe, stderr=pipe, text=True)

    def type(self, script: str, *arguments: str) -> str:
        """Type a command; return what it prints."""
        process = self.begin(script, *arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        return out

    def pipeline(self, *more: str) -> str:
        return self.type("pipeline", *self.chain(), *more)

    def chain(self) -> list[str]:
        return ["--data-root", str(self.data), *FLAGS, "--torch-threads", "1", *PROMPT]

    def run(self, stage: str) -> Run:
        """The newest run of a stage."""
        return max(self.registry.runs(stage), key=lambda run: run.created)

    def plan(self, stage: str) -> Plan:
        """The newest plan of a stage."""
        return max(plan.plans(self.home, stage), key=lambda one: one.spec.created)

    def jobs(self) -> list[str]:
        return self.cluster.slurm("squeue", "--noheader", "--format=%F").split()

    def jobs_of(self, launched: Run | Plan) -> str:
        """The newest job."""
        job = launched.intents()[-1].job
        assert job is not None
        return job["ids"][-1]

    def queued(self, job: str, column: str = "%T") -> str:
        return self.cluster.slurm("squeue", "--noheader", f"--format={column}", "--jobs", job).strip()

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 150) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                logs = [*self.home.glob("plans/*/*/logs/*.out"), *self.home.glob("runs/*/*/logs/*.out")]
                told = "\n".join(f"{path}:\n{path.read_text()[-1500:]}" for path in sorted(logs))
                pytest.fail(f"waited in vain until {what}\n{self.cluster.slurm('squeue')}\n{told}")
            time.sleep(0.3)

    def made(self) -> None:
        """Bring the chain to its end, unless it is there."""
        while not all(any(run.is_done() for run in self.registry.runs(stage)) for stage in STAGES):
            self.pipeline()
            self.until(lambda: not self.jobs(), "the queue is empty")


@pytest.fixture(scope="module")
def user(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> User:
    return User(cluster, tmp_path_factory.mktemp("pipeline") / "home", sample_data)


def test_two_commands_queue_one_chain_a_failure_goes_down_it_and_one_command_goes_on(user: User) -> None:
    broken = ["--per-stage", "clip.env=DS_ACCELERATOR=nonsense"]
    both = [user.begin("pipeline", *user.chain(), *broken) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
    # Of each stage one job, whoever submitted it: of the store a run's, of all others a plan's.
    assert len(user.run("preprocess").intents()) == 1
    assert {stage: len(user.plan(stage).intents()) for stage in PLANNED} == dict.fromkeys(PLANNED, 1)
    user.until(lambda: not user.jobs(), "all have ended")

    clip = user.run("clip")
    assert clip.newest_intent() == 1 and not clip.is_done()
    for stage in PLANNED[1:]:
        end = user.plan(stage).end_of(1)
        assert end is not None and end["kind"] == "failed", stage
        assert end["reason"].startswith(f"{clip.name}: ") and "nonsense" in end["reason"], end
        assert list(user.registry.runs(stage)) == []

    said = user.pipeline()
    assert f"{clip.name}: Slurm job" in said and "sample (planned): Slurm job" in said
    user.until(lambda: not user.jobs(), "all have ended again")
    runs = {stage: list(user.registry.runs(stage)) for stage in STAGES}
    assert {stage: len(found) for stage, found in runs.items()} == dict.fromkeys(STAGES, 1)
    assert all(found[0].is_done() for found in runs.values())
    once = ("clip", "prior", "decoder", "temporal_sr", "sample")
    assert {stage: len(runs[stage][0].attempts()) for stage in once} == dict.fromkeys(once, 1)
    sample = runs["sample"][0]
    assert list((sample.folder / "samples").glob("**/*.mp4"))
    # Each went on in its place in the queue, and its log lies where logs of runs are looked for.
    job = user.plan("sample").intents()[-1].job
    assert job is not None and sample.intent(1).job == job
    assert list((sample.folder / "logs").glob(f"{job['ids'][0]}*_log.out"))

    said = user.pipeline("--wait", "yes")
    assert said.count("done already") == len(STAGES) and not user.jobs()
    assert user.plan("sample").newest_intent() == 2 and sample.newest_intent() == 1


def test_a_parent_that_is_submitted_again_is_waited_for_in_its_new_job(user: User) -> None:
    user.made()
    other = ["--stages", "prior", "sample", "--prior.optim.lr", "5e-4"]
    held = ["--per-stage", "prior.sbatch=hold"]
    user.pipeline(*other, *held)
    prior, waiting = user.run("prior"), user.plan("sample")
    first, job = user.jobs_of(prior), user.jobs_of(waiting)
    user.cluster.slurm("scontrol", "hold", job)
    user.cluster.slurm("scancel", first)
    said = user.pipeline(*other, *held)
    second = user.jobs_of(prior)
    assert second != first and f"sample (planned): at work or queued already, Slurm job {job}" in said
    assert f"Slurm job {job}" in user.type("sample", "--after", *FLAGS, *PROMPT, "--prior.optim.lr", "5e-4")
    # The job that it waited for is gone: it starts, sees the new one, gives its node back and waits for that.
    user.cluster.slurm("scontrol", "release", job)
    user.until(lambda: f"afterany:{second}(" in user.queued(job, "%E"), "it waits for the new job")
    assert "RUNNING" not in user.queued(job)
    user.cluster.slurm("scontrol", "release", second)
    user.until(lambda: not user.jobs(), "all have ended")
    sample = user.run("sample")
    assert prior.is_done() and sample.is_done() and sample.spec.parents["prior"] == prior.as_parent()
    assert user.jobs_of(sample) == job and waiting.newest_intent() == 1
    assert sample.attempts()[-1].claim["slurm"]["SLURM_RESTART_COUNT"] == "1"


def test_a_sweep_runs_so_many_at_once_and_goes_on_with_what_is_missing(user: User) -> None:
    user.made()
    sweep = [
        "--stage", "prior", *PRIOR, "--validate-every", "3", "--torch-threads", "1", "--parallel", "1", "--name", "lr"
    ]  # fmt: skip
    user.type("sweep", *sweep, "--grid", "prior.optim.lr=1e-3,2e-3,4e-3")
    tried = [run for run in user.registry.runs("prior") if run.spec.config["prior"]["optim"]["lr"] in (2e-3, 4e-3)]
    first, second = sorted(map(user.jobs_of, tried), key=int)
    assert f"afterany:{first}(" in user.queued(second, "%E")
    user.cluster.slurm("scancel", second)
    user.until(lambda: not user.jobs(), "the first has ended")
    said = user.type("sweep", *sweep, "--grid", "prior.optim.lr=1e-3,2e-3,4e-3")
    assert "1 submitted, 0 in the queue already" in said
    user.until(lambda: not user.jobs(), "the rest has ended")
    said = user.type("sweep", *sweep, "--grid", "prior.optim.lr=1e-3,2e-3,4e-3", "--show")
    points = json.loads((user.home / "sweeps/lr/sweep.json").read_text())["points"]
    # The recipe's own value is the pipeline's run, found again and not trained twice.
    assert [point["state"] for point in points] == ["done"] * 3
    assert {len(Run(user.home / "runs" / point["run"]).attempts()) for point in points} == {1}
    losses = [point["best"] for point in points if point["best"] is not None]
    assert losses == sorted(losses) and len(losses) == 3
    assert all(point["id"] in said for point in points)
    assert (user.home / "sweeps/lr/plot.svg").read_text().startswith("<svg")
