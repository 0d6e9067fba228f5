"""CelebV-Text at 256 px: the cascade 16x64x64 -> 32x64x64 -> 32x256x256. For several nodes.

Sizes from the papers' tables: the prior is DALL-E 2's (Ramesh et al. 2022, table 3: width 2048, 24 blocks, lr 1.1e-4,
weight decay 6e-2, EMA 0.9999), the base U-Net has 192 channels and 3 blocks a level like ADM-64 (Dhariwal & Nichol
2021, table 11), spatial super-resolution has multiples 1, 2, 4, 8 and no attention at high resolution, like Imagen's
efficient U-Net (Saharia et al. 2022, appendix F), and is trained on 64 px crops.
"""

import dataclasses

from dalle2_video.config import (
    DecoderConfig,
    DiffusionConfig,
    OptimConfig,
    PriorConfig,
    Recipe,
    SpatialSrConfig,
    TransformerConfig,
    UnetConfig,
)
from dalle2_video.data_config import DataConfig, WindowConfig
from experiments.recipes import celebv_text_64


def recipe() -> Recipe:
    """The 64 px recipe with larger prior and decoder, and spatial super-resolution on top."""
    base = celebv_text_64.recipe()
    assert base.temporal_sr is not None
    high = base.temporal_sr.window
    return dataclasses.replace(
        base,
        name="celebv_text_256",
        data=DataConfig(
            frame_sizes=(64, 256),
            fps=8.0,
            min_frames=32,
            max_frames=448,
            chunk_frames=8,
            clips_per_shard=128,
            vocab_size=16384,
            text_context=128,
        ),
        prior=PriorConfig(
            transformer=TransformerConfig(dim=2048, depth=24, heads=32),
            diffusion=DiffusionConfig(objective="x0", sampling_steps=64, guidance_scale=1.0),
            optim=OptimConfig(
                steps=600_000, batch_size=4096, lr=1.1e-4, weight_decay=6e-2, betas=(0.9, 0.96), precision="bf16"
            ),
        ),
        decoder=DecoderConfig(
            window=base.decoder.window,
            unet=dataclasses.replace(base.decoder.unet, dim=192),
            diffusion=base.decoder.diffusion,
            optim=OptimConfig(steps=800_000, batch_size=256, lr=1.2e-4, precision="bf16"),
        ),
        spatial_sr=SpatialSrConfig(
            window=WindowConfig(size=256, num_frames=high.num_frames, stride=high.stride),
            low_size=64,
            crop_size=64,
            unet=UnetConfig(
                dim=128,
                dim_mults=(1, 2, 4, 8),
                blocks=2,
                spatial_attention=(False, False, False, False),
                cross_attention=(False, False, False, True),
                temporal_attention=(False, False, False, False),
                temporal_convolution=(True, True, True, True),
                head_dim=64,
            ),
            diffusion=DiffusionConfig(sampling_steps=32, guidance_scale=1.0),
            optim=OptimConfig(steps=400_000, batch_size=64, lr=5e-5, precision="bf16"),
        ),
    )
