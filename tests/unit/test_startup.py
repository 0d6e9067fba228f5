"""The parts of a start follow each other and are recorded once, after the first step."""

from __future__ import annotations

import time

import pytest

from slurm.startup import Startup, in_words

PARTS = [
    "interpreter", "imports", "rendezvous", "claim", "model and engine", "checkpoint", "first batch", "first step"
]  # fmt: skip


def test_parts_add_up_and_are_recorded_once_after_the_first_step() -> None:
    recorded: list[dict[str, float]] = []
    began = time.monotonic()
    startup = Startup()
    startup.begins("imports")
    startup.begins("rendezvous")
    phase = startup.follow(lambda seconds: recorded.append(dict(seconds)))
    phase("starting")
    startup.begins("claim")
    time.sleep(0.05)
    for what in ("building the model", "loading the checkpoint", "waiting for the data of step 41", "step 41"):
        assert recorded == []
        phase(what)
        time.sleep(0.01)
    for what in ("waiting for the data of step 42", "step 42", "validation after step 42"):
        phase(what)
    assert len(recorded) == 1
    assert list(recorded[0]) == PARTS
    elapsed = time.monotonic() - began
    assert sum(recorded[0].values()) - recorded[0]["interpreter"] == pytest.approx(elapsed, abs=0.1)
    assert recorded[0]["claim"] >= 0.05
    assert "claim 0.1" in in_words(recorded[0])


def test_a_start_that_comes_to_no_step_is_not_recorded() -> None:
    recorded: list[dict[str, float]] = []
    phase = Startup().follow(recorded.append)
    for what in ("building the model", "leaving", "step 1"):
        phase(what)
    assert recorded == []
