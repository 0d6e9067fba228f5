"""One training of `variance.py`: a setup and a seed, trained and judged, kept in two files.

The network is the decoder's of the recipe, the loss of our setups the product's `denoise`, the optimiser what the
product takes at ZeRO stage 0. All setups of a seed see the same samples, times, noise and dropped conditions, and start
from the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from dalle2_video.config import Recipe
from dalle2_video.data.batches import WindowDataset, to_float
from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.likelihood import step_terms
from dalle2_video.diffusion.loss import diffusion_loss
from dalle2_video.diffusion.posterior import log_variances
from dalle2_video.diffusion.samplers import sample
from dalle2_video.diffusion.schedule import add_noise, log_snr
from dalle2_video.diffusion.variance import learned_log_variance, split_output
from dalle2_video.diffusion_config import DiffusionConfig, LearnedVariance, SamplerConfig
from dalle2_video.models.unet3d import Unet3D
from dalle2_video.stages.denoising import Denoised, denoise
from dalle2_video.stages.frozen_clip import FrozenClip
from dalle2_video.stages.inputs import StageInputs
from dalle2_video.training.adamw import SkippingAdamW
from tools.bench import alignment, variance_old
from tools.bench.variance_data import Material, batch_of
from tools.bench.variance_measures import Appearance, Terms, bounds, frechet, picked_steps

Variance = Literal["small", "large", "learned"]
HEAD = "variance_out"
TRAINED_STEPS = 1000
"""Steps of the bound that heads are trained for, and of the bound that is compared."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A way to learn the variance, or not to."""

    kind: LearnedVariance = "none"
    denoise: Callable[..., Denoised] = denoise
    network: type[Unet3D] = Unet3D
    split: variance_old.Split = split_output
    old: bool = False
    """The old log variance."""


SETUPS = {
    "fixed": Setup(),
    "range": Setup(kind="range"),
    "residual": Setup(kind="residual"),
    "old": Setup(
        kind="range",
        denoise=partial(variance_old.denoise_old, split=variance_old.split_frames),
        network=variance_old.SharedTrunk,
        split=variance_old.split_frames,
        old=True,
    ),
    "old_channels": Setup(
        kind="range",
        denoise=partial(variance_old.denoise_old, split=split_output),
        network=variance_old.SharedTrunk,
        old=True,
    ),
    "full_bound": Setup(kind="range", denoise=variance_old.denoise_full_bound, network=variance_old.SharedTrunk),
}
"""old: all faults; old_channels: all but the wrong axis; full_bound: neither stop-gradient nor a loss of the mean."""


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much is trained and measured."""

    clips: int = 240
    """Clips of the sample data."""
    clip_steps: int = 200
    """CLIP's optimiser steps."""
    dim: int = 32
    """Channels of the U-Net's first level; the recipe has 32."""
    steps: int = 300
    """Optimiser steps of a training."""
    batch: int = 16
    """Windows a step."""
    bound_windows: int = 16
    """Held-out windows whose bound is computed."""
    bound_terms: int = 64
    """Most steps of a bound that are computed, by strata."""
    sampled: int = 64
    """Samples whose distance is measured."""
    sample_steps: tuple[int, ...] = (10, 25, 50)
    """Numbers of ddpm steps."""
    seeds: int = 3
    """Trainings of each setup; 2 or more."""


class Bench:
    """The data and the frozen CLIP, with which any setup can be trained and judged."""

    def __init__(self, recipe: Recipe, material: Material, amounts: Amounts) -> None:
        self.amounts, self.clip = amounts, FrozenClip(material.clip)
        decoder = recipe.decoder
        self.config = replace(decoder, unet=replace(decoder.unet, dim=amounts.dim))
        self.optim = decoder.optim
        self.inputs = StageInputs(config=self.config, seed=0, store=material.store)

    def diffusion(self, setup: Setup) -> DiffusionConfig:
        """Return the recipe's diffusion with a setup's variance."""
        assert self.config.diffusion.variance_steps == TRAINED_STEPS
        return replace(self.config.diffusion, learned_variance=setup.kind)

    def dataset(self, split: Any, seed: int) -> WindowDataset:
        """Return windows at any start, as the decoder sees them."""
        return replace(self.inputs, seed=seed).samples(split, self.config.window)

    def network(self, setup: Setup, seed: int) -> Unet3D:
        """Return the network with the weights of a seed: those of the mean are the same in all setups."""
        torch.manual_seed(seed)
        return setup.network(
            self.config.unet,
            embedding_dim=self.clip.dims.embed_dim,
            text_dim=self.clip.dims.text_dim,
            low_res=False,
            learned_variance=setup.kind != "none",
        )

    def conditioned(self, batch: dict[str, Tensor], model: Unet3D) -> tuple[Tensor, variance_old.Predict]:
        """Return the windows (b, c, t, h, w) and the network as a function of (noised, log SNR, keep)."""
        video = to_float(batch["video"])
        text = self.clip.encode_text(batch["tokens"], batch["length"])
        embedding = self.clip.encode_video(video)

        def predict(noised: Tensor, logsnr_b: Tensor, keep_b: Tensor) -> Tensor:
            return model(
                noised,
                logsnr_b,
                encodings_bld=text.encodings_bld,
                text_mask_bl=text.mask_bl,
                keep_b=keep_b,
                embedding_bd=embedding,
            )

        return video, predict

    def train(self, name: str, seed: int, folder: Path, on_step: Callable[[], None]) -> None:
        """Train and leave the EMA's weights and what was seen on the way in `folder`."""
        setup = SETUPS[name]
        model, diffusion, samples = self.network(setup, seed), self.diffusion(setup), self.dataset("train", seed)
        parameters = dict(model.named_parameters())
        groups = [
            {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": self.optim.weight_decay},
            {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        adam = SkippingAdamW(groups, max_grad_norm=self.optim.max_grad_norm, lr=self.optim.lr, betas=self.optim.betas)
        average = {key: value.detach().clone() for key, value in parameters.items()}
        seen: dict[str, list[float]] = {"norm": [], "mean_norm": [], "head_norm": [], "mean_loss": []}
        for step in range(self.amounts.steps):
            batch = batch_of(samples, step, self.amounts.batch)
            video, predict = self.conditioned(batch, model)
            found = setup.denoise(predict, video, Draws(seed, batch["sample"], "cpu"), diffusion)
            adam.zero_grad()
            found.loss.backward()
            for key, of_head in (("mean_norm", False), ("head_norm", True)):
                chosen = [p.grad for key_, p in parameters.items() if key_.startswith(HEAD) is of_head]
                norm = torch.nn.utils.get_total_norm([gradient for gradient in chosen if gradient is not None])
                seen[key].append(float(norm))
            for group in adam.param_groups:
                group["lr"] = self.optim.lr * min(1.0, (step + 1) / self.optim.warmup_steps)
            adam.step()
            seen["norm"].append(adam._global_grad_norm)
            seen["mean_loss"].append(float(found.metrics.get("mean_loss", found.loss.detach())))
            if not adam.overflow:
                decay = min(self.optim.ema_decay, (2 + step) / (11 + step))  # as training/ema.py
                torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - decay)
            on_step()
        save_file(average, folder / f"{name}-{seed}.safetensors")
        write_json(folder / f"{name}-{seed}.trained.json", seen)

    def judge(self, name: str, seed: int, folder: Path, on_step: Callable[[], None]) -> None:
        """Judge the trained weights and leave the figures in `folder`; the held-out windows are the same for all."""
        setup = SETUPS[name]
        model = self.network(setup, seed)
        model.load_state_dict(load_file(folder / f"{name}-{seed}.safetensors"))
        model.eval().requires_grad_(False)
        held_out = self.dataset("val", 0)
        figures = {
            "mean_mse": self._mean_mse(setup, model, held_out),
            "bounds": self._bounds(setup, model, held_out, on_step),
            "samples": self._samples(setup, model, held_out, seed, on_step),
        }
        write_json(folder / f"{name}-{seed}.judged.json", figures)

    def _mean_mse(self, setup: Setup, model: Unet3D, held_out: WindowDataset) -> float:
        """Squared error of the prediction over held-out windows at even times."""
        diffusion, count = self.diffusion(setup), 4 * self.amounts.bound_windows
        batch = batch_of(held_out, 0, count)
        video, predict = self.conditioned(batch, model)
        time = (torch.arange(count) + 0.5) / count
        logsnr_b, noise = log_snr(time, diffusion), Draws(1, batch["sample"], "cpu").normal("noise", video.shape[1:])
        with torch.no_grad():
            output = predict(add_noise(video, noise, logsnr_b), logsnr_b, torch.ones(count, dtype=torch.bool))
        prediction, _ = setup.split(output, video.shape[1])
        return float(diffusion_loss(prediction, video, noise, logsnr_b, diffusion.objective).mean())

    def terms(self, setup: Setup) -> dict[str, Terms]:
        """Return the variances that a setup's network can be judged with."""
        if setup.kind == "none":
            return {"small": partial(_fixed_terms, 0), "large": partial(_fixed_terms, 1)}
        if setup.old:
            return {"learned": _old_terms, "exact": partial(_old_terms, exact=True)}
        return {"learned": partial(_learned_terms, setup.kind)}

    def _bounds(
        self, setup: Setup, model: Unet3D, held_out: WindowDataset, on_step: Callable[[], None]
    ) -> dict[str, Any]:
        batch = batch_of(held_out, 0, self.amounts.bound_windows)
        video, of_batch = self.conditioned(batch, model)
        draws, keep = Draws(2, batch["sample"], "cpu"), torch.ones(len(video), dtype=torch.bool)

        def predict(noised: Tensor, logsnr_b: Tensor) -> tuple[Tensor, Tensor | None]:
            on_step()
            return setup.split(of_batch(noised, logsnr_b, keep), video.shape[1])

        found: dict[str, Any] = {}
        for steps in (*self.amounts.sample_steps, TRAINED_STEPS):

            def noise_at(index: int, steps: int = steps) -> Tensor:
                return draws.normal(f"bound {steps} {index}", tuple(video.shape[1:]))

            found[str(steps)] = bounds(
                predict,
                video,
                noise_at,
                self.diffusion(setup),
                steps,
                picked_steps(steps, self.amounts.bound_terms),
                self.terms(setup),
            )
        return found

    def _samples(
        self, setup: Setup, model: Unet3D, held_out: WindowDataset, seed: int, on_step: Callable[[], None]
    ) -> dict[str, Any]:
        count, diffusion = self.amounts.sampled, self.diffusion(setup)
        batch = batch_of(held_out, 0, count)
        real, of_batch = self.conditioned(batch, model)
        appearance = Appearance(to_float(batch_of(self.dataset("train", 0), 0, 4 * count)["video"]).numpy())
        others = to_float(batch_of(held_out, 1, 4 * count)["video"]).numpy()
        reference = appearance.features(others)
        keep, draws = torch.ones(count, dtype=torch.bool), Draws(seed, batch["sample"], "cpu")
        shape = tuple(real.shape[1:])

        def predict(noised: Tensor, logsnr_b: Tensor, index: int) -> Tensor:
            on_step()
            return of_batch(noised, logsnr_b, keep)

        found: dict[str, Any] = {"real": {"frechet": frechet(appearance.features(real.numpy()), reference)}}
        variances: tuple[Variance, ...] = ("small", "large") if setup.kind == "none" else ("learned",)
        for steps in self.amounts.sample_steps:
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
    pairs = [[alignment.classify(video) for video in _levels(videos)] for videos in (real_bcthw, made_bcthw)]
    return {
        figure: float(np.mean([one[place] == other[place] for one, other in zip(*pairs, strict=True)]))
        for place, figure in enumerate(("colour", "direction"))
    }


def _levels(videos_bcthw: Tensor) -> np.ndarray:
    values = rearrange(videos_bcthw.clamp(-1, 1), "b c t h w -> b t h w c")
    return ((values + 1) * 127.5).round().to(torch.uint8).numpy()


def judging_steps(name: str, amounts: Amounts) -> int:
    """Return how often `Bench.judge` calls its on_step."""
    terms = sum(len(picked_steps(steps, amounts.bound_terms)) for steps in (*amounts.sample_steps, TRAINED_STEPS))
    return terms + sum(amounts.sample_steps) * (2 if SETUPS[name].kind == "none" else 1)


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all; numbers that are not finite are kept."""
    partial_file = path.with_name(f".{path.name}")
    partial_file.write_text(json.dumps(content))
    partial_file.rename(path)
