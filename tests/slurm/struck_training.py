"""A training on the cluster that things happen to, and what each of them cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from launching import NEEDED, REPOSITORY, TINY, Chain, assert_same_training
from slurm_cluster import Cluster

from experiments.run import Run, read_jsonl

REPORT_VARIABLE = "DALLE2_SLURM_REPORT"
"""Names a file that takes a line of JSON for each thing that happened; `event_table.py` makes a table of them."""
INTERVAL = 10
STEPS = {"clip": 90, "prior": 240, "decoder": 60, "temporal_sr": 60}
"""Enough that things can happen on the way, by stage."""


@dataclass(kw_only=True)
class Strike:
    """Something that happened."""

    event: str
    stage: str
    attempt: int
    """Newest attempt at that moment; 0 before the first."""
    freed_s: float | None
    """From the event, or the last step before it where Slurm chose the moment, to the moment at which the job has no
    node any more; None where it kept them."""
    lost_steps: int | None = None
    """Steps that had been done and were done again."""
    first_step_s: float | None = None
    """From the job's next start on its nodes to its first step."""
    equal: bool = False
    """Whether the run ended with the undisturbed one's weights, moments and metrics to the bit."""


class Training:
    """One stage on some nodes, submitted as a user does."""

    def __init__(self, cluster: Cluster, chain: Chain, stage: str = "prior", *, nodes: int = 2) -> None:
        self.cluster, self.chain, self.stage, self.nodes = cluster, chain, stage, nodes
        self.strikes: list[Strike] = []
        self._started: list[float] = []
        self._state = ""
        self._run: Run | None = None

    @property
    def run(self) -> Run:
        """The run, there after the first launch."""
        if self._run is None:
            self._run = next(self.chain.registry.runs(self.stage))
        return self._run

    def command(self, *more: str) -> list[str]:
        """Return the launch command."""
        flags = [flag for part in NEEDED[self.stage] for flag in TINY[part]]
        option = self.stage.replace("_", "-")
        flags += [f"--{option}.optim.steps", str(STEPS[self.stage]), "--checkpoint-every", str(INTERVAL)]
        flags += ["--log-every", "1", "--validate-every", "50", "--torch-threads", "1"]
        place = ["--cluster", "sandbox", "--nodes", str(self.nodes)]
        return [sys.executable, f"launch/{self.stage}.py", *flags, *place, *more]

    def environment(self) -> dict[str, str]:
        return self.cluster.environment | {"DALLE2_VIDEO_HOME": str(self.chain.home)}

    def launch(self, *more: str) -> str:
        """Type the launch command; return what it says."""
        answer = subprocess.run(
            self.command(*more), cwd=REPOSITORY, env=self.environment(), capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    @property
    def job(self) -> str:
        """Id of the newest job."""
        job = self.run.intents()[-1].job
        assert job is not None
        return job["ids"][-1]

    def state(self) -> str:
        """State and reason of the newest job, "" where it has left the queue; the last known while nobody answers."""
        answer = self.cluster.try_slurm("squeue", "--noheader", "--format=%T %r", "--jobs", self.job)
        if answer is not None:
            before, self._state = self._state, answer.strip()
            if self._state.startswith("RUNNING") and not before.startswith("RUNNING"):
                self._started.append(time.time())
        return self._state

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 150) -> None:
        """Wait; fails with the logs."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"{path}:\n{path.read_text()[-3000:]}" for path in sorted((self.run.folder / "logs").glob("*.out"))
                )
                queue = self.cluster.try_slurm("squeue")
                pytest.fail(f"waited in vain until {what}; attempts {self.run.attempts()}\n{queue}\n{logs}")
            self.state()
            time.sleep(0.1)

    def until_running(self) -> None:
        """Wait until the job has nodes."""
        self.until(lambda: self.state().startswith("RUNNING"), "the job runs")

    def until_freed(self) -> None:
        """Wait until the job has no nodes."""
        self.until(lambda: not self.state().startswith(("RUNNING", "COMPLETING")), "the job's nodes are free")

    def until_step(self, attempt: int) -> None:
        """Wait until the attempt of this number, or a later one, has done a step."""
        self.until(
            lambda: self.run.newest_attempt() >= attempt and self.steps(self.run.newest_attempt()),
            f"attempt {attempt} steps",
        )

    def until_commits(self, attempt: int = 1) -> None:
        """Wait until the attempt of this number has committed."""
        self.until(lambda: any(c.attempt >= attempt for c in self.run.commits()), f"attempt {attempt} commits")

    def until_done(self) -> None:
        """Wait until the run is done and its nodes are free."""
        self.until(self.run.is_done, "the run is done")
        self.until_freed()

    def steps(self, attempt: int) -> list[dict[str, Any]]:
        """Records of the steps that an attempt has done."""
        path = self.run.folder / f"metrics.{attempt:04d}.jsonl"
        return [record for record in read_jsonl(path) if record["split"] == "train"] if path.exists() else []

    def ends(self) -> list[str]:
        """How the attempts ended, in order; "" without a word."""
        return [(attempt.end or {"kind": ""})["kind"] for attempt in self.run.attempts()]

    def strike(self, event: str, happen: Callable[[], object], *, frees: bool = True, at_once: bool = True) -> Strike:
        """Let something happen and wait until the job has lost its nodes.

        frees: False where it is to keep them; at_once: False where Slurm chooses the moment.
        """
        assert not self.run.is_done(), f"{event}: too late, the run is done"
        newest, began_s = self.run.newest_attempt(), time.time()
        happen()
        if frees:
            self.until_freed()
        if not at_once:
            began_s = self.steps(newest)[-1]["time"]
        freed_s = time.time() - began_s if frees else None
        self.strikes.append(Strike(event=event, stage=self.stage, attempt=newest, freed_s=freed_s))
        return self.strikes[-1]

    def settle(self, undisturbed: Run) -> None:
        """Wait for the end, hold it against the undisturbed run, and write the report's lines."""
        self.until_done()
        for strike in self.strikes:
            later = [attempt for attempt in self.run.attempts() if attempt.number > strike.attempt]
            if strike.freed_s is None or not later:
                strike.lost_steps = 0
                continue
            again = later[0]
            done = self.steps(strike.attempt)
            resumed = next(
                event["step"]
                for event in self.run.events()
                if event["attempt"] == again.number and event["event"] == "start"
            )
            strike.lost_steps = max(0, done[-1]["step"] - resumed) if done else 0
            started_s = max((moment for moment in self._started if moment <= again.claim["time"]), default=None)
            first = self.steps(again.number)
            strike.first_step_s = first[0]["time"] - started_s if started_s is not None and first else None
        assert_same_training(self.run, undisturbed)
        for strike in self.strikes:
            strike.equal = True
        if (report := os.environ.get(REPORT_VARIABLE)) is not None:
            with Path(report).open("a") as file:
                file.writelines(json.dumps(asdict(strike)) + "\n" for strike in self.strikes)

    def lost(self, event: str) -> int:
        """Steps that an event cost, once settled."""
        (strike,) = [strike for strike in self.strikes if strike.event == event]
        assert strike.lost_steps is not None
        return strike.lost_steps
