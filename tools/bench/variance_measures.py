"""What `variance.py` measures: gradients' spikes, the bound's terms, and how far samples are from real windows."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dalle2_video.diffusion.likelihood import prior_kl
from dalle2_video.diffusion.loss import mean_of_samples
from dalle2_video.diffusion.parameterization import to_x0
from dalle2_video.diffusion.schedule import add_noise, log_snr
from dalle2_video.diffusion_config import DiffusionConfig

SPIKE = 10
"""A gradient norm beyond so many times the median is a spike."""
PARTS = ("prior", "steps", "last")
"""Of a bound: what z_1 says of x0, all steps but the last, and the last step, t = 0."""
COMPONENTS = 16

Terms = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor], Tensor]
"""(x0, predicted x0, the head's raw output, log SNR of a step, after it, before the one before) to nats (b, ...)."""


def gradient_figures(norms: Sequence[float]) -> dict[str, float]:
    """Return spread and spikes of a training's gradient norms, and how many were not finite.

    Ratios to the median are of the finite ones. Raises ValueError where none is finite.
    """
    finite = [norm for norm in norms if math.isfinite(norm)]
    if not finite:
        raise ValueError(f"none of {len(norms)} gradient norms is finite")
    median = statistics.median(finite)
    return {
        "p99_over_median": float(np.quantile(finite, 0.99)) / median,
        "max_over_median": max(finite) / median,
        "spikes": sum(norm > SPIKE * median for norm in finite) / len(norms),
        "non_finite": float(len(norms) - len(finite)),
    }


def picked_steps(steps: int, most: int) -> dict[int, int]:
    """Return the steps whose terms are computed, and how many steps each stands for.

    They are the last one, and the middles of `most` - 1 strata, which grow geometrically from one step before the last
    on: terms rise steeply towards the clean end, where most of a bound comes from.
    """
    inner, strata = steps - 1, min(most, steps) - 1
    low, high = 1.0, float(steps)
    for _ in range(60):  # the ratio of neighbouring strata
        ratio = (low + high) / 2
        low, high = (low, ratio) if _edge(strata, ratio) > inner else (ratio, high)
    edges = [math.floor(_edge(number, low) + 0.5) for number in range(strata + 1)]
    picked = {inner: 1}
    for near, far in itertools.pairwise(edges):
        picked[inner - 1 - (near + far - 1) // 2] = far - near
    return dict(sorted(picked.items()))


def _edge(number: int, ratio: float) -> float:
    """Steps in the first strata of a geometric row that begins with 1."""
    return float(number) if ratio == 1 else math.expm1(number * math.log(ratio)) / (ratio - 1)


@torch.no_grad()
def bounds(
    predict: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]],
    x0: Tensor,
    noise_at: Callable[[int], Tensor],
    config: DiffusionConfig,
    steps: int,
    picked: Mapping[int, int],
    contestants: Mapping[str, Terms],
) -> dict[str, dict[str, float]]:
    """Bits a dimension of ddpm with `steps` steps, for several variances on one mean; by contestant, then by PARTS.

    As `dalle2_video.diffusion.bound`, which this equals where all steps are picked.
    picked: see `picked_steps`, the last step at its end. predict: (noised, log SNR (b,)) to the prediction and the
    head's raw output.
    """
    levels = log_snr(torch.linspace(1, 0, steps + 1, dtype=torch.float64), config)
    levels[-1] = math.inf
    terms: dict[str, list[float]] = {name: [] for name in contestants}
    for index in picked:
        noisier, logsnr_b, next_b = levels[[max(index - 1, 0), index, index + 1], None].expand(3, len(x0))
        noised = add_noise(x0, noise_at(index), logsnr_b)
        prediction, raw = predict(noised, logsnr_b)
        predicted = to_x0(config.objective, prediction, noised, logsnr_b).clamp(-1, 1)
        for name, term in contestants.items():
            nats = mean_of_samples(term(x0, predicted, raw, logsnr_b, next_b, noisier)).mean()
            terms[name].append(float(nats) / math.log(2))
    prior = float(mean_of_samples(prior_kl(x0, levels[:1].expand(len(x0)))).mean()) / math.log(2)
    weights = list(picked.values())[:-1]
    return {
        name: {"prior": prior, "steps": float(np.dot(values[:-1], weights)), "last": values[-1]}
        for name, values in terms.items()
    }


class Appearance:
    """Features of how single frames look and change, for a Fréchet distance. No network: named for what it is.

    Of each pair of neighbouring frames: 16 principal components of the first one's pixels and of the difference, and
    the logarithm of the energy that these leave (noise, mostly), each in units of the real windows' deviation.
    """

    def __init__(self, real_bcthw: np.ndarray) -> None:
        """real_bcthw: (n, c, t, h, w) float, at least 17 pairs of frames."""
        frames, changes = _frames_and_changes(real_bcthw)
        self.means = [values.mean(0) for values in (frames, changes)]
        self.axes = [
            np.linalg.svd(values - mean, full_matrices=False)[2][:COMPONENTS]
            for values, mean in zip((frames, changes), self.means, strict=True)
        ]
        raw = self._raw(real_bcthw)
        self.centre, self.scale = raw.mean(0), raw.std(0)

    def _raw(self, windows_bcthw: np.ndarray) -> np.ndarray:
        columns = []
        for values, mean, axes in zip(_frames_and_changes(windows_bcthw), self.means, self.axes, strict=True):
            found = (values - mean) @ axes.T
            left = np.square(values - mean).sum(1) - np.square(found).sum(1)
            columns += [found, np.log(left.clip(0) / values.shape[1] + 1e-6)[:, None]]
        return np.concatenate(columns, axis=1)

    def features(self, windows_bcthw: np.ndarray) -> np.ndarray:
        """Return (n * (t - 1), 34) float64."""
        return (self._raw(windows_bcthw) - self.centre) / self.scale


def _frames_and_changes(windows_bcthw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    frames = rearrange(windows_bcthw.astype(np.float64), "b c t h w -> b t (c h w)")
    return tuple(rearrange(part, "b t d -> (b t) d") for part in (frames[:, :-1], np.diff(frames, axis=1)))  # type: ignore[return-value]


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features (n, d) (Dowson & Landau 1982)."""
    distance = np.square(one.mean(0) - other.mean(0)).sum()
    of_one, of_other = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    values, vectors = np.linalg.eigh(of_one)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ of_other @ root).clip(0)).sum()
    return float(distance + np.trace(of_one) + np.trace(of_other) - 2 * shared)
