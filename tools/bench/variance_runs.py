"""One training of `variance.py`: a setup and a seed; `variance_judging.py` judges it. What each finds is a file.

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
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dalle2_video.config import DecoderConfig
from dalle2_video.data.batches import WindowDataset, to_float
from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.variance import split_output
from dalle2_video.diffusion_config import DiffusionConfig, LearnedVariance
from dalle2_video.models.unet3d import Unet3D
from dalle2_video.stages.denoising import Denoised, denoise
from dalle2_video.stages.frozen_clip import FrozenClip
from dalle2_video.stages.inputs import StageInputs
from dalle2_video.training.adamw import SkippingAdamW
from tools.bench import variance_old
from tools.bench.variance_data import Material, batch_of

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
    variance_steps: int = TRAINED_STEPS
    """Steps of the bound that the head learns; for `range`."""


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
INERT = ("fixed", "range", "residual")
"""Setups whose means must be the same."""


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
    unclipped_steps: int = 40
    """Optimiser steps without clipping, after which the mean must be the same to the bit with and without a head."""
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
    """The data and the frozen CLIP, with which any setup can be trained."""

    def __init__(self, config: DecoderConfig, material: Material, amounts: Amounts) -> None:
        self.config, self.amounts, self.clip = config, amounts, FrozenClip(material.clip)
        self.optim = config.optim
        self.inputs = StageInputs(config=self.config, seed=0, store=material.store)

    def diffusion(self, setup: Setup) -> DiffusionConfig:
        """Return the decoder's diffusion with a setup's variance."""
        return replace(self.config.diffusion, learned_variance=setup.kind, variance_steps=setup.variance_steps)

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
        seen, average = self._trained(name, seed, self.amounts.steps, self.optim.max_grad_norm, on_step)
        save_file(average, folder / f"{name}-{seed}.safetensors")
        write_json(folder / f"{name}-{seed}.trained.json", seen)

    def train_unclipped(self, name: str, seed: int, folder: Path, on_step: Callable[[], None]) -> None:
        """Train for a few steps without clipping, whose common norm would let the head touch the mean by rounding."""
        seen, _ = self._trained(name, seed, self.amounts.unclipped_steps, 0.0, on_step)
        write_json(folder / f"{name}-{seed}.unclipped.json", {"unclipped_mean_loss": seen["mean_loss"]})

    def _trained(
        self, name: str, seed: int, steps: int, max_grad_norm: float, on_step: Callable[[], None]
    ) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
        """Return what was seen at each step, and the EMA's weights; max_grad_norm: 0 for no clipping."""
        setup = SETUPS[name]
        model, diffusion, samples = self.network(setup, seed), self.diffusion(setup), self.dataset("train", seed)
        parameters = dict(model.named_parameters())
        groups = [
            {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": self.optim.weight_decay},
            {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        adam = SkippingAdamW(groups, max_grad_norm=max_grad_norm, lr=self.optim.lr, betas=self.optim.betas)
        average = {key: value.detach().clone() for key, value in parameters.items()}
        seen: dict[str, list[float]] = {"norm": [], "mean_norm": [], "head_norm": [], "mean_loss": []}
        for step in range(steps):
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
        return seen, average


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all; numbers that are not finite are kept."""
    partial_file = path.with_name(f".{path.name}")
    partial_file.write_text(json.dumps(content))
    partial_file.rename(path)
