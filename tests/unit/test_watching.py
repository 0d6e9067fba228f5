"""Which checkpoints a watcher evaluates, and when it ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from registry_fixtures import make_spec

from experiments import judged, kept_checkpoint
from experiments.registry import Registry
from experiments.run import Commit, Run
from launch import watching


def committed(run: Run, step: int) -> Commit:
    folder = run.folder / "checkpoints" / f"step-{step:08d}.a0001"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(f'{{"step": {step}}}')
    (folder / "shard.safetensors").write_bytes(b"x" * step)
    return Commit(step=step, attempt=1, path=folder)


def watched(
    registry: Registry, run: Run, monkeypatch: pytest.MonkeyPatch, script: list[Any], *, fails: tuple[int, ...] = ()
) -> tuple[list[int | None], int]:
    """Watch a run; script: what happens while each evaluation or pause lasts."""
    seen: list[int | None] = []
    events = iter(script)

    def happens() -> None:
        next(events)()

    def made(_: Registry, __: str, ___: Any, ____: Run, commit: Commit | None) -> bool:
        if commit is not None and not commit.path.exists():
            raise FileNotFoundError(commit.path)
        seen.append(commit.step if commit else None)
        if commit is not None:
            happens()
        return (commit.step if commit else None) not in fails

    monkeypatch.setattr(watching, "_made", made)
    monkeypatch.setattr(watching.time, "sleep", lambda _: happens())
    arguments: Any = SimpleNamespace(watch=run.id)
    return seen, watching.watch(registry, "evaluate", arguments)


def test_the_newest_checkpoint_is_evaluated_and_at_the_end_the_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path)
    run = registry.create(make_spec())
    seen, code = watched(
        registry, run, monkeypatch,
        [
            lambda: committed(run, 10),
            lambda: (committed(run, 20), committed(run, 30)),  # while 10 is evaluated
            lambda: None,
            lambda: committed(run, 40),
            lambda: run.mark_done({"digest": "d"}),
        ],
    )  # fmt: skip
    assert seen == [10, 30, 40, None] and code == 0


def test_a_failure_is_told_at_the_end_and_the_next_checkpoint_evaluated_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path)
    run = registry.create(make_spec())
    script = [lambda: committed(run, 10), lambda: committed(run, 20), lambda: run.mark_done({"digest": "d"})]
    assert watched(registry, run, monkeypatch, script, fails=(10,)) == ([10, 20, None], 1)


def test_the_last_checkpoint_is_left_to_the_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path)
    run = registry.create(make_spec())
    run.claim_attempt({}).beat({"step": 40, "steps": 40})
    committed(run, 40)
    assert watched(registry, run, monkeypatch, [lambda: run.mark_done({"digest": "d"})]) == ([None], 0)


def test_a_checkpoint_outlives_its_run_s_tidying_while_an_evaluation_keeps_it(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    run = registry.create(make_spec())
    commit = committed(run, 10)
    pin = kept_checkpoint.as_parent(run, commit)
    assert (pin.stage, pin.id, pin.step) == ("clip", run.id, 10)
    evaluation = registry.create(make_spec(stage="evaluate", id="1123456789", parents={"clip": pin}))
    kept_checkpoint.keep(evaluation, commit)
    shard = evaluation.folder / kept_checkpoint.CHECKPOINT / "shard.safetensors"
    assert shard.stat().st_ino == (commit.path / "shard.safetensors").stat().st_ino, "a copy"
    for path in sorted(commit.path.iterdir()):
        path.unlink()
    commit.path.rmdir()
    assert shard.read_bytes() == b"x" * 10
    kept_checkpoint.keep(evaluation, commit)  # again, as a watcher that was started again does
    kept_checkpoint.release(evaluation)
    assert shard.exists(), "it is not done"
    evaluation.mark_done({"digest": "d"})
    kept_checkpoint.release(evaluation)
    assert not shard.exists()
    with pytest.raises(FileNotFoundError):
        kept_checkpoint.as_parent(run, commit)


def test_judgements_go_by_step_and_are_those_of_the_run_alone(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    clip = registry.create(make_spec())
    prior = registry.create(make_spec(stage="prior", id="2123456789"))
    clip.mark_done({"digest": "d"})
    made = {}
    for number, (name, parents) in enumerate({
        "30": {"clip": kept_checkpoint.as_parent(clip, committed(clip, 30))},
        "finished": {"clip": clip.as_parent()},
        "20": {"clip": kept_checkpoint.as_parent(clip, committed(clip, 20))},
        "of the prior": {"clip": clip.as_parent(), "prior": kept_checkpoint.as_parent(prior, committed(prior, 5))},
    }.items()):  # fmt: skip
        made[name] = registry.create(make_spec(stage="evaluate", id=f"312345678{number}", parents=parents))
    folder = made["20"].folder / "evaluation"
    folder.mkdir()
    (folder / "evaluation.json").write_text('{"clips": 3, "prior": {"x": {"value": 1, "low": 0, "high": 2}}}')
    made["20"].mark_done({"digest": "d"})
    found = judged.judgements(registry, clip)
    assert [one.step for one in found] == [20, 30, None]
    assert [one.evaluation.id for one in found] == [made[name].id for name in ("20", "30", "finished")]
    assert list(found[0].figures()) == [("prior.x", {"value": 1, "low": 0, "high": 2})] and found[1].found is None
    assert [one.step for one in judged.judgements(registry, prior)] == [5]
