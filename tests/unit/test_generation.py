"""The pipeline as people call it: what a video depends on, one model at a time, candidates, lengths, paths, exports."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dalle2_video.chain_folder import FORMAT, INDEX, VERSION
from dalle2_video.diffusion_config import SamplerConfig
from dalle2_video.digests import folder_digest
from dalle2_video.generation import Request, SampleConfig, VideoPipeline
from dalle2_video.generation.ranking import cosines
from dalle2_video.generation.video_file import read_mp4
from dalle2_video.models.factory import load_export
from dalle2_video.sample_config import ExtensionConfig
from tools.bench.random_chain import make, smallest

FEW = SamplerConfig(steps=2)
QUICK = {"prior": SamplerConfig(method="ddpm", steps=2), "decoder": FEW, "temporal_sr": FEW, "spatial_sr": FEW}
OPTIONS = SampleConfig(**QUICK, decoder_guidance=2.0)
TEXTS = ("a red circle moves left", "a blue square moves up", "a green star")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make(tmp_path_factory.mktemp("chain"), smallest())


@pytest.fixture(scope="module")
def pipeline(exports: dict[str, Path]) -> VideoPipeline:
    return VideoPipeline(exports, keep_loaded=True)


def requests(*prompts: str) -> list[Request]:
    return [Request(prompt=prompt) for prompt in prompts]


def test_batch_by_stage_gives_the_videos_of_one_by_one_to_the_bit(pipeline: VideoPipeline) -> None:
    one_each = dataclasses.replace(OPTIONS, videos_at_once=1)
    together = pipeline.generate(requests(*TEXTS), one_each)
    assert together.shape == (3, 8, 16, 16, 3) and together.dtype == torch.uint8
    for request, video in zip(requests(*TEXTS), together, strict=True):
        assert torch.equal(pipeline.generate([request], one_each)[0], video)
    # Another batch may sum in another order, which can move a rounded grey level by one.
    batched = pipeline.generate(requests(*TEXTS), OPTIONS)
    assert (batched.int() - together.int()).abs().max() <= 1


def test_memory_holds_one_stage_at_a_time(exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    loaded: list[tuple[str, weakref.ref[torch.nn.Module]]] = []

    def load(folder: Path, stage: str):  # type: ignore[no-untyped-def]
        gc.collect()
        assert [name for name, module in loaded if module() is not None] == []
        found = load_export(folder, stage)
        loaded.append((stage, weakref.ref(found.module)))
        return found

    monkeypatch.setattr("dalle2_video.generation.loaded_stages.load_export", load)
    monkeypatch.setattr("dalle2_video.stages.frozen_clip.load_export", load)
    VideoPipeline(exports).generate(requests(*TEXTS), dataclasses.replace(OPTIONS, videos_at_once=1, candidates=2))
    assert [name for name, _ in loaded] == ["clip", "prior", "decoder", "temporal_sr", "spatial_sr", "clip"]


def test_of_several_candidates_the_one_nearest_to_its_text_is_kept(pipeline: VideoPipeline) -> None:
    options = dataclasses.replace(OPTIONS, candidates=3)
    kept = pipeline.generate(requests(*TEXTS[:2]), options)
    for place, prompt in enumerate(TEXTS[:2]):
        tries = [Request(prompt=prompt, candidate=number) for number in range(3)]
        made = pipeline.generate(tries, OPTIONS)
        text = pipeline.encode([prompt]).embedding_bd
        scores = cosines(pipeline.loaded.clip(), made, text.expand(3, -1), stride=2.0)
        assert len({*scores.tolist()}) == 3
        assert (made[scores.argmax()].int() - kept[place].int()).abs().max() <= 1


def test_a_path_begins_and_ends_with_its_prompts_under_one_noise(pipeline: VideoPipeline) -> None:
    one_each = dataclasses.replace(OPTIONS, videos_at_once=4)
    path = [Request(prompt=TEXTS[0], towards=TEXTS[1], share=share) for share in (0.0, 0.001, 0.5)]
    back = Request(prompt=TEXTS[1], towards=TEXTS[0], share=0.0)
    assert len({request.number for request in (*path, back)}) == 1
    start, near, middle, end = pipeline.generate([*path, back], one_each).float()
    assert (start - near).abs().mean() < 0.2 * (start - end).abs().mean()
    assert (middle - start).abs().mean() > 0 and (middle - end).abs().mean() > 0
    # The first prompt as it is alone, but for the noise.
    plain = Request(prompt=TEXTS[0])
    assert plain.number != path[0].number


@pytest.mark.parametrize(("seconds", "frames"), [(0.5, 4), (1.0, 8), (1.5, 12), (2.3, 18)])
def test_a_video_is_as_long_as_asked(pipeline: VideoPipeline, seconds: float, frames: int) -> None:
    video = pipeline.generate(requests(TEXTS[0]), dataclasses.replace(OPTIONS, seconds=seconds))[0]
    assert len(video) == frames
    # It begins as the short one does.
    short = pipeline.generate(requests(TEXTS[0]), OPTIONS)[0]
    assert torch.equal(video[: min(8, frames)], short[: min(8, frames)])


def test_a_video_has_the_rate_that_is_asked_for(tmp_path: Path) -> None:
    recipe = smallest()
    assert recipe.temporal_sr is not None and recipe.spatial_sr is not None
    rates = dataclasses.replace(
        recipe,
        decoder=dataclasses.replace(recipe.decoder, strides=(2, 4)),
        temporal_sr=dataclasses.replace(recipe.temporal_sr, strides=(1, 2)),
        spatial_sr=dataclasses.replace(recipe.spatial_sr, strides=(1, 2)),
    )
    pipeline = VideoPipeline(make(tmp_path / "chain", rates), keep_loaded=True)
    own, slow = (pipeline.generate(requests(TEXTS[0]), dataclasses.replace(OPTIONS, fps=fps))[0] for fps in (0.0, 4.0))
    assert own.shape == slow.shape and not torch.equal(own, slow)
    assert torch.equal(own, pipeline.generate(requests(TEXTS[0]), dataclasses.replace(OPTIONS, fps=8.0))[0])
    for fps, frames in ((4.0, 8), (8.0, 16)):
        assert (
            len(pipeline.generate(requests(TEXTS[0]), dataclasses.replace(OPTIONS, fps=fps, seconds=2.0))[0]) == frames
        )
    with pytest.raises(ValueError, match=r"sample.fps=5: the spatial_sr run makes 4 or 8 frames a second"):
        pipeline.generate(requests(TEXTS[0]), dataclasses.replace(OPTIONS, fps=5.0))


def test_a_video_begins_with_the_given_frames(pipeline: VideoPipeline) -> None:
    size, fps = pipeline.start_window()
    assert (size, fps) == (8, 4.0)
    seen = {}
    for length in (1, 3, 7):
        start = np.random.default_rng(length).integers(0, 255, (length, size, size, 3), np.uint8)
        state = {}
        for step in ("text", "prior", "decoder"):
            state = pipeline.run(step, requests(TEXTS[0]), state, OPTIONS, start=start)
        low = state["video"][0]
        # What is new has at least half a window, all of it where an image begins.
        assert low.shape[1] == length + 4 - min(length, 2)
        levels = ((low[:, :length] + 1) * 127.5).round().permute(1, 2, 3, 0)
        assert torch.equal(levels.to(torch.uint8), torch.from_numpy(start))
        seen[length] = pipeline.generate(requests(TEXTS[0]), OPTIONS, start=start)[0]
        assert len(seen[length]) == 2 * low.shape[1]
    longer = dataclasses.replace(OPTIONS, seconds=3.0, extension=ExtensionConfig(overlap=1))
    assert len(pipeline.generate(requests(TEXTS[0]), longer, start=start)[0]) == 24
    with pytest.raises(ValueError, match="is no more than what sample"):
        pipeline.generate(requests(TEXTS[0]), dataclasses.replace(OPTIONS, seconds=1.0), start=start)


def test_exports_of_two_clips_are_refused(exports: dict[str, Path], tmp_path: Path) -> None:
    other = dataclasses.replace(smallest().clip, embed_dim=32)
    strange = make(tmp_path / "other", dataclasses.replace(smallest(), clip=other))
    with pytest.raises(ValueError, match="share one CLIP run"):
        VideoPipeline(exports | {"prior": strange["prior"]})
    with pytest.raises(ValueError, match="an export of decoder too"):
        VideoPipeline({"clip": exports["clip"], "prior": exports["prior"]})


@pytest.fixture
def folder(exports: dict[str, Path], tmp_path: Path) -> Path:
    """A chain folder as tools/export.py makes it."""
    for stage, export in exports.items():
        shutil.copytree(export, tmp_path / "chain" / stage)
    stages = {stage: {"digest": folder_digest(export)} for stage, export in exports.items()}
    sample = {"decoder_guidance": 2.0, **{name: dataclasses.asdict(sampler) for name, sampler in QUICK.items()}}
    index = {"format": FORMAT, "version": VERSION, "stages": stages, "sample": sample}
    (tmp_path / "chain" / INDEX).write_text(json.dumps(index))
    return tmp_path / "chain"


def test_three_lines_make_a_video(folder: Path, pipeline: VideoPipeline, tmp_path: Path) -> None:
    loaded = VideoPipeline.from_export(folder)
    video = loaded.generate([TEXTS[0]])[0]
    loaded.save(tmp_path / "circle.mp4", video)
    assert read_mp4(tmp_path / "circle.mp4").shape == (8, 256, 256, 3)
    assert torch.equal(video, pipeline.generate(requests(TEXTS[0]), OPTIONS)[0])


def test_a_damaged_or_strange_folder_is_refused(folder: Path) -> None:
    with (folder / "prior/config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ValueError, match="prior is damaged or was changed"):
        VideoPipeline.from_export(folder)
    assert VideoPipeline.from_export(folder, verify=False).fps() == 8.0
    with pytest.raises(ValueError, match=r"tools/export.py ID --out"):
        VideoPipeline.from_export(folder / "prior")
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"version": 99}))
    with pytest.raises(ValueError, match="99"):
        VideoPipeline.from_export(folder)
