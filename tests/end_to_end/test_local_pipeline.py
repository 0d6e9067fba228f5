"""The pipeline without Slurm: stage after stage, stopped by the first failure, and the same command goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from launching import REPOSITORY, TINY, Chain


def test_a_failure_stops_the_chain_and_the_same_command_goes_on(sample_data: Path, tmp_path: Path) -> None:
    chain = Chain(home=tmp_path / "home", data=sample_data)
    flags = ["--cluster", "local", "--data-root", str(sample_data), *TINY["data"], *TINY["clip"]]

    def pipeline(*more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "launch/pipeline.py", *flags, "--until", "clip", "--log-every", "1", *more]
        return subprocess.run(
            command, cwd=REPOSITORY, env=chain.environment() | environment, capture_output=True, text=True
        )

    refused = pipeline("--per-stage", "clip.micro-batch=3")
    assert refused.returncode == 2 and "micro_batch=3" in refused.stderr
    assert list(chain.registry.runs()) == [], "nothing is begun where a later stage cannot be"

    failed = pipeline(DS_ACCELERATOR="nonsense")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "the pipeline stopped at clip; mend the cause, then: python launch/pipeline.py" in failed.stderr
    (store,), (clip,) = (list(chain.registry.runs(stage)) for stage in ("preprocess", "clip"))
    assert store.is_done() and not clip.is_done()

    mended = pipeline("--retry")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert clip.is_done() and len(store.attempts()) == 2
    again = pipeline()
    assert again.returncode == 0 and again.stdout.count("DONE") == 2
