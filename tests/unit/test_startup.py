"""The parts of a start follow each other and are recorded once, after the first step."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from launching import REPOSITORY

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


ENGINE = """
import sys, torch
from dalle2_video.config import OptimConfig
from dalle2_video.training import distributed
compiles = torch.compile
device = distributed.start(1)
assert torch.compile is compiles
from dalle2_video.training.engine import Engine
config = OptimConfig(steps=1, batch_size=1, lr=1e-3)
Engine(torch.nn.Linear(2, 2), config, micro_batch=1, accumulation=1, device=device, zero_stage=3)
assert "deepspeed.runtime.zero.muon.muon_optimizer" in sys.modules, "DeepSpeed no longer looks for it"
print("loaded:", "torch._inductor.compile_fx" in sys.modules)
"""


def test_an_engine_does_not_load_the_compiler() -> None:
    ports = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "14893"}
    answer = subprocess.run(
        [sys.executable, "-c", ENGINE], cwd=REPOSITORY, env=os.environ | ports, capture_output=True, text=True
    )
    assert "loaded: False" in answer.stdout, answer.stdout + answer.stderr
