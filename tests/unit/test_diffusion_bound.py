"""Bits a dimension against closed forms: a perfect model of Gaussian data reaches the data's own entropy."""

import math

import pytest
import torch
from test_diffusion_variance import DEVIATION, best_raw, unsure

from dalle2_video.diffusion.bound import bound
from dalle2_video.diffusion.likelihood import discretised_nll, gaussian_kl, prior_kl
from dalle2_video.diffusion.posterior import log_variances
from dalle2_video.diffusion.schedule import alpha_sigma, log_snr
from dalle2_video.diffusion_config import DiffusionConfig

LEVELS = torch.arange(256) * 2 / 255 - 1


def test_kl_is_torchs():
    mean, other = torch.randn(2, 50, dtype=torch.float64)
    log_q, log_p = torch.randn(2, 50, dtype=torch.float64)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (log_q / 2).exp()), torch.distributions.Normal(other, (log_p / 2).exp())
    )
    torch.testing.assert_close(gaussian_kl((mean - other).square(), log_q, log_p), expected)


@pytest.mark.parametrize("deviation", [5e-4, 0.01, 0.3, 3.0])
@pytest.mark.parametrize("mean", [-1.5, -1.0, 0.1, 0.998])
def test_the_masses_of_all_levels_add_up_to_one(mean, deviation):
    log_variance = torch.full((256,), 2 * math.log(deviation))
    nll = discretised_nll(LEVELS, torch.full((256,), mean), log_variance)
    assert nll.isfinite().all() and (nll >= -1e-6).all()
    assert torch.exp(-nll).sum().item() == pytest.approx(1, abs=1e-4)


def test_a_level_far_out_in_a_tail_has_a_finite_cost_and_slope():
    log_variance = torch.tensor([-15.0], requires_grad=True)
    nll = discretised_nll(torch.tensor([LEVELS[200]]), torch.tensor([-0.9]), log_variance)
    nll.backward()
    # the Gaussian's exponent at the edge of the level that is nearer to the mean
    edge = LEVELS[200].item() - 1 / 255
    assert nll.item() == pytest.approx((edge + 0.9) ** 2 / 2 * math.exp(15), rel=1e-3)
    assert log_variance.grad is not None and log_variance.grad.item() == pytest.approx(-nll.item(), rel=1e-3)


def test_prior_term_is_that_of_two_gaussians_and_nothing_without_signal():
    x0 = torch.linspace(-1, 1, 5).reshape(1, 1, 5)
    logsnr = torch.tensor([-3.0])
    alpha, sigma = alpha_sigma(logsnr, 3)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(alpha * x0, sigma), torch.distributions.Normal(torch.zeros(1), torch.ones(1))
    )
    torch.testing.assert_close(prior_kl(x0, logsnr), expected)
    assert not prior_kl(x0, torch.tensor([-math.inf])).any()


@pytest.mark.parametrize("zero", [False, True])
def test_the_best_variances_reach_the_entropy_of_the_data_and_the_fixed_ones_do_not(zero):
    steps = 6
    generator = torch.Generator().manual_seed(0)
    data = (DEVIATION * torch.randn(4, 1, 4_000, generator=generator)).clamp(-1, 1)
    x0 = LEVELS[((data + 1) * 127.5).round().long()]
    noises = torch.randn(steps, 4, 1, 4_000, generator=generator)

    def found(variance, kind):
        config = DiffusionConfig(learned_variance=kind, zero_terminal_snr=zero)
        levels = log_snr(torch.linspace(1, 0, steps + 1, dtype=torch.float64), config)
        levels[-1] = math.inf
        seen = iter(range(steps))

        def predict(noised, logsnr_b):
            index = next(seen)
            alpha, sigma = alpha_sigma(logsnr_b, 3)
            mean = noised * alpha * DEVIATION**2 / (DEVIATION**2 * alpha**2 + sigma**2)
            v = (alpha * noised - mean) / sigma
            after, noisier = levels[index + 1].expand(4), levels[max(index - 1, 0)].expand(4)
            raw = best_raw(kind, logsnr_b, after, noisier)[:, None, None].expand_as(v) if kind != "none" else v[:, :0]
            return torch.cat([v, raw], dim=1)

        return bound(predict, x0, lambda index: noises[index], config, steps, variance)

    # of the very samples, under the Gaussian they are from
    log_variance = torch.full_like(x0, 2 * math.log(DEVIATION))
    entropy = discretised_nll(x0, torch.zeros_like(x0), log_variance).mean().item() / math.log(2)
    assert entropy == pytest.approx(math.log2(DEVIATION * math.sqrt(2 * math.pi * math.e) * 255 / 2), abs=0.02)
    totals = {}
    for variance, kind in (("learned", "range"), ("learned", "residual"), ("small", "none"), ("large", "none")):
        parts = found(variance, kind)
        assert parts.steps_sb.shape == (steps - 1, 4) and parts.total_b.shape == (4,)
        torch.testing.assert_close(parts.total_b, parts.prior_b + parts.steps_sb.sum(0) + parts.last_b)
        totals[variance, kind] = parts.total_b.mean().item()
    assert totals["learned", "residual"] == pytest.approx(entropy, abs=0.015)
    # with so few steps the floor of the last one is above the best variance: what that costs is known too
    noisier, last = log_snr(torch.tensor([2 / steps, 1 / steps]), DiffusionConfig(zero_terminal_snr=zero))[:, None]
    floor, _ = log_variances(last, torch.tensor([math.inf]), noisier)
    over = (floor.double().exp() / unsure(last)).item()
    cost = 0.5 * (math.log(over) + 1 / over - 1) / math.log(2)
    assert totals["learned", "range"] == pytest.approx(entropy + cost, abs=0.015) and 0 < cost < 0.1
    assert totals["small", "none"] > entropy + 0.1
    assert totals["large", "none"] > entropy + 0.1


def test_a_bound_of_one_step_is_refused():
    with pytest.raises(ValueError, match="steps=1 must be 2 or more"):
        bound(
            lambda z, logsnr: z, torch.zeros(1, 1, 2), lambda index: torch.zeros(1, 1, 2), DiffusionConfig(), 1, "small"
        )
