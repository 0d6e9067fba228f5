"""The registry: runs, attempts, commits and ends as plain files; who holds the highest attempt owns the run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from registry_fixtures import make_run, make_spec

from experiments.identity import Parent, run_id
from experiments.registry import HOME_VARIABLE, Registry, default_home
from experiments.run import Run, RunSpec, Superseded, read_jsonl
from launch import submit
from launch.arguments import load_recipe

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home")


@pytest.fixture
def run(registry: Registry) -> Run:
    return registry.create(make_spec())


def test_a_run_reads_back_as_it_was_created(registry: Registry) -> None:
    parents = {"preprocess": Parent(stage="preprocess", id="p", digest="d")}
    spec = make_spec(parents=parents, source="fingerprint", inputs={"data_root": "/data"})
    run = registry.create(spec)
    assert run.name == "clip/tiny-0123456789"
    assert dataclasses.replace(run.spec, creator="", created=0.0, tracking_id="") == spec
    assert "@" in run.spec.creator and abs(run.spec.created - time.time()) < 60


def test_creating_again_opens_the_same_run_and_leaves_nothing_beside_it(registry: Registry, run: Run) -> None:
    again = registry.create(make_spec())
    assert again.spec == run.spec
    assert [entry.name for entry in run.folder.parent.iterdir()] == [run.folder.name]


def test_a_run_of_the_same_identity_is_found_under_another_recipes_name(registry: Registry) -> None:
    tiny = load_recipe("tiny")
    first = make_run(registry, tiny, "preprocess")
    second = make_run(registry, dataclasses.replace(tiny, name="mine"), "preprocess")
    assert second.folder == first.folder
    assert registry.find(first.spec.id, "preprocess").name == first.name


def test_a_default_that_changed_since_is_refused_with_the_difference(registry: Registry, run: Run) -> None:
    drifted = make_spec(config={"seed": 0, "clip": {"dim": 16}})
    with pytest.raises(ValueError, match=r"defaults were different:\n  clip\.dim: 8 -> 16\n"):
        registry.create(drifted)
    assert run.spec.config["clip"]["dim"] == 8


@dataclass(frozen=True, kw_only=True)
class Before:
    dim: int = 8
    names: tuple[str, ...] = ("a b",)
    gone: int = 1


@dataclass(frozen=True, kw_only=True)
class After:
    dim: int = 16
    names: tuple[str, ...] = ("a b",)
    came: bool = False


def spec_with(config: Any) -> RunSpec:
    """Return the spec that a launcher makes of a recipe with this part."""
    id = run_id(stage="clip", config={"clip": config}, source=None, parents={})
    return make_spec(id=id, config={"clip": dataclasses.asdict(config)})


def test_the_remedy_of_a_changed_default_is_the_old_code_or_the_old_values_or_another_place(registry: Registry) -> None:
    run = registry.create(spec_with(Before(gone=1)))
    with pytest.raises(ValueError) as raised:
        registry.create(spec_with(After()))
    assert str(raised.value).splitlines() == [
        f"run {run.name} was created when defaults were different:",
        "  clip.dim: 8 -> 16",
        "  clip.gone: 1 -> (absent)",
        "to go on with it, return to the code that created it;",
        f"to start one with today's, move this folder out of the registry: {run.folder}",
    ]
    with pytest.raises(ValueError, match=r"to start a run with its values, give them: --clip\.names 'a b' c --seed 0;"):
        registry.create(make_spec(id="x", config={"clip": {"names": ["a b", "c"]}, "seed": 0})).check_drift(
            {"clip": {"names": []}, "seed": 1}
        )


def test_a_field_that_came_since_is_no_drift(registry: Registry) -> None:
    registry.create(make_spec(config={"clip": {"dim": 8}}))
    registry.create(make_spec(config={"clip": {"dim": 8, "came": False}}))


def test_a_launcher_refuses_a_run_whose_defaults_changed_and_says_how(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(registry.home))
    tiny = load_recipe("tiny")
    run = make_run(registry, tiny, "clip", [make_run(registry, tiny, "preprocess")], done=False)
    stored = json.loads((run.folder / "run.json").read_text())
    stored["config"]["clip"]["optim"]["lr"] = 0.125
    (run.folder / "run.json").write_text(json.dumps(stored))
    assert submit.main("clip", ["--cluster", "local"]) == 2
    error = capsys.readouterr().err
    assert f"run {run.name} was created when defaults were different" in error
    assert "clip.optim.lr: 0.125 -> " in error and "--clip.optim.lr 0.125;" in error
    assert submit.main("clip", ["--cluster", "local", "--dry-run"]) == 0
    assert "would not start: run clip/" in capsys.readouterr().out
    assert run.intents() == []


def test_two_launchers_at_the_same_moment_make_one_run(raw_dataset: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "launch/preprocess.py", "--cluster", "local", "--data-root", str(raw_dataset)),
        *("--data.min-frames", "16", "--data.clips-per-shard", "4", "--wait", "yes"),
    ]
    environment = os.environ | {HOME_VARIABLE: str(tmp_path)}
    launchers = [
        subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    said = [launcher.communicate(timeout=120)[0].decode() for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    (run,) = Registry(tmp_path).runs()
    assert run.is_done() and len(run.intents()) == 1, said
    assert all("DONE" in text for text in said)
    assert [entry.name for entry in run.folder.parent.iterdir()] == [run.folder.name]


def test_every_run_has_a_tracking_id_of_its_own_that_is_no_part_of_the_identity(registry: Registry) -> None:
    first = registry.create(make_spec())
    assert registry.create(make_spec()).spec.tracking_id == first.spec.tracking_id
    other = registry.create(make_spec(id="other"))
    assert re.fullmatch(r"[0-9a-f]{16}", first.spec.tracking_id) and other.spec.tracking_id != first.spec.tracking_id
    stored = json.loads((first.folder / "run.json").read_text())
    del stored["tracking_id"]
    (first.folder / "run.json").write_text(json.dumps(stored))
    assert Run(first.folder).spec.tracking_id == ""


def test_a_folder_that_a_late_request_to_stop_left_is_no_hindrance(registry: Registry, run: Run) -> None:
    shutil.rmtree(run.folder)
    run.request_stop()
    assert list(registry.runs()) == []
    again = registry.create(make_spec())
    assert not again.stop_requested() and [found.name for found in registry.runs()] == [again.name]


def test_a_run_that_was_removed_does_not_come_back_in_parts(run: Run) -> None:
    shutil.rmtree(run.folder)
    for write in (lambda: run.claim_intent(1, {}), lambda: run.claim_attempt({})):
        with pytest.raises(FileNotFoundError):
            write()
    assert not run.folder.exists()
    with pytest.raises(ValueError, match="the run was removed"):
        run.intent(1)


def test_tuples_and_lists_are_no_difference(registry: Registry) -> None:
    registry.create(make_spec(config={"sizes": (1, 2)}))
    registry.create(make_spec(config={"sizes": [1, 2]}))


def test_find_takes_the_start_of_an_id_or_of_a_name_and_only_one(registry: Registry, run: Run) -> None:
    other = registry.create(make_spec(id="0199999999", recipe="big"))
    prior = registry.create(make_spec(stage="prior", id="0123456789"))
    assert registry.find("0199").folder == other.folder
    assert registry.find("big-").folder == other.folder
    assert registry.find("0123456789", "prior").folder == prior.folder
    assert {found.name for found in registry.runs()} == {run.name, other.name, prior.name}
    with pytest.raises(ValueError, match=r"2 runs .*clip/big-0199999999.* matches '01'"):
        registry.find("01", "clip")
    with pytest.raises(ValueError, match=r"no run matches 'zz'.*tools/runs\.py list"):
        registry.find("zz")


def test_a_home_without_runs_has_none(registry: Registry) -> None:
    assert list(registry.runs()) == []


def test_the_home_is_the_variables_or_one_below_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    assert default_home() == tmp_path
    monkeypatch.setenv(HOME_VARIABLE, "")
    assert default_home() == Path.home() / "dalle2_video"


def test_a_home_that_cannot_be_written_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rf"{HOME_VARIABLE}=.*cannot be written .*export {HOME_VARIABLE}="):
        Registry(tmp_path / "file" / "home").check_writable()


def test_a_full_disk_is_refused_with_the_remedy_and_a_good_home_left_as_it_was(registry: Registry) -> None:
    with pytest.raises(ValueError, match=r"disk full: .* MiB needed; free space"):
        registry.check_writable(free_bytes=1 << 60)
    registry.check_writable()
    assert list(registry.home.iterdir()) == []


def test_attempts_are_numbered_from_one_and_keep_their_first_end(run: Run) -> None:
    assert run.newest_attempt() == 0
    first, second = run.claim_attempt({"intent": 1}), run.claim_attempt({"intent": 2})
    assert (first.number, second.number, run.newest_attempt()) == (1, 2, 2)
    first.end("error", message="out of memory", exit_code=1)
    first.end("done")
    records = run.attempts()
    assert [record.claim["intent"] for record in records] == [1, 2]
    assert records[0].end is not None
    assert (records[0].end["kind"], records[0].end["message"]) == ("error", "out of memory")
    assert records[1].end is None


def test_an_attempt_that_a_newer_one_superseded_cannot_commit(run: Run) -> None:
    old = run.claim_attempt({})
    staged = old.stage_commit()
    (staged / "weights").write_text("old")
    assert not old.superseded()
    new = run.claim_attempt({})
    with pytest.raises(Superseded, match="attempt 1"):
        old.commit(10, staged)
    assert run.commits() == []
    assert not staged.exists()
    commit = new.commit(10, new.stage_commit())
    assert (commit.step, commit.attempt) == (10, 2)


def test_commits_are_sorted_by_step_then_by_attempt_and_staged_ones_are_not_seen(run: Run) -> None:
    for step in (100, 20):
        attempt = run.claim_attempt({})
        for at in (step, step + 5):
            staged = attempt.stage_commit()
            (staged / "weights").write_text(str(at))
            attempt.commit(at, staged)
    attempt = run.claim_attempt({})
    attempt.commit(100, attempt.stage_commit())
    attempt.stage_commit()
    (run.folder / "checkpoints" / "step-1.a1.tmp").mkdir()
    found = run.commits()
    assert [(commit.step, commit.attempt) for commit in found] == [(20, 2), (25, 2), (100, 1), (100, 3), (105, 1)]
    assert (found[1].path / "weights").read_text() == "25"


def test_the_first_record_of_completion_stays_and_is_what_children_pin(run: Run) -> None:
    assert run.done() is None
    run.mark_done({"digest": "first"})
    run.mark_done({"digest": "second"})
    assert run.as_parent() == Parent(stage="clip", id="0123456789", digest="first")


def test_an_intent_is_claimed_once_and_resolved_to_its_newest_job(run: Run) -> None:
    assert run.intents() == []
    assert run.claim_intent(1, {"groups": [[]]})
    assert not run.claim_intent(1, {"groups": [[1]]})
    assert run.intent(1).job is None
    newest = {"executor": "slurm", "ids": ["8"]}
    run.resolve_intent(1, {"executor": "slurm", "ids": ["7"]})
    run.resolve_intent(1, newest)
    assert run.claim_intent(2, {"groups": [[2]]})
    assert [(intent.number, intent.request["groups"], intent.job) for intent in run.intents()] == [
        (1, [[]], newest),
        (2, [[2]], None),
    ]


@pytest.mark.parametrize("what", ["stop", "save"])
def test_a_request_to_stop_or_save_stands_until_it_is_taken_back(run: Run, what: str) -> None:
    requested, request, clear = (
        getattr(run, name) for name in (f"{what}_requested", f"request_{what}", f"clear_{what}")
    )
    assert not requested()
    request()
    request()
    assert requested() and (run.folder / what.upper()).exists()
    clear()
    clear()
    assert not requested()


def test_finished_tasks_keep_their_first_record(run: Run) -> None:
    run.finish_task(3, {"clips": 5})
    run.finish_task(3, {"clips": 6})
    run.finish_task(0, {"clips": 1})
    assert run.tasks_done() == {0, 3}
    assert run.task_records() == {0: {"clips": 1}, 3: {"clips": 5}}


def test_forgotten_tasks_are_not_finished_any_more_and_neither_is_the_run(run: Run) -> None:
    run.mark_prepared()
    for task in range(4):
        run.finish_task(task, {"clips": task})
    run.mark_done({"digest": "d"})
    assert run.task_file(2).is_file() and run.task_record(2) == {"clips": 2}
    run.forget_tasks([1, 3, 3, 9])
    assert (run.tasks_done(), run.prepared(), run.done()) == ({0, 2}, True, None)
    assert run.task_record(1) is None
    run.forget_tasks([], preparation=True)
    assert (run.tasks_done(), run.prepared()) == ({0, 2}, False)


def test_open_attempts_are_those_without_an_end(run: Run) -> None:
    attempts = [run.claim_attempt({"group": group}) for group in range(3)]
    attempts[1].end("done")
    assert [(attempt.number, attempt.claim["group"]) for attempt in run.open_attempts()] == [(1, 0), (3, 2)]
    assert run.attempt(2).end is not None


def test_a_beat_that_is_not_there_or_half_written_says_nothing(run: Run) -> None:
    attempt = run.claim_attempt({})
    assert run.beat(attempt.number) is None
    attempt.beat({"task": 3, "share": 0.5})
    assert (run.beat(attempt.number) or {})["task"] == 3
    (run.folder / "beat.0001").write_text('{"task": 3, "sh')
    assert run.beat(attempt.number) is None


def test_events_of_all_attempts_are_read_in_order(run: Run) -> None:
    first, second = run.claim_attempt({}), run.claim_attempt({})
    second.append("events", {"event": "b"})
    first.append("events", {"event": "a"})
    first.append("metrics", {"step": 1})
    assert [(record["event"], record["attempt"]) for record in run.events()] == [("a", 1), ("b", 2)]


def test_a_step_done_twice_counts_once_with_the_later_attempts_metrics(run: Run) -> None:
    for losses in ({10: 1.0, 20: 0.9, 30: 0.8}, {20: 0.5}):
        attempt = run.claim_attempt({})
        for step, loss in losses.items():
            attempt.append("metrics", {"step": step, "loss": loss, "split": "train"})
            attempt.append("events", {"event": "no metric"})
        attempt.append("metrics", {"step": 20, "loss": 7.0, "split": "val"})
    found = [(record["step"], record["split"], record["loss"]) for record in run.metrics()]
    assert found == [(10, "train", 1.0), (20, "train", 0.5), (20, "val", 7.0), (30, "train", 0.8)]


def test_a_line_in_the_middle_of_being_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [record["step"] for record in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_beat_tells_the_newest_status(run: Run) -> None:
    attempt = run.claim_attempt({})
    attempt.beat({"step": 1, "steps": 10})
    attempt.beat({"step": 2, "steps": 10})
    assert json.loads((run.folder / "beat.0001").read_text())["step"] == 2


def test_a_folder_without_run_json_is_no_run(registry: Registry, run: Run) -> None:
    (run.folder.parent / "notes").mkdir()
    assert [found.name for found in registry.runs()] == [run.name]
    with pytest.raises(ValueError, match=r"notes is not a run folder: it has no run\.json"):
        Run(run.folder.parent / "notes")


@pytest.mark.parametrize("lines", [['{"loss": 1}'], ['{"step": []}'], ['{"step": 1}', '{"step": "2"}']])
def test_metrics_of_no_step_are_an_error_that_names_the_file(run: Run, lines: list[str]) -> None:
    (run.folder / "metrics.0001.jsonl").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(ValueError, match=rf"{run.folder}/metrics\.\S+ is damaged.*move the .*away"):
        run.metrics()


@pytest.mark.parametrize("changes", [{"parents": 3}, {"parents": {"clip": {"id": "0"}}}, {"unknown": 1}])
def test_fields_of_a_run_that_are_not_ours_are_an_error_that_names_the_file(run: Run, changes: dict[str, Any]) -> None:
    path = run.folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=rf"{path} is damaged.*; move the folder away"):
        _ = Run(run.folder).spec


def test_the_newest_training_metrics_are_found_without_reading_a_long_file(run: Run) -> None:
    assert run.latest_training_metrics() is None
    first, second = run.claim_attempt({}), run.claim_attempt({})
    for step in range(500):
        first.append("metrics", {"step": step, "loss": 1.0, "split": "train"})
    latest = run.latest_training_metrics()
    assert latest is not None and latest["step"] == 499
    second.append("metrics", {"step": 300, "loss": 0.5, "split": "train"})
    second.append("metrics", {"step": 300, "loss": 9.0, "split": "val"})
    with (run.folder / "metrics.0002.jsonl").open("a") as file:
        file.write('{"step": 301, "los')
    latest = run.latest_training_metrics()
    assert latest is not None and (latest["step"], latest["loss"]) == (300, 0.5)
