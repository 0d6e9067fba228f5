"""What becomes of a Slurm job whose work is saved but not finished."""

from __future__ import annotations

import pytest

from experiments.run import EndKind
from slurm import leaving
from slurm.leaving import Answer, Fate, JobFacts

RUNNING = JobFacts(state="RUNNING")
IN_GRACE = JobFacts(state="RUNNING", preempted=True)
ENDING = JobFacts(state="COMPLETING")
OUT_OF_TIME = JobFacts(state="COMPLETING", reason="TimeLimit")
GONE = JobFacts(state="")


@pytest.mark.parametrize(
    ("job", "told", "stop_requested", "fate"),
    [
        (RUNNING, True, False, "requeue"),  # preempted with notice, or the time is almost over
        (IN_GRACE, False, False, "requeue"),  # preempted without notice
        (RUNNING, False, False, "wait"),  # a TERM by hand, or one that was meant for an earlier start
        (RUNNING, False, True, "cancel"),
        (RUNNING, True, True, "cancel"),
        (ENDING, False, False, "leave"),  # scancel, or somebody's requeue
        (ENDING, True, False, "leave"),  # scancel while it saved for a preemption: stays cancelled
        (ENDING, False, True, "leave"),
        (OUT_OF_TIME, False, False, "requeue"),  # Slurm requeues no job for that
        (OUT_OF_TIME, True, False, "requeue"),
        (OUT_OF_TIME, True, True, "leave"),
        (GONE, True, False, "leave"),
    ],
)
def test_fate(job: JobFacts, told: bool, stop_requested: bool, fate: Fate) -> None:
    assert leaving.decide(job, told=told, stop_requested=stop_requested) == fate


@pytest.mark.parametrize(
    ("outcome", "job", "kind"),
    [
        ("done", IN_GRACE, "done"),
        ("preempted", None, "preempted"),
        ("preempted", IN_GRACE, "preempted"),
        ("preempted", RUNNING, "timeout"),
        ("preempted", OUT_OF_TIME, "timeout"),
        ("preempted", ENDING, "preempted"),
        ("stopped", IN_GRACE, "preempted"),
        ("stopped", ENDING, "stopped"),
        ("stopped", OUT_OF_TIME, "timeout"),
        ("stopped", RUNNING, "stopped"),
        ("stopped", None, "stopped"),
    ],
)
def test_how_an_attempt_ended(outcome: EndKind, job: JobFacts | None, kind: EndKind) -> None:
    assert leaving.end_kind(outcome, job) == kind


def test_facts_are_read_from_what_scontrol_prints() -> None:
    words = (
        "JobId=7 JobName=x JobState=RUNNING Reason=None Dependency=(null) PreemptEligibleTime=2026-11-25T09:06:56 "
        "PreemptTime=2026-11-25T09:06:57 LastSchedEval=2026-11-25T09:06:56"
    )
    assert leaving.parse_facts(Answer(done=True, words=words)) == IN_GRACE
    calm = words.replace("PreemptTime=2026-11-25T09:06:57", "PreemptTime=None")
    assert leaving.parse_facts(Answer(done=True, words=calm)) == RUNNING
    gone = Answer(done=False, words="slurm_load_jobs error: Invalid job id specified")
    assert leaving.parse_facts(gone) == GONE
    assert leaving.parse_facts(Answer(done=False, words="Unable to contact slurm controller")) is None


class Slurm:
    """A controller that answers as told, in turn; the last answer stays."""

    def __init__(self, shows: list[JobFacts | None], accepts: bool = True) -> None:
        self.shows, self.accepts = shows, accepts
        self.asked: list[str] = []
        self.slept_s = 0.0

    def ask(self, command: list[str]) -> Answer:
        if command[:3] == ["scontrol", "--oneliner", "show"]:
            job = self.shows.pop(0) if len(self.shows) > 1 else self.shows[0]
            if job is None:
                return Answer(done=False, words="Unable to contact slurm controller (connect failure)")
            preempted = "2026-11-25T09:06:57" if job.preempted else "None"
            return Answer(done=True, words=f"JobState={job.state} Reason={job.reason} PreemptTime={preempted}")
        self.asked.append(" ".join(command))
        return Answer(done=self.accepts, words="" if self.accepts else "Requested operation is presently disabled")

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        if self.asked and self.accepts:
            raise SystemExit  # what Slurm does with the process

    def settle(self, *, told: bool, stop_requested: bool = False) -> None:
        leaving.settle("7_3", lambda: stop_requested, told=told, ask=self.ask, sleep=self.sleep)


def test_a_controller_that_is_down_is_asked_until_it_answers(caplog: pytest.LogCaptureFixture) -> None:
    slurm = Slurm([*[None] * 40, RUNNING])
    with pytest.raises(SystemExit):
        slurm.settle(told=True)
    assert slurm.asked == ["scontrol requeue 7_3"] and slurm.slept_s > 300
    assert "controller does not answer; the work is saved" in caplog.text


def test_a_requeue_that_is_refused_is_told_and_not_asked_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    slurm = Slurm([RUNNING], accepts=False)
    slurm.settle(told=True)
    assert slurm.asked == ["scontrol requeue 7_3"] * leaving.REFUSALS
    assert "Slurm refuses to requeue job 7_3 (Requested operation is presently disabled)" in caplog.text
    assert "the same launch command goes on" in caplog.text


def test_what_is_due_may_show_later() -> None:
    slurm = Slurm([RUNNING, RUNNING, ENDING])
    slurm.settle(told=False)
    assert slurm.asked == []
    with pytest.raises(SystemExit):
        (slurm := Slurm([RUNNING, IN_GRACE])).settle(told=False)
    assert slurm.asked == ["scontrol requeue 7_3"]


def test_a_term_without_a_reason_ends_in_a_requeue_once_that_is_sure() -> None:
    slurm = Slurm([RUNNING])
    with pytest.raises(SystemExit):
        slurm.settle(told=False)
    assert slurm.asked == ["scontrol requeue 7_3"] and slurm.slept_s >= leaving.SURE_S


def test_the_stop_switch_cancels_the_job() -> None:
    with pytest.raises(SystemExit):
        (slurm := Slurm([RUNNING])).settle(told=False, stop_requested=True)
    assert slurm.asked == ["scancel 7_3"]
