"""The demo: every stage small enough to learn colour and motion of shapes on two CPU cores within minutes."""

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
    """8 frames of 16 px at 4 fps, then 16 frames at 8 fps."""
    low = WindowConfig(size=16, num_frames=8, stride=2)
    high = WindowConfig(size=16, num_frames=16, stride=1)
    return Recipe(
        name="tiny",
        data=DataConfig(
            frame_sizes=(16,),
            fps=8.0,
            min_frames=16,
            clips_per_shard=32,
            vocab_size=512,
            text_context=32,
            val_fraction=0.1,
        ),
        clip=ClipConfig(
            window=low,
            patch_size=4,
            embed_dim=64,
            text=TextEncoderConfig(dim=64, depth=2, heads=4),
            spatial=TransformerConfig(dim=64, depth=2, heads=4),
            temporal=TransformerConfig(dim=64, depth=2, heads=4),
            optim=OptimConfig(steps=200, batch_size=64, lr=1e-3, warmup_steps=20, ema_decay=0.99),
        ),
        embed=EmbedConfig(hop=4),
        prior=PriorConfig(
            transformer=TransformerConfig(dim=128, depth=4, heads=4),
            diffusion=DiffusionConfig(objective="x0", sampling_steps=64, guidance_scale=1.0),
            optim=OptimConfig(steps=300, batch_size=64, lr=1e-3, warmup_steps=20, ema_decay=0.99),
        ),
        decoder=DecoderConfig(
            window=low,
            unet=UnetConfig(
                dim=32,
                dim_mults=(1, 2, 4),
                blocks=1,
                spatial_attention=(False, False, True),
                cross_attention=(False, False, True),
                temporal_attention=(False, True, True),
                temporal_convolution=(True, True, False),
            ),
            diffusion=DiffusionConfig(sampling_steps=32, guidance_scale=3.0),
            optim=OptimConfig(steps=400, batch_size=32, lr=1e-3, warmup_steps=20, ema_decay=0.99),
        ),
        temporal_sr=TemporalSrConfig(
            window=high,
            unet=UnetConfig(
                dim=32,
                dim_mults=(1, 2),
                blocks=1,
                spatial_attention=(False, False),
                cross_attention=(False, True),
                temporal_attention=(False, False),
                temporal_convolution=(True, True),
            ),
            diffusion=DiffusionConfig(sampling_steps=16, guidance_scale=1.0),
            optim=OptimConfig(steps=250, batch_size=16, lr=1e-3, warmup_steps=20, ema_decay=0.99),
        ),
    )
