"""Algebra of the diffusion for any value: v, x0 and eps give each other, and the schedule is variance preserving."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle2_video.config import DiffusionConfig
from dalle2_video.diffusion.loss import diffusion_loss
from dalle2_video.diffusion.parameterization import target, to_noise, to_x0
from dalle2_video.diffusion.schedule import add_noise, alpha_sigma, log_snr

objectives = st.sampled_from(["v", "x0", "eps"])
schedules = st.sampled_from(["cosine", "linear"])
logsnrs = st.floats(-8, 8, width=32)
values = st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3).map(lambda v: torch.tensor([v]))


@given(objective=objectives, logsnr=logsnrs, x0=values, noise=values)
@settings(deadline=None, max_examples=200)
def test_target_of_any_objective_gives_back_x0_and_noise(objective, logsnr, x0, noise):
    logsnr_b = torch.tensor([logsnr])
    noised = add_noise(x0, noise, logsnr_b)
    prediction = target(objective, x0, noise, logsnr_b)
    # dividing by alpha or sigma magnifies rounding by up to exp(8 / 2) = 55
    torch.testing.assert_close(to_x0(objective, prediction, noised, logsnr_b), x0, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(to_noise(objective, prediction, noised, logsnr_b), noise, atol=2e-4, rtol=1e-4)


@given(objective=objectives, logsnr=logsnrs, noised=values, prediction=values)
@settings(deadline=None, max_examples=200)
def test_x0_and_noise_of_any_prediction_recompose_the_noised_sample(objective, logsnr, noised, prediction):
    logsnr_b = torch.tensor([logsnr])
    x0 = to_x0(objective, prediction, noised, logsnr_b)
    noise = to_noise(objective, prediction, noised, logsnr_b)
    torch.testing.assert_close(add_noise(x0, noise, logsnr_b), noised, atol=1e-4, rtol=1e-4)


@given(logsnr=logsnrs, x0=values, noise=values, prediction=values)
@settings(deadline=None, max_examples=100)
def test_v_loss_is_the_noise_loss_seen_through_the_rotation(logsnr, x0, noise, prediction):
    # |v - v'|^2 = |eps - eps'|^2 / alpha^2 (Salimans & Ho 2022): SNR + 1 weighting
    logsnr_b = torch.tensor([logsnr]).clamp(-4, 4)
    noised = add_noise(x0, noise, logsnr_b)
    v_loss = diffusion_loss(prediction, x0, noise, logsnr_b, "v")
    eps = to_noise("v", prediction, noised, logsnr_b)
    eps_loss = diffusion_loss(eps, x0, noise, logsnr_b, "eps")
    alpha, _ = alpha_sigma(logsnr_b, 1)
    torch.testing.assert_close(v_loss * alpha**2, eps_loss, atol=1e-4, rtol=1e-3)


@given(schedule=schedules, shift=st.floats(-6, 6), t=st.lists(st.floats(0, 1), min_size=2, max_size=2))
@settings(deadline=None, max_examples=200)
def test_schedule_is_finite_falling_and_variance_preserving(schedule, shift, t):
    config = DiffusionConfig(schedule=schedule, logsnr_shift=shift)
    early, late = log_snr(torch.tensor(sorted(t), dtype=torch.float64), config)
    assert early >= late
    for logsnr in (early, late):
        assert abs(logsnr - shift) <= 15.001
        alpha, sigma = alpha_sigma(logsnr[None], 4)
        assert alpha.shape == sigma.shape == (1, 1, 1, 1)
        assert alpha > 0 and sigma > 0
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1, 1, 1, 1))
