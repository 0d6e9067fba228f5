"""Videos of which some frames are known: a clip goes on, an image becomes a video, a video gets any length.

Reconstruction guidance (Ho et al. 2022, Video Diffusion Models, sec. 3.1, eq. 7): in each step the prediction of the
unknown frames moves such that that of the known ones comes nearer to what they are, by the gradient through the
network; the known frames themselves are put in their place. A network trained on whole videos alone needs no more.

With x the prediction of z's clean video, e the error of the known frames and J = dx/dz, all of it is x + J^T u:

    solver_steps  J u = e on the known frames, by so many steps of conjugate gradients (Rozet et al. 2024, "Learning
                  diffusion priors from observations", sec. 4.2): sigma^2 / alpha * J is the covariance of the clean
                  video given z, and what follows is the mean given the known frames too; exact for Gaussian data
    eq. 7         u = weight * alpha * e: J is taken for 1 / (weight * alpha) there, as if pixels and frames knew
                  nothing of each other; at weight 1 too weak for what is smooth; the right one depends on the data

Invariant: as in `samplers` no random number is drawn but from `draws`; a block is a function of (seed, prompt, block).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.guidance import ConditionalPredict, Predict
from dalle2_video.diffusion.parameterization import target, to_x0
from dalle2_video.diffusion.samplers import guided_predict, sample
from dalle2_video.diffusion.schedule import alpha_sigma
from dalle2_video.diffusion.variance import split_output
from dalle2_video.diffusion_config import DiffusionConfig, SamplerConfig

OnBlockStep = Callable[[int, int], None]
"""(block, step): called after each step of a block's sampler."""


def reconstruction_guided(
    predict: Predict,
    known: Tensor,
    mask: Tensor,
    config: DiffusionConfig,
    *,
    solver_steps: int = 1,
    weight: float = 1.0,
) -> Predict:
    """Return `predict` given that the clean sample is `known` wherever `mask` is True.

    known: (b, ...) float, of any content elsewhere; mask: bool, broadcast to it; solver_steps: 1 or more, or 0: eq. 7
    with `weight`, 0 or more, read then alone. A call costs a forward pass and 1 + solver_steps backward passes.
    """

    def conditional(noised: Tensor, logsnr_b: Tensor, index: int) -> Tensor:
        alpha, sigma = alpha_sigma(logsnr_b, noised.ndim)
        with torch.enable_grad():
            entered = noised.detach().requires_grad_()
            prediction, raw = split_output(predict(entered, logsnr_b, index), noised.shape[1])
            x0 = to_x0(config.objective, prediction, entered, logsnr_b)

        def pulled(direction: Tensor) -> Tensor:
            return torch.autograd.grad(x0, entered, direction, retain_graph=True)[0]

        error = torch.where(mask, known - x0.detach(), 0.0)
        if solver_steps:
            direction = _solve(lambda tried: torch.where(mask, pulled(tried), 0.0), error, solver_steps)
        else:
            direction = weight * alpha * error
        guided = torch.where(mask, known, x0.detach() + pulled(direction))
        # the sampler reads x0 off the output again, and keeps the noise of known frames as the forward process does
        output = target(config.objective, guided, (noised - alpha * guided) / sigma, logsnr_b)
        return output if raw is None else torch.cat([output, raw.detach()], dim=1)

    return conditional


def _solve(apply: Callable[[Tensor], Tensor], right: Tensor, steps: int) -> Tensor:
    """Solve apply(x) = right for each sample by itself, by conjugate gradients from 0; apply: symmetric, positive.

    What a network makes is so only roughly: along a direction without curvature a sample stays where it is.
    """

    def dot(one: Tensor, two: Tensor) -> Tensor:
        return (one * two).flatten(1).sum(1).reshape(-1, *[1] * (one.ndim - 1))

    def ratio(over: Tensor, under: Tensor) -> Tensor:
        return torch.where(under > 0, over / under, 0.0)

    x, residual, direction = torch.zeros_like(right), right, right
    size = dot(residual, residual)
    for _ in range(steps):
        applied = apply(direction)
        step = ratio(size, dot(direction, applied))
        x, residual = x + step * direction, residual - step * applied
        before, size = size, dot(residual, residual)
        direction = residual + ratio(size, before) * direction
    return x


@torch.no_grad()
def complete(
    predict: ConditionalPredict,
    known: Tensor,
    mask: Tensor,
    draws: Draws,
    config: DiffusionConfig,
    sampler: SamplerConfig,
    *,
    name: str,
    guidance: float | None = None,
    solver_steps: int = 1,
    weight: float = 1.0,
    clip_x0: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Sample videos that are `known` where `mask` is True.

    predict: see `guidance.guided`; known: (b, c, t, h, w) in [-1, 1]; mask: (t,) bool of known frames, or broadcast to
    `known`; name: of the draws, other names give other videos; guidance: classifier-free, None takes the config's;
    solver_steps, weight: see `reconstruction_guided`. Returns (b, c, t, h, w) fp32, where known `known` to the bit.
    """
    known = known.float()
    mask = mask[:, None, None] if mask.ndim == 1 else mask
    shape = tuple(known.shape[1:])
    given = reconstruction_guided(
        guided_predict(predict, config, sampler, guidance),
        known,
        mask,
        config,
        solver_steps=solver_steps,
        weight=weight,
    )
    found = sample(
        given,
        draws.normal(name, shape),
        config,
        sampler,
        lambda step: draws.normal(f"{name} step {step}", shape),
        clip_x0=clip_x0,
        on_step=on_step,
    )
    return torch.where(mask, known, found)


def extend(
    predict_block: Callable[[int], ConditionalPredict],
    video: Tensor,
    draws: Draws,
    config: DiffusionConfig,
    sampler: SamplerConfig,
    *,
    name: str,
    window: int,
    overlap: int,
    blocks: int,
    guidance: float | None = None,
    solver_steps: int = 1,
    weight: float = 1.0,
    on_step: OnBlockStep | None = None,
) -> Tensor:
    """Let videos go on by `blocks` blocks, each sampled given the last `overlap` frames before it.

    predict_block: from the number of a block, 1 the first, to the network with its conditions; video: (b, c, t, h, w)
    in [-1, 1], at least `overlap` frames, one for image to video; window: frames that the network makes at once.
    Returns (b, c, t + blocks * (window - overlap), h, w), `video` first, to the bit. More blocks only add to fewer.
    Raises ValueError where the numbers do not fit.
    """
    if not 1 <= overlap < window:
        raise ValueError(f"overlap={overlap} must lie in [1, {window - 1}]: a block makes {window} frames, some new")
    if video.shape[2] < overlap:
        raise ValueError(f"overlap={overlap} needs as many frames to go on from, the video has {video.shape[2]}")
    if blocks < 1:
        raise ValueError(f"blocks={blocks} must be 1 or more")
    mask = torch.arange(window, device=video.device) < overlap
    for block in range(1, blocks + 1):
        known = torch.zeros(*video.shape[:2], window, *video.shape[3:], device=video.device)
        known[:, :, :overlap] = video[:, :, -overlap:]
        made = complete(
            predict_block(block),
            known,
            mask,
            draws,
            config,
            sampler,
            name=f"{name} block {block}",
            guidance=guidance,
            solver_steps=solver_steps,
            weight=weight,
            on_step=None if on_step is None else lambda step, block=block: on_step(block, step),  # type: ignore[misc]
        )
        video = torch.cat([video, made[:, :, overlap:]], dim=2)
    return video
