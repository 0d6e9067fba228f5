"""A decoder judged by bits a dimension: the bound of `diffusion.bound` on clips of a split, for each kind of variance.

Lower is better. The condition is the true one: CLIP's embedding of the window's start and the clip's text, without
guidance. Noise is drawn by clip and step, so that two decoders, or two steps of one, are compared on the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dalle2_video.config import DecoderConfig
from dalle2_video.data import keyed_random
from dalle2_video.data.batches import to_float
from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.bound import bound
from dalle2_video.evaluation.clip_judge import on_device, texts_of
from dalle2_video.evaluation.intervals import means
from dalle2_video.evaluation.judge import Lazy, Rows, Verdict, in_words, told
from dalle2_video.evaluation.split_clips import SplitClips, batches
from dalle2_video.models.factory import Exported, load_export
from dalle2_video.stages.frozen_clip import FrozenClip
from dalle2_video.stages.rates import fps_condition
from dalle2_video.task_array import OnProgress

CLIPS_AT_ONCE = 8
Variance = Literal["small", "large", "learned"]


class DecoderJudge:
    """Bits a dimension of some clips of a split."""

    def __init__(
        self, clips: SplitClips, clip_export: Lazy, decoder_export: Lazy, steps: int, device: torch.device
    ) -> None:
        """steps: of the sampler that is bounded."""
        self.clips, self._clip_export, self._decoder_export = clips, clip_export, decoder_export
        self.steps, self.device = steps, device

    @cached_property
    def clip(self) -> FrozenClip:
        """The decoder's CLIP."""
        return on_device(self._clip_export(), self.device)

    @cached_property
    def decoder(self) -> Exported:
        """The decoder that is judged."""
        exported = load_export(self._decoder_export(), "decoder")
        exported.module.to(self.device)
        return exported

    def measure(self, task: int, on_progress: OnProgress) -> Rows:
        """Return by kind of variance the bits of each clip of a shard: (m, 3) of prior, steps and last step."""
        rows = self.clips.of_task(task)
        found: dict[str, list[np.ndarray]] = {}
        for before, part in batches(rows, CLIPS_AT_ONCE):
            for kind, bits in self._bits(part, told(on_progress, before, len(rows))).items():
                found.setdefault(kind, []).append(bits.double().cpu().numpy())
        return {kind: np.concatenate(parts) for kind, parts in found.items()}

    def _bits(self, rows: np.ndarray, on_read: Callable[[float], None]) -> dict[str, Tensor]:
        """Return the bits (b, 3) of clips; on_read: told how many, and which part of the next, are done."""
        config: DecoderConfig = self.decoder.config
        mine, of_clip = config.window, self.clip.config.window
        starts = self.clips.starts(rows, mine, of_clip)
        video, seen = (
            to_float(torch.from_numpy(self.clips.windows(rows, starts, window, lambda _: None)).to(self.device))
            for window in (mine, of_clip)
        )
        embedding = self.clip.encode_video(seen)
        text = texts_of(self.clips, rows, self.clip, self.device)
        keep = torch.ones(len(rows), dtype=torch.bool, device=self.device)
        stride = torch.full((len(rows),), mine.stride, device=self.device)
        rate = fps_condition(config, self.decoder.fps, stride)
        draws = Draws(keyed_random.key(self.clips.seed, "evaluate"), torch.from_numpy(rows), self.device)
        kinds = kinds_of(config)
        calls = 0

        def predict(noised: Tensor, logsnr_b: Tensor) -> Tensor:
            nonlocal calls
            on_read(len(rows) * calls / (self.steps * len(kinds)))
            calls += 1
            return self.decoder.module(
                noised.float(),
                logsnr_b,
                encodings_bld=text.encodings_bld,
                text_mask_bl=text.mask_bl,
                keep_b=keep,
                embedding_bd=embedding,
                **rate,
            )

        def noise_at(index: int) -> Tensor:
            return draws.normal(f"bound {index}", tuple(video.shape[1:]))

        found: dict[str, Tensor] = {}
        for kind in kinds:
            bits = bound(predict, video, noise_at, config.diffusion, self.steps, kind)
            found[kind] = torch.stack([bits.prior_b, bits.steps_sb.sum(0), bits.last_b], dim=1)
        on_read(len(rows))
        return found

    def verdict(self, found: Rows, staging: Path) -> Verdict:
        """Return the mean bits a dimension by kind of variance, their sum and its last step."""
        rows, clips = self.clips.rows, self.clips
        columns = {f"{kind}_bits_per_dim": bits.sum(axis=1) for kind, bits in found.items()}
        columns |= {f"{kind}_bits_per_dim_of_last_step": bits[:, 2] for kind, bits in found.items()}
        figures = means(columns, clips.identities(rows), keyed_random.key(clips.seed, "evaluate"))
        totals = {name: figure for name, figure in figures.items() if name.endswith("_dim")}
        return Verdict(figures={"decoder": figures}, facts={"steps": self.steps}, words={"decoder": in_words(totals)})


def kinds_of(config: DecoderConfig) -> tuple[Variance, ...]:
    """Return the variances that a decoder can sample with."""
    return ("small", "large") if config.diffusion.learned_variance == "none" else ("small", "large", "learned")
