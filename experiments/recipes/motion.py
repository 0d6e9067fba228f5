"""Captioned motion on two CPU cores, within 90 minutes: what `tools/bench/alignment.py --train` trains.

The demo's sizes, 8 frames of 16 px and 16 after temporal super-resolution. CLIP reads tubelets behind a convolutional
stem, with which it knows direction after 350 steps; without the stem it hardly did after 1,400. The decoder spends its
width on the frames' own size, where an object of 5 px gets its shape, and its attentions have several heads, as each
has one bias of time. Make the data with

    python tools/make_sample_data.py --out DIR --clips 8000 --combinations trained
"""

from dataclasses import replace

from dalle2_video.config import DiffusionConfig, OptimConfig, Recipe
from experiments.recipes import tiny


def recipe() -> Recipe:
    """The demo's chain, trained for longer."""
    base = tiny.recipe()
    assert base.temporal_sr is not None

    def optim(steps: int, batch_size: int, lr: float = 1e-3, weight_decay: float = 0.01) -> OptimConfig:
        return OptimConfig(
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            warmup_steps=50,
            lr_decay="cosine",
            ema_decay=0.998,
            weight_decay=weight_decay,
        )

    return replace(
        base,
        name="motion",
        data=replace(base.data, clips_per_shard=256),
        clip=replace(
            base.clip,
            tubelet_frames=2,
            stem_channels=8,
            optim=optim(2500, 128, weight_decay=0.2),
        ),
        prior=replace(base.prior, optim=optim(2000, 64)),
        decoder=replace(
            base.decoder,
            unet=replace(base.decoder.unet, dim_mults=(1, 1, 2), head_dim=16),
            diffusion=DiffusionConfig(learned_variance="range", sampling_steps=32, guidance_scale=3.0),
            optim=optim(6000, 32, lr=2e-3),
        ),
        temporal_sr=replace(base.temporal_sr, optim=optim(1500, 16)),
    )
