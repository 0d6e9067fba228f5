"""Plans as launchers leave them, and a queue that says what a test wants."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

import pytest

from dalle2_video.config import Recipe
from experiments import plan
from experiments.intents import Intent
from experiments.plan import Plan, PlanSpec
from experiments.reconcile import Liveness
from experiments.registry import Registry
from experiments.run import Run
from launch.arguments import load_recipe
from launch.plans import chain_lineage
from launch.proposal import parts_of, plain
from slurm import job_state

TINY = load_recipe("tiny")
GONE = {"executor": "local", "host": socket.gethostname(), "pid": 2**22 + 1, "start_ticks": 1}


def links(recipe: Recipe = TINY, stage: str = "sample", store: str = "0123456789", **named: str) -> plan.Lineage:
    return chain_lineage(recipe, (stage,), store, named)


def make_queue(monkeypatch: pytest.MonkeyPatch) -> dict[str, Liveness]:
    """Return what Slurm says of a job, by id, for a test to fill in; a job that is not named is gone."""
    said: dict[str, Liveness] = {}

    def of_intents(intents: Mapping[Any, Intent]) -> dict[Any, Liveness]:
        return {
            key: said.get(intent.job["ids"][0], "gone") if intent.job else "gone" for key, intent in intents.items()
        }

    monkeypatch.setattr(job_state, "of_intents", of_intents)
    return said


def make_plan(registry: Registry, stage: str, store: Run, recipe: Recipe = TINY) -> Plan:
    mine = plan.part_of(links(recipe, stage, store.id), stage)
    spec = PlanSpec(
        stage=stage,
        recipe=recipe.name,
        id=plan.plan_id(mine, stage),
        config=json.loads(json.dumps(plain(parts_of(recipe, stage)))),
        lineage=mine,
    )
    return plan.create(registry.home, spec)


def launch(one: Plan | Run, job: str | None = None, number: int = 1) -> None:
    """Launch a plan, or a training, as job `job`; None: its launcher was killed before it could submit."""
    request = {
        "training": True, "executor": "slurm", "job_name": "a-name", "code": "c0de", "groups": [[]], "num_tasks": 0,
        "num_clips": 0, "parallel": 0, "world_size": 1, "runtime": {}, "placement": {}, "data_root": None,
        "launcher": GONE, "retry": False, "after": ["9"],
    }  # fmt: skip
    assert one.claim_intent(number, request)
    if job is not None:
        one.resolve_intent(number, {"executor": "slurm", "ids": [job]})
