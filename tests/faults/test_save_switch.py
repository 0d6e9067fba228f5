"""The SAVE switch: a checkpoint now, at the step that all ranks agree on, and training goes on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from fault_runs import environment
from launching import REPOSITORY, Chain, with_parents

ASKED_AT = 7


def test_a_checkpoint_is_made_on_request_and_the_request_taken_back(chain: Chain, tmp_path: Path) -> None:
    home, folder = with_parents(chain, tmp_path / "home"), tmp_path / "fault"
    folder.mkdir()
    variables = environment(home, {1: {"kind": "wait", "rank": 0, "steps": [ASKED_AT]}}, FAULT_FOLDER=str(folder))
    launcher = subprocess.Popen(
        home.command("prior", "--prior.optim.steps", "12", "--checkpoint-every", "100"), cwd=REPOSITORY, env=variables
    )
    while not (folder / f"reached-{ASKED_AT}").exists():
        assert launcher.poll() is None
        time.sleep(0.05)
    run = next(home.registry.runs("prior"))
    assert run.commits() == []
    command = [sys.executable, "tools/runs.py", "save", run.id]
    assert subprocess.run(command, cwd=REPOSITORY, env=variables).returncode == 0
    assert run.save_requested()
    time.sleep(1)  # the switch is looked at once a second
    (folder / f"go-{ASKED_AT}").touch()
    assert launcher.wait() == 0
    assert [commit.step for commit in run.commits()] == [ASKED_AT, 12]
    assert not run.save_requested() and run.is_done()
