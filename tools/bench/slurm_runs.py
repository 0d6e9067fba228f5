"""Runs on a sandbox that are kept going by the launcher, and what their attempts lost."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.registry import Registry
from experiments.run import Run, read_jsonl
from tools.bench.chaos_home import REPOSITORY
from tools.bench.chaos_ledger import Account, Ledger
from tools.bench.slurm_mishaps import Cluster

INTERVAL = 10
STAGES = {"prior": (240, 8), "decoder": (80, 4)}
"""Steps and batch size of what is trained."""
LAUNCH_EVERY_S = 15.0
TOLD = frozenset({"preempted", "timeout", "stopped"})


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What it cost that an attempt ended before the run did."""

    where: str
    end: str
    """How it ended: preempted, timeout, stopped, error, hang, or without a word."""
    steps: int
    seconds: float | None
    """From its last step to the next attempt's first; None where one of them did none."""

    @property
    def told(self) -> bool:
        """Whether the job was told, so that it could save."""
        return self.end in TOLD


class ClusterRun:
    """One stage in a fresh home."""

    def __init__(self, cluster: Cluster, home: Path, stage: str, flags: Sequence[str], account: Account) -> None:
        """flags: those that lead to the parents."""
        self.cluster, self.home, self.stage, self.account = cluster, home, stage, account
        steps, batch = STAGES[stage]
        sizes = [f"--{stage}.optim.steps", str(steps), f"--{stage}.optim.batch-size", str(batch)]
        often = ["--log-every", "1", "--checkpoint-every", str(INTERVAL), "--validate-every", "50"]
        place = ["--cluster", "sandbox", "--nodes", "2", "--torch-threads", "1"]
        self.command = [sys.executable, f"launch/{stage}.py", *flags, *sizes, *often, *place]
        self.run: Run | None = None
        self.ledger: Ledger | None = None
        self.launches = self.retries = 0
        self._launcher: subprocess.Popen[str] | None = None
        self._launched_s = -LAUNCH_EVERY_S
        self._said = ""

    @property
    def job(self) -> str:
        """Id of the newest job, "" before there is one."""
        if self.run is None or not (intents := self.run.intents()) or intents[-1].job is None:
            return ""
        return intents[-1].job["ids"][-1]

    def over(self) -> bool:
        """Whether the run is done."""
        return self.run is not None and self.run.is_done()

    def look(self) -> None:
        """Keep the books, and give the launch command again where the last time is a while ago."""
        if self.run is None:
            self.run = next(Registry(self.home).runs(self.stage), None)
            self.ledger = Ledger(self.run, self.account) if self.run is not None else None
        if self.ledger is not None:
            self.ledger.look()
        if self._launcher is not None and self._launcher.poll() is not None:
            self._said = self._launcher.communicate()[0]
            refused, self._launcher = self._launcher.returncode != 0, None
            # A refusal names its remedy: a run whose attempts were killed again and again before a commit is poisoned.
            if refused and "--retry" in self._said:
                self.retries += 1
                self._launch("--retry")
        if self._launcher is None and time.monotonic() - self._launched_s >= LAUNCH_EVERY_S and not self.over():
            self._launch()

    def _launch(self, *more: str) -> None:
        self.launches += 1
        self._launched_s = time.monotonic()
        environment = self.cluster.environment | {"DALLE2_VIDEO_HOME": str(self.home)}
        self._launcher = subprocess.Popen(
            [*self.command, *more],
            cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def until_done(self, timeout_s: float) -> None:
        """Bring the run to its end."""
        deadline_s = time.monotonic() + timeout_s
        while not self.over():
            self.look()
            if time.monotonic() > deadline_s:
                raise RuntimeError(self.words())
            time.sleep(0.2)

    def words(self) -> str:
        """Return what the launcher and the newest log said last."""
        texts = [f"{self.stage} does not end; its launcher said:\n{self._said[-2000:]}"]
        if self.run is not None:
            logs = sorted((self.run.folder / "logs").glob("*.out"), key=os.path.getmtime)
            texts += [f"{path}:\n{path.read_text(errors='replace')[-3000:]}" for path in logs[-2:]]
        return "\n".join(texts)

    def losses(self) -> list[Loss]:
        """Return what each attempt but the last cost, and hold the books against the end."""
        assert self.run is not None and self.ledger is not None
        if self._launcher is not None:
            self._launcher.wait()
        self.ledger.look()
        found = []
        trained = [attempt for attempt in self.run.attempts() if self.ledger.resumed(attempt.number) is not None]
        for before, after in itertools.pairwise(trained):
            resumed = self.ledger.resumed(after.number)
            steps, following = self._steps(before.number), self._steps(after.number)
            assert resumed is not None
            reached = max((step for step, _ in steps), default=self.ledger.resumed(before.number) or 0)
            found.append(
                Loss(
                    where=f"{self.run.folder}, attempt {before.number}",
                    end=before.end["kind"] if before.end else "without a word",
                    steps=max(0, reached - resumed),
                    seconds=following[0][1] - steps[-1][1] if steps and following else None,
                )
            )
        return found

    def _steps(self, attempt: int) -> list[tuple[int, float]]:
        """Return steps that an attempt did and when."""
        path = self.run.folder / f"metrics.{attempt:04d}.jsonl" if self.run is not None else None
        if path is None or not path.exists():
            return []
        return [(record["step"], record["time"]) for record in read_jsonl(path) if record["split"] == "train"]
