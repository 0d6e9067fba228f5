"""The trainable stages: how each builds its model, its batches and its loss."""

from __future__ import annotations

from collections.abc import Callable

from dalle2_video.stages.clip import ClipStage
from dalle2_video.stages.decoder import DecoderStage
from dalle2_video.stages.inputs import StageInputs
from dalle2_video.stages.prior import PriorStage
from dalle2_video.stages.spatial_sr import SpatialSrStage
from dalle2_video.stages.stage import Stage
from dalle2_video.stages.temporal_sr import TemporalSrStage

STAGES: dict[str, Callable[[StageInputs], Stage]] = {
    "clip": ClipStage,
    "prior": PriorStage,
    "decoder": DecoderStage,
    "temporal_sr": TemporalSrStage,
    "spatial_sr": SpatialSrStage,
}
