"""Captioned motion on one GPU: recipe `motion` at twice the side, with wider networks and more steps, in bf16.

8 frames of 32 px and 16 after temporal super-resolution. Meant for a quarter of an hour on one H100 or H200: its
decoder takes 139 GFLOP a sample. Its stages are known to build; nobody has trained them yet. Train and judge it with

    python tools/bench/alignment.py --train DIR --recipe motion_gpu --size 32 \\
        --pipeline="--ranks-per-node 1 --precision bf16"
"""

from dataclasses import replace

from dalle2_video.config import OptimConfig, Recipe
from dalle2_video.data_config import WindowConfig
from experiments.recipes import motion

SIZE = 32


def recipe() -> Recipe:
    """The recipe of captioned motion, larger."""
    base = motion.recipe()
    assert base.temporal_sr is not None

    def window(of: WindowConfig) -> WindowConfig:
        return replace(of, size=SIZE)

    def optim(of: OptimConfig, steps: int, batch_size: int, lr: float) -> OptimConfig:
        return replace(of, steps=steps, batch_size=batch_size, lr=lr, warmup_steps=200, ema_decay=0.999)

    return replace(
        base,
        name="motion_gpu",
        data=replace(base.data, frame_sizes=(SIZE,)),
        clip=replace(
            base.clip,
            window=window(base.clip.window),
            patch_size=8,
            stem_channels=16,
            optim=optim(base.clip.optim, 2000, 256, 1e-3),
        ),
        prior=replace(base.prior, optim=optim(base.prior.optim, 3000, 128, 1e-3)),
        decoder=replace(
            base.decoder,
            window=window(base.decoder.window),
            unet=replace(base.decoder.unet, dim=96, dim_mults=(1, 2, 4), blocks=2, head_dim=32),
            # twice the side averages noise over four times the pixels (Hoogeboom et al. 2023, sec. 3.1)
            diffusion=replace(base.decoder.diffusion, logsnr_shift=-1.4),
            optim=optim(base.decoder.optim, 8000, 64, 4e-4),
        ),
        temporal_sr=replace(
            base.temporal_sr,
            window=window(base.temporal_sr.window),
            unet=replace(base.temporal_sr.unet, dim=48),
            optim=optim(base.temporal_sr.optim, 2000, 32, 5e-4),
        ),
    )
