"""Text to video from exported weights alone: CLIP text -> prior -> decoder -> temporal -> spatial super-resolution.

A video is a pure function of (weights, prompt, seed, repeat): every random number is keyed by them, so neither the
other prompts nor their order change it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import Tensor

from dalle2_video.config import SampleConfig, SpatialSrConfig, TemporalSrConfig
from dalle2_video.data.draws import Draws
from dalle2_video.data.keyed_random import key
from dalle2_video.data.tokenizer import Tokenizer
from dalle2_video.diffusion.guidance import ConditionalPredict
from dalle2_video.diffusion.samplers import num_steps, sample_guided
from dalle2_video.diffusion.schedule import add_noise, log_snr
from dalle2_video.diffusion_config import SamplerConfig
from dalle2_video.models.factory import TOKENIZER, Exported, load_export
from dalle2_video.stages.frozen_clip import FrozenClip, TextCondition
from dalle2_video.stages.prior import sample_embeddings
from dalle2_video.stages.rates import fps_condition
from dalle2_video.stages.spatial_sr import upsample
from dalle2_video.stages.temporal_sr import to_full_rate

OnStep = Callable[[str, int, int], None]
DEFAULTS = SampleConfig()
"""Samplers and guidance as the recipe has them."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video to make."""

    prompt: str
    seed: int
    repeat: int = 0
    """Which of several videos of the same prompt and seed."""

    @property
    def number(self) -> int:
        """Number that keys the video's random numbers, in [0, 2^63)."""
        return key(self.seed, "video", *self.prompt.encode(), self.repeat) >> 1


class VideoPipeline:
    """The trained stages, loaded."""

    def __init__(self, exports: dict[str, Path], device: torch.device | str = "cpu") -> None:
        """exports: export folders by stage: clip, prior, decoder and, where trained, temporal_sr and spatial_sr."""
        self.device = torch.device(device)
        self.clip = FrozenClip(exports["clip"])
        self.clip.to(self.device)
        self.tokenizer = Tokenizer.from_json((exports["clip"] / TOKENIZER).read_text())
        self.prior, self.decoder = (self._load(exports, stage) for stage in ("prior", "decoder"))
        self.temporal_sr, self.spatial_sr = (
            self._load(exports, stage) if stage in exports else None for stage in ("temporal_sr", "spatial_sr")
        )

    def _load(self, exports: dict[str, Path], stage: str) -> Exported:
        exported = load_export(exports[stage], stage)
        if exported.dims != self.clip.dims:
            raise ValueError(
                f"{exports[stage]} was trained with {exported.dims}, CLIP in {exports['clip']} has {self.clip.dims}; "
                "take exports that share one CLIP run"
            )
        exported.module.to(self.device)
        return exported

    @property
    def fps(self) -> float:
        """Frames per second of the videos made."""
        last = self.temporal_sr or self.decoder
        return last.fps / last.config.window.stride

    def encode(self, prompts: list[str]) -> TextCondition:
        """Encode prompts with CLIP's text encoder."""
        tokens, lengths, _ = self.tokenizer.encode(prompts, self.clip.dims.text_context)
        return self.clip.encode_text(
            torch.from_numpy(tokens).long().to(self.device), torch.from_numpy(lengths).long().to(self.device)
        )

    def embed(
        self, text: TextCondition, draws: Draws, options: SampleConfig = DEFAULTS, *, on_step: OnStep | None = None
    ) -> Tensor:
        """Sample unit-norm CLIP video embeddings (b, d): the best of `candidates` by dot product with the text's.

        (Ramesh et al. 2022, sec. 2.2.)
        """
        config = self.prior.config
        candidates = [
            sample_embeddings(
                self.prior.module,
                text,
                config,
                draws,
                sampler=options.prior,
                candidate=candidate,
                guidance=options.prior_guidance,
                on_step=_reporter(on_step, "prior", num_steps(config.diffusion, options.prior)),
            )
            for candidate in range(config.candidates)
        ]
        stacked = torch.stack(candidates, dim=1)
        scores = torch.einsum("bnd,bd->bn", stacked, text.embedding_bd)
        return stacked[torch.arange(len(stacked)), scores.argmax(dim=1)]

    def decode(
        self,
        text: TextCondition,
        embedding_bd: Tensor,
        draws: Draws,
        options: SampleConfig = DEFAULTS,
        *,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Sample low-rate videos (b, 3, t, s, s) in [-1, 1] from embeddings and texts."""
        window = self.decoder.config.window

        def predict(noised: Tensor, logsnr: Tensor, keep: Tensor) -> Tensor:
            return self.decoder.module(
                noised,
                logsnr,
                encodings_bld=_for(noised, text.encodings_bld),
                text_mask_bl=_for(noised, text.mask_bl),
                keep_b=keep,
                embedding_bd=_for(noised, embedding_bd),
                **_own_rate(self.decoder, noised),
            )

        shape = (3, window.num_frames, window.size, window.size)
        return _video(self.decoder, predict, shape, draws, options.decoder, options.decoder_guidance, on_step)

    def super_resolve(
        self,
        stage: Exported,
        text: TextCondition,
        low: Tensor,
        draws: Draws,
        options: SampleConfig = DEFAULTS,
        *,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Run a super-resolution stage on videos (b, 3, t, s, s) in [-1, 1] that the stage before made."""
        config: TemporalSrConfig | SpatialSrConfig = stage.config
        time = torch.full((len(low),), config.sampling_augmentation, device=low.device)
        logsnr_aug = log_snr(time, config.diffusion)
        noised_low = add_noise(low, draws.normal(f"{stage.stage} augmentation", tuple(low.shape[1:])), logsnr_aug)
        if isinstance(config, TemporalSrConfig):
            given = to_full_rate(noised_low, config)
        else:
            given = upsample(noised_low, config.window.size)

        def predict(noised: Tensor, logsnr: Tensor, keep: Tensor) -> Tensor:
            return stage.module(
                noised,
                logsnr,
                encodings_bld=_for(noised, text.encodings_bld),
                text_mask_bl=_for(noised, text.mask_bl),
                keep_b=keep,
                low_res_bcthw=_for(noised, given),
                low_res_logsnr_b=_for(noised, logsnr_aug),
                **_own_rate(stage, noised),
            )

        return _video(stage, predict, tuple(given.shape[1:]), draws, getattr(options, stage.stage), None, on_step)

    @torch.no_grad()
    def generate(
        self,
        requests: list[Request],
        options: SampleConfig = DEFAULTS,
        *,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Return videos (b, t, h, w, 3) uint8 RGB, one a request.

        options: samplers and guidance; its prompts and numbers are not read.
        on_step: called with (stage, step, steps) after each sampling step.
        """
        draws = Draws(0, torch.tensor([request.number for request in requests]), self.device)
        text = self.encode([request.prompt for request in requests])
        embedding = self.embed(text, draws, options, on_step=on_step)
        video = self.decode(text, embedding, draws, options, on_step=on_step)
        for stage in (self.temporal_sr, self.spatial_sr):
            if stage is not None:
                video = self.super_resolve(stage, text, video, draws, options, on_step=on_step)
        levels = ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return rearrange(levels, "b c t h w -> b t h w c").cpu()


def _video(
    stage: Exported,
    predict: ConditionalPredict,
    shape: tuple[int, ...],
    draws: Draws,
    sampler: SamplerConfig,
    guidance: float | None,
    on_step: OnStep | None,
) -> Tensor:
    """Sample a stage's videos, (b, *shape)."""
    stage.config.distillation.check_sampler(f"sample.{stage.stage}", sampler, guidance)
    diffusion = stage.config.distillation.sampling(stage.config.diffusion)
    return sample_guided(
        predict,
        draws.normal(stage.stage, shape),
        diffusion,
        sampler,
        lambda step: draws.normal(f"{stage.stage} step {step}", shape),
        guidance=guidance,
        clip_x0=True,
        on_step=_reporter(on_step, stage.stage, num_steps(diffusion, sampler)),
    )


def _own_rate(stage: Exported, noised: Tensor) -> dict[str, Tensor]:
    """Return the condition on the frame rate of the stage's own window, where it has learnt several."""
    strides = torch.full((len(noised),), stage.config.window.stride, device=noised.device)
    return fps_condition(stage.config, stage.fps, strides)


def _for(noised: Tensor, condition: Tensor) -> Tensor:
    """Repeat a condition along the batch as often as guidance repeated the noised batch."""
    return repeat(condition, "b ... -> (n b) ...", n=len(noised) // len(condition))


def _reporter(on_step: OnStep | None, stage: str, steps: int) -> Callable[[int], None] | None:
    return None if on_step is None else lambda step: on_step(stage, step + 1, steps)
