"""Joint training on images and videos (Ho et al. 2022, Video Diffusion Models, sec. 3 and 4.1).

Single frames of other clips come along with each video. Each is a sample of its own, with a time, noise, caption and
embedding of its own; to what works over time in the network it is a video of one frame. More of them lower the
variance of the gradient at little cost. Invariant: whether images come along changes nothing of what is drawn for a
video.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from dalle2_video.data.batches import to_float
from dalle2_video.data.draws import Draws
from dalle2_video.diffusion_config import DiffusionConfig
from dalle2_video.stages.denoising import Denoised, Noised, compare, noise_batch
from dalle2_video.stages.stage import Batch


def texts(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens (b + n, l), lengths (b + n,) and embeddings (b + n, d) of b videos and behind them their n images.

    batch: of a WindowDataset with embeddings, with or without images.
    """
    names = {"tokens": "image_tokens", "length": "image_lengths", "embedding": "image_embeddings"}
    if "images" not in batch:
        return batch["tokens"], batch["length"], batch["embedding"]
    tokens, lengths, embeddings = (
        torch.cat([batch[of_videos], batch[of_images].flatten(0, 1)]) for of_videos, of_images in names.items()
    )
    return tokens, lengths, embeddings


def images_nchw(images_bkhwc: Tensor) -> Tensor:
    """Stored images (b, k, h, w, c) uint8 in [0, 255] as samples (b * k, c, h, w) float32 in [-1, 1]."""
    return rearrange(to_float(images_bkhwc), "b c k h w -> (b k) c h w")


def denoise_jointly(
    predict: Callable[[Noised, Noised], tuple[Tensor, Tensor]],
    videos: Tensor,
    images: Tensor,
    draws: Draws,
    config: DiffusionConfig,
    valid_b: Tensor | None = None,
) -> Denoised:
    """Noise videos and images at random times, each its own, and compare what the network predicts.

    predict: (videos, images) to the network's outputs; videos: (b, c, t, h, w); images: (b * k, c, h, w), k of each
    sample in order; valid_b: (b,) real frames of each video. The loss is the mean over all t + k frames of a sample, as
    if none were padded; its parts `video_loss` and `image_loss` are among the metrics.
    """
    each = len(images) // len(videos)
    of_videos, of_images = noise_batch(videos, draws, config), noise_batch(images, draws.of_images(each), config)
    outputs = predict(of_videos, of_images)
    video, image = compare(outputs[0], of_videos, config, valid_b), compare(outputs[1], of_images, config)
    share = each / (videos.shape[2] + each)

    def mean(of_video: Tensor, of_image: Tensor) -> Tensor:
        return (1 - share) * of_video + share * of_image

    metrics = {name: mean(value, image.metrics[name]) for name, value in video.metrics.items()}
    metrics |= {"video_loss": video.loss.detach(), "image_loss": image.loss.detach()}
    return Denoised(loss=mean(video.loss, image.loss), prediction=video.prediction, metrics=metrics)
