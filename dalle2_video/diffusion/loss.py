"""Training loss of all diffusion stages: mean squared error against the target of the objective.

One number a sample and not the batch's mean, so that a stage can weight samples, and so that validation can report the
loss by noise level. Computed in fp32 whatever the network's precision.
"""

from __future__ import annotations

import torch
from einops import reduce
from torch import Tensor

from dalle2_video.diffusion.parameterization import target
from dalle2_video.diffusion_config import Objective


def mean_of_samples(elements: Tensor, valid_b: Tensor | None = None) -> Tensor:
    """Mean over a sample's elements (b, ...); returns (b,).

    valid_b: (b,) int, 1 or more: with videos (b, c, t, h, w) the mean is over a sample's first valid_b frames alone.
    """
    if valid_b is None:
        return elements.flatten(1).mean(1)
    of_frame = reduce(elements, "b c t h w -> b t", "mean")
    valid = torch.arange(of_frame.shape[1], device=valid_b.device) < valid_b[:, None]
    return torch.where(valid, of_frame, 0.0).sum(1) / valid.sum(1)


def diffusion_loss(
    prediction: Tensor,
    x0: Tensor,
    noise: Tensor,
    logsnr_b: Tensor,
    objective: Objective,
    valid_b: Tensor | None = None,
) -> Tensor:
    """Mean over a sample's elements of (prediction - target)^2 (Ho et al. 2020, eq. 14, for any objective).

    prediction, x0, noise: (b, ...) float of one shape; logsnr_b: (b,). valid_b: (b,) as in `mean_of_samples`. Returns
    (b,) fp32, 0 or more. Raises ValueError where the shapes differ, which broadcasting would turn into a wrong loss.
    """
    if not prediction.shape == x0.shape == noise.shape:
        raise ValueError(
            f"diffusion_loss: prediction {tuple(prediction.shape)}, x0 {tuple(x0.shape)} and noise "
            f"{tuple(noise.shape)} must have one shape"
        )
    return mean_of_samples((prediction.float() - target(objective, x0, noise, logsnr_b)).square(), valid_b)
