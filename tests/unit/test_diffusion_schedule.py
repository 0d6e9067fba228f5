"""Schedules against their formulas, and the loss and its weights against the papers'."""

import math

import pytest
import torch
from torch.nn import functional

from dalle2_video.diffusion.loss import diffusion_loss
from dalle2_video.diffusion.parameterization import to_noise, to_x0
from dalle2_video.diffusion.schedule import add_noise, alpha_sigma, log_snr
from dalle2_video.diffusion.weights import loss_weight
from dalle2_video.diffusion_config import DiffusionConfig
from dalle2_video.models.time_embedding import LogSnrEmbedding

COSINE, LINEAR = DiffusionConfig(schedule="cosine"), DiffusionConfig(schedule="linear")
ZERO = [DiffusionConfig(schedule=name, zero_terminal_snr=True) for name in ("cosine", "linear")]


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


def test_linear_is_the_limit_of_the_1000_betas_of_ho_et_al():
    alpha_squared = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    expected = torch.log(alpha_squared / (1 - alpha_squared))
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    # of a range of 20, the discrete ones are off by at most a tenth of beta
    torch.testing.assert_close(log_snr(t, LINEAR).double()[9:], expected[9:], atol=0.11, rtol=0)


def test_shift_is_added_at_every_t():
    t = torch.linspace(0, 1, 11)
    shifted = log_snr(t, DiffusionConfig(logsnr_shift=2 * math.log(64 / 256)))
    torch.testing.assert_close(shifted, log_snr(t, COSINE) + 2 * math.log(1 / 4))


def test_shift_by_resolution_leaves_a_smaller_picture_of_the_large_one_its_noise():
    generator = torch.Generator().manual_seed(0)
    t = torch.full((1,), 0.5)
    shifted = log_snr(t, DiffusionConfig(logsnr_shift=2 * math.log(64 / 256)))
    large = add_noise(torch.ones(1, 3, 256, 256), torch.randn(1, 3, 256, 256, generator=generator), shifted)
    small = functional.avg_pool2d(large, 4)
    found = 2 * math.log(small.mean().item() / small.std().item())
    assert found == pytest.approx(log_snr(t, COSINE).item(), abs=0.05)


@pytest.mark.parametrize("config", ZERO, ids=["cosine", "linear"])
def test_zero_terminal_snr_leaves_exactly_nothing_and_the_clean_end_as_it_was(config):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    logsnr = log_snr(t, config)
    alpha, sigma = (amount[:, 0] for amount in alpha_sigma(logsnr, 2))
    assert logsnr[-1] == -math.inf
    assert (alpha[-1].item(), sigma[-1].item()) == (0.0, 1.0)
    assert logsnr[:-1].isfinite().all() and (logsnr.diff() < 0).all()
    plain = DiffusionConfig(schedule=config.schedule)
    assert logsnr[0].item() == pytest.approx(log_snr(t[:1], plain).item(), abs=1e-5)
    # Lin et al. 2024, alg. 1
    old, _ = (amount[:, 0] for amount in alpha_sigma(log_snr(t, plain), 2))
    torch.testing.assert_close(alpha, (old - old[-1]) * old[0] / (old[0] - old[-1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1001))


def test_zero_terminal_snr_stays_zero_under_a_shift():
    config = DiffusionConfig(zero_terminal_snr=True, logsnr_shift=-3.0)
    assert log_snr(torch.ones(1), config).item() == -math.inf


@pytest.mark.parametrize("objective", ["v", "x0"])
def test_everything_is_finite_and_exact_where_no_signal_is_left(objective):
    nothing = torch.full((2,), -math.inf)
    x0, noise = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(add_noise(x0, noise, nothing), noise)
    prediction = x0 if objective == "x0" else -x0
    assert torch.equal(to_x0(objective, prediction, noise, nothing), x0)
    assert torch.equal(to_noise(objective, prediction, noise, nothing), noise)
    assert diffusion_loss(prediction, x0, noise, nothing, objective).tolist() == [0.0, 0.0]


def test_networks_read_a_log_snr_of_minus_infinity_as_the_lowest_there_is():
    embedding = LogSnrEmbedding(8)
    found = embedding(torch.tensor([-math.inf, -15.0, -14.0]))
    assert torch.equal(found[0], found[1])
    assert found.isfinite().all() and not torch.equal(found[1], found[2])


def test_eps_with_zero_terminal_snr_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"objective='eps' cannot give x0 .* set objective to v or x0"):
        DiffusionConfig(zero_terminal_snr=True, objective="eps")


def test_loss_is_one_number_a_sample():
    x0, noise = torch.zeros(2, 3, 1, 2, 2), torch.ones(2, 3, 1, 2, 2)
    prediction = torch.stack([noise[0], noise[1] + 2]).bfloat16()
    loss = diffusion_loss(prediction, x0, noise, torch.zeros(2), "eps")
    assert loss.dtype == torch.float32
    assert loss.tolist() == [0.0, 4.0]


def test_loss_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="one shape"):
        diffusion_loss(torch.zeros(2, 1), torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2), "v")


LOGSNR = torch.linspace(-10, 12, 45)
SNR = LOGSNR.double().exp()
PAPERS = {
    # Hang et al. 2023, sec. 3.4 and its code: min(SNR, gamma) of x0, over SNR of eps, over SNR + 1 of v
    ("min_snr", "x0"): lambda gamma: SNR.clamp(max=gamma),
    ("min_snr", "eps"): lambda gamma: SNR.clamp(max=gamma) / SNR,
    ("min_snr", "v"): lambda gamma: SNR.clamp(max=gamma) / (SNR + 1),
    # Choi et al. 2022, eq. 8: 1 / (k + SNR)^gamma, k = 1, on the loss of eps
    ("p2", "eps"): lambda gamma: 1 / (1 + SNR) ** gamma,
    ("p2", "x0"): lambda gamma: SNR / (1 + SNR) ** gamma,
    ("p2", "v"): lambda gamma: SNR / (1 + SNR) ** (gamma + 1),
}


@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
@pytest.mark.parametrize(("weight", "objective"), PAPERS)
def test_weights_are_those_of_the_papers(weight, objective, gamma):
    config = DiffusionConfig(loss_weight=weight, objective=objective, loss_weight_gamma=gamma)
    expected = PAPERS[weight, objective](gamma or {"min_snr": 5, "p2": 1}[weight])
    torch.testing.assert_close(loss_weight(LOGSNR, config).double(), expected, atol=0, rtol=1e-5)


@pytest.mark.parametrize("weight", ["min_snr", "p2"])
def test_a_weighted_loss_is_the_same_whatever_the_network_predicts(weight):
    generator = torch.Generator().manual_seed(0)
    logsnr = torch.linspace(-6, 6, 25)
    x0, noise, wrong = torch.randn(3, 25, 4, generator=generator)
    noised = add_noise(x0, noise, logsnr)
    found = {}
    for objective in ("x0", "v", "eps"):
        config = DiffusionConfig(loss_weight=weight, objective=objective)
        alpha, sigma = alpha_sigma(logsnr, 2)
        predicted_x0 = x0 + 0.1 * wrong
        predicted_noise = (noised - alpha * predicted_x0) / sigma
        prediction = {"x0": predicted_x0, "eps": predicted_noise, "v": alpha * predicted_noise - sigma * predicted_x0}
        loss = diffusion_loss(prediction[objective], x0, noise, logsnr, objective)
        found[objective] = loss * loss_weight(logsnr, config)
    torch.testing.assert_close(found["v"], found["x0"], atol=0, rtol=2e-3)
    torch.testing.assert_close(found["eps"], found["x0"], atol=0, rtol=2e-3)


def test_weights_are_finite_without_signal_and_one_by_default():
    nothing = torch.full((1,), -math.inf)
    for weight in ("min_snr", "p2"):
        for objective in ("v", "x0"):
            assert loss_weight(nothing, DiffusionConfig(loss_weight=weight, objective=objective)).item() == 0.0
    assert torch.equal(loss_weight(LOGSNR, COSINE), torch.ones(45))
