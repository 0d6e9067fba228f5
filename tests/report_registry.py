"""A registry as launchers and jobs leave it, for the report: a chain with preemptions, failures, clips and figures.

Everything is written by the product's own writers; what a person, a data set or a library may have said is as hostile
as it can be.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dalle2_video.data.statistics import histogram
from dalle2_video.generation.video_file import write_mp4
from experiments import files, identity
from experiments.identity import Parent
from experiments.registry import Registry
from experiments.run import Run, RunSpec
from launch.arguments import load_recipe, to_dict_or_value
from launch.stages import STAGES
from slurm.local import process_record

NOON = 1_790_000_000.0
"""When the first run was made, in seconds since the epoch."""
RECORDS = 4000
"""Metric records of the CLIP run: more than the page keeps one by one."""
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"`${1}&amp;"
ESCAPES = "\x1b[31mred\x07 \u202egnp.exe \u2028 line"


@dataclass(frozen=True, kw_only=True)
class Made:
    """The runs of the registry, by what is special about them."""

    home: Path
    preprocess: Run
    clip: Run
    embed: Run
    prior: Run
    other_prior: Run
    decoder: Run
    """At work."""
    failed: Run
    """A decoder that failed with a hostile message."""
    queued: Run
    sample: Run
    evaluate: Run
    watched: tuple[Run, Run]
    """Evaluations of the decoder at work, at steps 600 and 200."""
    previews: tuple[Run, Run]
    """Samplings of the decoder at work, at steps 600 and 200."""


def make_registry(home: Path) -> Made:
    """Write the runs below a folder that is not there yet or empty."""
    registry, clock = Registry(home), NOON
    preprocess = _run(registry, "preprocess", (), clock)
    _array(preprocess, clock, tasks=4, lasting_s=300, nodes="n[1-2]")
    _store(preprocess)
    _done(preprocess, clock + 400)

    clip = _run(registry, "clip", (preprocess,), clock + 500)
    _slurm_job(clip, 1, clock + 510, "4711")
    steps = RECORDS * 10
    _attempt(clip, clock + 700, "n[1-2]", "4711", 0, ("preempted", ""), steps=(0, 13_200), lasting_s=1500)
    _attempt(clip, clock + 2900, "n[3-4]", "4711", 1, None, steps=(13_200, 26_400 + 500), lasting_s=1500)
    nan = steps * 3 // 4
    _attempt(clip, clock + 4900, "n[1-2]", "4711", 2, ("done", ""), steps=(26_400, steps), lasting_s=1600, nan=nan)
    _done(clip, clock + 6600)

    embed = _run(registry, "embed", (preprocess, clip), clock + 6700)
    _array(embed, clock + 6700, tasks=2, lasting_s=120, nodes="n1")
    _done(embed, clock + 6900)

    parents = (preprocess, clip, embed)
    prior = _run(registry, "prior", parents, clock + 7000)
    _training(prior, clock + 7010, steps=(0, 3000), level=0.30)
    _done(prior, clock + 8700)
    other_prior = _run(registry, "prior", parents, clock + 7100, lr=9e-4)
    _training(other_prior, clock + 7110, steps=(0, 3000), level=0.42)
    _done(other_prior, clock + 8800)

    done_decoder = _run(registry, "decoder", parents, clock + 9000)
    _training(done_decoder, clock + 9010, steps=(0, 2000), level=0.08)
    _done(done_decoder, clock + 10800)

    decoder = _run(registry, "decoder", parents, clock + 11000, lr=2e-4)
    me = process_record(os.getpid())
    _intent(decoder, 1, clock + 11010, me)
    _attempt(decoder, clock + 11060, "n[1-4]", None, 0, None, steps=(0, 800), lasting_s=700)

    failed = _run(registry, "decoder", parents, clock + 12000, lr=5e-2)
    gone = {"executor": "local", "host": me["host"], "pid": 2**22 + 1, "start_ticks": 1}
    for number in (1, 2):
        _intent(failed, number, clock + 12000 + 300 * number, gone)
        message = f"RuntimeError: {HOSTILE}\n{ESCAPES}\nTraceback (most recent call last):\n  loss.backward()"
        began = clock + 12020 + 300 * number
        _attempt(failed, began, "n3", None, 0, ("error", message), steps=(0, 100), lasting_s=60, intent=number)

    queued = _run(registry, "temporal_sr", (preprocess, clip), clock + 13000)
    _intent(queued, 1, clock + 13010, me)

    sample = _run(registry, "sample", (clip, prior, done_decoder), clock + 14000)
    _array(sample, clock + 14000, tasks=1, lasting_s=60, nodes="n2")
    prompts = ["a red circle moves right over white", "a blue square moves down over white", HOSTILE, ESCAPES]
    nowhere = [{"file": name, "prompt": "gone", "seed": 7, "repeat": 0} for name in ("../run.json", "9999.mp4")]
    _clips(sample, prompts, nowhere)
    _done(sample, clock + 14100)

    evaluate = _run(registry, "evaluate", (preprocess, clip), clock + 15000)
    _array(evaluate, clock + 15000, tasks=1, lasting_s=60, nodes="n1")
    _evaluation(evaluate, clip, preprocess)
    _done(evaluate, clock + 15100)
    watched = tuple(_judged_checkpoint(registry, decoder, step, clock + 16000 - step) for step in (600, 200))
    previews = tuple(
        _preview(registry, (clip, prior), decoder, step, clock + 15390 - step / 100) for step in (600, 200)
    )
    return Made(
        home=home, preprocess=preprocess, clip=clip, embed=embed, prior=prior, other_prior=other_prior,
        decoder=decoder, failed=failed, queued=queued, sample=sample, evaluate=evaluate, watched=watched,
        previews=previews,
    )  # fmt: skip


def _run(
    registry: Registry, stage: str, parents: Sequence[Run], created: float, *, lr: float | None = None,
    checkpoint: Parent | None = None,
) -> Run:  # fmt: skip
    recipe = load_recipe("tiny")
    config = json.loads(json.dumps({part: to_dict_or_value(getattr(recipe, part)) for part in STAGES[stage].parts}))
    if lr is not None:
        config[stage]["optim"]["lr"] = lr
    pinned = {parent.spec.stage: parent.as_parent() for parent in parents}
    pinned |= {checkpoint.stage: checkpoint} if checkpoint else {}
    name = identity.digest([stage, config, [[parent.id, parent.step] for parent in pinned.values()]])[:10]
    spec = RunSpec(stage=stage, recipe="tiny", id=name, config=config, source=None, parents=pinned)
    run = registry.create(spec)
    # The writer knows no other time than now.
    stored = files.read_json(run.folder / "run.json")
    files.write_atomic(run.folder / "run.json", files.encode(stored | {"created": created, "creator": "me@login"}))
    os.utime(run.folder / "run.json", (created, created))
    return Run(run.folder)


def _done(run: Run, time: float) -> None:
    files.create_exclusive(
        run.folder / "DONE", files.encode({"digest": identity.digest([run.name, "weights"]), "time": time})
    )


def _intent(run: Run, number: int, time: float, job: dict[str, Any], *, training: bool = True) -> None:
    request = {"training": training, "groups": [[]], "forgiven": 0, "world_size": 2, "placement": {"nodes": 2}}
    assert run.claim_intent(number, request)
    path = run.folder / f"intent/{number:04d}.json"
    files.write_atomic(path, files.encode(files.read_json(path) | {"time": time}))
    run.resolve_intent(number, job)


def _slurm_job(run: Run, number: int, time: float, job: str) -> None:
    _intent(run, number, time, {"executor": "slurm", "ids": [job], "cluster": "sandbox"})


def _attempt(
    run: Run, began: float, nodes: str, job: str | None, restart: int, end: tuple[Any, str] | None,
    *, steps: tuple[int, int], lasting_s: float, intent: int = 1, level: float = 0.5, nan: int | None = None,
    every: int = 10,
) -> None:  # fmt: skip
    slurm = {"SLURM_JOB_NODELIST": nodes} | ({"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restart)} if job else {})
    attempt = run.claim_attempt({"intent": intent, "group": 0, "world_size": 2, "slurm": slurm, "time": began})
    first, last = steps
    attempt.append("events", {"event": "start", "step": first, "world_size": 2, "time": began + 20})
    lines = []
    random = np.random.default_rng(first)
    for step in range(first + every, last + 1, every):
        at = began + lasting_s * (step - first) / (last - first)
        loss = level + 3 * math.exp(-step / 4000) + 0.1 * float(random.standard_normal())
        record = {
            "split": "train", "step": step, "samples": step * 16, "time": at,
            "loss": float("nan") if step == nan else loss,
            "grad_norm": 900.0 if step == 12340 else 2 + abs(float(random.standard_normal())), "lr": 3e-4,
            "samples_per_second": 40 + float(random.standard_normal()), "step_s": 0.4, "data_s": 0.01,
            "checkpoint_s": 0.0, "memory_gib": 3.5, "skipped": 0,
        }  # fmt: skip
        lines.append(json.dumps(record, sort_keys=True))
        if step % (every * 20) == 0:
            judged = {"split": "val", "step": step, "time": at, "loss": loss + 0.2, "top1": 1 - math.exp(-step / 9000)}
            lines.append(json.dumps(judged, sort_keys=True))
    (run.folder / f"metrics.{attempt.number:04d}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (run.folder / f"beat.{attempt.number:04d}").write_text(
        json.dumps({"step": last, "steps": 40_000, "time": began + lasting_s})
    )
    if last > first + 1000:
        attempt.append(
            "events", {"event": "spike", "step": last - 500, "message": "gradient norm 900", "time": began + 99}
        )
    if end is not None:
        kind, message = end
        path = run.folder / f"attempts/{attempt.number:04d}.end.json"
        record = {"kind": kind, "time": began + lasting_s} | ({"message": message} if message else {})
        files.create_exclusive(path, files.encode(record))


def _training(run: Run, time: float, *, steps: tuple[int, int], level: float) -> None:
    _slurm_job(run, 1, time, f"{int(time)}")
    _attempt(run, time + 60, "n4", f"{int(time)}", 0, ("done", ""), steps=steps, lasting_s=1500, level=level)


def _array(run: Run, time: float, *, tasks: int, lasting_s: float, nodes: str) -> None:
    gone = {"executor": "local", "host": "login", "pid": 2**22 + 1, "start_ticks": 1}
    _intent(run, 1, time, gone, training=False)
    for task in range(tasks):
        began = time + 20 + 10 * task
        claim = {"intent": 1, "group": task, "world_size": 1, "time": began, "slurm": {"SLURM_JOB_NODELIST": nodes}}
        attempt = run.claim_attempt(claim)
        run.finish_task(task, {"clips": 10})
        path = run.folder / f"attempts/{attempt.number:04d}.end.json"
        files.create_exclusive(path, files.encode({"kind": "done", "time": began + lasting_s, "progress": True}))


def _store(run: Run) -> None:
    seconds, tokens = np.random.default_rng(0).gamma(9, 1.5, 400), np.random.default_rng(1).integers(8, 40, 900)
    statistics = {
        "clips": 400, "bad": 3, "train_clips": 360, "val_clips": 37, "frames": 41_000, "source_hours": 1.5,
        "identities": {"train": 300, "val": 30}, "frames_by_size": {"16": 41_000},
        "captions": {"appearance": 500, "emotion": 400}, "captions_truncated": 2,
        "histograms": {"stored_seconds": histogram(seconds, 0.5), "caption_tokens": histogram(tokens, 1.0)},
        "frame_rates": {"30": 300, "24": 100}, "resolutions": {"512x512": 400},
        "bad_reasons": {"it is cut": 2, "no video": 1}, "notes": [f"note {HOSTILE}"],
    }  # fmt: skip
    bad = {"abc_0_1": "it is cut", f"{HOSTILE}_1": "no video", "def_0_2": ESCAPES}
    folder = run.folder / "store"
    folder.mkdir()
    (folder / "statistics.json").write_text(json.dumps(statistics))
    (folder / "bad_clips.json").write_text(json.dumps(bad))


def _clips(run: Run, prompts: Sequence[str], more: Sequence[dict[str, Any]] = ()) -> None:
    parents = {
        role: {"id": pin.id} | ({} if pin.step is None else {"step": pin.step})
        for role, pin in run.spec.parents.items()
    }
    samplers = {"decoder": {"method": "ddim", "steps": 32, "guidance": 3.0}, HOSTILE: {"method": HOSTILE}}
    record = {"made_by": {"parents": parents}, "samplers": samplers, "fps": 8.0, "device": ESCAPES}
    folder = run.folder / "samples"
    folder.mkdir()
    listed: list[dict[str, Any]] = []
    for number, prompt in enumerate(prompts):
        # Grain, so that a file is longer than any text may be.
        frames = np.random.default_rng(number).integers(215, 255, (16, 64, 64, 3), np.uint8)
        for frame in range(16):
            frames[frame, 20:40, 2 * frame : 2 * frame + 20] = [(220, 40, 40), (40, 60, 220)][number % 2]
        write_mp4(folder / f"{number:04d}.mp4", frames, 8.0, metadata={"title": prompt})
        entry = {"file": f"{number:04d}.mp4", "prompt": prompt, "seed": 7, "repeat": 0, "sha256": "0" * 64}
        listed.append(entry | {"clip_score": 0.25})
        (folder / f"{number:04d}.json").write_text(json.dumps(record))
    (folder / "samples.json").write_text(json.dumps([*listed, *more]))


def _preview(registry: Registry, parents: Sequence[Run], decoder: Run, step: int, created: float) -> Run:
    pinned = Parent(stage="decoder", id=decoder.id, digest="c" * 64, step=step)
    run = _run(registry, "sample", parents, created, checkpoint=pinned)
    _clips(run, ["a red circle moves right over white", "a blue square moves down over white"])
    _done(run, created + 60)
    return run


def _evaluation(run: Run, clip: Run, preprocess: Run) -> None:
    folder = run.folder / "evaluation"
    folder.mkdir()
    top = {f"top{k}": {"value": 0.1 * k, "low": 0.05 * k, "high": min(1.0, 0.15 * k)} for k in (1, 5, 10)}
    found = {
        "made_from": {
            one.stage: {"id": one.id, "digest": one.as_parent().digest} for one in (clip, preprocess)
        },
        "split": "val", "clips": 37, "seed": 0, "captions": "one", "confidence": 0.95,
        "text_to_video": top | {"median_rank": {"value": 4.0, "low": 2.0, "high": 6.5}},
        "video_to_text": top,
        "distance": {"frechet_of_our_clip": {"value": 12.25, "low": 11.0, "high": 13.5}},
        "bits_per_dim": {"value": 3.25},
        HOSTILE: {"value": 1.0, "low": 0.5, "high": 1.5},
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(found))
    with (folder / "ranks.jsonl").open("w") as file:
        for row in range(37):
            text = HOSTILE if row == 0 else f"caption {row}"
            line = {"clip": f"c{row}", "row": row, "text": text, "text_to_video": row + 1.0, "video_to_text": 2.0}
            file.write(json.dumps(line) + "\n")


def _judged_checkpoint(registry: Registry, decoder: Run, step: int, created: float) -> Run:
    pinned = Parent(stage="decoder", id=decoder.id, digest="c" * 64, step=step)
    run = _run(registry, "evaluate", (), created, checkpoint=pinned)
    folder = run.folder / "evaluation"
    folder.mkdir()
    of = {"id": decoder.id, "digest": pinned.digest, "step": step}
    bits = {"value": 4.0 - step / 1000, "low": 3.0, "high": 4.5}
    (folder / "evaluation.json").write_text(
        json.dumps({"made_from": {"decoder": of}, "split": "val", "decoder": {"bits_per_dim": bits}})
    )
    _done(run, created + 60)
    return run
