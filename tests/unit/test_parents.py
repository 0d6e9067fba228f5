"""Parents: the newest finished run that matches, one lineage, and else the command that makes what is missing."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from registry_fixtures import changed, make_run

from dalle2_video.config import Recipe
from experiments.registry import Registry
from experiments.run import Run
from launch.arguments import load_recipe
from launch.parents import needed_parts, resolve
from launch.stages import STAGES
from tools import import_h5

TINY = load_recipe("tiny")


def find(registry: Registry, stage: str, recipe: Recipe = TINY, **named: str) -> dict[str, Run]:
    def expected(parent: str) -> dict | None:
        parts = {part: getattr(recipe, part) for part in STAGES[parent].parts}
        return None if None in parts.values() else parts

    return resolve(registry, STAGES[stage], expected, named, lambda parent: f"python launch/{parent}.py --made-up")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


@pytest.fixture
def store(registry: Registry) -> Run:
    return make_run(registry, TINY, "preprocess")


@pytest.fixture
def clip(registry: Registry, store: Run) -> Run:
    return make_run(registry, TINY, "clip", [store])


def set_time(run: Run, time: float) -> None:
    """Finish a run at another time than now."""
    record = run.done()
    assert record is not None
    (run.folder / "DONE").write_text(json.dumps(record | {"time": time}))


def ids(found: dict[str, Run]) -> dict[str, str]:
    return {stage: run.spec.id for stage, run in found.items()}


def test_a_stage_without_parents_needs_none(registry: Registry) -> None:
    assert find(registry, "preprocess") == {}


def test_the_run_of_the_recipe_is_found_with_its_own_parents(registry: Registry, store: Run, clip: Run) -> None:
    other = changed(TINY, "seed", 1)
    make_run(registry, other, "clip", [store])
    assert ids(find(registry, "embed")) == {"preprocess": store.spec.id, "clip": clip.spec.id}
    assert ids(find(registry, "clip", other)) == {"preprocess": store.spec.id}
    assert find(registry, "embed", other)["clip"].spec.id != clip.spec.id


@pytest.mark.parametrize("newest", [0, 1, 2])
def test_of_several_runs_that_match_the_last_finished_is_taken(registry: Registry, newest: int) -> None:
    stores = [make_run(registry, TINY, "preprocess", salt=f"data set {number}") for number in range(3)]
    for number, run in enumerate(stores):
        set_time(run, 1000.0 + (number == newest))
    assert ids(find(registry, "clip")) == {"preprocess": stores[newest].spec.id}


def test_a_finished_run_is_preferred_to_a_newer_one_that_is_not(registry: Registry) -> None:
    finished = make_run(registry, TINY, "preprocess", salt="a")
    make_run(registry, TINY, "preprocess", salt="b", done=False)
    assert ids(find(registry, "clip")) == {"preprocess": finished.spec.id}


def test_a_missing_parent_is_told_with_the_command_that_makes_it(registry: Registry, store: Run) -> None:
    with pytest.raises(ValueError, match=r"no clip run matches this recipe in .*: python launch/clip\.py --made-up"):
        find(registry, "embed")


def test_an_unfinished_parent_is_told_with_the_command_that_goes_on(registry: Registry, store: Run) -> None:
    run = make_run(registry, TINY, "clip", [store], done=False)
    with pytest.raises(
        ValueError, match=rf"{run.name} is not finished; go on with it: python launch/clip\.py"
    ) as raised:
        find(registry, "embed")
    assert str(run.folder / "logs") in str(raised.value)


def test_an_unfinished_store_is_gone_on_with_by_what_began_it(registry: Registry) -> None:
    """A launcher needs to know where the data lies, and an import is not a launcher's to go on with."""
    made = make_run(registry, TINY, "preprocess", done=False)
    stored = json.loads((made.folder / "run.json").read_text())
    for inputs, command in (
        ({"data_root": "/a folder"}, r"python launch/preprocess\.py --made-up --data-root '/a folder'"),
        ({"videos": "/old.h5", "import_command": "python tools/import_h5.py --videos /old.h5"},
         r"python tools/import_h5\.py --videos /old\.h5\n"),
    ):  # fmt: skip
        (made.folder / "run.json").write_text(json.dumps(stored | {"inputs": inputs}))
        with pytest.raises(ValueError, match=rf"is not finished; go on with it: {command}"):
            find(registry, "clip")


def test_an_import_remembers_the_command_line_that_goes_on_with_it(tmp_path: Path) -> None:
    given = ["--videos", "/old.h5", "--captions", "/a b", "--source-fps", "25.0", "--bgr", "auto", "--data.fps", "4.0"]
    command = import_h5._command(import_h5._parse([*given, "--dry-run"]), TINY)
    python, script, *words = shlex.split(command)
    assert (python, script) == ("python", "tools/import_h5.py")
    assert import_h5._parse(words) == import_h5._parse(given)
    other = import_h5._parse(["--videos", "old.h5", "--recipe", "celebv_text_64"])
    assert shlex.split(import_h5._command(other, load_recipe("celebv_text_64")))[2:] == [
        *("--videos", str(Path("old.h5").absolute()), "--recipe", "celebv_text_64")
    ]


def test_a_run_of_another_config_does_not_match(registry: Registry, store: Run, clip: Run) -> None:
    wider = changed(TINY, "clip.embed_dim", 32)
    with pytest.raises(ValueError, match="no clip run matches"):
        find(registry, "embed", wider)


def chain(registry: Registry, store: Run, clip: Run) -> dict[str, Run]:
    embed = make_run(registry, TINY, "embed", [store, clip])
    return {stage: make_run(registry, TINY, stage, [store, clip, embed]) for stage in ("prior", "decoder")} | {
        "temporal_sr": make_run(registry, TINY, "temporal_sr", [store, clip])
    }


def second_clip(registry: Registry, store: Run) -> Run:
    """Return another CLIP run of the same recipe, finished later: trained on the same store, made from other files."""
    return make_run(registry, TINY, "clip", [store], salt="again")


def test_all_parents_share_one_clip_also_where_a_newer_clip_is_there(registry: Registry, store: Run, clip: Run) -> None:
    set_time(clip, 1000.0)
    old = chain(registry, store, clip)
    found = find(registry, "sample", clip=clip.spec.id)
    assert ids(found) == {"clip": clip.spec.id} | ids(old)
    newer = second_clip(registry, store)
    new = chain(registry, store, newer)
    assert ids(find(registry, "sample")) == {"clip": newer.spec.id} | ids(new)
    assert ids(find(registry, "sample", clip=clip.spec.id)) == {"clip": clip.spec.id} | ids(old)


def test_parents_of_two_clips_are_refused(registry: Registry, store: Run, clip: Run) -> None:
    old = chain(registry, store, clip)
    newer = second_clip(registry, store)
    chain(registry, store, newer)
    message = (
        rf"--parents\.prior {old['prior'].spec.id}: prior/.* was made from clip {clip.spec.id}, the others from clip "
    )
    with pytest.raises(ValueError, match=message + newer.spec.id):
        find(registry, "sample", clip=newer.spec.id, prior=old["prior"].spec.id)


def test_a_clip_that_nothing_was_built_on_yet_is_told_and_not_mixed(registry: Registry, store: Run, clip: Run) -> None:
    chain(registry, store, clip)
    newer = second_clip(registry, store)
    with pytest.raises(ValueError, match="no prior run matches"):
        find(registry, "sample", clip=newer.spec.id)


def test_a_parent_that_the_user_names_may_be_of_another_config(registry: Registry, store: Run) -> None:
    wider = changed(TINY, "clip.embed_dim", 32)
    run = make_run(registry, wider, "clip", [store])
    assert ids(find(registry, "embed", clip=run.spec.id[:6]))["clip"] == run.spec.id


def test_a_parent_that_the_user_names_must_be_there_and_finished(registry: Registry, store: Run) -> None:
    run = make_run(registry, TINY, "clip", [store], done=False)
    with pytest.raises(ValueError, match=rf"--parents\.clip {run.spec.id}: {run.name} is not finished"):
        find(registry, "embed", clip=run.spec.id)
    with pytest.raises(ValueError, match="no run matches 'zzz'"):
        find(registry, "embed", clip="zzz")


def test_a_stage_that_the_recipe_has_not_is_no_parent(registry: Registry, store: Run, clip: Run) -> None:
    assert TINY.spatial_sr is None
    chain(registry, store, clip)
    assert "spatial_sr" not in find(registry, "sample")


def test_the_pinned_digest_is_that_of_the_finished_run(registry: Registry, store: Run, clip: Run) -> None:
    found = find(registry, "embed")
    record = clip.done()
    assert record is not None
    assert found["clip"].as_parent().digest == record["digest"]
    assert clip.spec.parents["preprocess"] == store.as_parent()


def test_a_launcher_reads_the_parts_of_its_parents_and_its_own() -> None:
    assert needed_parts(STAGES["embed"]) == ("data", "seed", "captions", "augment", "clip", "embed")
    assert needed_parts(STAGES["preprocess"]) == ("data",)
