"""The networks that `train_step.py` compares: ours and the peers', with as many parameters, fed the same input.

A network's widths are searched among a few settings for the number of parameters nearest to that of ours. Runs under
either Python: ours is imported in the product's, a peer in the peers' (`peers.py`). Peers' packages import much that
their networks do not need and that has no build for CPUs, torchvision first: of each just the file of the network is
imported, with stand-ins for what else it names.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OURS, OUR_PRIOR = "our U-Net", "our prior"
TOLERANCE = 0.03
"""Largest difference of a peer's number of parameters from ours, as a share."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of the networks and of their input."""

    batch: int
    frames: int
    side: int
    dim: int
    """Of our U-Net, whose widths are dim times 1, 2 and 4."""
    blocks: int
    """Of our U-Net, a level."""
    prior_dim: int
    """Of both priors, and of the embeddings and encodings that they read: the peer's knows one width only."""
    prior_depth: int
    """Of our prior."""
    prior_batch: int
    tokens: int = 16
    text_dim: int = 64
    """Width of the encodings and of the embedding that U-Nets read."""


Setting = Mapping[str, Any]
Predict = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A network and how it is fed."""

    prior: bool
    """It predicts an embedding, not a video."""
    load: Callable[[], Callable[[Size, Setting], nn.Module]]
    """Import what is needed; return what builds the network."""
    settings: Callable[[Size], Sequence[Setting]]
    """Widths to choose from."""
    predict: Predict
    thrifty: bool = False
    """It is trained with the allocator that the product takes for activation checkpointing on CPUs."""


def parameters(module: nn.Module) -> int:
    """Return the number of parameters of a network, which may be on the meta device."""
    return sum(parameter.numel() for parameter in module.parameters())


def nearest(counts: Sequence[int], target: int) -> int:
    """Return the place of the count that is nearest to the target; ValueError if that is more than TOLERANCE off."""
    place = min(range(len(counts)), key=lambda place: abs(counts[place] - target))
    if abs(counts[place] / target - 1) > TOLERANCE:
        raise ValueError(
            f"the nearest of {sorted(counts)} parameters is {counts[place]}, more than {TOLERANCE:.0%} off {target}; "
            "give the contender more settings to choose from"
        )
    return place


def matched(name: str, size: Size, target: int | None) -> Callable[[], nn.Module]:
    """Return what builds a contender's network with about `target` parameters; None: in its first setting.

    Raises ValueError where no setting comes near.
    """
    contender = CONTENDERS[name]
    make, settings = contender.load(), contender.settings(size)
    place = 0
    if target is not None:
        with torch.device("meta"):
            place = nearest([parameters(make(size, setting)) for setting in settings], target)
    return lambda: make(size, settings[place])


def inputs(contender: Contender, size: Size, device: torch.device) -> dict[str, Tensor]:
    """Return noise of the right shapes: a video or an embedding, its target, times, and the caption."""
    generator = torch.Generator().manual_seed(0)
    prior = contender.prior
    batch, width = (size.prior_batch, size.prior_dim) if prior else (size.batch, size.text_dim)
    shape = (batch, width) if prior else (batch, 3, size.frames, size.side, size.side)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    return {
        "noised": noise(*shape),
        "target": noise(*shape),
        "logsnr": noise(batch),
        "embedding": noise(batch, width),
        "encodings": noise(batch, size.tokens, width),
        "mask": torch.ones(batch, size.tokens, dtype=torch.bool, device=device),
        "keep": torch.ones(batch, dtype=torch.bool, device=device),
        "timestep": torch.randint(1000, (batch,), generator=generator).to(device),
    }


# Ours.


def _our_unet() -> Callable[[Size, Setting], nn.Module]:
    from dalle2_video.config import UnetConfig
    from dalle2_video.models.unet3d import Unet3D

    def make(size: Size, setting: Setting) -> nn.Module:
        # the decoder's attentions in recipe celebv_text_64
        below_the_first = (False, True, True)
        config = UnetConfig(
            dim=size.dim,
            dim_mults=(1, 2, 4),
            blocks=size.blocks,
            spatial_attention=below_the_first,
            cross_attention=below_the_first,
            temporal_attention=(True, True, True),
            temporal_convolution=(False, False, False),
        )
        return Unet3D(config, embedding_dim=size.text_dim, text_dim=size.text_dim, low_res=False, **setting)

    return make


def _predict_our_unet(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return module(
        batch["noised"],
        batch["logsnr"],
        encodings_bld=batch["encodings"],
        text_mask_bl=batch["mask"],
        keep_b=batch["keep"],
        embedding_bd=batch["embedding"],
    )


def _our_prior() -> Callable[[Size, Setting], nn.Module]:
    from dalle2_video.config import TransformerConfig
    from dalle2_video.models.prior import Prior

    def make(size: Size, setting: Setting) -> nn.Module:
        config = TransformerConfig(dim=size.prior_dim, depth=size.prior_depth, heads=size.prior_dim // 64)
        return Prior(config, size.prior_dim, size.prior_dim)

    return make


def _predict_our_prior(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return module(
        batch["noised"], batch["logsnr"], batch["embedding"], batch["encodings"], batch["mask"], batch["keep"]
    )


# Peers.


class _StandInClass(type):
    """A class that can be named, subclassed and made, and that nothing can be computed with."""

    def __getattr__(cls, name: str) -> _StandInClass:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandInClass(name, (), {})

    def __call__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(cls)  # type: ignore[arg-type]


class _StandIn(types.ModuleType):
    """A module whose every name is a stand-in."""

    def __getattr__(self, name: str) -> _StandInClass:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandInClass(name, (), {})


class _StandIns:
    """Finds a stand-in for each of these modules and what is below them."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if any(name == own or name.startswith(f"{own}.") for own in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def _network(package: str, file: str, *stand_ins: str) -> Any:
    """Import one file of a package, without the package's own imports."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    bare = types.ModuleType(package)
    bare.__path__ = [str(Path(spec.origin).parent)]
    sys.modules[package] = bare
    sys.meta_path.insert(0, _StandIns(*stand_ins))
    return importlib.import_module(f"{package}.{file}")


def _video_diffusion_pytorch() -> Callable[[Size, Setting], nn.Module]:
    module = _network("video_diffusion_pytorch", "video_diffusion_pytorch", "torchvision")
    return lambda size, setting: module.Unet3D(cond_dim=size.text_dim, dim_mults=(1, 2, 4), **setting)


def _imagen_pytorch() -> Callable[[Size, Setting], nn.Module]:
    module = _network("imagen_pytorch", "imagen_video", "imagen_pytorch.t5")

    def make(size: Size, setting: Setting) -> nn.Module:
        return module.Unet3D(text_embed_dim=size.text_dim, dim_mults=(1, 2, 4), max_text_len=size.tokens, **setting)

    return make


def _diffusers() -> Callable[[Size, Setting], nn.Module]:
    from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel  # type: ignore[import-not-found]

    def make(size: Size, setting: Setting) -> nn.Module:
        return UNet3DConditionModel(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
            up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "UpBlock3D"),
            cross_attention_dim=size.text_dim,
            attention_head_dim=8,
            norm_num_groups=8,
            layers_per_block=1,
            **setting,
        )

    return make


def _dalle2_pytorch() -> Callable[[Size, Setting], nn.Module]:
    others = ("torchvision", "kornia", "dalle2_pytorch.tokenizer", "dalle2_pytorch.vqgan_vae", "resize_right")
    module = _network("dalle2_pytorch", "dalle2_pytorch", *others, "x_clip", "coca_pytorch")

    def make(size: Size, setting: Setting) -> nn.Module:
        return module.DiffusionPriorNetwork(dim=size.prior_dim, max_text_len=size.tokens, **setting)

    return make


def _dims_and_heads(size: Size) -> list[Setting]:
    """Our width and the one below it that groups of 8 channels allow."""
    return [{"dim": dim, "attn_heads": heads} for dim in (size.dim - 8, size.dim) for heads in (8, 6, 4)]


_DIFFUSERS_WIDTHS = ((24, 32, 56), (32, 64, 120), (40, 80, 112))

CONTENDERS: dict[str, Contender] = {
    OURS: Contender(prior=False, load=_our_unet, settings=lambda size: [{}], predict=_predict_our_unet),
    **{
        f"{OURS}, {mode}": Contender(
            prior=False,
            load=_our_unet,
            settings=lambda size, mode=mode: [{"activation_checkpointing": mode}],  # type: ignore[misc]
            predict=_predict_our_unet,
            thrifty=True,
        )
        for mode in ("selective", "full")
    },
    "video-diffusion-pytorch": Contender(
        prior=False,
        load=_video_diffusion_pytorch,
        settings=_dims_and_heads,
        predict=lambda module, batch: module(batch["noised"], batch["timestep"], cond=batch["encodings"].mean(1)),
    ),
    "imagen-pytorch": Contender(
        prior=False,
        load=_imagen_pytorch,
        settings=_dims_and_heads,
        predict=lambda module, batch: module(
            batch["noised"], batch["logsnr"], text_embeds=batch["encodings"], text_mask=batch["mask"]
        ),
    ),
    "diffusers": Contender(
        prior=False,
        load=_diffusers,
        settings=lambda size: [{"block_out_channels": widths} for widths in _DIFFUSERS_WIDTHS],
        predict=lambda module, batch: module(batch["noised"], batch["timestep"], batch["encodings"]).sample,
    ),
    OUR_PRIOR: Contender(prior=True, load=_our_prior, settings=lambda size: [{}], predict=_predict_our_prior),
    "dalle2-pytorch": Contender(
        prior=True,
        load=_dalle2_pytorch,
        settings=lambda size: [
            {"depth": depth, "heads": heads} for depth in range(1, size.prior_depth + 1) for heads in (8, 5, 2)
        ],
        predict=lambda module, batch: module(
            batch["noised"], batch["timestep"], text_embed=batch["embedding"], text_encodings=batch["encodings"]
        ),
    ),
}
