"""The frame rate of each stage of a chain where a rate is asked for. Imports no torch, so that launchers check it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dalle2_video.config import TemporalSrConfig


def strides_of(configs: Mapping[str, Any], store_fps: float, fps: float) -> dict[str, int]:
    """Return the distance of each stage's frames, in frames of the store; the last stage then makes `fps` a second.

    configs: of the stages that make pictures, in their order; fps: 0 takes the last stage's own. Raises ValueError with
    the rates that there are where a stage has not learnt what is asked of it.
    """
    names = [*configs]
    last = configs[names[-1]]
    learnt = {store_fps / stride: stride for stride in _learnt(last)}
    if fps and fps not in learnt:
        rates = " or ".join(f"{rate:g}" for rate in sorted(learnt))
        raise ValueError(f"sample.fps={fps:g}: the {names[-1]} run makes {rates} frames a second; give one, or none")
    stride = learnt[fps] if fps else last.window.stride
    found: dict[str, int] = {}
    for name in reversed(names):
        if stride not in _learnt(configs[name]):
            rates = " or ".join(f"{store_fps / one:g}" for one in _learnt(configs[name]))
            raise ValueError(
                f"sample.fps={fps:g}: {name} would have to make {store_fps / stride:g} frames a second, and its run "
                f"makes {rates}; leave sample.fps out, or train it with --{name.replace('_', '-')}.strides"
            )
        found[name] = stride
        if isinstance(configs[name], TemporalSrConfig):
            stride *= configs[name].factor
    return {name: found[name] for name in names}


def _learnt(config: Any) -> tuple[int, ...]:
    return config.strides or (config.window.stride,)
