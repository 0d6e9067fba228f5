"""What squeue and sacct print is read as they print it (Slurm 22.05), and told in words."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from slurm import accounting, job_state

QUEUE = """\
2_[2-3%2]|PENDING|JobArrayTaskLimit|0||
4|PENDING|BeginTime|1||
3|PENDING|JobHeldUser|0||
10|PENDING|launch failed requeued held|1||
1|RUNNING|None|2|n[1-2]|
2_0|RUNNING|None|0|n1|
"""
HISTORY = """\
1|REQUEUED|n[1-2]|0:0
1|NODE_FAIL|n[1-2]|0:0
1|RUNNING|n[1,3]|0:0
2_0|OUT_OF_ME+|n1|0:125
2_1|CANCELLED by 0|n1|0:15
2_3|FAILED|n1|1:0
3|CANCELLED by 987654|None assigned|0:0
"""


def test_the_queue_is_read() -> None:
    found = accounting.parse_queue(QUEUE)
    assert [(one.job, one.task) for one in found][:2] == [("2", "2_[2-3%2]"), ("4", "4")]
    assert [one.restarts for one in found] == [0, 1, 0, 1, 2, 0]
    assert found[4].nodes == "n[1-2]"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "Priority: others come first"),
        ("JobHeldUser", "JobHeldUser: a user holds it; scontrol release 7_3 lets it go"),
        ("launch failed requeued held", "launch failed requeued held: Slurm holds it"),
        (
            "ReqNodeNotAvail, UnavailableNodes:n[3,7]",
            "ReqNodeNotAvail, UnavailableNodes:n[3,7]: nodes that it needs are",
        ),
        ("QOSGrpCpuLimit", "QOSGrpCpuLimit"),
    ],
)
def test_why_a_job_waits_is_told(reason: str, words: str) -> None:
    entry = accounting.Queued(job="7", task="7_3", state="PENDING", reason=reason, restarts=0, nodes="")
    assert accounting.wait_words(entry).startswith(words)


def test_each_start_of_a_job_is_read() -> None:
    found = accounting.parse_history(HISTORY)
    assert [one.state for one in found if one.job == "1"] == ["REQUEUED", "NODE_FAIL", "RUNNING"]
    second = accounting.of_start(found, "1", 1)
    assert second is not None and accounting.end_words(second) == "a node failed (NODE_FAIL, on n[1-2])"
    assert accounting.of_start(found, "1", 3) is None and accounting.of_start(found, "9", 0) is None
    assert accounting.last_ends(found, "1") == []  # it runs
    assert [one.state for one in accounting.last_ends(found, "2")] == ["OUT_OF_MEMORY", "CANCELLED", "FAILED"]


def test_how_a_job_ended_is_told() -> None:
    words = {one.task: accounting.end_words(one) for one in accounting.parse_history(HISTORY)}
    assert words["2_1"] == f"it was cancelled by {pwd.getpwuid(0).pw_name} (CANCELLED, on n1)"
    assert words["3"] == "it was cancelled by user 987654 (CANCELLED)"
    assert words["2_3"] == "it failed (FAILED, exit code 1:0, on n1)"


def test_no_answer_is_not_an_empty_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert accounting.history(["1"]) is None and accounting.queue(["1"]) is None
    (tmp_path / "sacct").write_text("#!/bin/sh\n")
    (tmp_path / "sacct").chmod(0o755)
    assert accounting.history(["1"]) == []


def test_many_jobs_are_asked_about_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_state, "JOBS_A_QUESTION", 2)
    (tmp_path / "sacct").write_text(f'#!/bin/sh\nfor last; do :; done\necho "$last" >> {tmp_path}/asked\n')
    (tmp_path / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    accounting.history(["1", "2", "3"])
    assert (tmp_path / "asked").read_text() == "--jobs=1,2\n--jobs=3\n"
