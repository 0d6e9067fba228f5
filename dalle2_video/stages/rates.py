"""The frame rate as a condition: what a network that has learnt several rates is told of the video it is to make.

A rate is a stride of the stage's window, in frames of the store that it was trained on; see `sampling_rates` for those
of a chain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fps_condition(config: Any, store_fps: float, stride_b: Tensor | None, *, images: int = 0) -> dict[str, Tensor]:
    """Return the network's condition on frames per second, {"fps_b": (b + images,)}; {} where it has learnt one rate.

    config: of a decoder or a super-resolution stage; store_fps: frames per second of the store it was trained on;
    stride_b: (b,) strides of the samples' windows, read where there are several; images: the last rows, of rate 0.
    """
    if not config.strides:
        return {}
    assert stride_b is not None
    fps_b = store_fps / stride_b.to(torch.float32)
    return {"fps_b": torch.cat([fps_b, fps_b.new_zeros(images)])}
