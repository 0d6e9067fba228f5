"""Killed anywhere, started again: the same training run, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import REPOSITORY, Chain, ranks_of

from dalle2_video.training.window import MACHINE_METRICS
from experiments import files
from experiments.run import Run

STEPS = {
    "prior": ["--prior.optim.steps", "40", "--checkpoint-every", "5", "--validate-every", "20"],
    # Accumulation, a warm-up that the kill falls into, dropped conditions and loader processes.
    "decoder": ["--decoder.optim.steps", "14", "--checkpoint-every", "2", "--micro-batch", "1", "--workers", "1"],
}


def wait_for(condition: Callable[[], object], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(chain: Chain) -> Run:
    return chain.run("prior", *STEPS["prior"])


def fresh_home(chain: Chain, tmp_path: Path) -> Chain:
    """A second home with the same finished parents and no prior."""
    for stage in ("preprocess", "clip", "embed"):
        (tmp_path / "runs").mkdir(exist_ok=True)
        (tmp_path / "runs" / stage).symlink_to(chain.home / "runs" / stage)
    return Chain(home=tmp_path, data=chain.data)


def start(chain: Chain, stage: str = "prior", **environment: str) -> tuple[subprocess.Popen[bytes], Run]:
    """Start the training, wait for its first commit."""
    launcher = subprocess.Popen(
        chain.command(stage, *STEPS[stage]),
        cwd=REPOSITORY,
        env=chain.environment() | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: next(chain.registry.runs(stage), None))
    run = next(chain.registry.runs(stage))
    wait_for(run.commits)
    return launcher, run


def assert_same_training(run: Run, undisturbed: Run) -> None:
    record, expected = run.done(), undisturbed.done()
    assert record is not None and expected is not None
    assert record["digest"] == expected["digest"], "EMA weights differ from the undisturbed run"
    newest, reference = run.commits()[-1].path, undisturbed.commits()[-1].path
    for shard in sorted(reference.glob("*.safetensors")):
        assert (newest / shard.name).read_bytes() == shard.read_bytes(), f"masters or moments differ: {shard.name}"
    timing = MACHINE_METRICS | {"time"}
    for ours, theirs in zip(run.metrics(), undisturbed.metrics(), strict=True):
        assert {k: v for k, v in ours.items() if k not in timing} == {
            k: v for k, v in theirs.items() if k not in timing
        }


def test_sigkill_of_one_rank_is_restarted_by_the_supervisor_and_bit_identical(
    chain: Chain, undisturbed: Run, tmp_path: Path
) -> None:
    ours = fresh_home(chain, tmp_path)
    launcher, run = start(ours)
    os.kill(ranks_of(run)[-1], signal.SIGKILL)
    assert launcher.wait(timeout=180) == 0
    attempts = run.attempts()
    assert [attempt.end["kind"] for attempt in attempts if attempt.end] == ["error", "done"]
    assert "signal 9" in (attempts[0].end or {})["message"]
    assert_same_training(run, undisturbed)


def test_sigkill_of_launcher_and_supervisor_then_the_same_command_is_bit_identical(
    chain: Chain, undisturbed: Run, tmp_path: Path
) -> None:
    ours = fresh_home(chain, tmp_path)
    launcher, run = start(ours)
    launcher.kill()
    job = run.intents()[-1].job
    assert job is not None
    os.kill(job["pid"], signal.SIGKILL)
    wait_for(lambda: not ranks_of(run), 20)
    finished = ours.run("prior", *STEPS["prior"])
    assert finished.newest_attempt() == 2
    assert_same_training(finished, undisturbed)


@pytest.mark.slow  # the same of a prior is above; of a decoder that is stopped, in test_exact_resumption
def test_decoder_killed_with_accumulation_and_workers_is_bit_identical(chain: Chain, tmp_path: Path) -> None:
    expected = chain.run("decoder", *STEPS["decoder"])
    ours = fresh_home(chain, tmp_path)
    launcher, run = start(ours, "decoder")
    os.kill(ranks_of(run)[0], signal.SIGKILL)
    assert launcher.wait(timeout=180) == 0
    assert run.newest_attempt() == 2
    assert_same_training(run, expected)


def test_stop_switch_saves_and_the_same_command_goes_on_bit_identical(
    chain: Chain, undisturbed: Run, tmp_path: Path
) -> None:
    ours = fresh_home(chain, tmp_path)
    launcher, run = start(ours)
    run.request_stop()
    assert launcher.wait(timeout=60) == 0
    end = run.attempts()[-1].end
    assert end is not None and end["kind"] == "stopped" and run.done() is None
    newest = run.commits()[-1].path.name
    assert_same_training(ours.run("prior", *STEPS["prior"]), undisturbed)
    starts = [event for event in run.events() if event["event"] == "start"]
    assert [start.get("resumed_from") for start in starts] == [None, newest]


def test_a_damaged_newest_checkpoint_is_skipped_and_the_run_ends_the_same(
    chain: Chain, undisturbed: Run, tmp_path: Path
) -> None:
    ours = fresh_home(chain, tmp_path)
    launcher, run = start(ours)
    wait_for(lambda: len(run.commits()) >= 2)
    run.request_stop()
    launcher.wait(timeout=60)
    shard = next(run.commits()[-1].path.glob("shard-00001*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    finished = ours.run("prior", *STEPS["prior"])
    events = (finished.folder / f"events.{finished.newest_attempt():04d}.jsonl").read_text()
    assert "damaged checkpoint" in events and shard.name in events
    assert_same_training(finished, undisturbed)


def test_an_older_attempt_cannot_commit(chain: Chain, tmp_path: Path) -> None:
    ours = fresh_home(chain, tmp_path)
    launcher, run = start(ours)
    run.claim_attempt({"test": "a newer attempt on another machine"})
    wait_for(lambda: not ranks_of(run), 60)
    launcher.kill()
    assert run.done() is None
    assert all(commit.attempt == 1 for commit in run.commits())
    assert files.names_in(run.folder / "export") == []


def test_ranks_see_the_gpus_that_the_launcher_sees(chain: Chain, tmp_path: Path) -> None:
    ours = fresh_home(chain, tmp_path)
    launcher, run = start(ours, CUDA_VISIBLE_DEVICES="3,1")
    environments = [Path(f"/proc/{rank}/environ").read_bytes().split(b"\0") for rank in ranks_of(run)]
    run.request_stop()
    launcher.wait(timeout=60)
    assert len(environments) == 2
    assert all(b"CUDA_VISIBLE_DEVICES=3,1" in environment for environment in environments)
