"""The weights of a chain in memory: one stage at a time, unless asked otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from dalle2_video.models.factory import Exported, load_export
from dalle2_video.stages.frozen_clip import FrozenClip


class LoadedStages:
    """Stages of a chain, loaded when they are first needed."""

    def __init__(self, exports: Mapping[str, Path], device: torch.device, *, keep: bool) -> None:
        """exports: export folders by stage; keep: stages stay in memory once they were needed."""
        self._exports, self._device, self._keep = exports, device, keep
        self._clip: FrozenClip | None = None
        self._stages: dict[str, Exported] = {}

    def clip(self) -> FrozenClip:
        """Return CLIP, on the device."""
        if self._clip is None:
            self._make_room()
            self._clip = FrozenClip(self._exports["clip"])
            self._clip.to(self._device)
        return self._clip

    def stage(self, name: str) -> Exported:
        """Return another stage than CLIP, on the device."""
        if name not in self._stages:
            self._make_room()
            stage = load_export(self._exports[name], name)
            stage.module.to(self._device)
            self._stages[name] = stage
        return self._stages[name]

    def _make_room(self) -> None:
        if self._keep:
            return
        self._clip = None
        self._stages.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # another process's share of the GPU
