"""90 frames at once: a 64 px decoder and 64 to 128 px super-resolution, each with a batch of 1 a rank.

The U-Nets have the sizes of the DALLE2-video decoder that never fitted into memory: dim 64 with multiples 1, 2, 4, 8,
and dim 8 with multiples 1, 2, 4, 8, 16; 90 frames (or 150), learning rate 3e-4, gradients clipped to 0.5 and
accumulated over 16 samples a rank. Space and time are factorised, so that no attention spans both; v is predicted
where the original predicted eps, which says nothing at the noisy end (--decoder.diffusion.objective eps brings it
back). Train them with

    python launch/decoder.py --recipe seed_decoder --ranks-per-node 2 --micro-batch 1 --activation-checkpointing full

and `--dry-run` tells the memory that it takes. Memory at 90 and 150 frames: tools/bench/memory.py.
"""

from dalle2_video.config import (
    ClipConfig,
    DecoderConfig,
    DiffusionConfig,
    OptimConfig,
    PriorConfig,
    Recipe,
    SpatialSrConfig,
    TextEncoderConfig,
    TransformerConfig,
    UnetConfig,
)
from dalle2_video.data_config import DataConfig, WindowConfig
from experiments.recipes import celebv_text_64

RANKS, ACCUMULATION = 2, 16


def recipe(num_frames: int = 90) -> Recipe:
    """CLIP on every sixth frame; decoder and spatial super-resolution on all."""
    base = celebv_text_64.recipe()
    optim = OptimConfig(steps=100_000, batch_size=RANKS * ACCUMULATION, lr=3e-4, max_grad_norm=0.5)
    return Recipe(
        name="seed_decoder",
        data=DataConfig(
            frame_sizes=(64, 128),
            fps=8.0,
            min_frames=16,
            max_frames=max(num_frames, 160),
            short_clips="pad",
            vocab_size=16384,
            text_context=77,
        ),
        clip=ClipConfig(
            window=WindowConfig(size=64, num_frames=15, stride=6),
            patch_size=8,
            embed_dim=512,
            text=TextEncoderConfig(dim=512, depth=6, heads=8),
            spatial=TransformerConfig(dim=512, depth=6, heads=8),
            temporal=TransformerConfig(dim=512, depth=2, heads=8),
            optim=OptimConfig(steps=50_000, batch_size=64, lr=5e-4, weight_decay=0.2, betas=(0.9, 0.98)),
        ),
        prior=PriorConfig(
            transformer=TransformerConfig(dim=512, depth=6, heads=8),
            diffusion=base.prior.diffusion,
            optim=OptimConfig(steps=100_000, batch_size=64, lr=1.1e-4, weight_decay=6e-2, betas=(0.9, 0.96)),
        ),
        decoder=DecoderConfig(
            window=WindowConfig(size=64, num_frames=num_frames),
            unet=UnetConfig(
                dim=64,
                dim_mults=(1, 2, 4, 8),
                spatial_attention=(False, False, True, True),
                cross_attention=(False, False, True, True),
                temporal_attention=(True, True, True, True),
                temporal_convolution=(False, False, False, False),
            ),
            diffusion=DiffusionConfig(sampling_steps=50, guidance_scale=3.0),
            optim=optim,
        ),
        temporal_sr=None,
        spatial_sr=SpatialSrConfig(
            window=WindowConfig(size=128, num_frames=num_frames),
            low_size=64,
            crop_size=128,
            unet=UnetConfig(
                dim=8,
                dim_mults=(1, 2, 4, 8, 16),
                spatial_attention=(False, False, False, False, True),
                cross_attention=(False, False, False, True, True),
                temporal_attention=(False, False, False, False, True),
                temporal_convolution=(True, True, True, True, False),
            ),
            diffusion=DiffusionConfig(sampling_steps=32, guidance_scale=1.5),
            optim=optim,
        ),
    )
