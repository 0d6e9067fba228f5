"""A student's run: its teacher is a finished run of its own stage, pinned by digest in a role of its own."""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import replace
from pathlib import Path

import pytest
from plan_fixtures import launch as launched
from plan_fixtures import links, make_plan, make_queue
from registry_fixtures import changed, make_run

from dalle2_video.config import Recipe
from experiments import identity, plan
from experiments.plan import TEACHER
from experiments.reconcile import Liveness
from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run
from launch.arguments import load_recipe, parse
from launch.parents import made_from
from launch.proposal import Proposal, parts_of, propose
from launch.stages import STAGES
from slurm import plan_state
from slurm.attempt import parents_of
from tools import registry_garbage, runs

TINY = load_recipe("tiny")
STEPS = "--decoder.distillation.steps"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    return Registry(tmp_path)


@pytest.fixture
def family(registry: Registry) -> list[Run]:
    """The parents of every decoder: store, CLIP, embeddings."""
    store = make_run(registry, TINY, "preprocess")
    clip = make_run(registry, TINY, "clip", [store])
    return [store, clip, make_run(registry, TINY, "embed", [store, clip])]


@pytest.fixture
def undistilled(registry: Registry, family: list[Run]) -> Run:
    return make_run(registry, TINY, "decoder", family)


def student_of(steps: int, recipe: Recipe = TINY) -> Recipe:
    return changed(recipe, "decoder.distillation.steps", steps)


def proposed(registry: Registry, *typed: str, stage: str = "decoder") -> Proposal:
    return propose(registry, STAGES[stage], parse(STAGES[stage], typed))


def test_runs_that_are_not_distilled_have_the_identity_that_they_had(registry: Registry, undistilled: Run) -> None:
    assert "distillation" not in identity.without_defaults(TINY.decoder)
    found = proposed(registry).spec
    assert found.id == undistilled.id and set(found.parents) == {"preprocess", "clip", "embed"}
    stored = json.loads((undistilled.folder / "run.json").read_text())
    del stored["config"]["decoder"]["distillation"]  # as runs have it that were made before there was one
    (undistilled.folder / "run.json").write_text(json.dumps(stored))
    old = Run(undistilled.folder)
    old.check_drift(found.config)
    assert made_from(old, parts_of(TINY, "decoder"))
    assert proposed(registry, STEPS, "16").spec.parents[TEACHER].id == undistilled.id


def test_the_teacher_is_found_by_the_recipe_and_pinned_by_digest(
    registry: Registry, family: list[Run], undistilled: Run
) -> None:
    first = proposed(registry, STEPS, "16").spec
    assert first.parents[TEACHER] == undistilled.as_parent()
    assert list(first.parents) == ["preprocess", "clip", "embed", TEACHER]
    run = make_run(registry, student_of(16), "decoder", family, teacher=undistilled)
    assert (run.id, run.stage) == (first.id, "decoder")
    again = proposed(registry, STEPS, "8").spec
    assert again.parents[TEACHER] == run.as_parent()
    assert len({undistilled.id, first.id, again.id}) == 3


def test_another_teacher_makes_another_student(registry: Registry, family: list[Run], undistilled: Run) -> None:
    other = make_run(registry, changed(TINY, "decoder.optim.lr", 0.5), "decoder", family)
    found = proposed(registry, STEPS, "16", "--parents.teacher", other.id[:6]).spec
    assert found.parents[TEACHER] == other.as_parent()
    assert found.id != proposed(registry, STEPS, "16").spec.id


def test_a_missing_teacher_is_told_with_the_command_that_makes_it(
    registry: Registry, family: list[Run], undistilled: Run
) -> None:
    with pytest.raises(ValueError, match=r"no decoder run is the teacher that this recipe means") as raised:
        proposed(registry, STEPS, "8", "--decoder.distillation.guidance", "2.0")
    _, _, command = str(raised.value).partition("make one: ")
    python, script, *words = shlex.split(command)
    assert (python, script) == ("python", "launch/decoder.py")
    made = parse(STAGES["decoder"], words).recipe.decoder.distillation
    assert (made.steps, made.guidance) == (16, 2.0)
    unfinished = make_run(registry, student_of(16), "decoder", family, teacher=undistilled, done=False)
    with pytest.raises(ValueError, match=rf"{unfinished.name} is not finished; go on with it: .*steps 16"):
        proposed(registry, STEPS, "8")


def test_a_teacher_that_does_not_fit_is_refused(registry: Registry, family: list[Run], undistilled: Run) -> None:
    run = make_run(registry, student_of(16), "decoder", family, teacher=undistilled)
    with pytest.raises(ValueError, match="the teacher samples in 16 steps, a student of 4 needs one of 8"):
        proposed(registry, STEPS, "4", "--parents.teacher", run.id)
    with pytest.raises(ValueError, match=r"nothing would learn from it; give --decoder\.distillation\.steps too"):
        proposed(registry, "--parents.teacher", run.id)
    wider = make_run(registry, changed(TINY, "decoder.unet.dim", 64), "decoder", family)
    with pytest.raises(ValueError, match=r"--decoder\.unet is not the teacher's"):
        proposed(registry, STEPS, "16", "--parents.teacher", wider.id)


def test_a_teacher_of_another_clip_is_refused(registry: Registry, family: list[Run]) -> None:
    store = family[0]
    other = make_run(registry, TINY, "clip", [store], salt="again")
    embed = make_run(registry, TINY, "embed", [store, other])
    foreign = make_run(registry, TINY, "decoder", [store, other, embed])
    with pytest.raises(ValueError, match=r"--parents\.teacher .* was made from (clip|embed)"):
        proposed(registry, STEPS, "16", "--parents.clip", family[1].id, "--parents.teacher", foreign.id)


@pytest.fixture
def chain(registry: Registry, family: list[Run], undistilled: Run) -> dict[str, Run]:
    """A student of each stage that has one, and what sampling needs beside."""
    store, clip, _ = family
    teacher = make_run(registry, TINY, "temporal_sr", [store, clip])
    made = {
        "prior": make_run(registry, TINY, "prior", family),
        "decoder": make_run(registry, student_of(16), "decoder", family, teacher=undistilled),
        "temporal_sr": make_run(
            registry, changed(TINY, "temporal_sr.distillation.steps", 8), "temporal_sr", [store, clip], teacher=teacher
        ),
    }
    return made | {"clip": clip}


PROMPT = ["--sample.prompts", "a red circle"]


def test_sampling_takes_students_by_name_or_by_the_recipe(
    registry: Registry, chain: dict[str, Run], undistilled: Run
) -> None:
    plain = proposed(registry, *PROMPT, stage="sample").spec
    assert plain.parents["decoder"].id == undistilled.id
    by_recipe = proposed(registry, *PROMPT, STEPS, "16", "--temporal-sr.distillation.steps", "8", stage="sample").spec
    named = [
        flag for name in ("decoder", "temporal-sr") for flag in (f"--parents.{name}", chain[name.replace("-", "_")].id)
    ]
    by_name = proposed(registry, *PROMPT, *named, stage="sample").spec
    assert by_name.id == by_recipe.id != plain.id
    assert {role: parent.id for role, parent in by_name.parents.items()} == {
        role: run.id for role, run in chain.items()
    }  # two teachers of two stages are no conflict


def test_a_student_is_not_asked_to_sample_otherwise(registry: Registry, chain: dict[str, Run]) -> None:
    named = ["--parents.decoder", chain["decoder"].id]
    with pytest.raises(ValueError, match=r"sample\.decoder\.steps=20 cannot be: the run is distilled to 16 ddim steps"):
        proposed(registry, *PROMPT, *named, "--sample.decoder.steps", "20", stage="sample")
    with pytest.raises(ValueError, match=r"sample\.decoder_guidance=5\.0 cannot be"):
        proposed(registry, *PROMPT, *named, "--sample.decoder-guidance", "5", stage="sample")


def test_a_job_opens_the_teacher_that_was_pinned(registry: Registry, chain: dict[str, Run], undistilled: Run) -> None:
    assert parents_of(chain["decoder"])[TEACHER].folder == undistilled.folder
    record = undistilled.done()
    assert record is not None
    (undistilled.folder / "DONE").write_text(json.dumps(record | {"digest": "f" * 64}))
    with pytest.raises(ValueError, match=rf"{undistilled.name}, parent of .*, is not what was pinned"):
        parents_of(chain["decoder"])


def test_the_student_hangs_below_its_teacher(
    registry: Registry, chain: dict[str, Run], undistilled: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs.main(["lineage", chain["decoder"].id]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = {
        name: line.index(name) for line in lines for name in (undistilled.name, chain["decoder"].name) if name in line
    }
    assert place[chain["decoder"].name] - place[undistilled.name] == 4
    assert runs.main(["show", chain["decoder"].id]) == 0
    assert f"teacher {undistilled.id}" in capsys.readouterr().out


def test_garbage_collection_leaves_a_teacher_alone(registry: Registry, family: list[Run], undistilled: Run) -> None:
    make_run(registry, student_of(16), "decoder", family, teacher=undistilled)
    nobodys = make_run(registry, changed(TINY, "decoder.optim.lr", 0.5), "decoder", family)
    for run in (undistilled, nobodys):  # as runs are that came to nothing: never launched, two days old
        (run.folder / "DONE").unlink()
        os.utime(run.folder / "run.json", (time.time() - 2 * 86400,) * 2)
    gone = [item.run.id for item in registry_garbage.find(registry, whole_runs=True) if item.run is not None]
    assert gone == [nobodys.id]


# Plans


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> dict[str, Liveness]:
    return make_queue(monkeypatch)


def test_a_line_of_students_can_be_planned_at_once(registry: Registry, queue: dict[str, Liveness]) -> None:
    store = make_run(registry, TINY, "preprocess")
    found = links(student_of(8), "decoder", store.id)
    assert [*found] == ["preprocess", "clip", "embed", "decoder.teacher.teacher", "decoder.teacher", "decoder"]
    assert found["decoder"].parents == ("preprocess", "clip", "embed", "decoder.teacher")
    for name, steps in (("decoder.teacher", 16), ("decoder.teacher.teacher", 0)):
        own = links(student_of(steps), "decoder", store.id)
        assert plan.plan_id(found, name) == plan.plan_id(own, "decoder"), "the plan of the teacher's own launch"
    assert plan.plan_id(links(stage="decoder", store=store.id), "decoder") == plan.plan_id(
        found, "decoder.teacher.teacher"
    )
    first = make_plan(registry, "decoder", store, student_of(16))
    launched(first, "71")
    queue["71"] = "alive"
    where = plan_state.look(registry, found)
    assert (where["decoder.teacher"].state, where["decoder.teacher"].jobs) == ("alive", ("71",))
    assert where["decoder.teacher.teacher"].reason.startswith("decoder teacher teacher: nothing was submitted")


def test_a_students_plan_becomes_the_run_of_an_ordinary_launch(
    registry: Registry, family: list[Run], undistilled: Run
) -> None:
    first = make_run(registry, student_of(16), "decoder", family, teacher=undistilled)
    one = make_plan(registry, "decoder", family[0], student_of(8))
    read = plan.Plan(one.folder).spec  # as a job reads it
    names = read.lineage["decoder"].parents
    parents = plan_state.parents_of(registry, read.lineage, "decoder")
    assert plan.verdict(parents).action == "go"
    pins = {name: parent.pin for name, parent in zip(names, parents, strict=True) if parent.pin is not None}
    became, ordinary = plan.run_spec(read, pins), proposed(registry, STEPS, "8").spec
    assert (became.id, became.parents) == (ordinary.id, ordinary.parents)
    assert became.parents[TEACHER] == first.as_parent()
    assert replace(became, config={}) == replace(ordinary, config={}, source=None)
