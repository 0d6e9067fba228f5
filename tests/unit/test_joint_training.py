"""Images beside the videos, and several frame rates: what a stage makes of them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fixtures import publish
from stage_fixtures import dims_of, export_stage
from torch import Tensor

from dalle2_video.config import DecoderConfig, Recipe, SpatialSrConfig, TemporalSrConfig
from dalle2_video.data import embedding_shards
from dalle2_video.data.draws import Draws
from dalle2_video.data.embeddings import spec_for, window_starts
from dalle2_video.data.store import Store
from dalle2_video.data_config import WindowConfig
from dalle2_video.diffusion_config import DiffusionConfig
from dalle2_video.stages import STAGES, StageInputs
from dalle2_video.stages.joint import images_nchw
from dalle2_video.stages.temporal_sr import to_full_rate
from dalle2_video.training import memory_estimate
from experiments.identity import without_defaults
from experiments.recipes import tiny

RECIPE = tiny.recipe()
UNET, OPTIM = RECIPE.decoder.unet, RECIPE.decoder.optim
FRAMES, IMAGES, SIZE = 6, 2, 16
WINDOW = WindowConfig(size=SIZE, num_frames=FRAMES)
PARTS = {"unet": UNET, "diffusion": DiffusionConfig(), "optim": OPTIM}
DECODER = DecoderConfig(window=WINDOW, joint_images=IMAGES, **PARTS)


@pytest.fixture(scope="module")
def clip_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a CLIP that reads the tokens of `store_path`."""
    return export_stage(tmp_path_factory.mktemp("clip"), "clip", RECIPE.clip, dims_of(RECIPE.clip, text_context=16))


@pytest.fixture(scope="module")
def embedded_store(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store with embeddings "clip" of 5-frame windows: drawn numbers."""
    folder = tmp_path_factory.mktemp("embedding")
    path = folder / "store"
    shutil.copytree(store_path, path)
    store = Store(path)
    window = WindowConfig(size=SIZE, num_frames=5)
    spec = spec_for(store, "clip", window, hop=4, dim=RECIPE.clip.embed_dim)
    publish(embedding_shards.create(folder / "create", spec), path)
    generator = np.random.default_rng(0)
    for shard in range(spec.num_shards):
        rows = range(shard * spec.clips_per_shard, min((shard + 1) * spec.clips_per_shard, store.num_clips))
        counts = [len(window_starts(int(store.num_frames[row]), window.span, 4)) for row in rows]
        values = [generator.standard_normal((count, spec.dim)).astype(np.float32) for count in counts]
        publish(embedding_shards.write_shard(folder / f"task{shard}", spec, shard, values)[0], path)
    return path


def stage_of(config, clip_export: Path, store: Path = Path("none"), name: str = "decoder"):
    return STAGES[name](
        StageInputs(config=config, seed=0, store=store, exports={"clip": clip_export}, embeddings="clip")
    )


def batch_of(count: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def levels(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    def tokens(*shape: int) -> Tensor:
        return torch.randint(3, 32, (*shape, 8), generator=generator)

    return {
        "sample": torch.arange(count),
        "tokens": tokens(count),
        "length": torch.full((count,), 8),
        "video": levels(count, FRAMES, SIZE, SIZE, 3),
        "embedding": torch.randn(count, RECIPE.clip.embed_dim, generator=generator),
        "images": levels(count, IMAGES, SIZE, SIZE, 3),
        "image_tokens": tokens(count, IMAGES),
        "image_lengths": torch.full((count, IMAGES), 8),
        "image_embeddings": torch.randn(count, IMAGES, RECIPE.clip.embed_dim, generator=generator),
    }


def trained(stage) -> torch.nn.Module:
    """The stage's network, whose layers that start at zero were moved as training would."""
    torch.manual_seed(0)
    module = stage.build()
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return module


def loss_of(stage, model, batch: dict[str, Tensor]) -> tuple[float, dict[str, float]]:
    loss, metrics = stage.loss(model, batch, Draws(0, batch["sample"], "cpu"))
    return loss.item(), {name: value.item() for name, value in metrics.items()}


IMAGE_PARTS = ("images", "image_tokens", "image_embeddings")
VIDEO_PARTS = ("video", "tokens", "embedding")


@torch.no_grad()
def test_videos_are_learnt_as_without_images_and_each_image_by_its_own_caption_and_embedding(clip_export: Path) -> None:
    stage, batch = stage_of(DECODER, clip_export), batch_of()
    model = trained(stage)
    loss, parts = loss_of(stage, model, batch)
    alone, _ = loss_of(stage, model, {name: value for name, value in batch.items() if not name.startswith("image")})
    assert parts["video_loss"] == pytest.approx(alone, rel=1e-4)
    share = IMAGES / (FRAMES + IMAGES)
    assert loss == pytest.approx((1 - share) * parts["video_loss"] + share * parts["image_loss"], rel=1e-5)
    for name in (*IMAGE_PARTS, *VIDEO_PARTS):
        changed = batch[name].clone()
        last = (-1, -1) if name in IMAGE_PARTS else (-1,)
        changed[last] = changed[(0,) * len(last)]
        found = loss_of(stage, model, batch | {name: changed})[1]
        moved, still = ("image_loss", "video_loss") if name in IMAGE_PARTS else ("video_loss", "image_loss")
        assert found[still] == pytest.approx(parts[still], rel=1e-5), name
        assert abs(found[moved] - parts[moved]) > 1e-4, name


@torch.no_grad()
def test_every_image_has_a_time_and_noise_of_its_own(clip_export: Path) -> None:
    stage, batch = stage_of(DECODER, clip_export), batch_of()
    seen = {}

    def model(noised, logsnr, *, keep_b, images_nchw, **conditions):
        seen.update(noised=noised, logsnr=logsnr, keep=keep_b, images=images_nchw, **conditions)
        return torch.zeros_like(noised), torch.zeros_like(images_nchw)

    batch["images"][:] = 128
    stage.loss(model, batch, Draws(0, batch["sample"], "cpu"))
    rows = len(batch["sample"]) * (1 + IMAGES)
    assert len(seen["logsnr"].unique()) == rows and len(seen["keep"]) == rows == len(seen["embedding_bd"])
    assert len(seen["encodings_bld"]) == len(seen["text_mask_bl"]) == rows
    assert torch.equal(seen["embedding_bd"][3:], batch["image_embeddings"].flatten(0, 1))
    flat = seen["images"].flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(len(flat))).abs().max() < 0.2


@pytest.mark.parametrize("learned", ["none", "range"])
def test_gradient_comes_from_videos_and_images_and_never_from_padded_frames(clip_export: Path, learned: str) -> None:
    diffusion = DiffusionConfig(learned_variance=learned)  # type: ignore[arg-type]
    stage, batch = stage_of(dataclasses.replace(DECODER, diffusion=diffusion), clip_export), batch_of()
    valid = torch.tensor([6, 1, 4])
    times = 1 if learned == "none" else 2
    outputs = []

    def model(noised, logsnr, *, keep_b, images_nchw, **conditions):
        shapes = (noised.repeat(1, times, 1, 1, 1), images_nchw.repeat(1, times, 1, 1))
        outputs[:] = [torch.cos(shape).requires_grad_() for shape in shapes]
        return tuple(outputs)

    loss, metrics = stage.loss(model, batch | {"valid": valid}, Draws(0, batch["sample"], "cpu"))
    loss.backward()
    of_videos, of_images = (output.grad for output in outputs)
    assert of_images.flatten(1).any(1).all()
    reached = of_videos.transpose(1, 2).flatten(2).any(2)
    assert torch.equal(reached, torch.arange(FRAMES) < valid[:, None])
    assert {"video_loss", "image_loss"} <= metrics.keys() and ("variance_loss" in metrics) == (learned != "none")


def test_the_decoder_s_samples_bring_images_of_other_clips_and_a_student_s_none(
    clip_export: Path, embedded_store: Path
) -> None:
    stage = stage_of(DECODER, clip_export, embedded_store)
    batch = stage.dataset("train").__getitems__([0, 1])
    assert batch["images"].shape == (2, IMAGES, SIZE, SIZE, 3)
    assert torch.equal(images_nchw(batch["images"])[3], batch["images"][1, 1].permute(2, 0, 1) / 127.5 - 1)
    loss, metrics = stage.loss(trained(stage), batch, Draws(0, batch["sample"], "cpu"))
    loss.backward()
    assert torch.isfinite(loss) and metrics.keys() == {"video_loss", "image_loss"}
    stage.teacher = object()
    assert "images" not in stage.dataset("train")[0]


# Frame rates


RATES = {
    "decoder": DecoderConfig(window=WINDOW, strides=(1, 3), joint_images=1, **PARTS),
    "temporal_sr": TemporalSrConfig(window=WINDOW, strides=(1, 3), **PARTS),
    "spatial_sr": SpatialSrConfig(window=WINDOW, strides=(1, 3), low_size=8, crop_size=8, **PARTS),
}


@pytest.mark.parametrize("name", RATES)
def test_each_rate_is_drawn_and_the_network_is_told_it(name: str, clip_export: Path, embedded_store: Path) -> None:
    stage = stage_of(RATES[name], clip_export, embedded_store, name)
    batch = stage.dataset("train").__getitems__(list(range(12)))
    told = []
    module = trained(stage)

    def model(noised, logsnr, **conditions):
        told.append(conditions["fps_b"])
        return module(noised, logsnr, **conditions)

    loss, _ = stage.loss(model, batch, Draws(0, batch["sample"], "cpu"))
    assert torch.isfinite(loss)
    expected = 8.0 / batch["stride"]
    assert set(batch["stride"].tolist()) == {1, 3}
    assert torch.equal(told[0][:12], expected) and not told[0][12:].any()
    assert len(told[0]) == (24 if name == "decoder" else 12)


# Blank frames of temporal super-resolution


def test_a_low_rate_video_is_filled_up_by_repeated_or_by_blank_frames() -> None:
    low = torch.randn(2, 3, 3, 4, 4)
    config = TemporalSrConfig(window=WINDOW, factor=2, **PARTS)
    repeated = to_full_rate(low, config)
    blank = to_full_rate(low, dataclasses.replace(config, conditioning="blank"))
    for full in (repeated, blank):
        assert full.shape == (2, 3, 6, 4, 4) and torch.equal(full[:, :, ::2], low)
    assert torch.equal(repeated[:, :, 1::2], low) and not blank[:, :, 1::2].any()


@torch.no_grad()
def test_blank_frames_are_what_temporal_super_resolution_learns_from(clip_export: Path) -> None:
    given = {}
    for conditioning in ("repeat", "blank"):
        config = TemporalSrConfig(window=WINDOW, factor=2, conditioning=conditioning, **PARTS)  # type: ignore[arg-type]
        stage, batch = stage_of(config, clip_export, name="temporal_sr"), batch_of()

        def model(noised, logsnr, *, low_res_bcthw, conditioning=conditioning, **conditions):
            given[conditioning] = low_res_bcthw
            return torch.zeros_like(noised)

        stage.loss(model, batch, Draws(0, batch["sample"], "cpu"))
    assert torch.equal(given["blank"][:, :, ::2], given["repeat"][:, :, ::2])
    assert not given["blank"][:, :, 1::2].any() and given["repeat"][:, :, 1::2].any()


# The recipe


def changed(**parts) -> Recipe:
    """The demo's recipe, of longer clips, with fields of its stages changed."""
    stages = {name: dataclasses.replace(getattr(RECIPE, name), **fields) for name, fields in parts.items()}
    return dataclasses.replace(RECIPE, data=dataclasses.replace(RECIPE.data, min_frames=64), **stages)


def test_configs_of_before_keep_their_identity() -> None:
    for name in ("decoder", "temporal_sr"):
        assert not {"strides", "joint_images", "conditioning"} & without_defaults(getattr(RECIPE, name)).keys()
    assert without_defaults(changed(decoder={"joint_images": 4}).decoder)["joint_images"] == 4


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"decoder": {"joint_images": -1}}, r"decoder\.joint_images=-1 must be 0 or more"),
        ({"decoder": {"strides": (2,)}}, r"decoder\.strides=\(2,\) must be empty, or two or more"),
        ({"decoder": {"strides": (2, 1)}}, r"ascending"),
        ({"decoder": {"strides": (1, 3)}}, r"with window\.stride=2 among them"),
        ({"decoder": {"strides": (0, 2)}}, r"decoder\.strides"),
        ({"decoder": {"strides": (2, 10)}}, r"decoder\.strides=10 .*spans 71 stored frames.*--data\.min-frames"),
        ({"temporal_sr": {"strides": (1, 2)}}, r"temporal_sr\.strides.*must be empty"),
        ({"decoder": {"strides": (2, 3)}, "temporal_sr": {"strides": (1, 2)}}, r"temporal_sr\.strides.*be empty"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(parts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(**parts)


def test_a_cascade_of_several_rates_has_those_that_all_its_stages_can_have() -> None:
    recipe = changed(decoder={"strides": (1, 2, 4)}, temporal_sr={"strides": (1, 2)})
    assert recipe.temporal_sr is not None and recipe.temporal_sr.strides == (1, 2)
    with pytest.raises(ValueError, match=r"with strides \(1, 2, 4\); it can have \(1, 2\)"):
        changed(decoder={"strides": (1, 2, 4)}, temporal_sr={"strides": (1, 3)})


def test_the_memory_of_images_and_rates_is_told_before() -> None:
    def activations(**fields) -> int:
        return memory_estimate.estimate(
            changed(decoder=fields),
            "decoder",
            micro_batch=2,
            world_size=1,
            zero_stage=3,
            checkpointing="none",
            cuda=True,
        ).activations

    plain, more = activations(), activations(joint_images=4, strides=(1, 2))
    assert 1.3 * plain < more < 1.7 * plain, "12 frames instead of 8"
