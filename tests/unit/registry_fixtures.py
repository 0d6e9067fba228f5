"""Real runs in a real registry, made without training: what a launcher and a job would have written."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

from dalle2_video.config import Recipe
from experiments import files, identity
from experiments.reconcile import FREE_ENDS
from experiments.registry import Registry
from experiments.run import AttemptRecord, Run, RunSpec
from launch.arguments import load_recipe, to_dict_or_value
from launch.stages import STAGES


def changed(config: Any, path: str, value: Any) -> Any:
    """Return a config in which the field at a dotted path has another value."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})


def make_spec(**changes: Any) -> RunSpec:
    """Return a CLIP run's spec with a small made-up config."""
    return dataclasses.replace(
        RunSpec(
            stage="clip",
            recipe="tiny",
            id="0123456789",
            config={"seed": 0, "clip": {"dim": 8}},
            source=None,
            parents={},
        ),
        **changes,
    )


def stage_config(recipe: Recipe, stage: str) -> dict[str, Any]:
    """Return what a run of a stage stores of its recipe."""
    return {part: to_dict_or_value(getattr(recipe, part)) for part in STAGES[stage].parts}


def make_run(
    registry: Registry, recipe: Recipe, stage: str, parents: Sequence[Run] = (), *, done: bool = True, salt: str = ""
) -> Run:
    """Create the run that a launcher would, by default a finished one; salt: gives another run of the same recipe."""
    pinned = {run.spec.stage: run.as_parent() for run in parents}
    parts = {part: getattr(recipe, part) for part in STAGES[stage].parts}
    run = registry.create(
        RunSpec(
            stage=stage,
            recipe=recipe.name,
            id=identity.run_id(stage=stage, config=parts, source=salt or None, parents=pinned),
            config=json.loads(json.dumps(stage_config(recipe, stage))),
            source=salt or None,
            parents=pinned,
        )
    )
    if done:
        run.mark_done({"digest": identity.digest([stage, run.spec.id])})
    return run


def attempt(
    number: int, end: str | None, *, group: int = 0, supervised: bool = False, intent: int = 1, **details: Any
) -> AttemptRecord:
    """Return an attempt that ended as told, None: without a word."""
    assert end is None or end in FREE_ENDS | {"error", "hang"}
    claim = {"group": group, "supervised": supervised, "intent": intent}
    return AttemptRecord(number=number, claim=claim, end=None if end is None else {"kind": end, **details})


def generate(registry: Registry, count: int, *, job: dict[str, Any] | None = None) -> None:
    """Write many runs as launchers and jobs leave them: of ten seven are done, and one each stopped, failed, at work.

    job: what those at work are; written without fsync, so that thousands are a matter of seconds.
    """
    gone = {"executor": "local", "host": socket.gethostname(), "pid": 2**22 + 1, "start_ticks": 1}
    recipe = load_recipe("tiny")
    configs = {stage: stage_config(recipe, stage) for stage in ("clip", "decoder", "prior", "temporal_sr")}
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


def squeue_rows(*rows: tuple[str, str]) -> str:
    """Return a shell command that prints what squeue does of (job, state)."""
    return "; ".join(f"printf '%-24s%-24s%-48s%-12s\\n' {job} {state} None 0" for job, state in rows)
