"""`tools/runs.py lineage`: from the store to the samples, and nothing that is not related."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from registry_fixtures import make_run

from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run
from launch.arguments import load_recipe
from tools import runs

TINY = load_recipe("tiny")


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Run]:
    """A chain of every stage of the tiny recipe, and a second CLIP with a prior of its own."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    registry = Registry(tmp_path)
    store = make_run(registry, TINY, "preprocess")
    clip = make_run(registry, TINY, "clip", [store])
    embed = make_run(registry, TINY, "embed", [store, clip])
    prior, decoder = (make_run(registry, TINY, stage, [store, clip, embed]) for stage in ("prior", "decoder"))
    temporal_sr = make_run(registry, TINY, "temporal_sr", [store, clip])
    sample = make_run(registry, TINY, "sample", [clip, prior, decoder, temporal_sr], done=False)
    cousin = make_run(registry, TINY, "clip", [store], salt="again")
    others = {"cousin": cousin, "cousins_embed": make_run(registry, TINY, "embed", [store, cousin])}
    return {run.stage: run for run in (store, clip, embed, prior, decoder, temporal_sr, sample)} | others


def drawn(capsys: pytest.CaptureFixture[str], run: Run) -> list[tuple[int, str]]:
    """Return the tree's lines as (depth, text)."""
    assert runs.main(["lineage", run.id]) == 0
    lines = capsys.readouterr().out.splitlines()
    texts = [line.lstrip(" │├└─") for line in lines]
    return [((len(line) - len(text)) // 4, text) for line, text in zip(lines, texts, strict=True)]


def test_the_tree_goes_from_the_store_to_the_samples(
    family: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    tree = drawn(capsys, family["clip"])
    top = tree[0][0]
    assert [(depth - top, text.split("/")[0]) for depth, text in tree] == [
        (0, "preprocess"),
        (1, "clip"),
        (2, "embed"),
        (3, "prior"),
        (4, "sample"),
        (3, "decoder"),
        (4, "sample"),
        (2, "temporal_sr"),
        (3, "sample"),
    ]
    record = family["clip"].done()
    assert record is not None
    assert tree[1][1] == f"{family['clip'].name} done digest {record['digest'][:10]}"
    assert tree[4][1] == f"{family['sample'].name} stopped"
    assert tree[6][1] == f"{family['sample'].name} (above)"


def test_only_ancestors_and_descendants_are_in_it(family: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    names = {text.split()[0] for _, text in drawn(capsys, family["prior"])}
    assert names == {family[stage].name for stage in ("preprocess", "clip", "embed", "prior", "sample")}
    names = {text.split()[0] for _, text in drawn(capsys, family["preprocess"])}
    assert names == {run.name for run in family.values()}


def test_a_parent_that_is_not_what_was_pinned_or_is_gone_is_told(
    family: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    (family["clip"].folder / "DONE").write_text(json.dumps({"digest": "f" * 64, "time": 0.0}))
    assert "which is now digest ffffffffff" in dict(map(reversed, drawn(capsys, family["embed"]))).__str__()  # type: ignore[arg-type]
    shutil.rmtree(family["clip"].folder)
    texts = [text for _, text in drawn(capsys, family["embed"])]
    assert any(text.startswith(f"{family['clip'].id} (not in this registry)") for text in texts)
    assert any("which is now gone" in text for text in texts)
