"""Text to video from exported weights alone: CLIP text -> prior -> decoder -> temporal -> spatial super-resolution.

    from dalle2_video.generation import VideoPipeline
    pipeline = VideoPipeline.from_export("exported", device="cuda")
    pipeline.save("circle.mp4", pipeline.generate(["a red circle moves left"])[0])

A video is a pure function of (weights, text, seed, repeat, options): every random number is keyed by them, so neither
the other videos nor their order change it. Stages work one after the other, each on all batches; a batch between two
stages is a `State`, plain tensors that can be saved. Invariant: memory holds the weights of one stage at a time, unless
asked otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dalle2_video import json_file
from dalle2_video.chain_folder import INDEX, STAGES, check_digests
from dalle2_video.config import SpatialSrConfig, TemporalSrConfig
from dalle2_video.config_io import from_dict
from dalle2_video.data.batches import to_float
from dalle2_video.data.draws import Draws
from dalle2_video.data.tokenizer import Tokenizer
from dalle2_video.diffusion.guidance import ConditionalPredict
from dalle2_video.diffusion.samplers import num_steps
from dalle2_video.diffusion.schedule import add_noise, log_snr
from dalle2_video.generation import blocks
from dalle2_video.generation.blending import blend, slerp
from dalle2_video.generation.extension import complete, extend
from dalle2_video.generation.loaded_stages import LoadedStages
from dalle2_video.generation.ranking import best_of, cosines
from dalle2_video.generation.requests import Request
from dalle2_video.generation.stage_sampling import OnStep, StageSampling, StepCounter, repeated
from dalle2_video.generation.video_file import enlarge, write_mp4
from dalle2_video.models.factory import TOKENIZER, Exported, ExportFacts, read_export
from dalle2_video.sample_config import SampleConfig
from dalle2_video.sampling_rates import strides_of
from dalle2_video.stages.frozen_clip import TextCondition
from dalle2_video.stages.prior import sample_embeddings
from dalle2_video.stages.rates import fps_condition
from dalle2_video.stages.spatial_sr import upsample
from dalle2_video.stages.temporal_sr import to_full_rate

State = dict[str, Tensor]
"""A batch between two steps of the chain."""
DEFAULTS = SampleConfig()
"""Samplers and guidance as the recipe has them."""
TEXT, SCORE = "text", "score"
"""The steps that are CLIP's: encoding texts, and telling which candidate is nearest to its text."""
VIDEO = "video"
"""Of a state: (b, t, h, w, 3) uint8 after the last stage, (b, 3, t, h, w) in [-1, 1] before."""


class VideoPipeline:
    """The trained stages of one chain."""

    def __init__(
        self,
        exports: Mapping[str, Path],
        device: torch.device | str = "cpu",
        *,
        options: SampleConfig = DEFAULTS,
        keep_loaded: bool = False,
    ) -> None:
        """exports: export folders by stage: clip, prior, decoder and, where trained, temporal_sr and spatial_sr.

        options: what `generate` takes without any; keep_loaded: stages stay in memory once they were needed. Raises
        ValueError where the folders do not belong together. Weights are loaded when they are first needed.
        """
        self.device, self.options = torch.device(device), options
        missing = [stage for stage in ("clip", "prior", "decoder") if stage not in exports]
        if missing:
            raise ValueError(f"a chain needs an export of {' and '.join(missing)} too; there are: {', '.join(exports)}")
        self.facts: dict[str, ExportFacts] = {
            stage: read_export(exports[stage], stage) for stage in STAGES if stage in exports
        }
        """Configs and sizes, by stage."""
        of_clip = self.facts["clip"].dims
        for stage, facts in self.facts.items():
            if facts.dims != of_clip:
                raise ValueError(
                    f"{exports[stage]} was trained with {facts.dims}, CLIP in {exports['clip']} has {of_clip}; take "
                    "exports that share one CLIP run"
                )
        self.tokenizer = Tokenizer.read(exports["clip"] / TOKENIZER)
        self.loaded = LoadedStages(exports, self.device, keep=keep_loaded)

    @classmethod
    def from_export(
        cls,
        folder: str | Path,
        device: torch.device | str | None = None,
        *,
        keep_loaded: bool = False,
        verify: bool = True,
    ) -> VideoPipeline:
        """Open a folder that `tools/export.py` made.

        device: None takes the GPU where there is one; verify: compare the files' digests with those that the folder
        lists, which reads all weights once. Raises ValueError where it is no such folder, or a damaged one.
        """
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            raise ValueError(f"{folder} holds no {INDEX}; make the folder: python tools/export.py ID --out {folder}")
        with json_file.as_written_here(folder / INDEX, "export again with tools/export.py"):
            index = json_file.read(folder / INDEX)
            if verify:
                check_digests(folder, index)
            exports = {stage: folder / stage for stage in STAGES if stage in index["stages"]}
            options = from_dict(SampleConfig, index["sample"])
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(exports, device, options=options, keep_loaded=keep_loaded)

    @property
    def video_stages(self) -> list[str]:
        """The stages that make pictures, in their order."""
        return [stage for stage in STAGES[2:] if stage in self.facts]

    def steps(self, options: SampleConfig | None = None) -> list[str]:
        """Return the steps of the chain in their order; each may load one stage."""
        scored = [SCORE] if (options or self.options).candidates > 1 else []
        return [TEXT, "prior", *self.video_stages, *scored]

    def samplers(self, options: SampleConfig) -> dict[str, dict[str, Any]]:
        """Return by stage the method, steps and guidance that it samples with, those of the recipe included."""
        found = {}
        for stage in ["prior"] * (options.embedding == "prior") + self.video_stages:
            config, sampler = self.facts[stage].config, getattr(options, stage)
            diffusion = config.diffusion if stage == "prior" else config.distillation.sampling(config.diffusion)
            given = getattr(options, f"{stage}_guidance", None)
            found[stage] = {
                "method": sampler.method,
                "steps": num_steps(diffusion, sampler),
                "guidance": diffusion.guidance_scale if given is None else given,
            }
        return found

    def fps(self, options: SampleConfig | None = None) -> float:
        """Frames per second of the videos made."""
        return self._fps(self.video_stages[-1], options or self.options)

    def start_window(self, options: SampleConfig | None = None) -> tuple[int, float]:
        """Side in pixels and frames per second of the frames that `start` takes: the decoder's."""
        return self.facts["decoder"].config.window.size, self._fps("decoder", options or self.options)

    def _stride(self, stage: str, options: SampleConfig) -> int:
        configs = {name: self.facts[name].config for name in self.video_stages}
        return strides_of(configs, self.facts["decoder"].fps, options.fps)[stage]

    def _fps(self, stage: str, options: SampleConfig) -> float:
        return self.facts[stage].fps / self._stride(stage, options)

    def _rate(self, stage: str, options: SampleConfig, count: int) -> State:
        """Return the condition of a stage that has learnt several rates, for `count` videos; {} for others."""
        strides = torch.full((count,), self._stride(stage, options), device=self.device)
        return fps_condition(self.facts[stage].config, self.facts[stage].fps, strides)

    def generate(
        self,
        requests: Sequence[str | Request],
        options: SampleConfig | None = None,
        *,
        start: np.ndarray | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Return videos (b, t, h, w, 3) uint8 RGB, one a request.

        requests: texts, or what else `Request` can say. options: samplers, guidance, candidates, length; None takes the
        pipeline's own; its prompts and seeds are not read. start: (t, s, s, 3) uint8 frames, see `start_window`, that
        every video begins with. on_step: called after each sampling step.
        """
        options = options or self.options
        wanted = [Request(prompt=request) if isinstance(request, str) else request for request in requests]
        batches = batched(wanted, options)
        states: list[State] = [{} for _ in batches]
        for step in self.steps(options):
            for place, batch in enumerate(batches):
                states[place] = self.run(step, batch, states[place], options, start=start, on_step=on_step)
        videos = torch.cat([state[VIDEO] for state in states])
        if SCORE not in states[0]:
            return videos
        scores = torch.cat([state[SCORE] for state in states])
        return videos[[best_of(scores, number, options.candidates) for number in range(len(wanted))]]

    def save(self, path: str | Path, video: Tensor | np.ndarray, options: SampleConfig | None = None) -> None:
        """Write one video, (t, h, w, 3) uint8, as an mp4 file that plays everywhere; small ones are enlarged.

        options: those that it was generated with.
        """
        write_mp4(Path(path), enlarge(np.asarray(video)), self.fps(options))

    @torch.no_grad()
    def run(
        self,
        step: str,
        batch: Sequence[Request],
        state: State,
        options: SampleConfig,
        *,
        start: np.ndarray | None = None,
        on_step: OnStep | None = None,
    ) -> State:
        """Bring a batch by one of `steps`; state: what the step before returned, {} for the first. See `generate`."""
        state = {name: tensor.to(self.device) for name, tensor in state.items()}
        if step == TEXT:
            found = self._encode_batch(batch)
        elif step == SCORE:
            found = self._score(state, options)
        else:
            draws = Draws(0, torch.tensor([request.number for request in batch]), self.device)
            if step == "prior":
                found = self._embed_batch(batch, state, draws, options, on_step)
            elif step == "decoder":
                given = None if start is None else to_float(torch.tensor(start)[None]).to(self.device)
                made = self.decode(_text(state), state["target"], draws, options, start=given, on_step=on_step)
                found = state | {VIDEO: made}
            else:
                made = self.super_resolve(step, _text(state), state[VIDEO], draws, options, on_step=on_step)
                found = state | {VIDEO: made}
            if step == self.video_stages[-1]:
                found[VIDEO] = _levels(found[VIDEO])[
                    :, : blocks.kept_frames(options, found[VIDEO].shape[2], self.fps(options))
                ]
        return {name: tensor.cpu() for name, tensor in found.items()}

    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Encode prompts with CLIP's text encoder."""
        tokens, lengths, _ = self.tokenizer.encode(list(prompts), self.facts["clip"].dims.text_context)
        return self.loaded.clip().encode_text(
            torch.from_numpy(tokens).long().to(self.device), torch.from_numpy(lengths).long().to(self.device)
        )

    def _encode_batch(self, batch: Sequence[Request]) -> State:
        state = _of_text(self.encode([request.prompt for request in batch]))
        if any(request.towards for request in batch):
            state |= _of_text(self.encode([request.towards or request.prompt for request in batch]), "towards ")
        return state

    def _embed_batch(
        self, batch: Sequence[Request], state: State, draws: Draws, options: SampleConfig, on_step: OnStep | None
    ) -> State:
        """Sample the embeddings to decode; where a text turns to another one, everything of it turns here."""
        text = _text(state)
        ends = [text] if "towards mask" not in state else [text, _text(state, "towards ")]
        total = len(ends) * self.facts["prior"].config.candidates
        count = StepCounter(on_step, "prior", total)
        targets = [self._embed(end, draws, options, count) for end in ends]
        if len(ends) == 1:
            return state | {"target": targets[0]}
        share = torch.tensor([request.share for request in batch], device=self.device)
        return _of_text(blend(ends[0], ends[1], share)) | {"target": slerp(targets[0], targets[1], share)}

    def _embed(self, text: TextCondition, draws: Draws, options: SampleConfig, count: StepCounter) -> Tensor:
        if options.embedding == "text":
            return text.embedding_bd
        stage = self.loaded.stage("prior")
        candidates = [
            sample_embeddings(
                stage.module,
                text,
                stage.config,
                draws,
                sampler=options.prior,
                candidate=candidate,
                guidance=options.prior_guidance,
                on_step=count.of(num_steps(stage.config.diffusion, options.prior)),
            )
            for candidate in range(stage.config.candidates)
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
        start: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Sample low-rate videos (b, 3, t, s, s) in [-1, 1] from embeddings and texts.

        start: (1 or b, 3, k, s, s) in [-1, 1], the videos' first frames.
        """
        stage = self.loaded.stage("decoder")
        window = stage.config.window
        given = 0 if start is None else start.shape[2]
        total = blocks.low_frames(options, window.num_frames, self._fps("decoder", options), given)
        long = total > window.num_frames or start is not None
        overlap = blocks.overlap(options, window.num_frames) if long else 0
        rate = self._rate("decoder", options, len(embedding_bd))

        def predict(noised: Tensor, logsnr: Tensor, keep: Tensor) -> Tensor:
            return stage.module(
                noised,
                logsnr,
                encodings_bld=repeated(noised, text.encodings_bld),
                text_mask_bl=repeated(noised, text.mask_bl),
                keep_b=keep,
                embedding_bd=repeated(noised, embedding_bd),
                **{name: repeated(noised, condition) for name, condition in rate.items()},
            )

        sampling = StageSampling(stage, draws, options, options.decoder_guidance)
        known = min(given, overlap)
        first = window.num_frames if start is None else given + window.num_frames - known
        left = -(-(total - first) // (window.num_frames - overlap)) if total > first else 0
        count = StepCounter(on_step, "decoder", 1 + left)

        def go_on(video: Tensor, name: str, overlap: int, number: int) -> Tensor:
            step = count.of(sampling.steps)
            return extend(
                lambda block: predict,
                video,
                draws,
                sampling.diffusion,
                sampling.sampler,
                name=name,
                window=window.num_frames,
                overlap=overlap,
                blocks=number,
                guidance=sampling.guidance,
                weight=options.extension.weight,
                solver_steps=options.extension.solver_steps,
                on_step=lambda block, index: step(index),
            )

        if start is None:
            shape = (3, window.num_frames, window.size, window.size)
            video = sampling.sample(predict, shape, count)
        else:
            video = go_on(start.expand(len(embedding_bd), -1, -1, -1, -1), "decoder start", known, 1)
        if left:
            video = go_on(video, "decoder", overlap, left)
        return video[:, :, :total]

    def super_resolve(
        self,
        name: str,
        text: TextCondition,
        low: Tensor,
        draws: Draws,
        options: SampleConfig = DEFAULTS,
        *,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Run a super-resolution stage on videos (b, 3, t, s, s) in [-1, 1] that the stage before made.

        Of a video longer than the stage's window each next window knows the frames that the one before made.
        """
        stage = self.loaded.stage(name)
        config: TemporalSrConfig | SpatialSrConfig = stage.config
        factor = config.factor if isinstance(config, TemporalSrConfig) else 1
        window = config.window.num_frames // factor
        starts, decoders = [0], self.facts["decoder"].config.window.num_frames
        if low.shape[2] > window:
            overlap = blocks.overlap(options, decoders) * window // decoders
            starts = blocks.window_starts(low.shape[2], window, overlap)
        sampling = StageSampling(stage, draws, options, None)
        count = StepCounter(on_step, name, len(starts))
        made: Tensor | None = None
        for number, start in enumerate(starts):
            mark = f" block {number}" if number else ""
            part = low[:, :, start : start + window]
            predict, shape = self._conditioned(stage, text, part, draws, options, f"{name} augmentation{mark}")
            if made is None:
                made = sampling.sample(predict, shape, count)
                continue
            done = made.shape[2] - start * factor
            known = torch.zeros(len(low), *shape, device=self.device)
            known[:, :, :done] = made[:, :, start * factor :]
            found = complete(
                predict,
                known,
                torch.arange(shape[1], device=self.device) < done,
                draws,
                sampling.diffusion,
                sampling.sampler,
                name=f"{name}{mark}",
                weight=options.extension.weight,
                solver_steps=options.extension.solver_steps,
                on_step=count.of(sampling.steps),
            )
            made = torch.cat([made, found[:, :, done:]], dim=2)
        assert made is not None
        return made

    def _conditioned(
        self, stage: Exported, text: TextCondition, low: Tensor, draws: Draws, options: SampleConfig, purpose: str
    ) -> tuple[ConditionalPredict, tuple[int, ...]]:
        """Return a super-resolution network with its conditions, and the shape of one video that it makes."""
        config: TemporalSrConfig | SpatialSrConfig = stage.config
        time = torch.full((len(low),), config.sampling_augmentation, device=low.device)
        logsnr_aug = log_snr(time, config.diffusion)
        noised_low = add_noise(low, draws.normal(purpose, tuple(low.shape[1:])), logsnr_aug)
        if isinstance(config, TemporalSrConfig):
            given = to_full_rate(noised_low, config)
        else:
            given = upsample(noised_low, config.window.size)
        rate = self._rate(stage.stage, options, len(low))

        def predict(noised: Tensor, logsnr: Tensor, keep: Tensor) -> Tensor:
            return stage.module(
                noised,
                logsnr,
                encodings_bld=repeated(noised, text.encodings_bld),
                text_mask_bl=repeated(noised, text.mask_bl),
                keep_b=keep,
                low_res_bcthw=repeated(noised, given),
                low_res_logsnr_b=repeated(noised, logsnr_aug),
                **{name: repeated(noised, condition) for name, condition in rate.items()},
            )

        return predict, tuple(given.shape[1:])

    def _score(self, state: State, options: SampleConfig) -> State:
        """Cosines (b,) of videos and their texts; nothing else is needed any more."""
        window = self.facts["clip"].config.window
        stride = self._stride(self.video_stages[-1], options)
        scores = cosines(self.loaded.clip(), state[VIDEO], state["embedding"], window.stride / stride)
        return {VIDEO: state[VIDEO], SCORE: scores}


def batched(requests: Sequence[Request], options: SampleConfig) -> list[list[Request]]:
    """Return the videos to make, candidates of a request side by side, in batches of `options.videos_at_once`."""
    made = [
        replace(request, candidate=request.candidate + number)
        for request in requests
        for number in range(options.candidates)
    ]
    return [made[first : first + options.videos_at_once] for first in range(0, len(made), options.videos_at_once)]


def _levels(video_bcthw: Tensor) -> Tensor:
    """Bring videos in [-1, 1] to (b, t, h, w, 3) uint8."""
    levels = ((video_bcthw + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(levels, "b c t h w -> b t h w c")


def _of_text(text: TextCondition, prefix: str = "") -> State:
    return {
        f"{prefix}encodings": text.encodings_bld,
        f"{prefix}mask": text.mask_bl,
        f"{prefix}embedding": text.embedding_bd,
    }


def _text(state: State, prefix: str = "") -> TextCondition:
    return TextCondition(
        encodings_bld=state[f"{prefix}encodings"],
        mask_bl=state[f"{prefix}mask"],
        embedding_bd=state[f"{prefix}embedding"],
    )
