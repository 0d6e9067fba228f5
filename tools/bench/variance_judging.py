"""How a trained network of `variance.py` is judged: error of the mean, bound, and samples, all on held-out windows."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from dalle2_video.data.batches import WindowDataset, to_float
from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.likelihood import step_terms
from dalle2_video.diffusion.loss import diffusion_loss
from dalle2_video.diffusion.posterior import log_variances
from dalle2_video.diffusion.samplers import sample
from dalle2_video.diffusion.schedule import add_noise, log_snr
from dalle2_video.diffusion.variance import learned_log_variance
from dalle2_video.diffusion_config import LearnedVariance, SamplerConfig
from dalle2_video.models.factory import load_export
from dalle2_video.models.unet3d import Unet3D
from tools.bench import alignment_judges, variance_old
from tools.bench.variance_data import Material, batch_of
from tools.bench.variance_measures import Appearance, Terms, bounds, frechet, picked_steps
from tools.bench.variance_runs import SETUPS, TRAINED_STEPS, Amounts, Bench, Setup, write_json

Variance = Literal["small", "large", "learned"]


def judge_bounds(bench: Bench, name: str, seed: int, folder: Path, on_step: Callable[[], None]) -> None:
    """Judge the trained weights by mean and bound, and leave the figures in `folder`."""
    figures = bound_figures(bench, SETUPS[name], _trained(bench, name, seed, folder), on_step)
    write_json(folder / f"{name}-{seed}.bounds.json", figures)


def judge_samples(bench: Bench, name: str, seed: int, folder: Path, on_step: Callable[[], None]) -> None:
    """Judge the trained weights by samples, and leave the figures in `folder`."""
    setup, model = SETUPS[name], _trained(bench, name, seed, folder)
    variances: tuple[Variance, ...] = ("small", "large") if setup.kind == "none" else ("learned",)
    figures = {"samples": sample_figures(bench, setup, model, seed, variances, on_step)}
    write_json(folder / f"{name}-{seed}.samples.json", figures)


def _trained(bench: Bench, name: str, seed: int, folder: Path) -> Unet3D:
    model = bench.network(SETUPS[name], seed)
    model.load_state_dict(load_file(folder / f"{name}-{seed}.safetensors"))
    return model.eval().requires_grad_(False)


def bound_figures(bench: Bench, setup: Setup, model: Unet3D, on_step: Callable[[], None]) -> dict[str, Any]:
    """Return `mean_mse` and `bounds`, by steps, variance and part."""
    held_out = bench.dataset("val", 0)
    return {
        "mean_mse": _mean_mse(bench, setup, model, held_out),
        "bounds": _bounds(bench, setup, model, held_out, on_step),
    }


def _mean_mse(bench: Bench, setup: Setup, model: Unet3D, held_out: WindowDataset) -> float:
    """Squared error of the prediction over held-out windows at even times."""
    diffusion, count = bench.diffusion(setup), 4 * bench.amounts.bound_windows
    batch = batch_of(held_out, 0, count)
    video, predict = bench.conditioned(batch, model)
    time = (torch.arange(count) + 0.5) / count
    logsnr_b, noise = log_snr(time, diffusion), Draws(1, batch["sample"], "cpu").normal("noise", video.shape[1:])
    with torch.no_grad():
        output = predict(add_noise(video, noise, logsnr_b), logsnr_b, torch.ones(count, dtype=torch.bool))
    prediction, _ = setup.split(output, video.shape[1])
    return float(diffusion_loss(prediction, video, noise, logsnr_b, diffusion.objective).mean())


def terms(setup: Setup) -> dict[str, Terms]:
    """Return the variances that a setup's network is judged with: the fixed ones on its mean, and its own."""
    fixed: dict[str, Terms] = {"small": partial(_fixed_terms, 0), "large": partial(_fixed_terms, 1)}
    if setup.old:
        return fixed | {"learned": _old_terms, "exact": partial(_old_terms, exact=True)}
    return fixed if setup.kind == "none" else fixed | {"learned": partial(_learned_terms, setup.kind)}


def _bounds(
    bench: Bench, setup: Setup, model: Unet3D, held_out: WindowDataset, on_step: Callable[[], None]
) -> dict[str, Any]:
    batch = batch_of(held_out, 0, bench.amounts.bound_windows)
    video, of_batch = bench.conditioned(batch, model)
    draws, keep = Draws(2, batch["sample"], "cpu"), torch.ones(len(video), dtype=torch.bool)

    def predict(noised: Tensor, logsnr_b: Tensor) -> tuple[Tensor, Tensor | None]:
        on_step()
        return setup.split(of_batch(noised, logsnr_b, keep), video.shape[1])

    found: dict[str, Any] = {}
    for steps in (*bench.amounts.sample_steps, TRAINED_STEPS):

        def noise_at(index: int, steps: int = steps) -> Tensor:
            return draws.normal(f"bound {steps} {index}", tuple(video.shape[1:]))

        found[str(steps)] = bounds(
            predict,
            video,
            noise_at,
            bench.diffusion(setup),
            steps,
            picked_steps(steps, bench.amounts.bound_terms),
            terms(setup),
        )
    return found


def sample_figures(
    bench: Bench,
    setup: Setup,
    model: Unet3D,
    seed: int,
    variances: tuple[Variance, ...],
    on_step: Callable[[], None],
) -> dict[str, Any]:
    """Return distance and agreement by variance and steps, and the distance of real windows; seed: of the noise."""
    held_out = bench.dataset("val", 0)
    count, diffusion = bench.amounts.sampled, bench.diffusion(setup)
    batch = batch_of(held_out, 0, count)
    real, of_batch = bench.conditioned(batch, model)
    appearance = Appearance(to_float(batch_of(bench.dataset("train", 0), 0, 4 * count)["video"]).numpy())
    others = to_float(batch_of(held_out, 1, 4 * count)["video"]).numpy()
    reference = appearance.features(others)
    keep, draws = torch.ones(count, dtype=torch.bool), Draws(seed, batch["sample"], "cpu")
    shape = tuple(real.shape[1:])

    def predict(noised: Tensor, logsnr_b: Tensor, index: int) -> Tensor:
        on_step()
        return of_batch(noised, logsnr_b, keep)

    found: dict[str, Any] = {"real": {"frechet": frechet(appearance.features(real.numpy()), reference)}}
    for steps in bench.amounts.sample_steps:
        noise = draws.normal(f"sample {steps}", shape)

        def noise_at(index: int, steps: int = steps) -> Tensor:
            return draws.normal(f"sample {steps} {index}", shape)

        for variance in variances:
            if setup.old:
                made = variance_old.sample_old(predict, noise, diffusion, steps, noise_at, setup.split)
            else:
                sampler = SamplerConfig(method="ddpm", steps=steps, variance=variance)
                with torch.no_grad():
                    made = sample(predict, noise, diffusion, sampler, noise_at, clip_x0=True)
            found[f"{variance} {steps}"] = {
                "frechet": frechet(appearance.features(made.numpy()), reference),
                **agreement(real, made),
            }
    return found


def _fixed_terms(
    which: int, x0: Tensor, predicted: Tensor, raw: Tensor | None, now: Tensor, after: Tensor, noisier: Tensor
) -> Tensor:
    log_variance = log_variances(now, after, noisier)[which].reshape(-1, *[1] * (x0.ndim - 1))
    return step_terms(x0, predicted, log_variance, now, after)


def _learned_terms(
    kind: LearnedVariance,
    x0: Tensor,
    predicted: Tensor,
    raw: Tensor | None,
    now: Tensor,
    after: Tensor,
    noisier: Tensor,
) -> Tensor:
    return step_terms(x0, predicted, learned_log_variance(kind, raw, now, after, noisier), now, after)


def _old_terms(
    x0: Tensor,
    predicted: Tensor,
    raw: Tensor | None,
    now: Tensor,
    after: Tensor,
    noisier: Tensor,
    *,
    exact: bool = False,
) -> Tensor:
    """Bound of the old variance: as the old code counts, with probabilities cut off, or as it is."""
    assert raw is not None
    log_variance = variance_old.old_log_variance(raw, now, after)
    return (step_terms if exact else variance_old.old_terms)(x0, predicted, log_variance, now, after)


def agreement(real_bcthw: Tensor, made_bcthw: Tensor) -> dict[str, float]:
    """Return the shares of samples whose colour and direction are those of the window that they were made from."""
    pairs = [[alignment_judges.classify(video) for video in _levels(videos)] for videos in (real_bcthw, made_bcthw)]
    return {
        figure: float(np.mean([one[place] == other[place] for one, other in zip(*pairs, strict=True)]))
        for place, figure in enumerate(("colour", "direction"))
    }


def _levels(videos_bcthw: Tensor) -> np.ndarray:
    values = rearrange(videos_bcthw.clamp(-1, 1), "b c t h w -> b t h w c")
    return ((values + 1) * 127.5).round().to(torch.uint8).numpy()


def bound_calls(amounts: Amounts) -> int:
    """Return how often `judge_bounds` calls its on_step."""
    return sum(len(picked_steps(steps, amounts.bound_terms)) for steps in (*amounts.sample_steps, TRAINED_STEPS))


def sample_calls(name: str, amounts: Amounts) -> int:
    """Return how often `judge_samples` calls its on_step."""
    return sum(amounts.sample_steps) * (2 if SETUPS[name].kind == "none" else 1)


def judge_finished(run: Path, amounts: Amounts, file: Path, on_step: Callable[[], None]) -> None:
    """Judge the decoder of a registry's finished run with all variances on its mean, and leave the figures in `file`.

    Raises ValueError with a remedy where the run is none with a learned variance.
    """
    if not (run / "export").is_dir() or not (run / "run.json").is_file():
        raise ValueError(f"--decoder {run}: is no folder of a finished run; see: python tools/runs.py list")
    exported = load_export(run / "export", "decoder")
    diffusion = exported.config.diffusion
    if diffusion.learned_variance == "none":
        raise ValueError(f"--decoder {run}: has a fixed variance; take one trained with diffusion.learned_variance")
    parents = json.loads((run / "run.json").read_text())["parents"]
    store, clip = (
        next((run.parents[1] / stage).glob(f"*-{parents[stage]['id']}")) / part
        for stage, part in (("preprocess", "store"), ("clip", "export"))
    )
    bench = Bench(exported.config, Material(store=store, clip=clip), amounts)
    setup = Setup(kind=diffusion.learned_variance, variance_steps=diffusion.variance_steps)
    assert isinstance(exported.module, Unet3D)
    figures = bound_figures(bench, setup, exported.module, on_step)
    figures["samples"] = sample_figures(bench, setup, exported.module, 0, get_args(Variance), on_step)
    write_json(file, figures)


def finished_calls(amounts: Amounts) -> int:
    """Return how often `judge_finished` calls its on_step."""
    return bound_calls(amounts) + len(get_args(Variance)) * sum(amounts.sample_steps)
