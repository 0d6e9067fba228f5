"""Sweeps: so many at once, one name for one question, and a table and a plot of what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from registry_fixtures import changed, make_run
from rich.console import Console

from experiments.registry import Registry
from experiments.run import Run
from launch import submit, sweep_table, sweeping
from launch.arguments import load_recipe
from launch.sweep_table import Result, plot, result_of

TINY = load_recipe("tiny")
LR, KIND = "prior.optim.lr", "prior.optim.lr_decay"


@pytest.mark.parametrize("parallel", [1, 2, 3, 5])
def test_never_more_at_once_than_asked_for(parallel: int) -> None:
    queue: list[str] = []
    waits: dict[str, str] = {}
    for number in range(12):
        waits[str(number)] = sweeping.behind(queue, parallel)
        queue.append(str(number))
    ended: set[str] = set()
    for _ in range(12):
        running = [job for job in queue if job not in ended and (not waits[job] or waits[job] in ended)]
        assert 0 < len(running) <= parallel
        ended.add(running[-1])  # in whatever order they end
    assert ended == set(queue)
    assert sweeping.behind(queue, 0) == ""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("DALLE2_VIDEO_HOME", str(tmp_path))
    return Registry(tmp_path)


@pytest.fixture
def parents(registry: Registry) -> list[Run]:
    runs: list[Run] = []
    for stage in ("preprocess", "clip", "embed"):
        runs.append(make_run(registry, TINY, stage, runs))
    return runs


SWEEP = ["--stage", "prior", "--cluster", "local"]


def test_a_point_is_the_run_that_a_launcher_would_make(registry: Registry, parents: list[Run]) -> None:
    made = make_run(registry, changed(TINY, LR, 0.5), "prior", parents)
    sweep = sweeping.parse_sweep(registry, [*SWEEP, "--grid", f"{LR}=0.5,0.25"])
    assert [trial.proposal.spec.id == made.id for trial in sweep.trials] == [True, False]


def test_one_question_has_one_name(registry: Registry, parents: list[Run]) -> None:
    def name(*more: str) -> str:
        return sweeping.parse_sweep(registry, [*SWEEP, *more]).name

    first = name("--grid", f"{LR}=0.5")
    assert first == name("--grid", f"{LR}=0.5,0.25", "--parallel", "3", "--ranks-per-node", "2")
    assert first != name("--grid", "prior.optim.steps=5")
    assert first != name("--grid", f"{LR}=0.5", "--prior.optim.steps", "7")
    assert name("--grid", f"{LR}=0.5", "--name", "mine") == "mine"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--grid", "prior.optm.lr=1"], "near: prior.optim.lr"),
        (["--grid", f"{LR}=1", "--name", "../x"], "use letters"),
        (["--grid", f"{LR}=1", "--parallel", "-1"], "--parallel and --random"),
        (["--grid", "prior.optim.batch-size=64,7", "--ranks-per-node", "2"], "cannot be shared by 2 ranks"),
    ],
)
def test_what_cannot_be_is_named_and_nothing_is_made(
    registry: Registry, parents: list[Run], typed: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sweeping.main([*SWEEP, *typed]) == submit.USER_ERROR
    assert words in capfd.readouterr().err
    assert not list(registry.runs("prior"))


def test_a_dry_run_shows_the_points_and_makes_nothing(
    registry: Registry, parents: list[Run], capfd: pytest.CaptureFixture[str]
) -> None:
    assert sweeping.main([*SWEEP, "--grid", f"{LR}=0.5,0.25", "--dry-run"]) == 0
    assert capfd.readouterr().out.count(" new") == 2
    assert not list(registry.runs("prior")) and not (registry.home / "sweeps").exists()


def finished(registry: Registry, parents: list[Run], lr: float, losses: list[float]) -> Run:
    run = make_run(registry, changed(TINY, LR, lr), "prior", parents)
    assert run.claim_intent(1, {"training": True, "launcher": {}})
    lines = [{"split": "val", "step": 10 * number, "loss": loss} for number, loss in enumerate(losses, 1)]
    lines.append({"split": "train", "step": 10 * len(losses) + 5, "loss": 0.125})
    (run.folder / "metrics.0001.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_the_table_the_json_and_the_plot_tell_of_all_points_best_first(
    registry: Registry, parents: list[Run], capfd: pytest.CaptureFixture[str]
) -> None:
    worse = finished(registry, parents, 0.5, [3.0, 2.0])
    better = finished(registry, parents, 0.25, [1.0, 4.0])
    assert sweeping.main([*SWEEP, "--grid", f"{LR}=0.5,0.25,0.125", "--show", "--name", "rates"]) == 0
    out = capfd.readouterr().out
    assert out.index(better.id) < out.index(worse.id) < out.index(" new")
    stored = json.loads((registry.home / "sweeps/rates/sweep.json").read_text())
    first, second, third = stored["points"]
    assert (first["run"], first["best"], first["best_step"], first["last"]) == (better.name, 1.0, 10, 4.0)
    assert (first["step"], first["train"], first["state"], first["values"]) == (25, 0.125, "done", {LR: 0.25})
    assert second["id"] == worse.id and (third["state"], third["best"]) == ("new", None)
    assert stored["command"].endswith("--name rates")
    svg = (registry.home / "sweeps/rates/plot.svg").read_text()
    assert svg.count("<circle") == 2


def result(best: float | None, **values: object) -> Result:
    return Result(values=values, run="prior/x", id="x", state="done", best=best, best_step=1)


@pytest.mark.parametrize(
    "results",
    [
        [result(1.0, a=1e-5, b="cosine"), result(2.0, a=1e-2, b="constant")],
        [result(1.0, a=1)],
        [result(None, a=1), result(None, a=2)],
        [result(1.0, a=[1, 2]), result(1.0, a=[3, 4])],
        [result(float(n), a=n, b=True) for n in range(9)],
    ],
)
def test_any_values_can_be_drawn(results: list[Result]) -> None:
    text = plot("a <b>", results)
    root = ElementTree.fromstring(text)
    circles = [one for one in root.iter() if one.tag.endswith("circle")]
    assert len(circles) == sum(one.best is not None for one in results) * len(results[0].values)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for one in circles:
        assert 0 <= float(one.attrib["cx"]) <= width and 0 <= float(one.attrib["cy"]) <= height
    console = Console(width=160, record=True)
    sweep_table.show(console, "title", results)
    assert len(re.findall("done", console.export_text())) == len(results)


def test_a_loss_that_is_not_finite_is_no_best(registry: Registry, parents: list[Run]) -> None:
    run = finished(registry, parents, 0.5, [float("nan"), 2.0])
    assert result_of({}, run.name, run.id, run, "done").best == 2.0
