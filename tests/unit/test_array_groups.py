"""An array's groups: only missing tasks are submitted, arrays keep Slurm's limits, what was submitted is not lost."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_fixtures import make_spec, squeue_rows

from dalle2_video.config_io import to_dict
from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run
from launch import progress, start, submit
from launch.arguments import load_recipe
from launch.array_progress import ArrayWatch
from slurm import executor, local, run_state
from slurm.placement import Placement

SLURM = Placement(cluster="slurm")
SHARDS = ["--cluster", "slurm", "--data.clips-per-shard", "1"]


@given(missing=st.sets(st.integers(0, 2000), max_size=60), jobs=st.integers(1, 80))
def test_groups_share_out_just_what_is_missing_evenly(missing: set[int], jobs: int) -> None:
    groups = start.share_out(sorted(missing), jobs)
    assert sorted(task for group in groups for task in group) == sorted(missing)
    assert len(groups) == max(1, min(jobs, len(missing)))
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


@given(groups=st.integers(1, 5000), limit=st.integers(1, 1100), parallel=st.integers(0, 600))
def test_arrays_hold_all_groups_within_slurms_limit_and_share_the_throttle(
    groups: int, limit: int, parallel: int
) -> None:
    shares = executor.split(groups, limit)
    assert sum(shares) == groups and max(shares) <= limit and min(shares) >= 1
    assert len(shares) == -(-groups // limit)
    throttles = [executor._throttle(parallel, number, shares) for number in range(len(shares))]
    assert min(throttles) >= 1
    assert sum(throttles) == (groups if parallel == 0 else max(parallel, len(shares)))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm that queues: sbatch keeps the file and counts job ids from 1, of arrays with at most two tasks."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    commands = {
        "srun": "exit 1",
        "scontrol": "echo ClusterName = stub; echo MaxArraySize = 2",
        "squeue": "true",
        "sacct": "exit 1",
        "sbatch": f'n=$(ls {folder} | grep -c batch-); n=$((n + 1)); [ $n -le "$(cat {folder}/limit)" ] '
        f"|| {{ echo job submit limit >&2; exit 1; }}; cp $1 {folder}/batch-$n; echo Submitted batch job $n",
    }
    for name, text in commands.items():
        script = folder / name
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
    (folder / "limit").write_text("99")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def arrays(slurm: Path) -> list[str | None]:
    """What each submitted file asks of `--array`."""
    texts = [path.read_text() for path in sorted(slurm.glob("batch-*"))]
    return [found[1] if (found := re.search(r"^#SBATCH --array=(\S+)", text, re.M)) else None for text in texts]


def submit_groups(folder: Path, groups: int, seen: list[dict[str, Any]], **options: Any) -> executor.Submission:
    work = executor.Work(
        run_folder=folder, name="name", intent=7, training=False, placement=SLURM, code=folder, groups=groups, **options
    )
    return executor.submit(work, on_job=seen.append)


def first_groups(slurm: Path) -> list[int]:
    """The first group of each submitted file, the last argument of its command."""
    texts = [path.read_text().strip() for path in sorted(slurm.glob("batch-*"))]
    return [int(text.splitlines()[-1].split()[-1]) for text in texts]


def test_more_groups_than_an_array_holds_become_several_arrays_that_know_their_groups(
    slurm: Path, tmp_path: Path
) -> None:
    seen: list[dict[str, Any]] = []
    submission = submit_groups(tmp_path, 5, seen, parallel=4)
    assert [record["ids"] for record in seen] == [["1"], ["1", "2"], ["1", "2", "3"]]
    assert (submission.record, submission.groups, submission.refused) == (seen[-1], 5, "")
    assert arrays(slurm) == ["0-1%2", "0-1%1", "0-0%1"]
    assert first_groups(slurm) == [0, 2, 4]
    assert not list(tmp_path.rglob("*.pkl"))


def test_without_a_limit_all_tasks_of_an_array_may_run_at_once(slurm: Path, tmp_path: Path) -> None:
    (slurm / "scontrol").write_text("#!/bin/sh\necho MaxArraySize = 1001\n")
    submit_groups(tmp_path, 600, [])
    assert arrays(slurm) == ["0-599%600"]


def test_what_was_submitted_before_a_refusal_stays_on_record(slurm: Path, tmp_path: Path) -> None:
    (slurm / "limit").write_text("1")
    seen: list[dict[str, Any]] = []
    submission = submit_groups(tmp_path, 5, seen)
    assert submission.record == {"executor": "slurm", "ids": ["1"], "cluster": "stub"} == seen[-1]
    assert submission.groups == 2 and "job submit limit" in submission.refused


def test_a_refusal_of_the_first_array_is_the_users_to_mend(slurm: Path, tmp_path: Path) -> None:
    (slurm / "limit").write_text("0")
    seen: list[dict[str, Any]] = []
    with pytest.raises(ValueError, match=r"(?s)sbatch refused the job: .*job submit limit.*fewer jobs: --tasks"):
        submit_groups(tmp_path, 5, seen)
    assert seen == []


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return Registry(tmp_path / "home")


def newest(home: Registry) -> tuple[Run, dict[str, Any], dict[str, Any] | None]:
    (run,) = home.runs("preprocess")
    intent = run.intents()[-1]
    return run, intent.request, intent.job


def test_a_launch_after_a_refusal_waits_for_what_runs_and_then_submits_only_what_is_missing(
    slurm: Path, home: Registry, raw_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SHARDS, "--data-root", str(raw_dataset), "--tasks", "4"]
    (slurm / "limit").write_text("1")
    assert submit.main("preprocess", command) == 0
    said = capsys.readouterr()
    assert "sbatch refused 2 of 4 groups" in said.err and "job submit limit" in said.err
    assert "Slurm job 1, 2 groups of tasks" in said.out
    run, request, job = newest(home)
    assert job == {"executor": "slurm", "ids": ["1"], "cluster": "stub"}
    assert (request["num_tasks"], request["num_clips"]) == (10, 10)
    assert request["groups"] == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]

    (slurm / "squeue").write_text(f"#!/bin/sh\n{squeue_rows(('1', 'RUNNING'))}\n")
    (slurm / "limit").write_text("99")
    assert submit.main("preprocess", command) == 0
    assert "running or queued already" in capsys.readouterr().out
    assert len(run.intents()) == 1

    (slurm / "squeue").write_text(f"#!/bin/sh\n{squeue_rows(('1', 'COMPLETED'))}\n")
    for task in (0, 4, 8, 1, 5, 9, 2):
        run.finish_task(task, {"clips": []})
    assert submit.main("preprocess", command) == 0
    assert "goes on; finished tasks stay: 7" in capsys.readouterr().out
    _, request, job = newest(home)
    assert request["groups"] == [[3], [6], [7]] and job == {"executor": "slurm", "ids": ["2", "3"], "cluster": "stub"}

    for task in (3, 6, 7):
        run.finish_task(task, {"clips": []})
    assert submit.main("preprocess", command) == 0
    _, request, job = newest(home)
    assert request["groups"] == [[]] and job == {"executor": "slurm", "ids": ["4"], "cluster": "stub"}


def test_a_controller_that_is_silent_for_a_while_is_asked_again_and_one_that_stays_silent_is_said_to_be(
    slurm: Path, home: Registry, raw_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SHARDS, "--data-root", str(raw_dataset)]
    assert submit.main("preprocess", command) == 0
    monkeypatch.setenv("SLURM_CONF", str(slurm / "sbatch"))  # there is a cluster
    monkeypatch.setattr(start, "ASK_AGAIN_S", 0)
    asked = slurm / "asked"
    once = f"if [ -e {asked} ]; then printf '%-24s%-24s%-48s\\n' 1 RUNNING None; else exit 1; fi"
    (slurm / "squeue").write_text(f"#!/bin/sh\n{once}\n")
    (slurm / "scontrol").write_text(f"#!/bin/sh\n[ -e {asked} ] && echo ClusterName = stub; touch {asked}\n")
    capsys.readouterr()
    assert submit.main("preprocess", command) == 0
    said = capsys.readouterr().out
    assert "Slurm does not answer; asking again" in said and "running or queued already" in said

    monkeypatch.setattr(start, "SILENCE_S", 0.0)
    for name in ("squeue", "scontrol"):
        (slurm / name).write_text("#!/bin/sh\nexit 1\n")
    assert submit.main("preprocess", command) == 2
    assert "an earlier job may be alive: Slurm does not answer (is its controller up?" in capsys.readouterr().err


def test_a_dry_run_shows_the_array_that_would_be_submitted(
    slurm: Path, home: Registry, raw_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SHARDS, "--data-root", str(raw_dataset), "--tasks", "10", "--parallel", "5", "--dry-run"]
    assert submit.main("preprocess", command) == 0
    assert "--array=0-1%1" in capsys.readouterr().out  # ten groups in five arrays of two
    assert arrays(slurm) == [] and not home.home.exists()


def supervised(tmp_path: Path, groups: int, *, manifest: bool = True, stop: bool = False) -> Run:
    """Supervise a run, two groups at once, whose data set was taken away; without its manifest its groups crash."""
    config = {"data": to_dict(load_recipe("tiny").data)}
    run = Registry(tmp_path).create(make_spec(stage="preprocess", config=config))
    if manifest:
        (run.folder / "manifest.json").write_text(
            json.dumps([[f"clip-{n}", [f"{n}.mp4", 1, None, None, None], {}, None] for n in range(400)])
        )
    request = {
        "training": False, "groups": [[group] for group in range(groups)], "world_size": 1, "parallel": 2,
        "data_root": str(tmp_path / "nowhere"),
    }  # fmt: skip
    assert run.claim_intent(1, request)
    if stop:
        run.request_stop()
    local.supervise(str(run.folder), 1, None)
    run.resolve_intent(1, local.process_record(2**22 + 1))  # the supervisor was this process; a user's has gone now
    return run


def test_what_the_user_has_to_mend_ends_the_start_of_further_groups(tmp_path: Path) -> None:
    run = supervised(tmp_path, 6)
    ends = [attempt.end or {} for attempt in run.attempts()]
    assert [end["exit_code"] for end in ends] == [2, 2]
    assert "no caption folder" in ends[0]["message"]


def test_a_group_that_crashes_is_tried_three_times_and_after_three_such_groups_no_further_is_started(
    tmp_path: Path,
) -> None:
    run = supervised(tmp_path, 9, manifest=False)
    tries = Counter(attempt.claim["group"] for attempt in run.attempts())
    assert set(tries) in ({0, 1, 2}, {0, 1, 2, 3}) and set(tries.values()) == {3}
    assert run_state.decision(run, run.intents(), retry=False).action == "poisoned"


def test_no_group_is_started_once_the_run_was_asked_to_stop(tmp_path: Path) -> None:
    run = supervised(tmp_path, 2, stop=True)
    assert run.attempts() == [] and run_state.standing(run).state == "stopped"


@pytest.mark.parametrize(
    ("ends", "stop", "code", "said"),
    [
        (["done", "done"], False, 1, "3 of 5 tasks are left; the same command goes on with them"),
        (["done", "stopped"], True, 0, "stopped; the same command goes on from there"),
        (["done"], True, 0, "stopped; the same command goes on from there"),
        ([], True, 0, "stopped; the same command goes on from there"),
        ([None, "done"], False, 1, "it ended without a word"),
        (["error", "done"], False, 2, "group 0: disk full"),
        ([], False, 1, "it ended without a word"),
    ],
)
def test_a_launcher_tells_what_became_of_the_groups(
    ends: list[str | None], stop: bool, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(progress, "ALIVE_EVERY_S", 0.0)
    run = Registry(tmp_path).create(make_spec(stage="preprocess"))
    run.claim_intent(1, {"groups": [[0, 1], [2, 3, 4]], "num_tasks": 5, "training": False})
    run.resolve_intent(1, local.process_record(2**22 + 1))
    for task in (0, 2):
        run.finish_task(task, {})
    for group, kind in enumerate(ends):
        attempt = run.claim_attempt({"intent": 1, "group": group, "supervised": True})
        if kind is not None:
            attempt.end(kind, **({"message": f"group {group}: disk full", "exit_code": 2} if kind == "error" else {}))  # type: ignore[arg-type]
    if stop:
        run.request_stop()
    assert submit._wait(run, stop_on_interrupt=False) == code
    answer = capsys.readouterr()
    assert said in (answer.err if code else answer.out)


@pytest.fixture
def array(tmp_path: Path) -> Run:
    """An array of ten tasks of four clips: two done by an earlier launch, one by this, one at work, the rest queued."""
    run = Registry(tmp_path).create(make_spec(stage="preprocess", id="abcdef0123"))
    assert ArrayWatch(run).look() is None
    run.claim_intent(1, {"groups": [list(range(10))], "num_tasks": 10, "num_clips": 40, "training": False})
    first = run.claim_attempt({"intent": 1, "group": 0})
    for task in (0, 1):
        first.append("events", {"event": "task", "task": task, "clips": 4, "bad": {f"clip-{task}": "black"}})
        run.finish_task(task, {"clips": []})
    first.beat({"task": 2, "share": 0.75})  # it died without a word: its part of task 2 is lost
    run.claim_intent(2, {"groups": [[2, 5], [3, 6]], "num_tasks": 10, "num_clips": 40, "training": False})
    second = run.claim_attempt({"intent": 2, "group": 0, "time": time.time() - 10})
    run.finish_task(2, {"clips": [{"clip_id": "x", "bad": "no event told"}, *[{"clip_id": "y", "bad": None}] * 3]})
    second.beat({"task": 5, "share": 0.5})
    return run


def test_progress_sums_up_all_tasks_of_the_run_and_the_parts_at_work(array: Run) -> None:
    watch = ArrayWatch(array)
    found = watch.look()
    assert found is not None
    assert (found.tasks, found.done, found.running, found.parts) == (10, 3, 1, 0.5)
    assert found.share == pytest.approx(0.35)
    assert (found.clips, found.all_clips) == (12, 40)
    assert found.bad == {"clip-0": "black", "clip-1": "black", "x": "no event told"}
    # Four clips of task 2 and two of task 5 in the ten seconds since the second launch began.
    assert found.per_second == pytest.approx(0.6, rel=0.2)
    assert found.left_s == pytest.approx(26 / 0.6, rel=0.2)

    array.finish_task(5, {"clips": [{"clip_id": "z", "bad": None}] * 4})
    found = watch.look()
    assert found is not None
    # The beat still speaks of task 5, which is done now and counts once.
    assert (found.done, found.parts, found.clips, len(found.bad)) == (4, 0.0, 16, 3)

    array.forget_tasks([0])
    found = watch.look()
    assert found is not None and (found.done, found.clips, "clip-0" in found.bad) == (3, 12, False)
