"""`tools/runs.py why` of jobs on Slurm: nodes, restarts, lost steps, new code, and Slurm's own word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from registry_fixtures import make_spec

from experiments import files
from experiments.reconcile import Decision
from experiments.registry import Registry
from experiments.run import Run
from slurm import notify
from slurm.accounting import parse_history, parse_queue
from slurm.run_state import Standing
from tools import run_story
from tools.run_story import SlurmWords, story


def standing(run: Run, state: str = "failed", action: str = "launch") -> Standing:
    return Standing(
        state=state,  # type: ignore[arg-type]
        decision=Decision(action=action, reason="so it is"),  # type: ignore[arg-type]
        at_work=frozenset(),
        attempts=tuple(run.attempts()),
    )


def told(run: Run, *, queue: str | None = "", history: str | None = "", **more: str) -> list[str]:
    words = SlurmWords(
        queue=None if queue is None else parse_queue(queue),
        history=None if history is None else parse_history(history),
    )
    return story(run, standing(run, **more), words, now=run.spec.created + 60)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Registry(tmp_path / "home").create(make_spec())


def launch(run: Run, *jobs: str, **request: Any) -> None:
    number = run.newest_intent() + 1
    asked = {"placement": {"nodes": 2, "partition": "gpu"}, "training": True, "world_size": 8, "groups": [[]]}
    run.claim_intent(number, {"launcher": {}} | asked | request)
    run.resolve_intent(number, {"executor": "slurm", "ids": list(jobs)})


def attempt(run: Run, end: str | None, nodes: str = "n[1-2]", restart: int = 0, **details: Any) -> int:
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": nodes, "SLURM_RESTART_COUNT": str(restart)}
    made = run.claim_attempt({"intent": run.newest_intent(), "group": 0, "world_size": 8, "slurm": job})
    if end is not None:
        made.end(end, **details)  # type: ignore[arg-type]
    return made.number


def one(sentences: Sequence[str], start: str) -> str:
    (found,) = [sentence for sentence in sentences if sentence.startswith(start)]
    return found


def test_a_launch_tells_what_it_asked_for_and_an_attempt_where_it_was(run: Run) -> None:
    launch(run, "7", placement={"nodes": 4, "min_nodes": 2, "partition": "gpu", "exclude": "n9"})
    attempt(run, "preempted")
    attempt(run, "error", "n[3-4]", restart=1, message="a reason")
    sentences = told(run)
    assert one(sentences, "Launch 1").endswith("Slurm job 7 on 2 to 4 nodes, 8 ranks (partition gpu, exclude n9).")
    assert one(sentences, "Attempt 1 ").startswith("Attempt 1 (on n[1-2], launch 1) began ")
    assert one(sentences, "Attempt 2 ").startswith("Attempt 2 (on n[3-4], launch 1, restart 1) began ")


def test_slurms_word_stands_for_the_one_that_an_attempt_could_not_leave(run: Run) -> None:
    launch(run, "7")
    attempt(run, None)
    attempt(run, None, restart=1)
    history = "7|NODE_FAIL|n[1-2]|0:0\n7|OUT_OF_MEMORY|n[1-2]|0:125\n"
    sentences = told(run, history=history)
    assert one(sentences, "Attempt 1 ").endswith("Slurm says: a node failed (NODE_FAIL, on n[1-2]).")
    assert "it used more memory than it had: ask for more (--mem-gb)" in one(sentences, "Attempt 2 ")
    assert "OUT_OF_MEMORY" in one(sentences, "  Slurm says of job 7")


@pytest.mark.parametrize(
    ("history", "said"),
    [
        (None, "Slurm's accounting (sacct) does not answer: how jobs ended that left no word is not known."),
        ("", "  Slurm's accounting knows job 7 no more: how it ended is not known."),
        ("7|CANCELLED by 987654||0:0\n", "  Slurm says of job 7: it was cancelled by user 987654 (CANCELLED)."),
        (
            "7_0|FAILED|n1|1:0\n7_1|FAILED|n1|1:0\n7_2|TIMEOUT|n2|0:0\n",
            "  Slurm says of the 3 tasks of job 7: 2 x it failed (FAILED, exit code 1:0, on n1), "
            "1 x its time limit was reached (TIMEOUT, on n2).",
        ),
    ],
)
def test_how_a_job_ended_is_slurms_to_say_or_said_not_to_be_known(run: Run, history: str | None, said: str) -> None:
    launch(run, "7")
    assert said in told(run, history=history)


def test_why_a_job_waits_is_told(run: Run) -> None:
    launch(run, "7")
    attempt(run, "preempted")
    sentences = told(run, queue="7|PENDING|BeginTime|1||\n", state="queued", action="attach")
    assert one(sentences, "  Slurm job 7 waits").startswith("  Slurm job 7 waits again: BeginTime: it may not start")
    launch(run, "8")
    sentences = told(run, queue="8_[1-5]|PENDING|Priority|0||\n8_0|PENDING|Priority|3||\n", state="queued")
    assert one(sentences, "  Slurm job 8 waits") == "  Slurm job 8 waits after 3 restarts: Priority: others come first."


def test_lost_steps_are_counted(run: Run) -> None:
    launch(run, "7")
    for began, reached in ((0, 57), (50, 64), (50, 99)):
        number = attempt(run, "preempted")
        run_attempt = run.attempt(number)
        (run.folder / f"events.{number:04d}.jsonl").write_text(
            f'{{"event": "start", "step": {began}, "time": {run_attempt.claim["time"]}}}\n'
        )
        (run.folder / f"beat.{number:04d}").write_text(f'{{"step": {reached}, "steps": 200}}')
    sentences = told(run)
    assert "7 steps of it had to be done again" in one(sentences, "Attempt 1 ")
    assert "14 steps of it had to be done again" in one(sentences, "Attempt 2 ")
    assert "again" not in one(sentences, "Attempt 3 ")
    assert "In all, 21 steps were done more than once." in sentences


@pytest.mark.parametrize(
    ("starts", "reached", "lost"),
    [
        ({}, {}, {}),
        ({1: 0}, {1: 40}, {}),
        ({1: 0, 2: 40}, {1: 40}, {}),
        ({1: 0, 2: 40}, {1: 45, 2: 50}, {1: 5}),
        # The second did not get as far as to say anything.
        ({1: 0, 3: 40}, {1: 45}, {1: 5}),
        # A damaged checkpoint: further back than the attempt before began.
        ({1: 0, 2: 40, 3: 20}, {1: 40, 2: 45}, {2: 25}),
    ],
)
def test_steps_that_were_done_again_are_those_of_the_attempt_before(
    starts: dict[int, int], reached: dict[int, int], lost: dict[int, int]
) -> None:
    assert run_story.steps_lost(starts, reached) == lost


def test_other_code_is_told_with_the_files_that_differ(run: Run) -> None:
    launch(run, "7", code="aaaa")
    launch(run, "8", code="aaaa")
    launch(run, "9", code="bbbb")
    run.record_code_difference(3, "--- a/slurm/job.py\tx\n+++ b/slurm/job.py\ty\n--- /dev/null\n+++ b/new.py\n")
    sentences = told(run)
    path = run.folder / "intent/0003.code.diff"
    assert one(sentences, "  Its code is not") == f"  Its code is not that of launch 2: slurm/job.py, new.py ({path})."


def test_a_node_in_several_failures_is_named_with_the_remedy(run: Run) -> None:
    launch(run, "7")
    for nodes in ("n[1-2]", "n[2-3]", "n[2,4]", "n[5-6]"):
        attempt(run, None, nodes)
    assert one(told(run), "Node ").startswith("Node n2 was in 3 of 4 failures: exclude it with --exclude n2, ")


def test_a_message_that_could_not_be_sent_is_mentioned(run: Run) -> None:
    launch(run, "7")
    (run.folder / notify.FOLDER).mkdir()
    (run.folder / notify.FOLDER / "hang-attempt-0001.json").write_bytes(files.encode({}))
    assert "Nobody could be told: hang-attempt-0001; the log says why." in told(run)
