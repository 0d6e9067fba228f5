"""A step with an outlandish gradient on one rank: passed over, or the end of the attempt; the weights stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fault_runs import end_of, train
from launching import Chain, with_parents

from experiments.run import Run

SPIKE = {1: {"kind": "spike", "rank": 1, "steps": [14]}}
STEPS = ["--prior.optim.steps", "16", "--checkpoint-every", "5"]


def updates(run: Run) -> int:
    return json.loads((run.commits()[-1].path / "state.json").read_text())["updates"]


def told(run: Run, kind: str) -> list[int]:
    return [event["step"] for event in run.events() if event["event"] == kind]


def test_a_spike_is_skipped_on_all_ranks_where_the_recipe_says_so(chain: Chain, tmp_path: Path) -> None:
    home = with_parents(chain, tmp_path / "home")
    answer, run = train(home, SPIKE, *STEPS, "--prior.optim.skip-spikes", "10")
    assert answer.returncode == 0, (answer.stdout, answer.stderr)
    assert told(run, "skipped step") == [14] and told(run, "loss spike") == []
    assert updates(run) == 15
    assert max(record["grad_norm"] for record in run.metrics() if record["split"] == "train") < 100


@pytest.mark.parametrize("policy", ["stop", "record"])
def test_a_spike_ends_the_attempt_or_is_recorded_and_a_run_that_it_ended_goes_on(
    chain: Chain, tmp_path: Path, policy: str
) -> None:
    home = with_parents(chain, tmp_path / "home")
    answer, run = train(home, SPIKE, *STEPS, "--on-spike", policy)
    if policy == "record":
        assert answer.returncode == 0, (answer.stdout, answer.stderr)
        assert told(run, "loss spike") == [14] and updates(run) == 16
        return
    assert answer.returncode == 2, (answer.stdout, answer.stderr)
    end = end_of(run, 1)
    assert "step 14 gave no update" in end["message"] and "--on-spike record" in end["message"]
    assert told(run, "skipped step") == [14] and run.commits()[-1].step == 10
    answer, run = train(home, {}, *STEPS, "--on-spike", "record")
    assert answer.returncode == 0, (answer.stdout, answer.stderr)
    assert updates(run) == 16
