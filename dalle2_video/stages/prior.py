"""Prior stage: from a caption's CLIP text embedding to the CLIP video embedding of its clip."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from dalle2_video.config import PriorConfig, SampleConfig
from dalle2_video.data.batches import WindowDataset
from dalle2_video.data.draws import Draws
from dalle2_video.data.store import Split
from dalle2_video.diffusion.samplers import sample_guided
from dalle2_video.diffusion_config import SamplerConfig
from dalle2_video.models.factory import build, export_files
from dalle2_video.stages.denoising import denoise
from dalle2_video.stages.frozen_clip import FrozenClip, TextCondition
from dalle2_video.stages.inputs import StageInputs
from dalle2_video.stages.stage import Batch, Metrics, Model

DEFAULT_SAMPLER = SampleConfig().prior
JUDGED = 32
"""Clips of which a validation samples the embedding."""


class PriorStage:
    """Diffusion over the unit-norm embedding times sqrt(d), so that its elements have unit variance."""

    def __init__(self, inputs: StageInputs) -> None:
        self.inputs, self.config = inputs, inputs.config
        assert isinstance(self.config, PriorConfig)
        self.optim = self.config.optim
        self.clip = FrozenClip(inputs.exports["clip"])

    def build(self) -> nn.Module:
        """Return the causal transformer."""
        return build(self.config, self.clip.dims, activation_checkpointing=self.inputs.activation_checkpointing)

    def to(self, device: torch.device) -> None:
        """Move the frozen CLIP."""
        self.clip.to(device)

    def dataset(self, split: Split) -> WindowDataset:
        """Embeddings and captions; no frames are read."""
        assert self.inputs.embeddings is not None
        return self.inputs.samples(split, None, embeddings=self.inputs.embeddings)

    def loss(self, model: Model, batch: Batch, draws: Draws) -> tuple[Tensor, Metrics]:
        """Squared error of the predicted embedding; metric: its cosine to the true one."""
        text = self.clip.encode_text(batch["tokens"], batch["length"])
        x0 = batch["embedding"] * math.sqrt(batch["embedding"].shape[-1])

        def predict(noised: Tensor, logsnr: Tensor, keep: Tensor) -> Tensor:
            return model(noised, logsnr, text.embedding_bd, text.encodings_bld, text.mask_bl, keep)

        found = denoise(predict, x0, draws, self.config.diffusion)
        return found.loss, {"cosine": F.cosine_similarity(found.prediction.float(), x0, dim=-1).mean()}

    def judged(self, num_clips: int) -> int:
        """A few clips: each costs the network as many calls as sampling has steps."""
        return min(JUDGED, num_clips)

    def judge(self, model: Model, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Sample an embedding for each caption, one and not the best of some."""
        text = self.clip.encode_text(batch["tokens"], batch["length"])
        sampled = sample_embeddings(model, text, self.config, draws)
        return {
            "sampled": sampled,
            "video": batch["embedding"],
            "text": text.embedding_bd,
            "tokens": torch.where(text.mask_bl, batch["tokens"], -1),
        }

    def figures(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Mean cosines: of the sampled embedding to its text, to the true embedding and to unrelated texts.

        cosine_text_of_true: of the true embedding to its text, which the first should come near to.
        """
        sampled, video, text = (F.normalize(rows[name], dim=-1) for name in ("sampled", "video", "text"))
        found = {
            "cosine_text": (sampled * text).sum(-1).mean(),
            "cosine_true": (sampled * video).sum(-1).mean(),
            "cosine_text_of_true": (video * text).sum(-1).mean(),
        }
        # Clips of one caption are not unrelated.
        unrelated = (rows["tokens"][:, None] != rows["tokens"][None]).any(-1)
        if unrelated.any():
            found["cosine_unrelated"] = (sampled @ text.T)[unrelated].mean()
        return {name: value.item() for name, value in found.items()}

    def export_files(self) -> dict[str, str]:
        """Config."""
        return export_files("prior", self.config, self.clip.dims, fps=self.clip.fps)


def sample_embeddings(
    model: Model,
    text: TextCondition,
    config: PriorConfig,
    draws: Draws,
    *,
    sampler: SamplerConfig = DEFAULT_SAMPLER,
    candidate: int = 0,
    guidance: float | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Sample one unit-norm video embedding (b, d) for each text; candidate: which of several.

    model: a Prior, or the engine of one; sampler: how; guidance: None takes the recipe's; on_step: told of each step.
    """
    dim = text.embedding_bd.shape[-1]

    def predict(noised: Tensor, logsnr: Tensor, keep: Tensor) -> Tensor:
        times = len(noised) // len(text.embedding_bd)  # guidance repeats the batch
        conditions = (text.embedding_bd, text.encodings_bld, text.mask_bl)
        return model(noised, logsnr, *(repeat(of, "b ... -> (n b) ...", n=times) for of in conditions), keep)

    found = sample_guided(
        predict,
        draws.normal(f"prior {candidate}", (dim,)),
        config.diffusion,
        sampler,
        lambda step: draws.normal(f"prior {candidate} step {step}", (dim,)),
        guidance=guidance,
        clip_x0=False,
        on_step=on_step,
    )
    return F.normalize(found / math.sqrt(dim), dim=-1)
