"""Twenty mishaps at random moments, the same command after each: the same training, to the bit.

`tools/bench/chaos.py` does the same two hundred times. That its books can show a loss is tested here too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from launching import Chain

from experiments.run import Run
from tools.bench import chaos
from tools.bench.chaos_home import training_command
from tools.bench.chaos_ledger import Account, Ledger

KILLS, SEED = 20, 0


@pytest.mark.timeout(1800)  # a minute or two, and a busy machine is no failure
def test_twenty_kills_at_random_moments_lose_no_commit_and_end_bit_identical(chain: Chain, tmp_path: Path) -> None:
    report = chaos.disturb(
        chain.home, tmp_path, prior_command(chain), steps=chaos.STEPS, interval=chaos.INTERVAL, kills=KILLS, seed=SEED
    )
    assert report.failures() == []
    assert report.figures() | {"max_steps_lost": 0} == {
        "kills": KILLS,
        "identical": 1,
        "commits_lost": 0,
        "max_steps_lost": 0,
        "interval": chaos.INTERVAL,
    }
    struck = {strike.phase for _, strike in report.strikes}
    assert struck >= {"training", "committing", "exporting"}, report.strikes


def prior_command(chain: Chain) -> list[str]:
    """Return the command that is disturbed, with the flags that lead to the chain's parents."""
    given = chain.command("embed")
    return training_command(chaos.STEPS, chaos.INTERVAL, *given[given.index("local") + 1 :])


def made_run(folder: Path) -> Run:
    run = folder / "runs/prior/tiny-0123456789"
    (run / "attempts").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    return Run(run)


def commit(run: Run, step: int, attempt: int) -> None:
    (run.folder / "checkpoints" / f"step-{step:08d}.a{attempt:04d}").mkdir(parents=True)


def train(run: Run, attempt: int, *, start: int, end: int) -> None:
    records = [{"step": step, "split": "train"} for step in range(start + 1, end + 1)]
    (run.folder / f"metrics.{attempt:04d}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    event = {"event": "start", "step": start}
    (run.folder / f"events.{attempt:04d}.jsonl").write_text(json.dumps(event) + "\n")


def claim(run: Run, attempt: int) -> None:
    (run.folder / "attempts" / f"{attempt:04d}.json").write_text("{}")


def test_the_books_tell_a_lost_commit_from_one_that_retention_removed(tmp_path: Path) -> None:
    run, account = made_run(tmp_path), Account()
    ledger = Ledger(run, account)
    for step in (4, 8, 12):
        commit(run, step, 1)
    ledger.look()
    shutil.rmtree(run.commits()[0].path)
    ledger.look()
    assert account.commits_lost == 0
    shutil.rmtree(run.commits()[0].path)
    ledger.look()
    assert account.commits_lost == 1


def test_the_books_tell_an_attempt_that_used_a_damaged_commit_and_the_steps_that_each_end_cost(tmp_path: Path) -> None:
    run, account = made_run(tmp_path), Account()
    ledger = Ledger(run, account)
    claim(run, 1)
    ledger.look()
    train(run, 1, start=0, end=11)
    commit(run, 4, 1)
    commit(run, 8, 1)
    ledger.look()
    ledger.damage(run.commits()[-1])
    claim(run, 2)
    ledger.look()
    train(run, 2, start=8, end=9)
    ledger.close()
    assert account.damaged_used == 1 and account.untold == 1
    assert account.max_steps_lost == 3

    train(run, 2, start=4, end=9)
    account = ledger.account = Account()
    ledger.close()
    assert account.damaged_used == 0
    assert account.max_steps_lost == 4


def test_the_books_tell_a_commit_of_a_superseded_attempt(tmp_path: Path) -> None:
    run, account = made_run(tmp_path), Account()
    ledger = Ledger(run, account)
    claim(run, 1)
    commit(run, 4, 1)
    ledger.look()
    ledger.fence(1)
    claim(run, 2)
    commit(run, 8, 2)
    ledger.look()
    assert account.fenced_commits == 0
    commit(run, 8, 1)
    ledger.look()
    assert account.fenced_commits == 1
