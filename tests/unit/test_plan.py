"""Plans: one identity whatever the parents are at, resolved to just the run that an ordinary launch would make."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest
from plan_fixtures import TINY, launch, links, make_plan, make_queue
from registry_fixtures import changed, make_run

from experiments import identity, plan
from experiments.identity import Parent
from experiments.plan import Plan, Standing, verdict
from experiments.reconcile import Liveness
from experiments.registry import Registry
from experiments.run import Run
from launch.plans import store_run
from launch.proposal import parts_of
from slurm import job_state, plan_state, planned_job


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> dict[str, Liveness]:
    return make_queue(monkeypatch)


# Identity


def test_a_plan_is_the_same_whether_its_parents_are_planned_or_done(registry: Registry) -> None:
    before = plan.plan_id(links(stage="embed"), "embed")
    store = make_run(registry, TINY, "preprocess")
    make_run(registry, TINY, "clip", [store])
    assert plan.plan_id(links(stage="embed"), "embed") == before == plan.plan_id(links(), "embed")


@pytest.mark.parametrize("path", ["prior.optim.lr", "clip.optim.lr", "embed.hop", "seed"])
def test_what_changes_an_ancestor_changes_the_plan(path: str) -> None:
    other = links(changed(TINY, path, 7))
    assert plan.plan_id(other, "sample") != plan.plan_id(links(), "sample")
    assert plan.plan_id(links(store="another"), "sample") != plan.plan_id(links(), "sample")
    assert plan.plan_id(links(clip="named"), "sample") != plan.plan_id(links(), "sample")


def test_what_does_not_lead_to_a_stage_does_not_change_its_plan() -> None:
    other = links(changed(TINY, "decoder.optim.lr", 7.0))
    assert plan.plan_id(other, "prior") == plan.plan_id(links(), "prior")


def test_ancestors_come_first_also_after_reading(registry: Registry) -> None:
    store = make_run(registry, TINY, "preprocess")
    spec = Plan(make_plan(registry, "sample", store).folder).spec
    seen: set[str] = set()
    for stage, link in spec.lineage.items():
        assert set(link.parents) <= seen
        seen.add(stage)
    assert spec.lineage == plan.part_of(links(store=store.id), "sample")
    assert spec.lineage["sample"].parents == ("clip", "prior", "decoder", "temporal_sr")


def test_a_plan_becomes_the_run_that_an_ordinary_launch_makes(registry: Registry) -> None:
    runs = {"preprocess": make_run(registry, TINY, "preprocess", salt="a data set")}
    runs["clip"] = make_run(registry, TINY, "clip", list(runs.values()))
    runs["embed"] = make_run(registry, TINY, "embed", list(runs.values()))
    for stage in ("prior", "decoder"):
        one = make_plan(registry, stage, runs["preprocess"])
        ordinary = make_run(registry, TINY, stage, list(runs.values()), done=False)
        became = plan.run_spec(one.spec, {name: run.as_parent() for name, run in runs.items()})
        assert (became.id, became.parents, became.config) == (
            ordinary.spec.id, ordinary.spec.parents, ordinary.spec.config,
        )  # fmt: skip


def test_two_launchers_make_one_plan(registry: Registry) -> None:
    store = make_run(registry, TINY, "preprocess")
    first, second = (make_plan(registry, "clip", store) for _ in range(2))
    assert first.folder == second.folder
    assert [one.name for one in plan.plans(registry.home)] == [first.name]


def test_the_store_is_the_newest_finished_one_that_matches(registry: Registry) -> None:
    assert store_run(registry, TINY) is None
    unfinished = make_run(registry, TINY, "preprocess", salt="a", done=False)
    assert store_run(registry, TINY).id == unfinished.id  # type: ignore[union-attr]
    finished = make_run(registry, TINY, "preprocess", salt="b")
    make_run(registry, TINY, "preprocess", salt="c", done=False)
    assert store_run(registry, TINY).id == finished.id  # type: ignore[union-attr]
    assert store_run(registry, changed(TINY, "data.fps", 3.0)) is None


# Verdict

PIN = Parent(stage="clip", id="c", digest="d")
STATES = {
    "done": Standing(stage="clip", name="clip/c", state="done", pin=PIN),
    "alive": Standing(stage="clip", name="clip/c", state="alive", jobs=("7", "8")),
    "ended": Standing(stage="clip", name="clip/c", state="ended", reason="clip/c failed: why"),
    "unknown": Standing(stage="clip", name="clip/c", state="unknown", reason="nobody can tell of clip/c"),
}
STRENGTH = ("ended", "unknown", "alive", "done")
ACTIONS = dict(zip(STRENGTH, ("fail", "ask", "wait", "go"), strict=True))


@pytest.mark.parametrize("states", itertools.product(STATES, repeat=2))
def test_the_parent_that_is_furthest_from_done_decides(states: tuple[str, str]) -> None:
    found = verdict([STATES[state] for state in states])
    assert found.action == ACTIONS[min(states, key=STRENGTH.index)]
    if found.action == "wait":
        assert found.jobs == ("7", "8")


def test_a_parent_at_work_outside_slurm_cannot_be_waited_for() -> None:
    local = Standing(stage="clip", name="clip/c", state="alive", reason="clip/c is at work outside Slurm")
    assert verdict([local]) == plan.Verdict(action="fail", reason="clip/c is at work outside Slurm")


def test_without_parents_nothing_is_waited_for() -> None:
    assert verdict([]).action == "go"


def test_parents_of_two_lineages_do_not_meet() -> None:
    other = Parent(stage="clip", id="c", digest="another")
    prior = Standing(
        stage="prior", name="prior/p", state="done", pin=Parent(stage="prior", id="p", digest="p"),
        made_from={"clip": other},
    )  # fmt: skip
    found = verdict([STATES["done"], prior])
    assert found.action == "fail" and "prior/p was made from clip c" in found.reason


# Where a lineage stands


def standing(registry: Registry, stage: str, store: Run) -> Standing:
    return plan_state.look(registry, links(stage=stage, store=store.id))[stage]


def test_a_stage_is_absent_planned_a_run_and_done(registry: Registry, queue: dict[str, Liveness]) -> None:
    store = make_run(registry, TINY, "preprocess")
    found = standing(registry, "clip", store)
    assert (found.state, found.attempted) == ("ended", False) and "nothing was submitted" in found.reason
    one = make_plan(registry, "clip", store)
    assert "never submitted" in standing(registry, "clip", store).reason
    launch(one, "11")
    queue["11"] = "alive"
    found = standing(registry, "clip", store)
    assert (found.state, found.jobs, found.planned) == ("alive", ("11",), True)
    run = make_run(registry, TINY, "clip", [store], done=False)
    assert standing(registry, "clip", store).planned, "a run without a launch says nothing"
    launch(run, "11")
    assert not standing(registry, "clip", store).planned
    del queue["11"]
    assert standing(registry, "clip", store).state == "ended"
    run.mark_done({"digest": "d"})
    assert standing(registry, "clip", store).pin == run.as_parent()


def test_a_job_that_left_the_queue_before_it_began_is_lost(registry: Registry, queue: dict[str, Liveness]) -> None:
    store = make_run(registry, TINY, "preprocess")
    launch(make_plan(registry, "clip", store), "11")
    assert "job 11 left the queue before it began" in standing(registry, "clip", store).reason
    queue["11"] = "unknown"
    assert standing(registry, "clip", store).state == "unknown"


def test_a_new_plan_of_a_run_that_failed_counts(registry: Registry, queue: dict[str, Liveness]) -> None:
    """Its job was queued when nobody could know the identity, and has yet to begin."""
    store = make_run(registry, TINY, "preprocess")
    launch(make_run(registry, TINY, "clip", [store], done=False), "10")
    assert standing(registry, "clip", store).state == "ended"
    launch(make_plan(registry, "clip", store), "11")
    queue["11"] = "alive"
    assert standing(registry, "clip", store).jobs == ("11",)


# What a planned job does at its start


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of Slurm job 11 that does not wait long."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "11")
    monkeypatch.setattr(planned_job, "PAUSE_S", 0.0)
    monkeypatch.setattr(planned_job, "ASK_PAUSE_S", 0.0)


def test_its_job_makes_the_run_and_is_its_job(
    registry: Registry, queue: dict[str, Liveness], in_job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_run(registry, TINY, "preprocess")
    one = make_plan(registry, "clip", store)
    launch(one, "11")
    queue["11"] = "alive"
    became = planned_job.become(one, 1, 0)
    assert became is not None
    run, number = became
    assert run.folder == make_run(registry, TINY, "clip", [store], done=False).folder
    assert number == 1 and run.intent(1).job == {"executor": "slurm", "ids": ["11"]}
    assert run.intent(1).request["job_name"] == "a-name" and "retry" not in run.intent(1).request
    # Killed before it could say so, another rank, or requeued: the same.
    (one.folder / "intent/0001.end.json").unlink()
    for rank in ("0", "1"):
        monkeypatch.setenv("SLURM_PROCID", rank)
        again = planned_job.become(one, 1, 0)
        assert again is not None and again[1] == 1
    assert run.newest_intent() == 1
    assert plan_state.standing(one).state == "became" and plan_state.standing(one).run == run.name


def test_a_second_job_of_a_plan_finds_nothing_to_do(
    registry: Registry, queue: dict[str, Liveness], in_job: None
) -> None:
    store = make_run(registry, TINY, "preprocess")
    one = make_plan(registry, "clip", store)
    launch(one, "11")
    queue["11"] = "alive"
    assert planned_job.become(one, 1, 0) is not None
    launch(one, "12", number=2)
    second = planned_job.become(one, 2, 0)
    assert second is not None and second[1] is None
    assert second[0].newest_intent() == 1


def test_the_root_cause_is_named_down_the_chain(registry: Registry, queue: dict[str, Liveness], in_job: None) -> None:
    store = make_run(registry, TINY, "preprocess")
    clip = make_run(registry, TINY, "clip", [store], done=False)
    launch(clip, "10")
    clip.claim_attempt({"intent": 1, "group": 0})
    (clip.folder / "attempts/0001.end.json").write_text('{"kind": "error", "message": "OSError: no more air\\nlong"}')
    for stage in ("embed", "prior", "decoder", "temporal_sr", "sample"):
        one = make_plan(registry, stage, store)
        launch(one, "11")
        assert planned_job.become(one, 1, 0) is None
        end = one.end_of(1)
        assert end is not None and end["by_parents"]
        assert end["reason"] == f"{clip.name} failed: OSError: no more air"
    by_child = plan_state.look(registry, make_plan(registry, "sample", store).spec.lineage)["prior"]
    assert by_child.reason == f"prior was not made, because {clip.name} failed: OSError: no more air"


def test_a_queue_that_does_not_answer_is_asked_again_before_it_gives_up(
    registry: Registry, queue: dict[str, Liveness], in_job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_run(registry, TINY, "preprocess")
    launch(make_run(registry, TINY, "clip", [store], done=False), "10")
    queue["10"] = "unknown"
    one = make_plan(registry, "embed", store)
    launch(one, "11")
    looks: list[None] = []
    look = plan_state.parents_of
    monkeypatch.setattr(plan_state, "parents_of", lambda *given: (looks.append(None), look(*given))[1])
    assert planned_job.become(one, 1, 0) is None
    assert len(looks) == planned_job.ASKS + 1
    assert "nobody can tell" in (one.end_of(1) or {})["reason"]


def test_a_default_that_changed_is_a_reason_on_record(
    registry: Registry, queue: dict[str, Liveness], in_job: None
) -> None:
    store = make_run(registry, TINY, "preprocess")
    one = make_plan(registry, "clip", store)
    run = make_run(registry, TINY, "clip", [store], done=False)
    stored = json.loads((run.folder / "run.json").read_text())
    stored["config"]["clip"]["optim"]["weight_decay"] = 0.5
    (run.folder / "run.json").write_text(json.dumps(stored))
    launch(one, "11")
    assert planned_job.become(one, 1, 0) is None
    end = one.end_of(1)
    assert end is not None and "defaults were different" in end["reason"] and not end["by_parents"]


def test_another_rank_ends_with_the_first(
    registry: Registry, queue: dict[str, Liveness], in_job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_plan(registry, "clip", make_run(registry, TINY, "preprocess"))
    launch(one, "11")
    one.end(1, "failed", reason="why", by_parents=True, restart=0)
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert planned_job.become(one, 1, 0) is None
    # After a requeue an old word does not count.
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(planned_job, "RANKS_WAIT_S", 0.1)
    one.end(1, "became", run=make_run(registry, TINY, "clip", done=False).name, launch=1, restart=1)
    assert planned_job.become(one, 1, 0) is not None


def test_parents_at_work_in_another_job_are_waited_for(
    registry: Registry, queue: dict[str, Liveness], in_job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_run(registry, TINY, "preprocess")
    launch(make_run(registry, TINY, "clip", [store], done=False), "10")
    queue["10"] = "alive"
    one = make_plan(registry, "embed", store)
    launch(one, "11")
    asked: list[list[str]] = []
    monkeypatch.setattr(job_state, "ask", lambda command: asked.append(command) or "")
    monkeypatch.setattr(planned_job, "_WAIT_TO_BE_KILLED_S", 0.0)
    monkeypatch.setattr(planned_job.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit):
        planned_job.become(one, 1, 0)
    assert asked == [["scontrol", "requeue", "11"], ["scontrol", "update", "JobId=11", "Dependency=afterany:10"]]
    assert one.end_of(1) is None


def test_a_job_that_cannot_be_requeued_does_not_keep_its_nodes(
    registry: Registry, queue: dict[str, Liveness], in_job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_run(registry, TINY, "preprocess")
    launch(make_run(registry, TINY, "clip", [store], done=False), "10")
    queue["10"] = "alive"
    one = make_plan(registry, "embed", store)
    launch(one, "11")
    monkeypatch.setattr(job_state, "ask", lambda _: None)
    monkeypatch.setattr(planned_job, "_ASK_SLURM_TRIES", 1)
    assert planned_job.become(one, 1, 0) is None
    end = one.end_of(1)
    assert end is not None and end["by_parents"] and "is at work in job 10" in end["reason"]


def test_each_array_of_a_plan_is_a_job_of_the_run(
    registry: Registry, queue: dict[str, Liveness], in_job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first may begin while the launcher is still submitting the second."""
    one = make_plan(registry, "clip", make_run(registry, TINY, "preprocess"))
    launch(one, "11")
    queue["11"] = "alive"
    started: list[tuple[str, int, int]] = []
    monkeypatch.setattr(planned_job.job, "main", lambda *given: started.append(given))
    monkeypatch.setattr(planned_job, "_log_into", lambda _: None)
    planned_job.main(str(one.folder), 1, 0)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    planned_job.main(str(one.folder), 1, 1)
    (run,) = registry.runs("clip")
    assert started == [(str(run.folder), 1, 0), (str(run.folder), 1, 1)]
    assert run.intent(1).job == {"executor": "slurm", "ids": ["11", "12"]}


@pytest.mark.parametrize("lineage", [3, {"clip": {"parents": 3}}, {"clip": {"unknown": 1, "parents": []}}])
def test_fields_of_a_plan_that_are_not_ours_are_an_error_that_names_the_file(
    registry: Registry, lineage: object
) -> None:
    path = make_plan(registry, "clip", make_run(registry, TINY, "preprocess")).folder / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lineage": lineage}))
    with pytest.raises(ValueError, match=rf"{path} is damaged.*; move the folder away"):
        _ = Plan(path.parent).spec


def test_the_identity_of_a_link_survives_json() -> None:
    for stage, link in links().items():
        if not link.run:
            stored = json.loads(json.dumps(link.config))
            pins = {name: Parent(stage=name, id="i", digest="d") for name in link.parents}
            expected = identity.run_id(stage=stage, config=parts_of(TINY, stage), source=None, parents=pins)
            assert identity.run_id(stage=stage, config=stored, source=None, parents=pins) == expected
