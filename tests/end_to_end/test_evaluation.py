"""Retrieval through the launcher: the figures are those of the exported CLIP on the store, whatever was done again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from launching import REPOSITORY, Chain

from dalle2_video.data.batches import read_window, to_float
from dalle2_video.data.store import Store
from dalle2_video.evaluate_config import EvaluateConfig
from dalle2_video.evaluation.split_clips import chosen_rows
from dalle2_video.stages.frozen_clip import FrozenClip
from experiments.run import Run
from tools import runs

TRAIN = ["--evaluate.split", "train"]


@pytest.fixture(scope="module")
def evaluated(chain: Chain) -> Run:
    return chain.run("evaluate", *TRAIN)


def parents(chain: Chain) -> tuple[Run, Run]:
    return tuple(next(run for run in chain.registry.runs(stage) if run.done()) for stage in ("preprocess", "clip"))  # type: ignore[return-value]


def lines(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "evaluation/ranks.jsonl").read_text().splitlines()]


def test_the_figures_are_those_of_the_export_by_hand(chain: Chain, evaluated: Run) -> None:
    store_run, clip_run = parents(chain)
    store, clip = Store(store_run.folder / "store"), FrozenClip(clip_run.folder / "export")
    window, ranks, videos, texts = clip.config.window, lines(evaluated), [], []
    rows = [line["row"] for line in ranks]
    assert rows == store.usable("train").tolist() and len(rows) > 12
    for line in ranks:
        row, count = line["row"], int(store.num_frames[line["row"]])
        assert line["clip"] == store.clip_id(row)
        (place,) = [n for n, caption in enumerate(store.captions_of(row)) if caption.text == line["text"]][:1]
        caption = store.caption_range(row)[0] + place
        frames = np.empty((1, window.num_frames, 16, 16, 3), np.uint8)
        read_window(store.frames(16), row, (count - window.span) // 2, count, window.stride, frames[0])
        videos.append(clip.encode_video(to_float(torch.from_numpy(frames)))[0])
        tokens = torch.from_numpy(store.tokens[caption : caption + 1].astype(np.int64))
        length = torch.from_numpy(store.token_lengths[caption : caption + 1].astype(np.int64))
        texts.append(clip.encode_text(tokens, length).embedding_bd[0])
    similarity = (torch.stack(texts).double() @ torch.stack(videos).double().T).numpy()
    own = np.diag(similarity)
    by_text = 0.5 + (similarity > own[:, None] + 1e-5).sum(1) + (np.abs(similarity - own[:, None]) <= 1e-5).sum(1) / 2
    by_video = 0.5 + (similarity > own + 1e-5).sum(0) + (np.abs(similarity - own) <= 1e-5).sum(0) / 2
    assert [line["text_to_video"] for line in ranks] == by_text.tolist()
    assert [line["video_to_text"] for line in ranks] == by_video.tolist()

    found = json.loads((evaluated.folder / "evaluation/evaluation.json").read_text())
    assert found["text_to_video"]["mean_rank"]["value"] == pytest.approx(by_text.mean())
    assert found["video_to_text"]["median_rank"]["value"] == np.median(by_video)
    assert (found["split"], found["clips"], found["seed"]) == ("train", len(rows), 0)
    assert found["distinct_texts"] == len({line["text"] for line in ranks})
    for stage, run in zip(("preprocess", "clip"), (store_run, clip_run), strict=True):
        assert found["made_from"][stage] == {"id": run.id, "digest": (run.done() or {})["digest"]}


def test_what_is_missing_is_done_again_to_the_same_bytes(chain: Chain, evaluated: Run) -> None:
    made = {path: path.read_bytes() for path in (evaluated.folder / "evaluation").rglob("*.*")}
    assert len(made) == 3 + 2
    kept = evaluated.task_file(1).stat().st_mtime_ns
    for path in [evaluated.folder / "DONE", evaluated.task_file(2), *made]:
        if path.suffix != ".safetensors" or path.name == "00002.safetensors":
            path.unlink()
    chain.run("evaluate", *TRAIN, "--tasks", "1")
    assert {path: path.read_bytes() for path in made} == made
    assert evaluated.task_file(1).stat().st_mtime_ns == kept

    (evaluated.folder / "DONE").unlink()
    damaged = evaluated.folder / "evaluation/shards/00000.safetensors"
    damaged.write_bytes(b"x" + made[damaged][1:])
    answer = chain.launch("evaluate", *TRAIN)
    assert answer.returncode == 2 and "00000.safetensors is missing or damaged" in answer.stderr
    damaged.write_bytes(made[damaged])
    assert chain.run("evaluate", *TRAIN).done()


def test_the_launcher_and_the_list_of_facts_show_the_figures(
    chain: Chain, evaluated: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DALLE2_VIDEO_HOME", str(chain.home))
    monkeypatch.chdir(REPOSITORY)
    assert runs.main(["show", evaluated.id]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for direction in ("text_to_video", "video_to_text"):
        figures = (evaluated.done() or {})[direction]
        assert figures.startswith("top-1 ") and f"{direction} = {figures}" in shown
    assert "split = train" in shown


def test_another_seed_draws_other_clips_and_a_split_without_clips_is_refused(chain: Chain) -> None:
    store = Store(parents(chain)[0].folder / "store")
    all_of_them = store.usable("train").tolist()
    few = EvaluateConfig(split="train", max_clips=5)
    mine, other = (chosen_rows(store, few, seed).tolist() for seed in (0, 1))
    assert len(mine) == 5 and mine != other and set(mine + other) <= set(all_of_them) and mine == sorted(mine)
    assert chosen_rows(store, EvaluateConfig(split="train", max_clips=500), 0).tolist() == all_of_them
    with pytest.raises(ValueError, match="max_clips"):
        EvaluateConfig(max_clips=-1)
