"""Between two texts: spherical interpolation of embeddings and of the encodings that the networks attend to.

(Shoemake 1985; of CLIP embeddings Ramesh et al. 2022, sec. 3.2.) Invariant: a share of 0 gives the first text to the
bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dalle2_video.stages.frozen_clip import TextCondition

_PARALLEL = 1e-4
"""Angle in radians, to 0 or to pi, from which on sines say nothing: vectors are mixed along the chord."""


def slerp(one: Tensor, other: Tensor, share_b: Tensor) -> Tensor:
    """Turn vectors (b, ..., d) by a share (b,) of the angle to others; lengths are interpolated linearly.

    Opposite vectors, which no one arc joins, are mixed along the chord.
    """
    share = share_b.reshape(-1, *[1] * (one.ndim - 1)).to(one.dtype)
    sizes = [vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12) for vectors in (one, other)]
    units = one / sizes[0], other / sizes[1]
    angle = (units[0] * units[1]).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    weights = torch.sin((1 - share) * angle) / sine, torch.sin(share * angle) / sine
    turned = weights[0] * units[0] + weights[1] * units[1]
    chord = torch.lerp(units[0], units[1], share.expand_as(units[0]))
    mixed = torch.where(sine < _PARALLEL, chord, turned) * ((1 - share) * sizes[0] + share * sizes[1])
    return torch.where(share == 0, one, mixed)


def blend(one: TextCondition, other: TextCondition, share_b: Tensor) -> TextCondition:
    """Turn texts by a share (b,) in [0, 1) towards others.

    Behind its end a text repeats the encoding of its last token, its end mark, so that each token of the longer one has
    a partner; what is attended to is as long as the longer one.
    """
    mask = torch.where((share_b == 0)[:, None], one.mask_bl, one.mask_bl | other.mask_bl)
    encodings = slerp(_repeated(one), _repeated(other), share_b)
    return TextCondition(
        encodings_bld=torch.where((share_b == 0)[:, None, None], one.encodings_bld, encodings),
        mask_bl=mask,
        embedding_bd=slerp(one.embedding_bd, other.embedding_bd, share_b),
    )


def _repeated(text: TextCondition) -> Tensor:
    last = text.mask_bl.sum(1) - 1
    ends = text.encodings_bld[torch.arange(len(last), device=last.device), last]
    return torch.where(text.mask_bl[..., None], text.encodings_bld, ends[:, None])
