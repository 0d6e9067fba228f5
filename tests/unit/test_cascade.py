"""The cascade of the 256 px recipe, narrow and an eighth as large: all stages learn from a real store and sample."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fixtures import build_store, publish, write_dataset
from safetensors.torch import save_file
from stage_fixtures import dims_of, export_stage

from dalle2_video.config import Recipe, TransformerConfig
from dalle2_video.data.draws import Draws
from dalle2_video.data.store import Store
from dalle2_video.data_config import WindowConfig
from dalle2_video.diffusion_config import DiffusionConfig
from dalle2_video.generation.embed import EmbedArray
from dalle2_video.generation.pipeline import Request, VideoPipeline
from dalle2_video.models.factory import WEIGHTS
from dalle2_video.stages import STAGES, StageInputs
from dalle2_video.stages.spatial_sr import SpatialSrStage, upsample
from experiments.recipes import celebv_text_256

EIGHTH = 8
STAGES_OF_PICTURES = ("decoder", "temporal_sr", "spatial_sr")


def smaller(window: WindowConfig) -> WindowConfig:
    return dataclasses.replace(window, size=window.size // EIGHTH)


def narrow(recipe: Recipe) -> Recipe:
    """The recipe with all its levels, attentions, frames and factors, but 8 channels and an eighth of the pixels."""

    def of_pictures(config: Any, **more: Any) -> Any:
        unet = dataclasses.replace(config.unet, dim=8, blocks=1, head_dim=8)
        diffusion = dataclasses.replace(config.diffusion, sampling_steps=2)
        return dataclasses.replace(config, window=smaller(config.window), unet=unet, diffusion=diffusion, **more)

    assert recipe.temporal_sr is not None and recipe.spatial_sr is not None
    width = TransformerConfig(dim=16, depth=1, heads=2)
    text = dataclasses.replace(recipe.clip.text, dim=16, depth=1, heads=2)
    low, crop = recipe.spatial_sr.low_size // EIGHTH, recipe.spatial_sr.crop_size // EIGHTH
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(
            recipe.data, frame_sizes=(8, 32), max_frames=40, vocab_size=300, text_context=16, clips_per_shard=2,
            val_fraction=0.0,
        ),
        clip=dataclasses.replace(
            recipe.clip, window=smaller(recipe.clip.window), patch_size=4, embed_dim=16, text=text, spatial=width,
            temporal=width,
        ),
        prior=dataclasses.replace(
            recipe.prior, transformer=width, diffusion=DiffusionConfig(objective="x0", sampling_steps=2)
        ),
        decoder=of_pictures(recipe.decoder, joint_images=2),
        temporal_sr=of_pictures(recipe.temporal_sr, conditioning="blank"),
        spatial_sr=of_pictures(recipe.spatial_sr, low_size=low, crop_size=crop),
    )  # fmt: skip


RECIPE = narrow(celebv_text_256.recipe())


def learnt(stage: Any, folder: Path) -> Path:
    """Train a stage for two steps; return its export."""
    torch.manual_seed(0)
    module = stage.build()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for step in range(2):
        batch = stage.dataset("train").__getitems__([2 * step, 2 * step + 1])
        loss, _ = stage.loss(module, batch, Draws(0, batch["sample"], "cpu"))
        loss.backward()
        assert all(parameter.grad is not None for parameter in module.parameters()) and torch.isfinite(loss)
        optimizer.step()
        optimizer.zero_grad()
    folder.mkdir()
    save_file(module.state_dict(), str(folder / WEIGHTS))
    for name, text in stage.export_files().items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cascade")
    path = folder / "store"
    root = write_dataset(folder / "raw", ["abcdefghijk_0_0", "bcdefghijkl_0_0"], seconds=4.5)
    build_store(root, RECIPE.data, path, folder / "staging")
    tokenizer = Store(path).tokenizer()
    dims = dims_of(RECIPE.clip, vocab_size=tokenizer.vocab_size, text_context=16)
    found = {
        "clip": export_stage(folder / "clip", "clip", RECIPE.clip, dims, tokenizer=tokenizer.to_json()),
        "prior": export_stage(folder / "prior", "prior", RECIPE.prior, dims),
    }
    array = EmbedArray(store=path, clip_export=found["clip"], name="clip", hop=4, device=torch.device("cpu"))
    publish(array.prepare(folder / "create"), path)
    for task in range(array.num_tasks):
        publish(array.run_task(task, folder / f"task{task}", lambda share: None)[0], path)
    for name in STAGES_OF_PICTURES:
        inputs = StageInputs(
            config=getattr(RECIPE, name), seed=0, store=path, exports={"clip": found["clip"]}, embeddings="clip"
        )
        found[name] = learnt(STAGES[name](inputs), folder / name)
    return found


def test_sixteen_small_frames_become_thirty_two_large_ones(exports: dict[str, Path]) -> None:
    requests = [Request(prompt="a red square moves", seed=seed) for seed in (0, 1)]
    videos = VideoPipeline(exports).generate(requests)
    assert videos.shape == (2, 32, 32, 32, 3) and videos.dtype == torch.uint8
    assert not torch.equal(videos[0], videos[1])
    without = {name: path for name, path in exports.items() if name != "spatial_sr"}
    low = VideoPipeline(without).generate(requests)
    assert low.shape == (2, 32, 8, 8, 3)


def test_crops_of_low_and_high_frames_are_of_the_same_place_and_reach_every_place() -> None:
    """Each pixel holds its own place, so a bilinear crop is the crop of the bilinear frame, but for its rim."""
    stage = SpatialSrStage.__new__(SpatialSrStage)
    config = RECIPE.spatial_sr
    assert config is not None
    stage.config = dataclasses.replace(config, crop_size=16)
    count, factor = 64, 4
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    low = torch.stack([row, column, row]).expand(count, 1, 3, 8, 8).transpose(1, 2)
    high = upsample(low, 32)
    crops, expected = stage._crops(low, high, Draws(0, torch.arange(count), "cpu"))
    assert crops.shape[-2:] == (4, 4) and expected.shape[-2:] == (16, 16)
    inner = slice(factor // 2, -factor // 2)
    torch.testing.assert_close(upsample(crops, 16)[..., inner, inner], expected[..., inner, inner])
    assert set(crops[:, 0, 0, 0, 0].tolist()) == set(crops[:, 1, 0, 0, 0].tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
