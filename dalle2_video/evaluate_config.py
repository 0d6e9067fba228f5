"""What `launch/evaluate.py` measures of a run, on which clips.

Belongs to an evaluation and its identity; no trained stage reads it. Nothing here imports torch; every field's
docstring is its `--help` text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dalle2_video.checks import require, require_positive


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What `launch/evaluate.py` measures on a split. Of a CLIP: retrieval among its clips. Of a prior: cosines of what
    it samples. Of a decoder: bits a dimension. Of a sample run: CLIP score of its videos with their prompts, Frechet
    and kernel distances between them, and their frames, and the split's."""

    split: Literal["train", "val"] = "val"
    """Clips that are retrieved among, or that videos are compared with."""
    captions: Literal["trained", "one", "joined"] = "trained"
    """Text of a clip. trained: as captions.choose has it; one, joined: as that field says of them."""
    max_clips: int = 0
    """Of a larger split so many clips, drawn by the seed: figures of two splits compare at equal numbers alone, and the
    time of the last step grows with the square; 0: all."""
    video_features: str = ""
    """Of a sample run: TorchScript file of a network for FVD and KVD, such as I3D. It is called with videos (b, 3, t,
    h, w), float32 in [0, 255], and returns features (b, d); arguments of its forward named rescale, resize and
    return_features are set. Loading runs code that is in the file: give none that you do not trust."""
    frame_features: str = ""
    """Of a sample run: TorchScript file of a network for FID and KID of frames, such as Inception; as video_features,
    but called with frames (b, 3, h, w). Loading runs code that is in the file: give none that you do not trust."""
    bound_clips: int = 64
    """Of a decoder: clips whose bits a dimension are measured, drawn by the seed, each by bound_steps calls of the
    network for each kind of variance; 1 or more."""
    bound_steps: int = 50
    """Of a decoder: steps of the ddpm sampler whose bits a dimension are measured; 2 or more."""

    def __post_init__(self) -> None:
        require(self.max_clips >= 0, "EvaluateConfig.max_clips", self.max_clips, "must be 0 or more")
        require_positive(self, "bound_clips")
        require(self.bound_steps >= 2, "EvaluateConfig.bound_steps", self.bound_steps, "must be 2 or more")

    def check_target(self, stage: str) -> None:
        """Raise ValueError where a field is set that is not read when a run of `stage` is judged."""
        read_of = {
            "video_features": "sample",
            "frame_features": "sample",
            "bound_clips": "decoder",
            "bound_steps": "decoder",
        }
        default = EvaluateConfig()
        for name, reader in read_of.items():
            value = getattr(self, name)
            require(
                reader == stage or value == getattr(default, name),
                f"evaluate.{name}",
                value,
                f"is of {reader} runs, and a {stage} run is judged; leave it out, or name another: --of ID",
            )
