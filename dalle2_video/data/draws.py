"""The random numbers of a batch's samples as tensors: diffusion times, noise and dropped conditions.

Invariant: as in `keyed_random`, every number is a pure function of (seed, purpose, global sample number), and of the
kind of device. The stages and the generation draw from here; the loader processes need no more than `keyed_random`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dalle2_video.data.keyed_random import image_numbers, key, uniform


class Draws:
    """The random numbers of a batch's samples, on the device of the batch.

    A sample's numbers depend on (seed, purpose, its global number) and on the kind of device, never on the other
    samples of the batch. Equal purposes give equal numbers: use one name for each draw of a step.
    """

    def __init__(self, seed: int, samples: Tensor, device: torch.device | str) -> None:
        """samples: (b,) int64 global sample numbers."""
        self.seed = seed
        self.samples = samples.detach().cpu().numpy().astype(np.int64)
        self.device = torch.device(device)

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Return (b, *shape) float32 from N(0, 1)."""
        keys = [key(self.seed, purpose, sample) for sample in self.samples.tolist()]
        if self.device.type == "cpu":
            # torch's CPU generator keeps 32 bits of a seed, so that far-apart samples would share noise.
            rows = [np.random.Generator(np.random.Philox(key=of_row)) for of_row in keys]
            return torch.from_numpy(np.stack([row.standard_normal(shape, np.float32) for row in rows]))
        noise = torch.empty((len(keys), *shape), device=self.device)
        generator = torch.Generator(device=self.device)
        for row, of_row in zip(noise, keys, strict=True):
            generator.manual_seed(of_row)
            row.normal_(generator=generator)
        return noise

    def uniform(self, purpose: str) -> Tensor:
        """Return (b,) float32 in [0, 1)."""
        # 24 bits are exact in float32; rounding a float64 just below 1 would give 1.
        values = np.floor(uniform(self.seed, purpose, self.samples) * 2**24) * 2.0**-24
        return torch.from_numpy(values.astype(np.float32)).to(self.device)

    def of_images(self, images: int) -> Draws:
        """Return the random numbers of the b * images single frames that come along with the samples, in order."""
        numbers, seed = image_numbers(self.seed, self.samples, images)
        return Draws(seed, torch.from_numpy(numbers.reshape(-1)), self.device)

    def keep(self, purpose: str, drop_probability: float) -> Tensor:
        """Return (b,) bool, False with `drop_probability` in [0, 1]."""
        return self.uniform(purpose) >= drop_probability
