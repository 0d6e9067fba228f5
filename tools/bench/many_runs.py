"""A registry of many runs as launchers and jobs leave them, for what has to cope with ten thousand."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from typing import Any

from experiments import files
from experiments.registry import Registry
from experiments.run import RunSpec
from launch.arguments import load_recipe, to_dict_or_value
from launch.stages import STAGES


def write_runs(registry: Registry, count: int, *, job: dict[str, Any] | None = None) -> None:
    """Write many runs as launchers and jobs leave them: of ten seven are done, and one each stopped, failed, at work.

    job: what those at work are; written without fsync, so that thousands are a matter of seconds.
    """
    gone = {"executor": "local", "host": socket.gethostname(), "pid": 2**22 + 1, "start_ticks": 1}
    recipe = load_recipe("tiny")
    configs = {
        stage: {part: to_dict_or_value(getattr(recipe, part)) for part in STAGES[stage].parts}
        for stage in ("clip", "decoder", "prior", "temporal_sr")
    }
    for number in range(count):
        stage = list(configs)[number % len(configs)]
        kind = ("done",) * 7 + ("stopped", "error", "running")
        end = kind[number % 10]
        folder = registry.folder(stage, f"tiny-{number:010x}")
        for name in ("attempts", "intent", "checkpoints/step-00000050.a0001", "checkpoints/step-00000100.a0002"):
            (folder / name).mkdir(parents=True)
        spec = RunSpec(
            stage=stage, recipe="tiny", id=f"{number:010x}", config=configs[stage], source=None, parents={},
            creator="me@host", created=1e9 + number,
        )  # fmt: skip
        (folder / "run.json").write_bytes(files.encode(dataclasses.asdict(spec)))
        os.utime(folder / "run.json", (1e9 + number, 1e9 + number))
        request = {"training": True, "groups": [[]], "launcher": gone, "forgiven": 0, "world_size": 2}
        (folder / "intent/0001.json").write_bytes(files.encode(request))
        (folder / "intent/0001.job.json").write_bytes(files.encode(job or gone if end == "running" else gone))
        for attempt in (1, 2):
            claim = {"intent": 1, "group": 0, "supervised": True, "world_size": 2, "time": 1e9 + number}
            (folder / f"attempts/{attempt:04d}.json").write_bytes(files.encode(claim))
            if attempt == 1 or end != "running":
                record = {"kind": "preempted" if attempt == 1 else end, "time": 2e9, "message": "a reason"}
                (folder / f"attempts/{attempt:04d}.end.json").write_bytes(files.encode(record))
            metric = {"split": "train", "step": 50 * attempt, "loss": 1 / attempt, "samples_per_second": 9.0}
            (folder / f"metrics.{attempt:04d}.jsonl").write_text(json.dumps(metric) + "\n")
            (folder / f"beat.{attempt:04d}").write_text(json.dumps({"step": 50 * attempt, "steps": 200}))
        if end == "done":
            (folder / "DONE").write_bytes(files.encode({"digest": f"{number:064x}", "time": 2e9}))
