"""`tools/runs.py list`: filtered, sorted, cut; each run stands where a launch would find it, for one question."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest
from registry_fixtures import make_spec, squeue_rows

from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run
from slurm import job_state, run_state
from slurm.local import process_record
from tools import runs, runs_list
from tools.bench.many_runs import write_runs

GONE = {"executor": "local", "host": socket.gethostname(), "pid": 2**22 + 1, "start_ticks": 1}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return Registry(tmp_path / "home")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = Registry(tmp_path_factory.mktemp("home"))
    write_runs(registry, 40, job=process_record(os.getpid()))
    return registry


@pytest.fixture
def forty(generated: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Forty runs of four stages, ten each; run n is older than run n + 1. Read only."""
    monkeypatch.setenv(HOME_VARIABLE, str(generated.home))
    return generated


def names(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[int]:
    """Return the numbers of the runs that are listed, in their order."""
    assert runs.main(["list", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [int(line.split()[1].removeprefix("tiny-"), 16) for line in lines if "tiny-" in line]


def test_the_newest_come_first_and_how_many_more_there_are_is_said(
    forty: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names(capsys) == list(range(39, -1, -1))
    assert names(capsys, "--limit", "3") == [39, 38, 37]
    runs.main(["list", "--limit", "3"])
    assert "and 37 more: --all" in capsys.readouterr().out
    runs.main(["list", "--all"])
    assert "more" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--stage", "prior"], {number for number in range(40) if number % 4 == 2}),
        (["--state", "failed"], {8, 18, 28, 38}),
        (["--state", "stopped", "running"], {7, 17, 27, 37, 9, 19, 29, 39}),
        (["--state", "done", "--stage", "clip"], {0, 4, 12, 16, 20, 24, 32, 36}),
        (["--name", "000001"], {1, *range(16, 32)}),
        (["--recipe", "tiny", "--limit", "40"], set(range(40))),
        (["--recipe", "tin"], set()),
        (["--since", "2001-09-12"], set()),
        (["--since", "2001-09-01"], set(range(40))),
    ],
)
def test_filters_choose(
    forty: Registry, arguments: list[str], expected: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(names(capsys, *arguments)) == expected


def test_since_is_a_length_of_time_or_a_day(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(registry, 5)
    run = next(iter(registry.runs("clip")))
    os.utime(run.folder / "run.json")
    assert names(capsys, "--since", "30min") == [int(run.id, 16)]
    assert set(names(capsys, "--since", "999w")) == {0}
    for text in ("yesterday", "3", "2026-13-01"):
        with pytest.raises(SystemExit):
            runs.main(["list", "--since", text])
        assert "neither a time such as" in capsys.readouterr().err


def test_orders(forty: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    by_name = names(capsys, "--sort", "name")
    assert by_name == sorted(
        range(40), key=lambda number: (["clip", "decoder", "prior", "temporal_sr"][number % 4], number)
    )
    by_state = names(capsys, "--sort", "state", "--limit", "12")
    assert by_state == [39, 29, 19, 9, 38, 28, 18, 8, 37, 27, 17, 7]


def test_what_is_furthest_comes_first(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(registry, 10)
    (registry.folder("clip", "tiny-0000000008") / "beat.0002").write_text('{"step": 190, "steps": 200}')
    by_progress = names(capsys, "--sort", "progress")
    assert set(by_progress[:7]) == set(range(7)) and by_progress[7] == 8


def test_a_registry_without_a_match_says_so(forty: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.main(["list", "--name", "nothing"]) == 0
    assert "no runs like this in" in capsys.readouterr().out


def test_columns_stay_in_line_and_what_a_library_wrote_is_no_control(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("aaaa000001", "bbbb00000123456789"):
        run = registry.create(make_spec(id=name))
        run.claim_attempt({"intent": 0}).end("error", message="\x1b[31mred\x1b[0m " + "long " * 100)
    assert runs.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    lines = out.splitlines()
    assert len({line.index("failed") for line in lines[1:]}) == 1 and max(map(len, lines)) <= runs.PIPE_COLUMNS


def history(registry: Registry, number: int, draw: random.Random) -> Run:
    """Return a run with a made-up past: launches, attempts that ended somehow, commits, `--retry`."""
    training = draw.random() < 0.7
    run = registry.create(make_spec(id=f"{number:010x}", stage="clip" if training else "embed"))
    for intent in range(1, draw.randint(0, 2) + 1):
        forgiven = run.newest_attempt() if draw.random() < 0.3 else run_state.forgiven(run.intents())
        request = {"launcher": GONE, "groups": [[0], [1]], "training": training, "forgiven": forgiven}
        run.claim_intent(intent, request)
        if draw.random() < 0.8:
            run.resolve_intent(intent, draw.choice([GONE, process_record(os.getpid()), GONE | {"host": "elsewhere"}]))
        for _ in range(draw.randint(0, 4)):
            group = 0 if training else draw.randint(0, 1)
            attempt = run.claim_attempt({"intent": intent, "group": group, "supervised": draw.random() < 0.5})
            if draw.random() < 0.15:
                (run.folder / f"checkpoints/step-{attempt.number:08d}.a{attempt.number:04d}").mkdir(parents=True)
            kind = draw.choice(["error", "error", "error", "hang", "preempted", "stopped", "timeout", "done", None])
            if kind is not None:
                attempt.end(kind)  # type: ignore[arg-type]
    if draw.random() < 0.15:
        run.mark_done({"digest": "d"})
    return run


def test_of_many_runs_each_stands_where_a_launch_would_find_it(registry: Registry) -> None:
    draw = random.Random(4)
    found = [history(registry, number, draw) for number in range(100)]
    many = run_state.standings(found)
    for run, standing in zip(found, many, strict=True):
        alone = run_state.standing(run)
        assert (standing.state, standing.decision.action, standing.at_work) == (
            alone.state,
            run_state.decision(run, run.intents(), retry=False).action,
            alone.at_work,
        )
    assert {standing.state for standing in many} == set(runs_list.STATES)


def answers(folder: Path, monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    """Put Slurm's commands on the path, which note that they were asked."""
    for name, text in commands.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.asked\n{text}\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def on_slurm(registry: Registry, number: int, *ids: str) -> Run:
    run = registry.create(make_spec(id=f"{number:010x}"))
    run.claim_intent(1, {"launcher": GONE, "groups": [[]], "training": True})
    run.resolve_intent(1, {"executor": "slurm", "ids": list(ids)})
    run.claim_attempt({"intent": 1, "group": 0})
    return run


def test_the_queue_is_asked_once_for_all_runs(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [on_slurm(registry, number, str(100 + number)) for number in range(5)]
    found += [on_slurm(registry, 5, "200", "201"), on_slurm(registry, 6, "300", "301")]
    answers(
        tmp_path,
        monkeypatch,
        squeue=squeue_rows(("100", "RUNNING"), ("101", "PENDING"), ("102", "FAILED"), ("200", "COMPLETED"))
        + "; "
        + squeue_rows(("201", "RUNNING")),
        sacct="printf '103|TIMEOUT\\n103_1|CANCELLED by 7\\n300_0|COMPLETED\\n'",
    )
    states = [standing.state for standing in run_state.standings(found)]
    assert states == ["running", "running", "failed", "failed", "failed", "running", "failed"]
    assert (tmp_path / "squeue.asked").read_text().count("\n") == 1
    assert not (tmp_path / "sacct.asked").exists()
    (tmp_path / "squeue").write_text("#!/bin/sh\nexit 1\n")
    states = [standing.state for standing in run_state.standings(found)]
    assert states == ["unknown", "unknown", "unknown", "failed", "unknown", "unknown", "unknown"]
    assert (tmp_path / "sacct.asked").read_text().count("\n") == 1
    for name in ("squeue", "sacct"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
    assert {standing.state for standing in run_state.standings(found)} == {"unknown"}


def test_more_jobs_than_a_command_line_holds_are_asked_about_in_turns(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_state, "JOBS_A_QUESTION", 2)
    found = [on_slurm(registry, number, str(100 + number)) for number in range(5)]
    row = 'printf "%-24s%-24s%-48s\\n" $job RUNNING None'
    jobs = f'for last; do :; done; for job in $(echo "${{last#--jobs=}}" | tr , " "); do {row}; done'
    answers(tmp_path, monkeypatch, squeue=jobs, sacct="exit 1")
    assert {standing.state for standing in run_state.standings(found)} == {"running"}
    assert (tmp_path / "squeue.asked").read_text().count("\n") == 3
