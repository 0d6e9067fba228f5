"""CelebV-Text at 64 px: 16 frames at 4 fps, then 32 frames at 8 fps. For one node of GPUs or a few.

CLIP's text encoder has the size of ViT-B/32's (Radford et al. 2021, table 20); the U-Nets follow Video Diffusion Models
(Ho et al. 2022): 16x64x64, channel multiples 1, 2, 3, 4, attention at 32 px and below.
"""

from dalle2_video.config import (
    ClipConfig,
    DecoderConfig,
    DiffusionConfig,
    EmbedConfig,
    OptimConfig,
    PriorConfig,
    Recipe,
    TemporalSrConfig,
    TextEncoderConfig,
    TransformerConfig,
    UnetConfig,
)
from dalle2_video.data_config import DataConfig, WindowConfig


def recipe() -> Recipe:
    """All stages at 64 px."""
    low = WindowConfig(size=64, num_frames=16, stride=2)
    high = WindowConfig(size=64, num_frames=32, stride=1)
    return Recipe(
        name="celebv_text_64",
        data=DataConfig(frame_sizes=(64,), fps=8.0, min_frames=32, max_frames=448, vocab_size=16384, text_context=128),
        clip=ClipConfig(
            window=low,
            patch_size=8,
            embed_dim=512,
            text=TextEncoderConfig(dim=512, depth=12, heads=8),
            spatial=TransformerConfig(dim=768, depth=12, heads=12),
            temporal=TransformerConfig(dim=768, depth=4, heads=12),
            optim=OptimConfig(
                steps=50_000,
                batch_size=1024,
                lr=5e-4,
                weight_decay=0.2,
                betas=(0.9, 0.98),
                warmup_steps=2000,
                lr_decay="cosine",
                precision="bf16",
            ),
        ),
        embed=EmbedConfig(hop=8),
        prior=PriorConfig(
            transformer=TransformerConfig(dim=1024, depth=12, heads=16),
            diffusion=DiffusionConfig(objective="x0", sampling_steps=64, guidance_scale=1.0),
            optim=OptimConfig(
                steps=200_000, batch_size=1024, lr=1.1e-4, weight_decay=6e-2, betas=(0.9, 0.96), precision="bf16"
            ),
        ),
        decoder=DecoderConfig(
            window=low,
            unet=UnetConfig(
                dim=128,
                dim_mults=(1, 2, 3, 4),
                blocks=3,
                spatial_attention=(False, True, True, True),
                cross_attention=(False, True, True, True),
                temporal_attention=(True, True, True, True),
                temporal_convolution=(False, False, False, False),
                head_dim=64,
                dropout=0.1,
            ),
            diffusion=DiffusionConfig(sampling_steps=50, guidance_scale=3.0),
            optim=OptimConfig(steps=400_000, batch_size=128, lr=1.2e-4, precision="bf16"),
        ),
        temporal_sr=TemporalSrConfig(
            window=high,
            unet=UnetConfig(
                dim=96,
                dim_mults=(1, 2, 3, 4),
                blocks=2,
                spatial_attention=(False, False, True, True),
                cross_attention=(False, False, True, True),
                temporal_attention=(False, False, True, True),
                temporal_convolution=(True, True, True, True),
                head_dim=64,
            ),
            diffusion=DiffusionConfig(sampling_steps=32, guidance_scale=1.5),
            optim=OptimConfig(steps=200_000, batch_size=64, lr=1e-4, precision="bf16"),
        ),
    )
