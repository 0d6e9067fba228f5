"""Recipes validate themselves: what is wrong is named with its field, its value and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from registry_fixtures import changed

from dalle2_video.config import (
    DiffusionConfig,
    EmbedConfig,
    OptimConfig,
    Recipe,
    SampleConfig,
    TransformerConfig,
    UnetConfig,
)
from dalle2_video.config_io import from_dict, to_dict
from dalle2_video.data_config import DataConfig, WindowConfig
from dalle2_video.diffusion_config import SamplerConfig
from dalle2_video.runtime import RuntimeConfig
from launch.arguments import load_recipe, recipe_names

TINY = load_recipe("tiny")
LARGE = load_recipe("celebv_text_256")
LEVEL_FLAGS = ("spatial_attention", "cross_attention", "temporal_attention", "temporal_convolution")


def optim(**values: Any) -> OptimConfig:
    return OptimConfig(**({"steps": 1, "batch_size": 1, "lr": 1e-3} | values))


def unet(**values: Any) -> UnetConfig:
    sizes: dict[str, Any] = {"dim": 8, "dim_mults": (1, 2)}
    return UnetConfig(**(sizes | dict.fromkeys(LEVEL_FLAGS, (True, True)) | values))


def transformer(**values: Any) -> TransformerConfig:
    return TransformerConfig(**({"dim": 8, "depth": 1, "heads": 2} | values))


def window(**values: Any) -> WindowConfig:
    return WindowConfig(**({"size": 8, "num_frames": 2} | values))


POSITIVE: list[tuple[Callable[..., Any], str]] = [
    *((DataConfig, name) for name in ("fps", "min_frames", "max_frames", "chunk_frames", "clips_per_shard")),
    *((optim, name) for name in ("steps", "batch_size", "lr", "max_grad_norm")),
    *((window, name) for name in ("size", "num_frames", "stride")),
    *((transformer, name) for name in ("dim", "depth", "heads")),
    *((unet, name) for name in ("dim", "blocks", "head_dim")),
    (EmbedConfig, "hop"),
    (DiffusionConfig, "sampling_steps"),
    *((SampleConfig, name) for name in ("samples_per_prompt", "videos_at_once")),
    *((RuntimeConfig, name) for name in ("checkpoint_every", "log_every", "validate_every", "micro_batch")),
]
FRACTIONS: list[tuple[Callable[..., Any], str]] = [
    (DataConfig, "val_fraction"),
    (optim, "ema_decay"),
    (transformer, "dropout"),
    (unet, "dropout"),
    (DiffusionConfig, "condition_dropout"),
]
NOT_NEGATIVE: list[tuple[Callable[..., Any], str]] = [
    (optim, "weight_decay"),
    (optim, "warmup_steps"),
    (DiffusionConfig, "guidance_scale"),
    (RuntimeConfig, "workers"),
    (RuntimeConfig, "torch_threads"),
    (SampleConfig, "decoder_guidance"),
    (SampleConfig, "prior_guidance"),
]


@pytest.mark.parametrize(("make", "name"), POSITIVE)
@pytest.mark.parametrize("value", [0, -1])
def test_what_must_be_positive_says_so(make: Callable[..., Any], name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value} must be greater than 0"):
        make(**{name: value})
    assert getattr(make(**{name: {"max_frames": 16, "heads": 2, "dim": 8}.get(name, 1)}), name) > 0


@pytest.mark.parametrize(("make", "name"), FRACTIONS)
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_what_must_be_a_fraction_says_so(make: Callable[..., Any], name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value} must lie in \[0, 1\)"):
        make(**{name: value})
    assert getattr(make(**{name: 0.0}), name) == 0.0


@pytest.mark.parametrize(("make", "name"), NOT_NEGATIVE)
def test_what_must_not_be_negative_says_so(make: Callable[..., Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=-1 must be 0 or more"):
        make(**{name: -1})
    assert getattr(make(**{name: 0}), name) == 0


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (DataConfig, {"frame_sizes": ()}, "DataConfig.frame_sizes=() must be ascending.*--data.frame-sizes 64 256"),
        (DataConfig, {"frame_sizes": (64, 32)}, "DataConfig.frame_sizes=(64, 32) must be ascending"),
        (DataConfig, {"frame_sizes": (32, 32)}, "DataConfig.frame_sizes=(32, 32) .*without repeats"),
        (DataConfig, {"frame_sizes": (4,)}, "DataConfig.frame_sizes=(4,) .*at least 8"),
        (DataConfig, {"max_frames": 15}, "DataConfig.max_frames=15 must be >= min_frames"),
        (DataConfig, {"vocab_size": 299}, "DataConfig.vocab_size=299 must be at least 300"),
        (DataConfig, {"text_context": 3}, "DataConfig.text_context=3 must be at least 4"),
        (optim, {"betas": (0.9, 1.0)}, "OptimConfig.betas=(0.9, 1.0) must each lie in [0, 1)"),
        (transformer, {"dim": 10, "heads": 4}, "TransformerConfig.dim=10 must be a multiple of heads=4; next: 12"),
        (unet, {"dim": 12}, "UnetConfig.dim=12 must be a multiple of 8"),
        (unet, {"dim_mults": ()}, "UnetConfig.dim_mults=() must hold one or more .*for example: 1 2 4"),
        (unet, {"dim_mults": (1, 0)}, "UnetConfig.dim_mults=(1, 0) must hold"),
        *(
            (unet, {name: (True,)}, f"UnetConfig.{name}=(True,) must hold one flag for each of the 2 levels")
            for name in LEVEL_FLAGS
        ),
        (SampleConfig, {"prompts": ("a", " ")}, "sample.prompts 2=' ' must not be empty"),
        (
            SampleConfig,
            {"prior": SamplerConfig(dynamic_threshold=0.9)},
            "sample.prior.dynamic_threshold=0.9 is of videos",
        ),
        (
            DiffusionConfig,
            {"zero_terminal_snr": True, "objective": "eps"},
            "DiffusionConfig.objective='eps' cannot give x0.*set objective to v or x0",
        ),
        (DiffusionConfig, {"loss_weight_gamma": 2.0}, "loss_weight_gamma=2.0 is read with loss_weight min_snr or p2"),
        (DiffusionConfig, {"variance_steps": 50}, "variance_steps=50 is read with learned_variance range alone"),
        (DiffusionConfig, {"variance_steps": 1}, "variance_steps=1 must be 2 or more"),
        (
            DiffusionConfig,
            {"variance_weight": 2.0},
            "variance_weight=2.0 is read with learned_variance range or residual",
        ),
        (SamplerConfig, {"steps": -1}, "SamplerConfig.steps=-1 must be 1 or more, or 0 for the recipe's"),
        (SamplerConfig, {"eta": 1.5}, "SamplerConfig.eta=1.5 must lie in [0, 1]"),
        (SamplerConfig, {"eta": 0.5, "method": "dpmpp"}, "SamplerConfig.eta=0.5 is of method ddim alone"),
        (SamplerConfig, {"variance": "large"}, "SamplerConfig.variance='large' is of method ddpm alone"),
        (SamplerConfig, {"guidance_rescale": 1.1}, "SamplerConfig.guidance_rescale=1.1 must lie in [0, 1]"),
        (SamplerConfig, {"guidance_low": -1.0}, "SamplerConfig.guidance_low=-1.0 must be 0 or more, or None"),
        (SamplerConfig, {"guidance_hold": 0.5}, "SamplerConfig.guidance_hold=0.5 is read with guidance_low alone"),
        (SamplerConfig, {"dynamic_threshold": 0.0}, "SamplerConfig.dynamic_threshold=0.0 must lie in (0, 1]"),
    ],
)
def test_a_part_names_what_is_wrong_with_it(make: Callable[..., Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        make(**values)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", -1, "Recipe.seed=-1 must be 0 or more"),
        ("clip.patch_size", 6, "ClipConfig.patch_size=6 must divide window.size=64"),
        ("clip.temporal.dim", 1536, "ClipConfig.temporal.dim=1536 must equal spatial.dim=768"),
        ("prior.candidates", 0, "PriorConfig.candidates=0 must be greater than 0"),
        ("prior.diffusion.learned_variance", "range", "prior.diffusion.learned_variance='range' is for video stages"),
        (
            "sample.decoder",
            SamplerConfig(method="ddpm", variance="learned"),
            "sample.decoder.variance='learned' needs a stage trained with diffusion.learned_variance",
        ),
        ("decoder.window.size", 60, "window.size=60 must be a multiple of 8 (dim_mults=(1, 2, 3, 4))"),
        ("decoder.window.size", 32, "decoder.window.size=32 is not one of.*--data.frame-sizes 32 64 256"),
        ("clip.window.stride", 9, "clip.window.num_frames=16 at stride 9 spans 136.*raise --data.min-frames"),
        ("decoder.window.num_frames", 8, "temporal_sr.window=.*does not follow from decoder.window=.*factor=2"),
        ("decoder.window.stride", 1, "temporal_sr.window=.*stride divided by the factor"),
        ("temporal_sr.factor", 1, "TemporalSrConfig.factor=1 must be 2 or more"),
        ("temporal_sr.factor", 3, "TemporalSrConfig.factor=3 must divide window.num_frames=32"),
        ("temporal_sr.max_augmentation", 1.0, "TemporalSrConfig.max_augmentation=1.0 must lie in [0, 1)"),
        ("temporal_sr.sampling_augmentation", 0.9, "TemporalSrConfig.sampling_augmentation=0.9 must be at most"),
        ("spatial_sr.low_size", 0, "SpatialSrConfig.low_size=0 must be greater than 0"),
        ("spatial_sr.low_size", 256, "SpatialSrConfig.low_size=256 must divide window.size=256 and be smaller"),
        ("spatial_sr.low_size", 128, "spatial_sr=(128, 32, 1) (low_size, num_frames, stride) must be those of"),
        ("spatial_sr.crop_size", 0, "SpatialSrConfig.crop_size=0 must be greater than 0"),
        ("spatial_sr.crop_size", 60, "window.size=60 must be a multiple of 8"),
        ("spatial_sr.crop_size", 512, "SpatialSrConfig.crop_size=512 must be a multiple of 4 and at most"),
        ("spatial_sr.max_augmentation", 1.0, "SpatialSrConfig.max_augmentation=1.0 must lie in [0, 1)"),
        ("spatial_sr.sampling_augmentation", 0.9, "SpatialSrConfig.sampling_augmentation=0.9 must be at most"),
    ],
)
def test_a_recipe_names_what_does_not_fit_together(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        changed(LARGE, path, value)


def test_a_window_spans_its_first_and_last_frame() -> None:
    assert window(num_frames=8, stride=2).span == 15
    assert window(num_frames=1, stride=9).span == 1


@pytest.mark.parametrize(
    ("prompts", "each", "at_once", "tasks"), [(0, 1, 8, 0), (1, 1, 8, 1), (8, 1, 8, 1), (9, 1, 8, 2), (3, 3, 4, 3)]
)
def test_an_array_of_samples_has_tasks_for_all_videos(prompts: int, each: int, at_once: int, tasks: int) -> None:
    config = SampleConfig(prompts=("a",) * prompts, samples_per_prompt=each, videos_at_once=at_once)
    assert config.num_tasks == tasks


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_the_way_through_json(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert from_dict(Recipe, to_dict(recipe)) == recipe
    for part in (recipe.data, recipe.clip, recipe.prior, recipe.decoder, recipe.temporal_sr):
        assert part is None or from_dict(type(part), to_dict(part)) == part


def test_without_temporal_super_resolution_the_decoder_gives_what_is_enlarged() -> None:
    recipe = load_recipe("seed_decoder")
    assert recipe.temporal_sr is None
    with pytest.raises(ValueError, match=r"spatial_sr=\(64, 90, 1\) .* must be those of decoder.window="):
        changed(recipe, "decoder.window.num_frames", 45)


def test_stored_values_that_do_not_fit_are_named() -> None:
    stored = to_dict(TINY.clip)
    stored["optim"]["lerning_rate"] = 1
    del stored["text"]["dim"]
    with pytest.raises(ValueError, match=r"stored ClipConfig: .*") as raised:
        from_dict(type(TINY.clip), stored)
    assert "lerning_rate" in str(raised.value)
    assert "text.dim" in str(raised.value)


def test_stored_values_are_validated_like_new_ones() -> None:
    stored = to_dict(TINY.data) | {"vocab_size": 3}
    with pytest.raises(ValueError, match="vocab_size=3 must be at least 300"):
        from_dict(DataConfig, stored)
