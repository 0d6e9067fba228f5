"""Schedules against their formulas, and the loss against a hand-made case."""

import math

import pytest
import torch

from dalle2_video.config import DiffusionConfig
from dalle2_video.diffusion.loss import diffusion_loss
from dalle2_video.diffusion.schedule import log_snr

COSINE, LINEAR = DiffusionConfig(schedule="cosine"), DiffusionConfig(schedule="linear")


@pytest.mark.parametrize("config", [COSINE, LINEAR], ids=["cosine", "linear"])
def test_log_snr_falls_strictly_from_the_largest_value(config):
    logsnr = log_snr(torch.linspace(0, 1, 1001), config)
    assert logsnr.dtype == torch.float32
    assert (logsnr.diff() < 0).all()
    assert logsnr[0].item() == pytest.approx(15, abs=1e-3)


def test_cosine_is_symmetric_and_matches_its_formula():
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    alpha_squared = torch.cos(t * math.pi / 2) ** 2
    expected = torch.log(alpha_squared / (1 - alpha_squared))
    torch.testing.assert_close(log_snr(t, COSINE).double(), expected, atol=2e-2, rtol=0)
    torch.testing.assert_close(log_snr(t, COSINE), -log_snr(1 - t, COSINE), atol=1e-5, rtol=0)


def test_linear_matches_the_integral_of_beta():
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    alpha_squared = torch.exp(-(0.1 * t + 19.9 * t**2 / 2))
    expected = torch.log(alpha_squared / (1 - alpha_squared))
    torch.testing.assert_close(log_snr(t, LINEAR).double(), expected, atol=1e-3, rtol=0)


def test_shift_is_added_at_every_t():
    t = torch.linspace(0, 1, 11)
    shifted = log_snr(t, DiffusionConfig(logsnr_shift=2 * math.log(64 / 256)))
    torch.testing.assert_close(shifted, log_snr(t, COSINE) + 2 * math.log(1 / 4))


def test_loss_is_one_number_a_sample():
    x0, noise = torch.zeros(2, 3, 1, 2, 2), torch.ones(2, 3, 1, 2, 2)
    prediction = torch.stack([noise[0], noise[1] + 2]).bfloat16()
    loss = diffusion_loss(prediction, x0, noise, torch.zeros(2), "eps")
    assert loss.dtype == torch.float32
    assert loss.tolist() == [0.0, 4.0]


def test_loss_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="one shape"):
        diffusion_loss(torch.zeros(2, 1), torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2), "v")
