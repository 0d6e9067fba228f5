"""`tools/runs.py`: shows every run in the state that a launcher would act on, tells why, prints its log, stops it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from registry_fixtures import make_run, make_spec

from experiments.identity import Parent
from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run
from launch.arguments import load_recipe
from slurm import logs, run_state
from slurm.local import process_record
from tools import runs, runs_logs

REPOSITORY = Path(__file__).resolve().parents[2]
GONE = {"executor": "local", "host": socket.gethostname(), "pid": 2**22 + 1, "start_ticks": 1}
ELSEWHERE = GONE | {"host": "another-host"}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    return Registry(tmp_path)


def launched(registry: Registry, name: str, job: dict[str, Any] | None, *ends: str | None, claims: Any = None) -> Run:
    """Return a run that was launched once: as `job`, with attempts that ended so (None: without a word)."""
    run = registry.create(make_spec(id=name))
    request = {"launcher": GONE, "groups": [[]], "placement": {}}
    assert run.claim_intent(len(run.intents()) + 1, request)
    if job is not None:
        run.resolve_intent(len(run.intents()), job)
    for kind in ends:
        attempt = run.claim_attempt({"intent": len(run.intents()), "group": 0, "supervised": True} | (claims or {}))
        if kind is not None:
            attempt.end(kind, message=f"a reason for {kind}")  # type: ignore[arg-type]
    return run


def alive() -> dict[str, Any]:
    return process_record(os.getpid())


@pytest.fixture
def every_state(registry: Registry) -> dict[str, Run]:
    """One run of each state."""
    found = {
        "running": launched(registry, "aaaa000001", alive(), "error", None),
        "queued": launched(registry, "aaaa000002", alive(), "preempted"),
        "stopped": launched(registry, "aaaa000003", GONE, "stopped"),
        "failed": launched(registry, "aaaa000004", GONE, None),
        "poisoned": launched(registry, "aaaa000005", GONE, "error", "hang", "error"),
        "unknown": launched(registry, "aaaa000006", ELSEWHERE, None),
        "done": launched(registry, "aaaa000007", GONE, "done"),
    }
    found["done"].mark_done({"digest": "d" * 64})
    attempt = found["running"].claim_attempt({"intent": 1, "group": 0, "supervised": True})
    attempt.beat({"step": 30, "steps": 120})
    attempt.append("metrics", {"step": 30, "loss": 0.25, "samples_per_second": 8.0, "split": "train"})
    attempt.commit(20, attempt.stage_commit())
    return found


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert runs.main(arguments) == 0
    return capsys.readouterr().out


def test_every_state_is_derived_and_listed(every_state: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "list").splitlines()
    assert len(lines) == 1 + len(every_state)
    for state, run in every_state.items():
        assert run_state.standing(run).state == state
        (line,) = [line for line in lines if run.folder.name in line]
        assert line.split()[:3] == ["clip", run.folder.name, state]
    (line,) = [line for line in lines if "running" in line]
    assert re.search(r"25% step 30/120 loss 0.250 8/s +3 +at work", line)
    (line,) = [line for line in lines if "poisoned" in line]
    assert "error: a reason for error" in line
    (line,) = [line for line in lines if "failed" in line]
    assert "without a word" in line


def test_a_run_whose_job_ends_between_two_looks_is_not_taken_for_unfinished(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launched(registry, "aaaa000001", GONE, None)

    def ends_now(_: object) -> str:
        run.mark_done({"digest": "d"})
        return "gone"

    monkeypatch.setattr("slurm.job_state.of_intent", ends_now)
    assert run_state.decision(run, run.intents(), retry=False).action == "finished"


def test_a_list_can_be_of_one_stage(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(registry, load_recipe("tiny"), "preprocess")
    launched(registry, "aaaa000001", None)
    assert "preprocess" not in output(capsys, "list", "--stage", "clip")
    assert "tiny-aaaa000001" in output(capsys, "list", "--stage", "clip")
    assert "no runs" in output(capsys, "list", "--stage", "prior")


def test_show_holds_spec_parents_attempts_commits_metrics_and_completion(
    every_state: dict[str, Run], registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = output(capsys, "show", every_state["running"].spec.id)
    for text in (
        "clip/tiny-aaaa000001",
        "running (running or queued already)",
        "clip.dim = 8",
        "error: a reason for error",
        "without a word",
        "at work",
        "step 20, attempt 3",
        "loss 0.25",
    ):
        assert text in shown, text
    assert f"digest = {'d' * 64}" in output(capsys, "show", every_state["done"].spec.id)
    tiny = load_recipe("tiny")
    store = make_run(registry, tiny, "preprocess")
    child = make_run(registry, tiny, "clip", [store])
    assert f"preprocess {store.spec.id}" in output(capsys, "show", child.spec.id)
    pin = Parent(stage="clip", id=child.id, digest="c" * 64, step=20)
    sample = registry.create(make_spec(stage="sample", id="1123456789", parents={"clip": pin}))
    assert f"step 20: {sample.name}" in output(capsys, "show", child.id)
    assert f"clip {child.id} at step 20, digest cccc" in output(capsys, "show", sample.id)


@pytest.mark.parametrize(
    ("state", "sentences"),
    [
        ("running", ["Attempt 3 ", "at work", "The newest commit is step 20", "Now it is running."]),
        ("queued", ["ended after", "preempted", "Now it is queued."]),
        ("stopped", ["Attempt 1 ", "stopped: a reason", "the same launch command goes on"]),
        ("failed", ["without a word", "mend the cause"]),
        ("poisoned", ["hang: a reason", "Now it is poisoned.", "3 attempts in a row", "--retry"]),
        ("unknown", ["process 4194305 on another-host", "Now it is unknown.", "run the command on the host"]),
        ("done", ["done: a reason", "Nothing is left to do."]),
    ],
)
def test_why_tells_the_story(
    every_state: dict[str, Run], state: str, sentences: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = output(capsys, "why", every_state[state].spec.id)
    assert "Created " in told and "Launch 1, " in told
    for sentence in sentences:
        assert sentence in told, sentence


def test_a_job_that_was_asked_to_stop_and_did_is_told_to_be_leaving(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    run = launched(registry, "aaaa000001", alive(), None)
    run.request_stop()
    assert "has not done so yet" in output(capsys, "why", "aaaa")
    other = launched(registry, "bbbb000001", alive(), "stopped")
    other.request_stop()
    told = output(capsys, "why", "bbbb")
    assert "Now it is stopped. Its job is on its way out" in told and "has not done so yet" not in told


def test_a_launch_is_judged_by_its_own_job_and_not_by_an_earlier_one(registry: Registry) -> None:
    run = launched(registry, "aaaa000001", GONE, "stopped")
    assert run_state.standing(run).state == "stopped"
    launched(registry, "aaaa000001", alive(), None)
    assert run_state.standing(run).state == "running"
    launched(registry, "aaaa000001", ELSEWHERE)
    assert run_state.standing(run).state == "unknown"


def test_why_sums_up_many_attempts(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    run = launched(registry, "aaaa000001", GONE, *["preempted"] * 20, "timeout")
    told = output(capsys, "why", run.spec.id)
    assert "13 earlier attempts: 13 preempted." in told
    assert "Attempt 13 " not in told and "Attempt 14 " in told and "Attempt 21 " in told


def test_why_tells_what_went_wrong_in_an_attempt(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    run = launched(registry, "aaaa000001", GONE)
    attempt = run.claim_attempt({"intent": 1, "group": 0, "supervised": True})
    attempt.append("events", {"event": "damaged checkpoint", "message": "step-20.a0001: weights: wrong checksum"})
    for step in (31, 32, 40):
        attempt.append("events", {"event": "skipped step", "step": step, "message": "loss\nis NaN."})
    attempt.append("events", {"event": "task", "task": 0, "clips": 4, "bad": {}})
    attempt.end("hang", message="no step for 600 s, 20 times the median; the stacks are in the log")
    told = output(capsys, "why", "aaaa").splitlines()
    number = next(number for number, line in enumerate(told) if line.startswith("Attempt 1 "))
    assert "hang: no step for 600 s, 20 times the median; the stacks are in the log." in told[number]
    assert told[number + 1] == "  damaged checkpoint, 0 s ago: step-20.a0001: weights: wrong checksum."
    assert told[number + 2] == "  skipped step 3 times, the last at step 40, 0 s ago: loss is NaN."
    assert told[number + 3].startswith("Now it is failed.")


def large_array(registry: Registry) -> Run:
    """An array of 1,100 tasks and 500 jobs, of which 450 are done and three failed; every task found a bad clip."""
    run = registry.create(make_spec(stage="preprocess", id="cccc000001"))
    groups = [list(range(group, 1100, 500)) for group in range(500)]
    request = {"launcher": GONE, "groups": groups, "training": False, "num_tasks": 1100, "num_clips": 4400}
    assert run.claim_intent(1, request)
    run.resolve_intent(1, alive())
    (run.folder / "tasks").mkdir()
    for group in range(500):
        attempt = run.claim_attempt({"intent": 1, "group": group, "supervised": True})
        for task in groups[group] if group < 450 else []:
            bad = {f"clip_{task:04d}": f"reason {task}"}
            attempt.append("events", {"event": "task", "task": task, "clips": 4, "bad": bad})
            run.task_file(task).write_text("{}")
        if group < 450:
            attempt.end("done")
        elif group < 453:
            attempt.end("error", message=f"group {group} broke")
        elif group < 460:
            attempt.beat({"task": group, "share": 0.5})
    return run


def test_show_sums_up_an_array_of_many_tasks_and_names_what_failed(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    run = large_array(registry)
    shown = output(capsys, "show", "cccc")
    assert len(shown.splitlines()) < 60
    done = len(run.tasks_done())
    assert f"1100: {done} done, 47 running, {1100 - done - 47} queued" in shown
    assert f"{done * 4} of 4400, {done} of them bad" in shown
    assert "clip_0000: reason 0" in shown and "clip_0019: reason 19" in shown and "clip_0020" not in shown
    assert f"and {done - 20} more; all of them: the events.*.jsonl in" in shown
    assert "500: 450 done, 47 at work, 3 error" in shown
    failures = [line for line in shown.splitlines() if "error: group" in line]
    assert [line.split()[1] for line in failures] == ["451", "452", "453"]
    assert "clips/s" in shown and "left" in shown
    (line,) = [line for line in output(capsys, "list").splitlines() if "cccc000001" in line]
    assert f"{(done + 3.5) / 1100:.0%} {done}/1100 tasks" in line

    run.resolve_intent(1, GONE)
    left = output(capsys, "show", "cccc")
    assert f"{1100 - done} left for the next launch" in left and "queued" not in left and "clips/s" not in left
    (line,) = [line for line in output(capsys, "list").splitlines() if "cccc000001" in line]
    assert "failed" in line and "without a word" in line


def test_stop_takes_what_has_not_started_out_of_slurms_queue(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = "printf '%-24s%-24s%-48s\\n' 7 PENDING Priority 9 RUNNING None"
    reasons = "printf '7|PENDING|Priority|0||\\n9|RUNNING|None|0|n1|\\n'"
    squeue = f'case "$*" in *ArrayJobID:24*) {states};; *) {reasons};; esac'
    for name, text in (("squeue", squeue), ("scancel", f'echo "$@" > {tmp_path}/asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    launched(registry, "aaaa000001", {"executor": "slurm", "ids": ["7", "9"]}, None)
    assert "asked to save and stop" in output(capsys, "stop", "aaaa")
    assert (tmp_path / "asked").read_text() == "--state=PENDING 7 9\n"
    told = output(capsys, "why", "aaaa")
    assert "Slurm jobs 7, 9" in told and "Slurm job 7 waits: Priority: others come first." in told


def write_log(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_logs_prints_the_newest_attempts_log_of_a_rank(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    run = launched(registry, "aaaa000001", GONE, "error", "error")
    for attempt in (1, 2):
        for rank in (0, 1):
            write_log(logs.supervised(run.folder, attempt, rank), f"attempt {attempt} rank {rank}\n")
    assert output(capsys, "logs", "aaaa") == "attempt 2 rank 0\n"
    assert output(capsys, "logs", "aaaa", "--rank", "1") == "attempt 2 rank 1\n"
    assert output(capsys, "logs", "clip/tiny-aaaa000001", "--rank", "1", "--attempt", "1") == "attempt 1 rank 1\n"


@pytest.mark.parametrize(
    ("array", "name"),
    [({}, "4711_1_log.out"), ({"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "3"}, "4700_3_1_log.out")],
)
def test_logs_of_slurm_jobs_and_arrays_are_where_submitit_puts_them(
    array: dict[str, str], name: str, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    run = registry.create(make_spec(id="aaaa000001"))
    run.claim_intent(1, {"launcher": GONE, "groups": [[task] for task in range(2000)]})
    run.resolve_intent(1, {"executor": "slurm", "ids": ["4600", "4700"]})
    run.claim_attempt({"intent": 1, "group": 1003, "slurm": {"SLURM_JOB_ID": "4711"} | array})
    write_log(run.folder / "logs" / name, "text\n")
    assert output(capsys, "logs", "aaaa", "--rank", "1") == "text\n"


def test_logs_shows_the_jobs_own_log_where_no_attempt_was_started(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    run = launched(registry, "aaaa000001", GONE)
    write_log(run.folder / "logs" / "77_0_log.out", "ImportError\n")
    assert output(capsys, "logs", "aaaa") == "ImportError\n"


def test_follow_prints_what_comes_until_the_attempt_ends(
    registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_logs, "FOLLOW_POLL_S", 0.02)
    monkeypatch.setattr(runs_logs, "FOLLOW_ASK_S", 0.1)
    run = launched(registry, "aaaa000001", alive())
    attempt = run.claim_attempt({"intent": 1, "group": 0, "supervised": True})
    path = write_log(logs.supervised(run.folder, 1, 0), "first\n")

    def write_and_end() -> None:
        time.sleep(0.3)
        with path.open("a") as log:
            log.write("last\n")
        attempt.end("done")

    writer = threading.Thread(target=write_and_end)
    writer.start()
    assert output(capsys, "logs", "aaaa", "-f") == "first\nlast\n"
    writer.join()


@pytest.mark.parametrize(
    ("state", "said", "asked"),
    [
        ("running", "asked to save and stop", True),
        ("queued", "asked to stop as soon as it starts", True),
        ("unknown", "if it is at work at all", True),
        ("poisoned", "nothing works on it", True),
        ("done", "is done already", False),
    ],
)
def test_stop_asks_every_run_that_is_not_done(
    every_state: dict[str, Run], state: str, said: str, asked: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = every_state[state]
    assert said in output(capsys, "stop", run.spec.id)
    assert run.stop_requested() == asked


def test_save_asks_a_training_at_work_and_refuses_all_others(
    every_state: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    for state, run in every_state.items():
        assert runs.main(["save", run.spec.id]) == (0 if state == "running" else 2)
        answer = capsys.readouterr()
        assert ("asked for a checkpoint" in answer.out) == run.save_requested() == (state == "running")
        assert ("there is nothing to save" in answer.err) == (state != "running")


@pytest.mark.parametrize(
    "arguments",
    [["show", "zzzz"], ["why", "aaaa"], ["stop", "prior/aaaa000001"], ["logs", "aaaa000001", "--attempt", "9"]],
)
def test_what_is_not_there_is_one_line_and_exit_code_2(
    arguments: list[str], every_state: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs.main(arguments) == 2
    answer = capsys.readouterr()
    assert answer.out == ""
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1


def test_logs_that_are_not_there_name_those_that_are(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    run = launched(registry, "aaaa000001", GONE, "error")
    write_log(logs.supervised(run.folder, 1, 0), "text\n")
    assert runs.main(["logs", "aaaa", "--rank", "5"]) == 2
    assert "no log of rank 5 of attempt 1" in (error := capsys.readouterr().err)
    assert "attempt-0001.rank0.log" in error


def as_script(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "tools/runs.py"), *arguments]
    environment = os.environ | {HOME_VARIABLE: str(home)}
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=False)


def test_the_script_runs_from_anywhere(every_state: dict[str, Run], tmp_path: Path) -> None:
    answer = as_script(tmp_path, "list")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.count("tiny-aaaa") == len(every_state)
    assert as_script(tmp_path, "show", "zzzz").returncode == 2
    assert as_script(tmp_path, "no-such-command").returncode == 2
