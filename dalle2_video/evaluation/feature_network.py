"""A network that a user gives as a TorchScript file, whose features videos or frames are compared by.

Its contract is that of the files that are in use for FVD (I3D) and FID (Inception): float32 in [0, 255] in, features
(b, d) out; of the arguments `rescale`, `resize` and `return_features` those that its forward has are set to True. It
does its own scaling, and is given frames as they are.

Loading runs code that is in the file. Nothing else of this package loads code from data.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dalle2_video.evaluation import feature_files

SWITCHES = ("rescale", "resize", "return_features")


class FeatureNetwork:
    """A loaded network."""

    def __init__(self, field: str, path: str, digest: str, device: torch.device) -> None:
        """field: of the config that names the file, for messages; digest: what the file must be.

        Raises ValueError where it is another file, or is none of TorchScript.
        """
        self.name, self.device = f"evaluate.{field}={path}", device
        if feature_files.digest(field, Path(path)) != digest:
            raise ValueError(f"{self.name} is not the file of that run any more; put it back, or start another run")
        try:
            self.module = torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(f"{self.name} is no TorchScript file: {_last_line(error)}") from error
        arguments = {argument.name for argument in self.module.forward.schema.arguments}
        self.switches = {name: True for name in SWITCHES if name in arguments}

    def of_videos(self, videos_bthwc: np.ndarray) -> np.ndarray:
        """Return features (b, d) float32 of videos (b, t, h, w, 3) uint8."""
        return self._features(rearrange(self._floats(videos_bthwc), "b t h w c -> b c t h w"))

    def of_frames(self, frames_bhwc: np.ndarray) -> np.ndarray:
        """Return features (b, d) float32 of frames (b, h, w, 3) uint8."""
        return self._features(rearrange(self._floats(frames_bhwc), "b h w c -> b c h w"))

    def _floats(self, levels: np.ndarray) -> Tensor:
        return torch.from_numpy(levels).to(self.device, torch.float32)

    @torch.no_grad()
    def _features(self, batch: Tensor) -> np.ndarray:
        shape = tuple(batch.shape)
        try:
            found = self.module(batch.contiguous(), **self.switches)
        except RuntimeError as error:
            raise ValueError(f"{self.name} failed on an input {shape}: {_last_line(error)}") from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(batch):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{self.name} made {what} of an input {shape}; wanted features ({len(batch)}, d)")
        if not found.isfinite().all():
            raise ValueError(f"{self.name} made features that are not finite of an input {shape}")
        return found.float().cpu().numpy()


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
