"""Sampling as an array whose jobs are preempted and requeued within a video: what is missing is made, to the byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launching import REPOSITORY, Chain, with_parents
from slurm_cluster import Cluster, until

from experiments.registry import Registry
from experiments.run import Run

FLAGS = [
    *("--sample.prompts", "a red circle", "a blue square", "a green star", "--sample.videos-at-once", "1"),
    *(word for stage in ("prior", "decoder", "temporal-sr") for word in (f"--sample.{stage}.steps", "2")),
]
WAITS = """
import os, time
if "SLURM_ARRAY_TASK_ID" in os.environ:
    from pathlib import Path
    from dalle2_video.generation.pipeline import VideoPipeline
    folder, original = Path(os.environ["WAIT_FOLDER"]), VideoPipeline.run

    def run(self, step, batch, *arguments, on_step, **more):
        name = batch[0].prompt.split()[1]
        while step == "decoder" and name in ("blue", "green") and not (folder / f"go-{name}").exists():
            (folder / f"at-{name}").touch()
            on_step(step, 0, 1)
            time.sleep(0.02)
        return original(self, step, batch, *arguments, on_step=on_step, **more)

    VideoPipeline.run = run
"""
"""Python runs it in every process: a job that comes to the decoder with one of these prompts awaits the test's word."""


@pytest.mark.slow
def test_of_a_preempted_and_a_requeued_job_only_what_is_missing_is_made_and_the_videos_are_the_same(
    cluster: Cluster, chain: Chain, tmp_path: Path
) -> None:
    reference, ours = (with_parents(chain, tmp_path / name) for name in ("reference", "ours"))
    for home in (reference.home, ours.home):
        for stage in ("prior", "decoder", "temporal_sr"):
            (home / "runs" / stage).symlink_to(chain.home / "runs" / stage)
    expected = reference.run("sample", *FLAGS)  # on this machine

    # Group 0 has the videos 0 and 2, group 1 has video 1.
    (tmp_path / "sitecustomize.py").write_text(WAITS)
    variables = {"PYTHONPATH": str(tmp_path), "WAIT_FOLDER": str(tmp_path), "DALLE2_VIDEO_HOME": str(ours.home)}
    command = [sys.executable, "launch/sample.py", *ours.command("sample")[4:], *FLAGS, "--cluster", "sandbox"]
    environment = cluster.environment | variables
    answer = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    run = next(Registry(ours.home).runs("sample"))
    (array,) = (run.intents()[-1].job or {})["ids"]
    for name in ("blue", "green"):
        until((tmp_path / f"at-{name}").exists, f"a job is at the {name} one", ours.home)
    assert run.tasks_done() == {0}
    made = (run.folder / "samples/0000.mp4").stat().st_mtime_ns
    cluster.slurm("scontrol", "requeue", f"{array}_1")
    cluster.preempt()
    until(lambda: len(ends(run, 0)) == len(ends(run, 1)) == 2, "both jobs are there again", ours.home)
    for name in ("blue", "green"):
        (tmp_path / f"go-{name}").touch()
    until(lambda: run.is_done() and ends(run, 0)[-1] and ends(run, 1)[-1], "the run is done", ours.home)
    kinds = {group: [end["kind"] if end else None for end in ends(run, group)] for group in (0, 1)}
    assert kinds[0] == ["preempted", "done"] and kinds[1][-1] == "done" and "error" not in kinds[1], kinds
    assert len(run.intents()) == 1
    assert (run.folder / "samples/0000.mp4").stat().st_mtime_ns == made
    assert videos(run) == videos(expected) and len(videos(run)) == 3
    assert (run.done() or {})["digest"] == (expected.done() or {})["digest"]


def ends(run: Run, group: int) -> list[dict[str, Any] | None]:
    return [one.end for one in run.attempts() if one.claim["group"] == group]


def videos(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.folder / "samples").glob("*.mp4")}
