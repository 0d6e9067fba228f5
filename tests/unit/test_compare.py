"""`tools/runs.py compare`: only what differs, metrics side by side, curves that show what the numbers say."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from registry_fixtures import make_spec

from experiments.identity import Parent
from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run
from tools import runs
from tools.runs_curves import BLOCKS, HEIGHT, WIDTH, Curve, sparklines, svg

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Run]:
    """Two runs of another width on other stores; the second has a metric that the first has not."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    registry = Registry(tmp_path / "home")
    found = []
    for number, name in enumerate(("aaaa000001", "bbbb000001")):
        parents = {"preprocess": Parent(stage="preprocess", id=f"store{number}", digest=f"{number}" * 64)}
        config = {"seed": 0, "clip": {"dim": 8 + 8 * number, "depth": 2}}
        run = registry.create(make_spec(id=name, config=config, parents=parents))
        attempt = run.claim_attempt({"intent": 1})
        for step in range(10, 110, 10):
            loss = {"loss": 10 / step + number, "step": step, "samples": 8 * step}
            attempt.append("metrics", loss | {"split": "train"} | ({"accuracy": 0.5} if number else {}))
        attempt.append("metrics", {"loss": 0.5, "step": 100, "split": "val"})
        found.append(run)
    return found[0], found[1]


def compared(capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert runs.main(["compare", "aaaa", "bbbb", *more]) == 0
    return capsys.readouterr().out


def test_only_what_differs_of_config_and_parents_is_shown(
    pair: tuple[Run, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {line.split()[0]: line.split()[1:] for line in compared(capsys).splitlines() if line.strip()}
    assert rows["clip.dim"] == ["8", "16"]
    assert rows["parent.preprocess"] == ["store0,", "digest", "0" * 16, "store1,", "digest", "1" * 16]
    assert "clip.depth" not in rows and "seed" not in rows


def test_metrics_stand_side_by_side_and_shared_ones_as_curves(
    pair: tuple[Run, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    said = compared(capsys)
    rows = {line[: len("train accuracy")].strip(): line for line in reversed(said.splitlines())}
    assert "0.1 (step 100)" in rows["train loss"] and "1.1 (step 100)" in rows["train loss"]
    assert rows["train accuracy"].split()[2:] == ["0.5", "(step", "100)"]
    curves = [line for line in said.splitlines() if any(block in line for block in BLOCKS)]
    assert len(curves) == 4 and "aaaa000001  1 -> 0.1" in curves[0] and "bbbb000001  2 -> 1.1" in curves[1]


def test_the_picture_holds_the_losses_of_both_runs(
    pair: tuple[Run, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compared(capsys, "--svg", str(tmp_path / "losses.svg"))
    root = ElementTree.parse(tmp_path / "losses.svg").getroot()
    lines = root.findall(f"{SVG}polyline")
    assert len(lines) == 4
    first, second = (
        [tuple(map(float, point.split(","))) for point in lines[number].attrib["points"].split()] for number in (0, 2)
    )
    assert len(first) == len(second) == 10
    assert all(below[1] > above[1] for below, above in zip(first, second, strict=True))
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in [*first, *second])
    assert [x for x, _ in first] == sorted(x for x, _ in first)
    assert {element.text for element in root.iter(f"{SVG}text")} >= {"aaaa000001 train", "bbbb000001 val", "loss"}


def test_what_cannot_be_compared_is_refused(
    pair: tuple[Run, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["aaaa", "aaaa"], "same run twice"),
        (["aaaa", "zzzz"], "no run matches"),
        (["aaaa", "bbbb", "--svg", str(tmp_path / "none" / "a.svg")], "in a folder that exists"),
    ):
        assert runs.main(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err
    for run in pair:
        (run.folder / "metrics.0001.jsonl").unlink()
    assert runs.main(["compare", "aaaa", "bbbb", "--svg", str(tmp_path / "a.svg")]) == 2
    assert "neither run has a loss" in capsys.readouterr().err


def test_sparklines_share_their_axes() -> None:
    rising = [(step, float(step)) for step in range(8)]
    constant = [(step, 7.0) for step in range(4)]
    assert sparklines([rising, constant], 8) == [BLOCKS, "████    "]
    assert sparklines([[(0, math.nan)], []], 3) == ["   ", "   "]


def test_a_value_that_is_no_number_is_left_out_of_the_picture_and_names_are_no_markup() -> None:
    points = [(1, 1.0), (2, math.inf), (3, 3.0)]
    root = ElementTree.fromstring(svg("<b> & co", "loss", [Curve(label="a<b", points=points, colour="red")]))
    (line,) = root.findall(f"{SVG}polyline")
    assert len(line.attrib["points"].split()) == 2
    assert root.findall(f"{SVG}text")[0].text == "<b> & co"
