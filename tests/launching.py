"""Launchers run as a user runs them, in a temporary home, with each stage a matter of seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle2_video.training.window import MACHINE_METRICS
from experiments.registry import Registry
from experiments.run import Run

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = {
    "data": ["--data.clips-per-shard", "8"],
    "clip": ["--clip.optim.steps", "6", "--clip.optim.batch-size", "8"],
    "prior": ["--prior.optim.steps", "6", "--prior.optim.batch-size", "8"],
    "decoder": ["--decoder.optim.steps", "4", "--decoder.optim.batch-size", "4"],
    "temporal_sr": ["--temporal-sr.optim.steps", "2", "--temporal-sr.optim.batch-size", "4"],
}
"""Overrides that make each stage of the demo's recipe a matter of seconds."""
NEEDED = {
    "preprocess": ("data",),
    "clip": ("data", "clip"),
    "embed": ("data", "clip"),
    "prior": ("data", "clip", "prior"),
    "decoder": ("data", "clip", "decoder"),
    "temporal_sr": ("data", "clip", "temporal_sr"),
    "sample": ("clip", "prior", "decoder", "temporal_sr"),
    "evaluate": ("data", "clip"),
}


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A registry in a temporary home and the launchers that work on it."""

    home: Path
    data: Path

    @property
    def registry(self) -> Registry:
        return Registry(self.home)

    def command(self, stage: str, *more: str) -> list[str]:
        flags = [flag for part in NEEDED[stage] for flag in TINY[part]]
        if stage == "preprocess" and self.data != Path():
            flags += ["--data-root", str(self.data)]
        if stage in ("clip", "prior", "decoder", "temporal_sr"):
            flags += ["--ranks-per-node", "2", "--log-every", "1"]
        return [sys.executable, f"launch/{stage}.py", "--cluster", "local", *flags, *more]

    def environment(self) -> dict[str, str]:
        return os.environ | {"DALLE2_VIDEO_HOME": str(self.home)}

    def launch(self, stage: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(stage, *more), cwd=REPOSITORY, env=self.environment(), capture_output=True, text=True
        )

    def run(self, stage: str, *more: str) -> Run:
        """Launch a stage, wait for it, and return its newest finished run."""
        answer = self.launch(stage, *more)
        logs = "".join(path.read_text()[-3000:] for path in self.home.glob(f"runs/{stage}/*/logs/attempt-*.log"))
        assert answer.returncode == 0, f"{answer.stdout}\n{answer.stderr}\n{logs}"
        finished = [(record["time"], run) for run in self.registry.runs(stage) if (record := run.done())]
        return max(finished, key=lambda pair: pair[0])[1]


def ranks_of(run: Run) -> list[int]:
    """Process ids of the run's ranks or array groups."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                arguments = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"slurm.job" in arguments and str(run.folder).encode() in arguments:
                found.append(int(process.name))
    return found


def with_parents(chain: Chain, home: Path, stage: str = "prior") -> Chain:
    """A second home with the same finished parents and no run of `stage`."""
    (home / "runs").mkdir(parents=True)
    for parent in ("preprocess", "clip", "embed"):
        if parent == stage:  # nor what follows from it
            break
        (home / "runs" / parent).symlink_to(chain.home / "runs" / parent)
    return Chain(home=home, data=chain.data)


def learnt(run: Run) -> list[dict[str, Any]]:
    """Metrics without what tells of the machine."""
    left_out = MACHINE_METRICS | {"time"}
    return [{name: value for name, value in record.items() if name not in left_out} for record in run.metrics()]


def assert_same_training(run: Run, undisturbed: Run) -> None:
    record, expected = run.done(), undisturbed.done()
    assert record is not None and expected is not None
    assert record["digest"] == expected["digest"], "EMA weights differ"
    newest, reference = run.commits()[-1].path, undisturbed.commits()[-1].path
    for shard in sorted(reference.glob("*.safetensors")):
        assert (newest / shard.name).read_bytes() == shard.read_bytes(), f"masters or moments differ: {shard.name}"
    assert learnt(run) == learnt(undisturbed)
