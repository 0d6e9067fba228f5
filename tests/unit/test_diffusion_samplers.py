"""Samplers against Gaussian data, for which mean and covariance of their samples are known to rounding."""

import itertools
import math

import pytest
import torch
from gaussian_diffusion import COVARIANCE, MEAN, exact_network, moments

from dalle2_video.diffusion.parameterization import to_x0
from dalle2_video.diffusion.posterior import log_variances, posterior_mean
from dalle2_video.diffusion.samplers import ddim_step, dpmpp_step, sample, step_levels, threshold
from dalle2_video.diffusion.schedule import add_noise, log_snr
from dalle2_video.diffusion_config import DiffusionConfig, SamplerConfig

SAMPLERS = {
    "ddim": SamplerConfig(),
    "ddim eta 0.5": SamplerConfig(eta=0.5),
    "ddim quadratic": SamplerConfig(spacing="quadratic"),
    "ddpm small": SamplerConfig(method="ddpm"),
    "ddpm large": SamplerConfig(method="ddpm", variance="large"),
    "dpmpp": SamplerConfig(method="dpmpp"),
    "dpmpp logsnr": SamplerConfig(method="dpmpp", spacing="logsnr"),
    "dpmpp quadratic": SamplerConfig(method="dpmpp", spacing="quadratic"),
}
INF = torch.tensor([math.inf])


def with_steps(sampler, steps):
    return SamplerConfig(**vars(sampler) | {"steps": steps})


def of(config, objective=None):
    """A perfect network of three steps' arguments, as samplers call it."""
    network = exact_network(objective or config.objective)
    return lambda noised, logsnr_b, index: network(noised, logsnr_b)


def draw(seed, count):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "schedule", "zero"),
    [
        case
        for case in itertools.product(SAMPLERS, ("cosine", "linear"), (False, True))
        if not ("logsnr" in case[0] and case[2])  # refused, see test_user_errors_name_the_remedy
    ],
)
def test_every_sampler_reproduces_a_gaussian_and_converges_at_its_order(name, schedule, zero):
    config = DiffusionConfig(schedule=schedule, zero_terminal_snr=zero)
    found = [moments(of(config), config, with_steps(SAMPLERS[name], steps)) for steps in (40, 80)]
    # noise instead of alpha_1 mean + noise to start with is what is left of a mean's error; 0 with zero terminal SNR
    for mean, _ in found:
        torch.testing.assert_close(mean, MEAN, atol=2e-5 if zero else 4e-3, rtol=0)
    errors = [(covariance - COVARIANCE).abs().max().item() for _, covariance in found]
    order = 2 if "dpmpp" in name else 1
    assert errors[0] / errors[1] > 2 ** (0.75 * order)
    assert errors[1] < (0.1 if order == 1 else 0.007)


@pytest.mark.parametrize("objective", ["v", "x0", "eps"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_what_the_network_predicts_makes_no_difference(name, objective):
    config = DiffusionConfig(objective=objective)
    found = moments(of(config), config, with_steps(SAMPLERS[name], 20))
    same = moments(of(DiffusionConfig(), "v"), DiffusionConfig(), with_steps(SAMPLERS[name], 20))
    for one, other in zip(found, same, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3 if objective == "eps" else 1e-4, rtol=0)


def test_few_steps_of_second_order_are_as_good_as_many_of_first():
    config = DiffusionConfig()
    errors = {
        name: (moments(of(config), config, with_steps(SAMPLERS[name], steps))[1] - COVARIANCE).abs().max().item()
        for name, steps in (("dpmpp", 20), ("ddim", 80), ("ddpm small", 80))
    }
    assert errors["dpmpp"] < min(errors["ddim"], errors["ddpm small"])


def test_the_large_variance_is_right_for_data_of_unit_variance_with_any_number_of_steps():
    config = DiffusionConfig(zero_terminal_snr=True)
    network = exact_network("v", torch.zeros(3), torch.eye(3))
    for steps in (2, 5, 30):
        sampler = SamplerConfig(method="ddpm", variance="large", steps=steps)
        _, covariance = moments(lambda z, logsnr, index: network(z, logsnr), config, sampler)
        # the last step gives the mean: what that leaves out is the variance of x0 given the last z, sigma^2 here
        left_out = (-log_snr(torch.tensor([1 / steps]), config)).sigmoid()
        torch.testing.assert_close(covariance, torch.eye(3) * (1 - left_out), atol=1e-5, rtol=0)


def test_ddim_with_eta_1_is_ddpm_with_the_small_variance_in_distribution():
    config = DiffusionConfig()
    one = moments(of(config), config, SamplerConfig(eta=1.0, steps=15))
    other = moments(of(config), config, SamplerConfig(method="ddpm", variance="small", steps=15))
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=0)


def test_a_first_step_of_dpmpp_is_that_of_ddim():
    x0, noised = draw(0, 8), draw(1, 8)
    for start in (-2.0, -math.inf):
        levels = torch.tensor([start, 1.0])[:, None].expand(2, 8)
        torch.testing.assert_close(dpmpp_step(x0, noised, *levels, None), ddim_step(x0, noised, *levels))


def test_a_dpmpp_step_is_algorithm_2_written_out():
    # Lu et al. 2022b, alg. 2, written out: h, h_before and r = h_before / h of half the log SNR
    x0, x0_before, noised = draw(0, 4), draw(1, 4), draw(2, 4)
    lambdas = torch.tensor([-1.0, -0.4, 0.5])
    h_before, h = lambdas.diff()
    r = h_before / h
    direction = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before
    alpha, sigma = (2 * lambdas).sigmoid().sqrt(), (-2 * lambdas).sigmoid().sqrt()
    expected = sigma[2] / sigma[1] * noised - alpha[2] * (torch.exp(-h) - 1) * direction
    before, now, after = (2 * lambdas)[:, None].expand(3, 4)
    torch.testing.assert_close(dpmpp_step(x0, noised, now, after, (x0_before, before)), expected)
    # a step before from log SNR -inf tells nothing: first order
    nothing = torch.full((4,), -math.inf)
    torch.testing.assert_close(
        dpmpp_step(x0, noised, now, after, (x0_before, nothing)), dpmpp_step(x0, noised, now, after, None)
    )


def test_the_posterior_is_that_of_two_gaussians_and_exact_at_both_ends():
    x0, noised = draw(0, 6), draw(1, 6)
    now, after = torch.full((6,), -1.0), torch.full((6,), 0.5)
    alpha, sigma = now.double().sigmoid().sqrt()[:, None], (-now.double()).sigmoid().sqrt()[:, None]
    next_alpha, next_sigma = after.double().sigmoid().sqrt()[:, None], (-after.double()).sigmoid().sqrt()[:, None]
    ratio = alpha / next_alpha
    of_step = sigma**2 - ratio**2 * next_sigma**2
    # product of N(z_t; ratio z_s, of_step) and N(z_s; next_alpha x0, next_sigma^2), as functions of z_s
    variance = 1 / (ratio**2 / of_step + 1 / next_sigma**2)
    mean = variance * (ratio * noised / of_step + next_alpha * x0 / next_sigma**2)
    torch.testing.assert_close(posterior_mean(x0, noised, now, after).double(), mean, atol=1e-6, rtol=1e-5)
    small, large = log_variances(now, after)
    torch.testing.assert_close(small.double().exp()[:, None], variance, atol=0, rtol=1e-5)
    torch.testing.assert_close(large.double().exp()[:, None], of_step, atol=0, rtol=1e-5)

    nothing, everything = -INF.expand(6), INF.expand(6)
    small, large = log_variances(nothing, after)
    assert torch.equal(large, torch.zeros(6))
    torch.testing.assert_close(small.exp(), (-after).sigmoid())
    assert torch.equal(posterior_mean(x0, noised, now, everything), x0)
    torch.testing.assert_close(posterior_mean(x0, noised, nothing, after), (next_alpha * x0).float())


def test_ddim_is_a_map_of_its_noise_and_few_steps_come_close_to_many():
    config = DiffusionConfig()
    noise = draw(0, 64)

    def run(steps):
        return sample(of(config), noise, config, SamplerConfig(steps=steps), clip_x0=False)

    many = run(200)
    assert torch.equal(many, run(200))
    errors = [(run(steps) - many).abs().max() for steps in (5, 20, 80)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("method", ["ddim", "ddpm", "dpmpp"])
def test_one_step_returns_the_prediction_of_x0(method):
    config, sampler = DiffusionConfig(objective="x0"), SamplerConfig(method=method, steps=1)
    fixed = torch.linspace(-2, 2, 12).reshape(4, 3)

    def run(clip):
        return sample(lambda *_: fixed, draw(0, 4), config, sampler, lambda step: draw(1, 4), clip_x0=clip)

    assert torch.equal(run(False), fixed)
    assert torch.equal(run(True), fixed.clamp(-1, 1))


def test_steps_run_in_order_and_draw_their_noise_by_index():
    seen, drawn, levels, indices = [], [], [], []

    def predict(noised, logsnr_b, index):
        levels.append(logsnr_b[0].item())
        indices.append(index)
        return torch.zeros_like(noised)

    def noise_at(step):
        drawn.append(step)
        return torch.zeros(2, 3)

    sampler = SamplerConfig(method="ddpm", steps=5)
    sample(predict, draw(0, 2), DiffusionConfig(), sampler, noise_at, clip_x0=True, on_step=seen.append)
    assert seen == indices == [0, 1, 2, 3, 4]
    assert drawn == [0, 1, 2, 3]
    assert levels == sorted(levels) and len(levels) == 5
    sample(predict, draw(0, 2), DiffusionConfig(), SamplerConfig(steps=5), noise_at, clip_x0=True)
    assert drawn == [0, 1, 2, 3], "a deterministic sampler draws nothing"


def test_the_number_of_steps_is_the_recipes_unless_the_sampler_has_one():
    config = DiffusionConfig(sampling_steps=7)
    for sampler, expected in ((SamplerConfig(), 7), (SamplerConfig(steps=3), 3)):
        seen = []
        sample(of(config), draw(0, 2), config, sampler, clip_x0=True, on_step=seen.append)
        assert len(seen) == expected


@pytest.mark.parametrize("spacing", ["time", "quadratic", "logsnr"])
def test_spacings_share_their_ends_and_differ_between(spacing):
    config = DiffusionConfig()
    levels = step_levels(10, config, SamplerConfig(spacing=spacing))
    assert (levels.diff() > 0).all()
    torch.testing.assert_close(levels[[0, -1]], log_snr(torch.tensor([1.0, 0.0]), config))
    if spacing == "logsnr":
        torch.testing.assert_close(levels.diff(), torch.full((10,), 3.0), atol=1e-4, rtol=0)
    else:
        middle = 0.25 if spacing == "quadratic" else 0.5
        torch.testing.assert_close(levels[5], log_snr(torch.tensor([middle]), config)[0])


def test_dynamic_thresholding_divides_by_the_quantile_where_it_is_beyond_1():
    x0 = torch.stack([torch.linspace(-0.5, 0.5, 101), torch.linspace(-4, 4, 101)])
    assert torch.equal(threshold(x0, None), x0.clamp(-1, 1))
    found = threshold(x0, 0.9)
    assert torch.equal(found[0], x0[0])
    limit = x0[1].abs().sort().values[90]  # the smallest with 90 % of 101 values at or below it
    torch.testing.assert_close(found[1], x0[1].clamp(-limit, limit) / limit)
    assert found.abs().max() == 1
    torch.testing.assert_close(threshold(x0, 1.0)[1], x0[1] / 4)


def test_no_global_random_number_is_drawn():
    state = torch.get_rng_state()
    for name in SAMPLERS:
        config = DiffusionConfig()
        sample(of(config), draw(0, 4), config, with_steps(SAMPLERS[name], 4), lambda i: draw(i, 4), clip_x0=True)
    assert torch.equal(state, torch.get_rng_state())


def test_user_errors_name_the_remedy():
    config = DiffusionConfig()
    for sampler in (SamplerConfig(method="ddpm"), SamplerConfig(eta=0.5)):
        with pytest.raises(ValueError, match="noise_at"):
            sample(of(config), draw(0, 2), config, sampler, clip_x0=False)
    with pytest.raises(ValueError, match="take time or quadratic"):
        step_levels(5, DiffusionConfig(zero_terminal_snr=True), SamplerConfig(spacing="logsnr"))
    with pytest.raises(ValueError, match="take small or large"):
        step_levels(5, config, SamplerConfig(method="ddpm", variance="learned"))
    with pytest.raises(ValueError, match="neither 3 nor 6 channels"):
        sample(lambda *_: torch.zeros(2, 5), draw(0, 2), config, SamplerConfig(), clip_x0=False)


def test_with_zero_terminal_snr_the_first_x0_is_read_off_without_dividing_by_no_signal():
    nothing = -INF.expand(4)
    x0, noise = draw(0, 4), draw(1, 4)
    assert torch.equal(add_noise(x0, noise, nothing), noise)
    assert torch.equal(to_x0("v", -x0, noise, nothing), x0)
    assert torch.equal(to_x0("x0", x0, noise, nothing), x0)
