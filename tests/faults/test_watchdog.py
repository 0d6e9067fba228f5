"""The watchdog ends a process that makes no progress, whatever it is stuck in, and leaves one alone that does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dalle2_video.training.watchdog import Hang, summary, suspect

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import ctypes, json, sys, threading, time
from dataclasses import asdict
from pathlib import Path
from dalle2_video.training import watchdog

watchdog.RECORD_S = watchdog.LOCKED_S = watchdog.START_S = 1.0

def record(hang):
    Path(sys.argv[1]).write_text(json.dumps(asdict(hang)))
    {after}

def stuck_elsewhere():
    time.sleep(3600)

threading.Thread(target=stuck_elsewhere, daemon=True).start()
dog = watchdog.Watchdog(minimum_s=0.5, factor=3.0, on_hang=record)
for step in range(1, 4):
    dog.phase(f"step {{step}}")
    dog.step_took(step, {step_s})

def stuck():
    {stuck}

stuck()
print("went on", flush=True)
"""


def run(
    tmp_path: Path, stuck: str, *, step_s: float = 0.0, after: str = "pass"
) -> tuple[subprocess.CompletedProcess[str], Hang | None]:
    """Run a program with a watchdog that gets stuck; return its end and what was recorded."""
    program, record = tmp_path / "program.py", tmp_path / "hang.json"
    program.write_text(PROGRAM.format(stuck=stuck, step_s=step_s, after=after))
    answer = subprocess.run(
        [sys.executable, str(program), str(record)],
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return answer, Hang(**json.loads(record.read_text())) if record.exists() else None


def test_a_hang_leaves_the_stacks_of_all_threads_and_a_record_and_ends_the_process(tmp_path: Path) -> None:
    answer, hang = run(tmp_path, "time.sleep(3600)")
    assert answer.returncode == 1 and "went on" not in answer.stdout
    assert "in stuck\n" in answer.stderr and "in stuck_elsewhere\n" in answer.stderr
    assert hang is not None and (hang.phase, hang.step, hang.in_collective) == ("step 3", 3, False)
    assert hang.seconds > hang.limit_s == 0.5
    assert hang.place.endswith("in stuck") and "time.sleep(3600)" in hang.stack


def test_a_hang_in_a_call_that_holds_the_interpreters_lock_ends_too(tmp_path: Path) -> None:
    answer, hang = run(tmp_path, "ctypes.PyDLL(None).sleep(3600)")
    assert answer.returncode == 1 and hang is None
    assert "in stuck\n" in answer.stderr


def test_a_hang_ends_the_process_although_it_cannot_be_recorded(tmp_path: Path) -> None:
    answer, hang = run(tmp_path, "time.sleep(3600)", after="time.sleep(3600)")
    assert answer.returncode == 1 and hang is not None


@pytest.mark.parametrize(
    ("what", "step_s"),
    [
        ("[(dog.phase('saving'), time.sleep(0.1)) for _ in range(15)]", 0.0),
        ("time.sleep(1.5)", 10.0),
        ("dog.stop(); time.sleep(3)", 0.0),
    ],
    ids=["phases that each get on", "a phase not long for such steps", "after the end of training"],
)
def test_what_is_no_hang_goes_on(tmp_path: Path, what: str, step_s: float) -> None:
    answer, hang = run(tmp_path, what, step_s=step_s)
    assert (answer.returncode, answer.stdout.strip(), hang) == (0, "went on", None), answer.stderr


def hang(phase: str, place: str, *, in_collective: bool) -> Hang:
    return Hang(
        phase=phase, step=7, seconds=12.3, limit_s=10.0, place=place, in_collective=in_collective, stack="stack"
    )


def test_the_summary_names_first_whom_the_others_wait_for() -> None:
    waiting = hang("step 8", "c10d.py:9 in all_reduce", in_collective=True)
    hangs = {
        0: waiting,
        1: waiting,
        2: hang("waiting for the data of step 8", "read.py:3 in read", in_collective=False),
    }
    assert suspect(hangs) == 2
    said = summary(hangs, 3)
    assert said.index("rank 2 ") < said.index("ranks 0, 1 ")
    assert "12 s after step 7" in said and "read.py:3 in read" in said and "silent" not in said


def test_the_summary_names_ranks_that_could_not_speak() -> None:
    waiting = hang("step 8", "c10d.py:9 in all_reduce", in_collective=True)
    assert suspect({1: waiting, 3: waiting}) == 1
    assert "ranks 0, 2 silent" in summary({1: waiting, 3: waiting}, 4)
