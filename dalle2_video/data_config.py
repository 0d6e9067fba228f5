"""The data part of a recipe: what is stored of the clips and captions, and what a training sample takes from it.

Imports no torch, like `config`. Every field's docstring is its `--help` text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from dalle2_video.checks import require, require_fraction, require_positive


@dataclass(frozen=True, kw_only=True)
class TextFolders:
    """The six caption folders of CelebV-Text below the data root: `<clip id>.txt`, one caption a line."""

    appearance: str = "texts/face40_details_new"
    """General appearance and detailed attributes."""
    action: str = "texts/action_dur"
    """Actions and their order in time."""
    emotion: str = "texts/emotion"
    """Emotions and their changes."""
    light_direction: str = "texts/light_dir"
    """Where the light comes from."""
    light_intensity: str = "texts/light_intensity"
    """How bright the light is."""
    light_color: str = "texts/light_color_temp"
    """Colour temperature of the light."""


CAPTION_KINDS: tuple[str, ...] = tuple(kind.name for kind in fields(TextFolders))


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How one clip is decoded, and when it is given up."""

    excerpt: Literal["start", "middle"] = "start"
    """Which stored frames are kept of a clip that is longer than max_frames: its first, or those in its middle."""
    max_side: int = 8192
    """Clips whose width or height is larger go to the bad list; 16 or more pixels."""
    timeout_s: float = 300.0
    """Clips that take longer to decode, twice over, go to the bad list; greater than 0."""
    memory_gb: float = 8.0
    """Clips whose decoding needs more memory go to the bad list; 1 or more, in GiB."""

    def __post_init__(self) -> None:
        require_positive(self, "timeout_s")
        require(self.max_side >= 16, "DecodeConfig.max_side", self.max_side, "must be 16 or more")
        require(self.memory_gb >= 1, "DecodeConfig.memory_gb", self.memory_gb, "must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How clips and captions become the Zarr store."""

    video_folder: str = "videos/celebvtext_6"
    """Folder with `<clip id>.mp4`, relative to the data root. Not needed where the clips lie in archives."""
    text_folders: TextFolders = field(default_factory=TextFolders)
    """Caption folders."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Decoding."""
    frame_sizes: tuple[int, ...] = (64,)
    """Side lengths in pixels at which frames are stored (square), ascending; 8 or more each."""
    fps: float = 8.0
    """Frames per second stored, whatever the source's rate; greater than 0."""
    min_frames: int = 16
    """Clips with fewer stored frames are short; 1 or more."""
    short_clips: Literal["leave_out", "repeat", "pad"] = "leave_out"
    """What becomes of short clips, which are counted in any case. leave_out: they go to the bad list. repeat: they are
    stored starting again from their first frame until min_frames. pad: they are stored as they are; in training their
    last frame stands still and the losses of the diffusion stages leave these frames out."""
    max_frames: int = 512
    """Stored frames of a longer clip are cut to this many; at least min_frames."""
    size_frames: tuple[int, ...] = ()
    """max_frames of each of frame_sizes, if they differ (for example long at 64 px, short at 256 px); each at least
    min_frames and at most max_frames. Empty: max_frames for all."""
    chunk_frames: int = 16
    """Frames in one Zarr chunk (the unit of a read); 1 or more."""
    clips_per_shard: int = 128
    """Clips in one shard file, which is what one array task owns; 1 or more."""
    compression: Literal["zstd", "none"] = "zstd"
    """Lossless compression of stored frames."""
    tokenizer: str = "bpe"
    """"bpe": byte-level BPE trained on the data set's captions; otherwise a Hugging Face tokenizer folder."""
    vocab_size: int = 8192
    """Vocabulary of the trained BPE; 300 or more. Not used with a tokenizer folder."""
    text_context: int = 77
    """Tokens a caption, start and end marks included; 4 or more. Longer captions are cut and counted."""
    val_fraction: float = 0.05
    """Share of identities (first 11 characters of the clip id) held out for validation; [0, 1)."""

    def __post_init__(self) -> None:
        require_positive(self, "fps", "min_frames", "max_frames", "chunk_frames", "clips_per_shard")
        require_fraction(self, "val_fraction")
        sizes = self.frame_sizes
        require(
            len(sizes) > 0 and list(sizes) == sorted(set(sizes)) and min(sizes) >= 8,
            "DataConfig.frame_sizes",
            sizes,
            "must be ascending, without repeats, each at least 8, for example: --data.frame-sizes 64 256",
        )
        require(self.max_frames >= self.min_frames, "DataConfig.max_frames", self.max_frames, "must be >= min_frames")
        require(
            not self.size_frames
            or (
                len(self.size_frames) == len(sizes)
                and all(self.min_frames <= frames <= self.max_frames for frames in self.size_frames)
            ),
            "DataConfig.size_frames",
            self.size_frames,
            f"must be empty or hold a number in [min_frames={self.min_frames}, max_frames={self.max_frames}] for each "
            f"of frame_sizes={sizes}",
        )
        require(self.vocab_size >= 300, "DataConfig.vocab_size", self.vocab_size, "must be at least 300")
        require(self.text_context >= 4, "DataConfig.text_context", self.text_context, "must be at least 4")

    def frames_at(self, size: int) -> int:
        """Return the most frames that are stored of a clip at `size` pixels, one of frame_sizes."""
        return self.size_frames[self.frame_sizes.index(size)] if self.size_frames else self.max_frames


@dataclass(frozen=True, kw_only=True)
class CaptionWeights:
    """How often each kind of caption is drawn, relative to the others; 0 leaves a kind out."""

    appearance: float = 1.0
    """Weight of each line on general appearance; 0 or more."""
    action: float = 1.0
    """Weight of each line on actions; 0 or more."""
    emotion: float = 1.0
    """Weight of each line on emotions; 0 or more."""
    light_direction: float = 1.0
    """Weight of each line on the light's direction; 0 or more."""
    light_intensity: float = 1.0
    """Weight of each line on the light's brightness; 0 or more."""
    light_color: float = 1.0
    """Weight of each line on the light's colour temperature; 0 or more."""

    def __post_init__(self) -> None:
        for kind in CAPTION_KINDS:
            value = getattr(self, kind)
            require(0 <= value < float("inf"), f"CaptionWeights.{kind}", value, "must be 0 or more and finite")
        require(any(self.by_kind()), "CaptionWeights", self.by_kind(), "must not all be 0")

    def by_kind(self) -> tuple[float, ...]:
        """Return the weights in the order of CAPTION_KINDS."""
        return tuple(getattr(self, kind) for kind in CAPTION_KINDS)


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Which text of a clip a training sample gets. A clip without any line of positive weight uses all its lines."""

    choose: Literal["one", "joined"] = "one"
    """one: one line of the clip, drawn by weight. joined: one line of each kind with a positive weight, in the order of
    the kinds, as many as fit whole into text_context."""
    weights: CaptionWeights = field(default_factory=CaptionWeights)
    """Weights by kind of caption."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training samples differ from what is stored; validation samples do not."""

    mirror: bool = False
    """Mirror half of the samples left to right, drawn by sample. Not for captions that speak of left and right, as
    those of CelebV-Text do; a video embedding remains that of the clip as it is stored."""


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """The frames one training sample holds: `num_frames` stored frames, `stride` apart, at `size` pixels."""

    size: int
    """Side length in pixels; one of data.frame_sizes."""
    num_frames: int
    """Frames in the window; 1 or more."""
    stride: int = 1
    """Distance of the window's frames in stored frames; 1 or more."""

    def __post_init__(self) -> None:
        require_positive(self, "size", "num_frames", "stride")

    @property
    def span(self) -> int:
        """Stored frames from the first to the last frame of the window, both counted."""
        return (self.num_frames - 1) * self.stride + 1
