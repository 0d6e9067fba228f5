"""Trainings of the prior on two real ranks, started as a user starts them, with faults put into them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from launching import REPOSITORY, Chain

from dalle2_video.training.window import MACHINE_METRICS
from experiments.run import Run

INJECTED = Path(__file__).parent / "injected"
STEPS = ["--prior.optim.steps", "40", "--checkpoint-every", "5", "--validate-every", "20"]
"""As in test_kill_and_resume.py, so that both need one undisturbed run."""


def with_parents(chain: Chain, home: Path) -> Chain:
    """A second home with the same finished parents and no prior."""
    (home / "runs").mkdir(parents=True)
    for stage in ("preprocess", "clip", "embed"):
        (home / "runs" / stage).symlink_to(chain.home / "runs" / stage)
    return Chain(home=home, data=chain.data)


def environment(chain: Chain, faults: dict[int, dict[str, Any]], **more: str) -> dict[str, str]:
    """Return the launcher's environment; faults: by attempt, see `injected/sitecustomize.py`."""
    path = os.pathsep.join(filter(None, [str(INJECTED), os.environ.get("PYTHONPATH")]))
    return chain.environment() | {"PYTHONPATH": path, "FAULTS": json.dumps(faults)} | more


def train(chain: Chain, faults: dict[int, dict[str, Any]], *flags: str) -> tuple[subprocess.CompletedProcess[str], Run]:
    """Train a prior to whatever end; return the launcher's answer and the run."""
    answer = subprocess.run(
        chain.command("prior", *flags),
        cwd=REPOSITORY,
        env=environment(chain, faults),
        capture_output=True,
        text=True,
    )
    return answer, next(chain.registry.runs("prior"))


def end_of(run: Run, attempt: int) -> dict[str, Any]:
    end = run.attempt(attempt).end
    assert end is not None, f"attempt {attempt} ended without a word"
    return end


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
