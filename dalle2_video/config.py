"""Recipe: everything that decides what is learnt, as frozen dataclasses that validate themselves.

A Recipe is science only: data, models, losses, schedules, seeds, global batch sizes. Where and how it runs is
`runtime.RuntimeConfig` and, on the cluster side, the placement; neither can enter a run's identity. Parts with a file
of their own: `data_config`, `diffusion_config`, `sample_config`, `evaluate_config`. Nothing here imports torch, so that
the launchers start quickly. Every field's docstring is its `--help` text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from dalle2_video.checks import require, require_fraction, require_positive
from dalle2_video.data_config import AugmentConfig, CaptionConfig, DataConfig, WindowConfig
from dalle2_video.diffusion_config import DiffusionConfig, DistillationConfig
from dalle2_video.evaluate_config import EvaluateConfig
from dalle2_video.sample_config import SampleConfig

Precision = Literal["fp32", "bf16"]
Activation = Literal["gelu", "quick_gelu"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up, fp32 master weights and an EMA."""

    steps: int
    """Optimiser steps of the whole training; greater than 0."""
    batch_size: int
    """Global batch in samples, fixed for the run at any world size; greater than 0."""
    lr: float
    """Peak learning rate; greater than 0."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices (norms, biases and embeddings have none); 0 or more."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's moment decays; each in [0, 1)."""
    warmup_steps: int = 1000
    """Steps of linear warm-up; 0 or more."""
    lr_decay: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or cosine to a tenth of the peak at the last step."""
    ema_decay: float = 0.9999
    """Decay per step of the exponential moving average, ramped as min(decay, (1+step)/(10+step)); [0, 1)."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm; greater than 0."""
    skip_spikes: float = 0.0
    """A step whose gradient norm is more than so many times the median of the last 100 is passed over: weights, moments
    and EMA stay as they are; 2 or more, or 0: none is."""
    precision: Precision = "fp32"
    """Compute precision; masters, moments and EMA are fp32 always."""

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch_size", "lr", "max_grad_norm")
        require_fraction(self, "ema_decay")
        require(self.weight_decay >= 0, "OptimConfig.weight_decay", self.weight_decay, "must be 0 or more")
        require(self.warmup_steps >= 0, "OptimConfig.warmup_steps", self.warmup_steps, "must be 0 or more")
        skip = self.skip_spikes
        require(skip == 0 or skip >= 2, "OptimConfig.skip_spikes", skip, "must be 2 or more, or 0")
        require(all(0 <= beta < 1 for beta in self.betas), "OptimConfig.betas", self.betas, "must each lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Width and depth of a pre-norm transformer."""

    dim: int
    """Width; a multiple of heads."""
    depth: int
    """Blocks; 1 or more."""
    heads: int
    """Attention heads; 1 or more."""
    dropout: float = 0.0
    """Dropout of attention and feed-forward outputs; [0, 1)."""

    def __post_init__(self) -> None:
        require_positive(self, "dim", "depth", "heads")
        require_fraction(self, "dropout")
        require(
            self.dim % self.heads == 0,
            "TransformerConfig.dim",
            self.dim,
            f"must be a multiple of heads={self.heads}; next: {-(-self.dim // self.heads) * self.heads}",
        )


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig(TransformerConfig):
    """CLIP's text encoder, from scratch or pretrained."""

    pretrained: str = ""
    """Folder of a CLIP text tower (CLIPTextModelWithProjection or CLIPModel) to start from; its sizes replace dim,
    depth, heads, activation and attention_bias. data.tokenizer must be its tokenizer's folder."""
    frozen: bool = False
    """The pretrained text tower stays as it is, and only the video encoder learns."""
    activation: Activation = "gelu"
    """Of the feed-forward layers; quick_gelu: x * sigmoid(1.702 x)."""
    attention_bias: bool = False
    """Queries, keys and values have a bias."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.frozen or bool(self.pretrained),
            "clip.text.frozen",
            self.frozen,
            "leaves random weights as they are; give --clip.text.pretrained DIR",
        )
        learns = not self.frozen or self.dropout == 0
        require(learns, "clip.text.dropout", self.dropout, "only disturbs a text tower that is frozen; set it to 0")


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """CLIP over videos: a factorised space-time video encoder and a causal text encoder, symmetric contrastive loss."""

    window: WindowConfig
    """Frames that the video encoder sees."""
    patch_size: int
    """Side of a square patch in pixels; divides window.size."""
    tubelet_frames: int = 1
    """Successive frames of a patch; divides window.num_frames. From 2 on a patch sees motion by itself (tubelets, Arnab
    et al. 2021, sec. 3.2)."""
    stem_channels: int = 0
    """Channels of a convolutional stem before the patches (Xiao et al. 2021), a multiple of 4; 0: none. With one,
    motion is learnt within hundreds of steps from small frames."""
    embed_dim: int
    """Dimension of the shared embedding; greater than 0."""
    text: TextEncoderConfig
    """Text encoder."""
    spatial: TransformerConfig
    """Video encoder, attention within a frame."""
    temporal: TransformerConfig
    """Video encoder, attention over frames; same dim as spatial."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: symmetric cross entropy (Radford et al. 2021); sigmoid: each pair by itself (Zhai et al. 2023)."""
    optim: OptimConfig
    """Training schedule."""

    def __post_init__(self) -> None:
        require_positive(self, "patch_size", "tubelet_frames", "embed_dim")
        require(
            self.window.size % self.patch_size == 0,
            "ClipConfig.patch_size",
            self.patch_size,
            f"must divide window.size={self.window.size}",
        )
        require(
            self.stem_channels >= 0 and self.stem_channels % 4 == 0,
            "ClipConfig.stem_channels",
            self.stem_channels,
            "must be a multiple of 4, or 0",
        )
        require(
            self.patch_size % 2 == 0 or not self.stem_channels,
            "ClipConfig.patch_size",
            self.patch_size,
            "must be even: stem_channels halves the frames",
        )
        require(
            self.window.num_frames % self.tubelet_frames == 0,
            "ClipConfig.tubelet_frames",
            self.tubelet_frames,
            f"must divide window.num_frames={self.window.num_frames}",
        )
        require(
            self.spatial.dim == self.temporal.dim,
            "ClipConfig.temporal.dim",
            self.temporal.dim,
            f"must equal spatial.dim={self.spatial.dim}",
        )


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Which windows of a clip get a CLIP video embedding in the store."""

    hop: int = 8
    """Stored frames between the starts of successive windows; greater than 0."""

    def __post_init__(self) -> None:
        require_positive(self, "hop")


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Diffusion prior: CLIP text to CLIP video embedding with a causal transformer (Ramesh et al. 2022, sec. 2.2)."""

    transformer: TransformerConfig
    """Causal transformer over [text encodings, text embedding, time, noised embedding, query]."""
    diffusion: DiffusionConfig
    """Diffusion over the unit-norm embedding scaled by sqrt(embed_dim)."""
    candidates: int = 2
    """Embeddings sampled a prompt; the one nearest to the text embedding is kept; 1 or more."""
    optim: OptimConfig
    """Training schedule."""

    def __post_init__(self) -> None:
        require_positive(self, "candidates")
        learned = self.diffusion.learned_variance
        require(learned == "none", "prior.diffusion.learned_variance", learned, "is for video stages; set it to none")


@dataclass(frozen=True, kw_only=True)
class UnetConfig:
    """3D U-Net with 1x3x3 convolutions and factorised space and time attention (Ho et al. 2022, sec. 3)."""

    dim: int
    """Channels of the first level; a multiple of 8."""
    dim_mults: tuple[int, ...]
    """Channels of each level as multiples of dim; each level but the last halves the side."""
    blocks: int = 2
    """Residual blocks a level; 1 or more."""
    spatial_attention: tuple[bool, ...]
    """For each level: attention within a frame."""
    cross_attention: tuple[bool, ...]
    """For each level: attention to the text encodings."""
    temporal_attention: tuple[bool, ...]
    """For each level: attention over frames."""
    temporal_convolution: tuple[bool, ...]
    """For each level: a 3x1x1 convolution after each residual block (Imagen Video's choice for super-resolution)."""
    head_dim: int = 32
    """Width of an attention head; greater than 0."""
    dropout: float = 0.0
    """Dropout in residual blocks; [0, 1)."""

    def __post_init__(self) -> None:
        require_positive(self, "dim", "blocks", "head_dim")
        require_fraction(self, "dropout")
        require(self.dim % 8 == 0, "UnetConfig.dim", self.dim, "must be a multiple of 8 (group norm)")
        require(
            len(self.dim_mults) > 0 and min(self.dim_mults) > 0,
            "UnetConfig.dim_mults",
            self.dim_mults,
            "must hold one or more positive multiples, for example: 1 2 4",
        )
        for name in ("spatial_attention", "cross_attention", "temporal_attention", "temporal_convolution"):
            flags = getattr(self, name)
            require(
                len(flags) == len(self.dim_mults),
                f"UnetConfig.{name}",
                flags,
                f"must hold one flag for each of the {len(self.dim_mults)} levels in dim_mults={self.dim_mults}",
            )

    def check_size(self, size: int) -> None:
        """Raise ValueError if `size` pixels cannot be halved once a level but the last."""
        factor = 2 ** (len(self.dim_mults) - 1)
        require(size % factor == 0, "window.size", size, f"must be a multiple of {factor} (dim_mults={self.dim_mults})")


def check_strides(name: str, strides: tuple[int, ...], window: WindowConfig) -> None:
    """Raise ValueError where strides to draw from do not fit the window of the stage `name`."""
    require(
        not strides
        or (len(strides) > 1 and min(strides) > 0 and list(strides) == sorted({*strides}) and window.stride in strides),
        f"{name}.strides",
        strides,
        f"must be empty, or two or more, ascending, with window.stride={window.stride} among them",
    )


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Decoder: CLIP video embedding and text encodings to a low-rate, low-resolution video."""

    window: WindowConfig
    """Frames that the decoder makes."""
    strides: tuple[int, ...] = ()
    """Strides of window that training draws from; the frame rate is a condition then, and sampling may choose among
    them. Two or more, ascending, window.stride among them; empty: window.stride alone, without that condition. A
    video's CLIP embedding is that of CLIP's own window at the same start."""
    joint_images: int = 0
    """Single frames of other clips that are learnt beside each video, each a sample with a caption and an embedding of
    its own (Ho et al. 2022, sec. 4.1: up to 8 helped); 0 or more. A student (distillation) learns from videos alone."""
    unet: UnetConfig
    """Network."""
    diffusion: DiffusionConfig
    """Diffusion."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """Fewer steps, learnt from a finished run of this stage."""
    optim: OptimConfig
    """Training schedule."""

    def __post_init__(self) -> None:
        self.unet.check_size(self.window.size)
        self.distillation.check("decoder.distillation", self.diffusion)
        check_strides("decoder", self.strides, self.window)
        require(self.joint_images >= 0, "decoder.joint_images", self.joint_images, "must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig:
    """What both super-resolution stages share."""

    window: WindowConfig
    """Frames that the stage makes."""
    strides: tuple[int, ...] = ()
    """Strides of window that training draws from, as decoder.strides: of rates that the stages before make. Empty:
    window.stride alone, without the frame rate as a condition; the whole chain then makes that rate alone."""
    max_augmentation: float = 0.5
    """Conditioning frames are noised to a random time in [0, this] in training (Ho et al. 2021); [0, 1)."""
    sampling_augmentation: float = 0.1
    """Conditioning frames are noised to this time in sampling; at most max_augmentation."""
    unet: UnetConfig
    """Network."""
    diffusion: DiffusionConfig
    """Diffusion."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """Fewer steps, learnt from a finished run of this stage."""
    optim: OptimConfig
    """Training schedule."""

    def __post_init__(self) -> None:
        self.unet.check_size(self.window.size)
        self.distillation.check(f"{type(self).__name__}.distillation", self.diffusion)
        check_strides(type(self).__name__, self.strides, self.window)
        require_fraction(self, "max_augmentation", "sampling_augmentation")
        require(
            self.sampling_augmentation <= self.max_augmentation,
            f"{type(self).__name__}.sampling_augmentation",
            self.sampling_augmentation,
            f"must be at most max_augmentation={self.max_augmentation}",
        )


@dataclass(frozen=True, kw_only=True)
class TemporalSrConfig(SuperResolutionConfig):
    """Temporal super-resolution: fills the frames between those of a low-rate video."""

    factor: int = 2
    """Frames made for each frame given; divides window.num_frames; 2 or more."""
    conditioning: Literal["repeat", "blank"] = "repeat"
    """What stands where no frame is given: the one before it, repeated, or a blank frame (Ho et al. 2022, Imagen Video,
    sec. 2.3)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.factor >= 2, "TemporalSrConfig.factor", self.factor, "must be 2 or more")
        require(
            self.window.num_frames % self.factor == 0,
            "TemporalSrConfig.factor",
            self.factor,
            f"must divide window.num_frames={self.window.num_frames}",
        )


@dataclass(frozen=True, kw_only=True)
class SpatialSrConfig(SuperResolutionConfig):
    """Spatial super-resolution: the same frames at a larger size; trained on crops, run on whole frames."""

    low_size: int
    """Side in pixels of the video given; one of data.frame_sizes, divides window.size."""
    crop_size: int
    """Side in pixels of the random crop trained on; a multiple of window.size / low_size, at most window.size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "low_size", "crop_size")
        self.unet.check_size(self.crop_size)
        require(
            self.window.size % self.low_size == 0 and self.low_size < self.window.size,
            "SpatialSrConfig.low_size",
            self.low_size,
            f"must divide window.size={self.window.size} and be smaller",
        )
        factor = self.window.size // self.low_size
        require(
            self.crop_size % factor == 0 and self.crop_size <= self.window.size,
            "SpatialSrConfig.crop_size",
            self.crop_size,
            f"must be a multiple of {factor} and at most window.size={self.window.size}",
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One text-to-video system: its data and its stages."""

    name: str
    """Name of the recipe, as in experiments/recipes."""
    seed: int = 0
    """Seed of order, crops, captions, noise, dropout and initial weights; 0 or more."""
    data: DataConfig
    """Store."""
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    """Text of a training sample."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Changes to a training sample."""
    clip: ClipConfig
    """CLIP."""
    prior: PriorConfig
    """Diffusion prior."""
    decoder: DecoderConfig
    """Decoder."""
    temporal_sr: TemporalSrConfig | None
    """Temporal super-resolution; None: the decoder makes all frames."""
    spatial_sr: SpatialSrConfig | None = None
    """Spatial super-resolution; None: the videos keep the decoder's size."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """Video embeddings of the whole store."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Generation."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Evaluation."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "Recipe.seed", self.seed, "must be 0 or more")
        for stage in ("clip", "decoder", "temporal_sr", "spatial_sr"):
            config = getattr(self, stage)
            if config is None:
                continue
            window: WindowConfig = config.window
            require(
                window.size in self.data.frame_sizes,
                f"{stage}.window.size",
                window.size,
                f"is not one of data.frame_sizes={self.data.frame_sizes}; store it too: --data.frame-sizes "
                + " ".join(map(str, sorted({*self.data.frame_sizes, window.size}))),
            )
            require(
                window.span <= self.data.min_frames or self.data.short_clips == "pad",
                f"{stage}.window.num_frames",
                window.num_frames,
                f"at stride {window.stride} spans {window.span} stored frames, more than "
                f"data.min_frames={self.data.min_frames} guarantees; raise --data.min-frames "
                "or set --data.short-clips pad",
            )
            largest = max(getattr(config, "strides", ()), default=window.stride)
            span = replace(window, stride=largest).span
            require(
                span <= self.data.min_frames or self.data.short_clips == "pad",
                f"{stage}.strides",
                largest,
                f"times {window.num_frames} frames spans {span} stored frames, more than data.min_frames="
                f"{self.data.min_frames} guarantees; raise --data.min-frames or set --data.short-clips pad",
            )
        for stage in ("prior", "decoder", "temporal_sr", "spatial_sr"):
            config = getattr(self, stage)
            if config is not None:
                getattr(self.sample, stage).check(f"sample.{stage}", config.diffusion)
        require(
            not self.clip.text.pretrained or self.data.tokenizer != "bpe",
            "clip.text.pretrained",
            self.clip.text.pretrained,
            "reads tokens of its own tokenizer, and the store's would be others; preprocess with --data.tokenizer DIR, "
            "where DIR holds the text tower's tokenizer.json, and give it here too",
        )
        self._check_cascade()

    def _check_rates(self) -> None:
        """Raise ValueError where a super-resolution stage learns a frame rate that no stage before it makes."""
        made = self.decoder.strides or (self.decoder.window.stride,)
        for name, config in (("temporal_sr", self.temporal_sr), ("spatial_sr", self.spatial_sr)):
            if config is None:
                continue
            factor = config.factor if isinstance(config, TemporalSrConfig) else 1
            fitting = tuple(stride // factor for stride in made if stride % factor == 0)
            require(
                set(config.strides) <= {*fitting},
                f"{name}.strides",
                config.strides,
                f"are of rates that the stages before it do not make, with strides {made}; it can have {fitting}"
                if len(fitting) > 1
                else "must be empty: the stages before it make one rate, or one that it can go on from",
            )
            made = config.strides or (config.window.stride,)

    def _check_cascade(self) -> None:
        made_by, made = "decoder", self.decoder.window
        self._check_rates()
        if self.temporal_sr is not None:
            low, high = made, self.temporal_sr.window
            expected = (low.size, low.num_frames * self.temporal_sr.factor, low.stride)
            found = (high.size, high.num_frames, high.stride * self.temporal_sr.factor)
            require(
                expected == found,
                "temporal_sr.window",
                high,
                f"does not follow from decoder.window={low} by factor={self.temporal_sr.factor}: wanted the same size, "
                "factor times the frames, stride divided by the factor",
            )
            made_by, made = "temporal_sr", high
        if self.spatial_sr is not None:
            given = (self.spatial_sr.low_size, self.spatial_sr.window.num_frames, self.spatial_sr.window.stride)
            require(
                given == (made.size, made.num_frames, made.stride),
                "spatial_sr",
                given,
                f"(low_size, num_frames, stride) must be those of {made_by}.window={made}",
            )
