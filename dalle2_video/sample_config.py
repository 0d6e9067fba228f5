"""What `launch/sample.py` generates: which texts, how many videos of each, how long, by which samplers, in which files.

Belongs to a sample run and its identity; no trained stage reads it. Nothing here imports torch; every field's docstring
is its `--help` text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dalle2_video import prompts
from dalle2_video.checks import require, require_positive
from dalle2_video.diffusion_config import SamplerConfig

AlsoFile = Literal["gif", "webp", "frames"]


@dataclass(frozen=True, kw_only=True)
class ExtensionConfig:
    """How a video goes on after frames that are known; see `dalle2_video.generation.extension`."""

    overlap: int = 0
    """Frames of the decoder that each block of a long video knows of the one before; less than its window; 0: half of
    it."""
    weight: float = 1.0
    """Weight of reconstruction guidance (Ho et al. 2022, eq. 7); 0 or more. Where frames are known, they are so in any
    case; more weight makes the others fit them."""
    solver_steps: int = 0
    """Steps of conjugate gradients instead of that weight: the others fit better, at as many backward passes a step
    (Rozet et al. 2024); 0 or more."""

    def __post_init__(self) -> None:
        for name in ("overlap", "weight", "solver_steps"):
            require(getattr(self, name) >= 0, f"sample.extension.{name}", getattr(self, name), "must be 0 or more")
        require(
            self.weight == 1 or self.solver_steps == 0,
            "sample.extension.weight",
            self.weight,
            "is not read with solver_steps; leave one of them out",
        )


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What `launch/sample.py` generates."""

    prompts: tuple[str, ...] = ()
    """Texts, one video each and repeat. A single one that begins with - is given as --sample.prompts='-...', several in
    a file."""
    prompts_file: str = ""
    """UTF-8 file of prompts, one a line; instead of prompts, and the same as these: its name is not part of the run."""
    split: Literal["none", "train", "val"] = "none"
    """Split of the data set whose captions are the prompts, instead of prompts: one caption of each of split_clips
    clips, as CLIP was trained on them, drawn by the seed."""
    split_clips: int = 0
    """Clips of split; 1 or more, at most as many as the split has."""
    samples_per_prompt: int = 1
    """Videos a prompt, each with noise of its own; 1 or more."""
    seeds: tuple[int, ...] = ()
    """Seeds, each 0 or more: samples_per_prompt videos of each prompt for each of them; empty: the recipe's seed."""
    interpolate: int = 0
    """Steps from each prompt to the next, a video each and one of the last prompt: embeddings and text conditions turn
    from one to the other (slerp) under the same noise; 0: a video of each prompt alone."""
    candidates: int = 1
    """Videos made for each that is kept: the one whose CLIP embedding is nearest to its text's; 1 or more."""
    seconds: float = 0.0
    """Length, made block by block where it is more than the decoder's window; 0 or more; 0: one window, or one after
    start."""
    start: str = ""
    """Image (png, jpg, webp, bmp) that each video begins with, or video file that each goes on from. The centre square,
    at the decoder's size and frame rate."""
    extension: ExtensionConfig = field(default_factory=ExtensionConfig)
    """How videos go on; read where they are longer than a window or begin with start."""
    fps: float = 0.0
    """Frames per second, one of those that the stages have learnt (decoder.strides); 0: the recipe's own."""
    also: tuple[AlsoFile, ...] = ()
    """Further files beside each mp4: gif, webp (lossless) or frames (a folder of png)."""
    videos_at_once: int = 8
    """Videos made together, and so the memory; 1 or more. Another number may move a grey level by one."""
    batches_per_task: int = 1
    """An array task makes so many times videos_at_once: all of them pass one model before the next is loaded; 1 or
    more. Each task loads every model once."""
    decoder_guidance: float | None = None
    """Guidance of the decoder, 0 or more; None takes the recipe's."""
    prior_guidance: float | None = None
    """Guidance of the prior, 0 or more; None takes the recipe's."""
    embedding: Literal["prior", "text"] = "prior"
    """CLIP embedding that is decoded. prior: sampled by the prior; text: the text's own instead, which tells what the
    prior is worth (Ramesh et al. 2022, sec. 5.1)."""
    prior: SamplerConfig = field(default_factory=lambda: SamplerConfig(method="ddpm"))
    """How the prior samples."""
    decoder: SamplerConfig = field(default_factory=SamplerConfig)
    """How the decoder samples."""
    temporal_sr: SamplerConfig = field(default_factory=SamplerConfig)
    """How temporal super-resolution samples."""
    spatial_sr: SamplerConfig = field(default_factory=SamplerConfig)
    """How spatial super-resolution samples."""

    def __post_init__(self) -> None:
        require_positive(self, "samples_per_prompt", "videos_at_once", "candidates", "batches_per_task")
        threshold = self.prior.dynamic_threshold
        require(
            threshold is None, "sample.prior.dynamic_threshold", threshold, "is of videos; embeddings have no range"
        )
        for name in ("decoder_guidance", "prior_guidance"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"SampleConfig.{name}", value, "must be 0 or more, or None")
        self._check_prompts()
        for name in ("interpolate", "seconds", "fps"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), f"sample.{name}", value, "must be 0 or more, and finite")
        read = self.long or self.extension == ExtensionConfig()
        require(read, "sample.extension", self.extension, "is read with seconds or start alone; give one of them")
        require(len({*self.also}) == len(self.also), "sample.also", self.also, "names a kind twice")

    def _check_prompts(self) -> None:
        prompts.check_all(self.prompts, "sample.prompts")
        sources = {"prompts": self.prompts, "prompts_file": self.prompts_file, "split": self.split != "none"}
        given = [f"sample.{name}" for name, value in sources.items() if value]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say what the prompts are; give one of them")
        clips, of_split = self.split_clips, self.split != "none"
        require(clips >= 0, "sample.split_clips", clips, "must be 1 or more, or 0 without split")
        require(clips > 0 or not of_split, "sample.split_clips", clips, "must say of how many clips of split")
        require(clips == 0 or of_split, "sample.split_clips", clips, "is read with split alone; give --sample.split")
        require(all(seed >= 0 for seed in self.seeds), "sample.seeds", self.seeds, "must each be 0 or more")
        require(len({*self.seeds}) == len(self.seeds), "sample.seeds", self.seeds, "must differ from each other")
        require(
            self.interpolate == 0 or bool(self.prompts_file) or len(self.prompts) != 1,
            "sample.interpolate",
            self.interpolate,
            "goes from each prompt to the next; give two or more",
        )
        require(
            self.interpolate == 0 or not of_split,
            "sample.interpolate",
            self.interpolate,
            "is not for captions of split",
        )

    @property
    def has_prompts(self) -> bool:
        """Whether it says what is to be made."""
        return bool(self.prompts or self.prompts_file or self.split_clips)

    @property
    def num_videos(self) -> int:
        """Videos that are kept; prompts_file must have been read."""
        assert not self.prompts_file
        texts = self.split_clips or len(self.prompts)
        if self.interpolate:
            texts = max(0, (texts - 1) * self.interpolate + 1)
        return texts * self.samples_per_prompt * max(1, len(self.seeds))

    @property
    def videos_per_task(self) -> int:
        """Videos that an array task keeps."""
        return max(1, self.videos_at_once * self.batches_per_task // self.candidates)

    @property
    def num_tasks(self) -> int:
        """Array tasks that make all videos."""
        return -(-self.num_videos // self.videos_per_task)

    @property
    def long(self) -> bool:
        """Whether videos may have frames that are known before the others are made."""
        return self.seconds > 0 or bool(self.start)

    def check_length(self, decoder_frames: int) -> None:
        """Raise ValueError where a block of the decoder, of so many frames, would have nothing new to make."""
        asked = self.extension.overlap
        require(
            asked < decoder_frames,
            "sample.extension.overlap",
            asked,
            f"must be less than the {decoder_frames} frames that the decoder makes",
        )
        fits = decoder_frames > 1 or not self.long
        require(
            fits, "sample.seconds", self.seconds, "and sample.start need a decoder of two frames or more; train one"
        )

    def check_split(self, clips: int) -> None:
        """Raise ValueError where the split has so many usable clips, and more are asked for."""
        require(
            self.split_clips <= clips,
            "sample.split_clips",
            self.split_clips,
            f"is more than the {clips} usable clips of split {self.split}; give --sample.split-clips {clips}, and "
            "--sample.samples-per-prompt for more videos",
        )
