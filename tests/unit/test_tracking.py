"""The mirror at W&B: every record once over any number of attempts, and nothing of it can hold up a training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from registry_fixtures import make_spec
from wandb_server import Server, serving

from experiments.registry import Registry
from experiments.run import Attempt, Run
from slurm import tracking
from slurm.wandb_mirror import NewRecords

REPOSITORY = Path(__file__).resolve().parents[2]
KEY = "f00dfeed" * 5


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        yield found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("HOME", str(tmp_path))  # wandb has a cache and settings there
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return Registry(tmp_path / "home").create(make_spec())


def begin(run: Run, mode: tracking.Mode) -> tuple[Attempt, tracking.Tracker]:
    attempt = run.claim_attempt({"intent": 1, "group": 0})
    return attempt, tracking.start(run, attempt.number, mode=mode, project="faces", entity=None)


def train(attempt: Attempt, steps: Iterable[int], *, shift: float = 0.0) -> None:
    """Record as the loop does: every ten steps, with a validation every twenty."""
    for step in steps:
        attempt.append("metrics", {"step": step, "split": "train", "loss": 1 / step + shift, "samples": 4 * step})
        if step % 20 == 0:
            attempt.append("metrics", {"step": step, "split": "val", "loss": 2 / step + shift})


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


def losses(run: Run, split: str) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in run.metrics() if record["split"] == split]


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_two_attempts_with_a_rewind_are_one_w_and_b_run_that_draws_each_step_once(run: Run, server: Server) -> None:
    first, tracker = begin(run, "online")
    train(first, (10, 20, 30))
    wait_for(lambda: server.runs)  # connected; what comes from now on it finds by following the file
    train(first, (40,))
    first.end("preempted")
    tracker.finish()
    assert tracker.trouble() is None
    stored = server.runs[run.spec.tracking_id]
    assert stored.points("train") == losses(run, "train")
    assert stored.preempting and stored.exit_codes == [1]

    # From the checkpoint of step 20; records that differ show which attempt's was drawn.
    second, tracker = begin(run, "online")
    second.append("metrics", {"step": 30, "split": "val", "loss": 3.0})  # told to validate more often
    second.append("metrics", {"step": 45, "split": "val", "loss": 4.5})
    train(second, (30, 40, 50, 60), shift=0.5)
    second.end("done")
    tracker.finish()
    assert list(server.runs) == [run.spec.tracking_id]
    drawn = [(step, 1 / step) for step in (10, 20, 30, 40)] + [(step, 1 / step + 0.5) for step in (50, 60)]
    assert stored.points("train") == drawn
    assert stored.points("val") == [(20, 0.1), (40, 0.05), (45, 4.5), (60, 2 / 60 + 0.5)]
    assert stored.exit_codes == [1, 0]
    row = next(row for row in stored.history.values() if row["train/step"] == 50 and "train/loss" in row)
    assert row["train/samples"] == 200
    record = next(record for record in run.metrics() if record["step"] == 50)
    assert row["_timestamp"] == pytest.approx(record["time"], abs=1e-3)
    config = json.loads(stored.opened["config"])
    assert config["clip"]["value"] == {"dim": 8} and stored.opened["displayName"] == run.name
    assert files_with(KEY, run.folder) == []


def test_an_offline_run_is_one_folder_with_all_that_wandb_needs_and_without_the_key(run: Run, server: Server) -> None:
    first, tracker = begin(run, "offline")
    train(first, (10, 20, 30))
    first.end("stopped")
    tracker.finish()
    second, tracker = begin(run, "offline")
    train(second, (30, 40), shift=0.5)
    second.end("done")
    tracker.finish()
    assert tracker.trouble() is None
    assert not server.runs
    [folder] = (run.folder / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb")) != [] and files_with("train/loss", folder) != []
    assert files_with(KEY, run.folder) == []
    command = [sys.executable, "-m", "wandb", "sync", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=run.folder)
    stored = server.runs[run.spec.tracking_id]
    assert stored.points("train") == losses(run, "train") == [(10, 0.1), (20, 0.05), (30, 1 / 30 + 0.5), (40, 0.525)]
    assert stored.points("val") == losses(run, "val")


def test_a_server_that_does_not_answer_is_said_once_and_holds_up_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    attempt, tracker = begin(run, "online")
    assert tracker.trouble() is None  # returned while wandb is not even loaded
    said: list[str] = []
    wait_for(lambda: said.extend(filter(None, [tracker.trouble()])) or said)
    assert "tools/wandb_sync.py 0123456789" in said[0] and "CommError" in said[0]
    assert tracker.trouble() is None
    train(attempt, (10, 20))
    attempt.end("done")
    tracker.finish()
    assert [step for step, _ in losses(run, "train")] == [10, 20]


def test_a_mirror_that_is_killed_is_said_once(run: Run) -> None:
    _, tracker = begin(run, "online")
    assert isinstance(tracker, tracking.MirrorProcess)
    tracker._process.kill()
    tracker._process.wait()
    assert "exit code -9" in (tracker.trouble() or "")
    assert tracker.trouble() is None
    tracker.finish()


def test_a_mirror_that_cannot_be_started_is_said_once(run: Run) -> None:
    (run.folder / "logs").write_text("in the way")
    _, tracker = begin(run, "online")
    assert "could not be started" in (tracker.trouble() or "")
    assert tracker.trouble() is None


def test_the_mirror_of_a_killed_training_sends_the_rest_and_goes(run: Run, server: Server) -> None:
    code = (
        "import sys, time; from pathlib import Path; from experiments.run import Run; from slurm import tracking\n"
        "run = Run(Path(sys.argv[1])); number = run.claim_attempt({'intent': 1, 'group': 0}).number\n"
        "tracker = tracking.start(run, number, mode='online', project='faces', entity=None)\n"
        "print(tracker._process.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(run.folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        mirror = int(trainer.stdout.readline())
        wait_for(lambda: server.runs)
        train(Attempt(run, 1), (10, 20))
        for number in (signal.SIGUSR2, signal.SIGTERM):  # as a whole job gets them
            os.kill(mirror, number)
        os.kill(trainer.pid, signal.SIGKILL)
    wait_for(
        lambda: not Path(f"/proc/{mirror}").exists() or "\nState:\tZ" in Path(f"/proc/{mirror}/status").read_text()
    )
    stored = server.runs[run.spec.tracking_id]
    assert stored.points("train") == losses(run, "train") and stored.exit_codes == [1]


def test_the_mirror_of_a_superseded_attempt_leaves_the_run_to_the_next(run: Run, server: Server) -> None:
    first, tracker = begin(run, "online")
    wait_for(lambda: server.runs)
    run.claim_attempt({"intent": 1, "group": 0})
    train(first, (10, 20))
    assert isinstance(tracker, tracking.MirrorProcess)
    assert tracker._process.wait(60) == 0
    assert tracker.trouble() is None
    assert server.runs[run.spec.tracking_id].exit_codes == []


def test_a_run_that_is_not_mirrored_starts_no_process_and_loads_no_wandb(run: Run) -> None:
    code = (
        "import os, sys; from pathlib import Path; from experiments.run import Run; from slurm import tracking\n"
        "tracker = tracking.start(Run(Path(sys.argv[1])), 1, mode='disabled', project='faces', entity=None)\n"
        "assert tracker.trouble() is None and tracker.finish() is None and 'wandb' not in sys.modules\n"
        "try: os.waitpid(-1, os.WNOHANG)\n"
        "except ChildProcessError: print('alone')"
    )
    command = [sys.executable, "-c", code, str(run.folder)]
    assert subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout == "alone\n"


def test_records_are_read_once_and_only_when_their_line_is_whole(run: Run) -> None:
    records = NewRecords(run.folder)
    attempt = Attempt(run, 1)
    train(attempt, (10,))
    path = run.folder / "metrics.0001.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole[:7])
    assert [record["step"] for record in records.read()] == [10]
    assert records.read() == []
    path.write_text(whole + whole.replace("10", "20"))
    assert [record["step"] for record in records.read()] == [20]
