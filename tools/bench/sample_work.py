"""One contender of `sample.py` in a process of its own: one JSON request a line on stdin, one answer a line.

    OMP_NUM_THREADS=1 PYTHON sample_work.py NAME SIZE TARGET STEPS DEVICE

{"task": "describe"} is answered by the number of parameters, {"task": "sample"} by the seconds that a batch of videos
takes: ours by the product's ancestral sampler with its keyed noise, the peer's by its own GaussianDiffusion.sample.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[2])

os.environ["TQDM_DISABLE"] = "1"  # the peer shows its progress; torch imports tqdm, which reads this then

import torch
from torch import Tensor, nn

from tools.bench.train_step_contenders import CONTENDERS, OURS, Size, inputs, matched, parameters


def our_sampler(module: nn.Module, batch: dict[str, Tensor], steps: int) -> Callable[[], Tensor]:
    """Return what samples one batch of videos."""
    from dalle2_video.data.draws import Draws
    from dalle2_video.diffusion.samplers import sample_guided
    from dalle2_video.diffusion_config import DiffusionConfig, SamplerConfig

    noised = batch["noised"]
    draws = Draws(0, torch.arange(len(noised)), noised.device)
    conditions = {"encodings_bld": batch["encodings"], "text_mask_bl": batch["mask"]}
    shape = tuple(noised.shape[1:])

    def predict(noised: Tensor, logsnr: Tensor, keep: Tensor) -> Tensor:
        return module(noised, logsnr, **conditions, keep_b=keep, embedding_bd=batch["embedding"])

    return lambda: sample_guided(
        predict,
        draws.normal("bench", shape),
        DiffusionConfig(),
        SamplerConfig(method="ddpm", steps=steps),
        lambda step: draws.normal(f"bench {step}", shape),
        guidance=1.0,
        clip_x0=True,
    )


def peers_sampler(module: nn.Module, batch: dict[str, Tensor], steps: int) -> Callable[[], Tensor]:
    """Return what samples one batch of videos with video-diffusion-pytorch."""
    package = sys.modules["video_diffusion_pytorch.video_diffusion_pytorch"]
    _, _, frames, side, _ = batch["noised"].shape
    diffusion = package.GaussianDiffusion(module, image_size=side, num_frames=frames, timesteps=steps)
    diffusion.to(batch["noised"].device)
    return lambda: diffusion.sample(cond=batch["encodings"].mean(1), cond_scale=1.0)


def main() -> None:
    """Answer until stdin ends."""
    name, size_text, target, steps, device_name = sys.argv[1:]
    size, device = Size(**json.loads(size_text)), torch.device(device_name)
    torch.manual_seed(0)
    module = matched(name, size, int(target) or None)().to(device).eval().requires_grad_(False)
    make = our_sampler if name == OURS else peers_sampler
    sample = make(module, inputs(CONTENDERS[name], size, device), int(steps))
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    sample()  # kernels are chosen
    for line in sys.stdin:
        if json.loads(line)["task"] == "describe":
            answer: dict[str, float] = {"parameters": parameters(module)}
        else:
            started_s = clock()
            sample().cpu()
            answer = {"seconds": clock() - started_s}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
