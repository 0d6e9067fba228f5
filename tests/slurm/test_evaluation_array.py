"""An evaluation whose jobs are preempted and requeued within a task: what was done stays, the figures are the same."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from launching import REPOSITORY, Chain, with_parents
from slurm_cluster import Cluster, until

from dalle2_video.data.store import Store
from experiments.registry import Registry

FLAGS = ["--evaluate.split", "train"]
WAITS = """
import json, os, time
if "SLURM_ARRAY_TASK_ID" in os.environ:
    from pathlib import Path
    from dalle2_video.data.shard_reader import ShardReader
    folder, original = Path(os.environ["WAIT_FOLDER"]), ShardReader.read

    def read(self, clip, *arguments, **more):
        while clip in json.loads(os.environ["WAIT_CLIPS"]) and not (folder / f"go-{clip}").exists():
            (folder / f"at-{clip}").touch()
            time.sleep(0.02)
        return original(self, clip, *arguments, **more)

    ShardReader.read = read
"""
"""Python runs it in every process: a job that comes to one of these clips awaits the test's word."""


def test_only_missing_tasks_of_preempted_and_requeued_jobs_are_done_again_and_the_figures_are_the_same(
    cluster: Cluster, chain: Chain, tmp_path: Path
) -> None:
    expected = chain.run("evaluate", *FLAGS)  # on this machine; its tasks are shared out otherwise

    ours = with_parents(chain, tmp_path / "home")
    (tmp_path / "sitecustomize.py").write_text(WAITS)
    store = Store(next(ours.registry.runs("preprocess")).folder / "store")
    assert store.config.clips_per_shard == 8 and store.num_clips == 24
    # Group 0 has the tasks 0 and 2, group 1 has task 1. In each a clip that is not the first.
    second, last = (max(row for row in store.usable("train").tolist() if row // 8 == task) for task in (1, 2))
    variables = {"PYTHONPATH": str(tmp_path), "WAIT_FOLDER": str(tmp_path), "WAIT_CLIPS": json.dumps([second, last])}
    command = [sys.executable, "launch/evaluate.py", *ours.command("evaluate")[4:], *FLAGS, "--cluster", "sandbox"]
    environment = cluster.environment | variables | {"DALLE2_VIDEO_HOME": str(ours.home)}
    answer = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    run = next(Registry(ours.home).runs("evaluate"))
    (array,) = (run.intents()[-1].job or {})["ids"]

    for clip in (second, last):
        until((tmp_path / f"at-{clip}").exists, "both groups are within a task", ours.home)
    assert run.tasks_done() == {0}
    changed = run.task_file(0).stat().st_mtime_ns
    cluster.slurm("scontrol", "requeue", f"{array}_1")
    cluster.preempt()
    until(
        lambda: "PreemptTime=None" not in cluster.slurm("scontrol", "show", "job", f"{array}_0"), "it acts", ours.home
    )
    time.sleep(0.5)  # the signals have arrived
    for clip in (second, last):
        (tmp_path / f"go-{clip}").touch()

    def ends(group: int) -> list[dict[str, Any] | None]:
        return [one.end for one in run.attempts() if one.claim["group"] == group]

    until(
        lambda: run.is_done() and ends(0)[-1] and ends(1)[-1], "the run is done and both groups have ended", ours.home
    )
    kinds = {group: [end["kind"] if end else None for end in ends(group)] for group in (0, 1)}
    assert {group: len(of) for group, of in kinds.items()} == {0: 2, 1: 2}, kinds
    assert kinds[0] == ["preempted", "done"] and kinds[1][-1] == "done" and "error" not in kinds[1]
    assert [end["progress"] for end in ends(0) if end] == [1, 1] and len(run.intents()) == 1
    assert run.task_file(0).stat().st_mtime_ns == changed
    made, reference = (
        {path.name: path.read_bytes() for path in (one.folder / "evaluation").rglob("*.*")} for one in (run, expected)
    )
    assert made == reference and len(made) == 5
    assert (run.done() or {})["digest"] == (expected.done() or {})["digest"]
    assert not any(path.name.startswith(".") for path in (run.folder / "evaluation").iterdir())
