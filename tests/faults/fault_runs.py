"""Trainings of the prior on two real ranks, started as a user starts them, with faults put into them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from launching import REPOSITORY, Chain

from experiments.run import Run

INJECTED = Path(__file__).parent / "injected"
STEPS = ["--prior.optim.steps", "40", "--checkpoint-every", "5", "--validate-every", "20"]
"""As in test_kill_and_resume.py, so that both need one undisturbed run."""


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
