"""Samplers against data whose exact score is known: both must reproduce mean and covariance of a Gaussian."""

import pytest
import torch

from dalle2_video.config import DiffusionConfig
from dalle2_video.diffusion.parameterization import target
from dalle2_video.diffusion.samplers import guided, sample
from dalle2_video.diffusion.schedule import alpha_sigma

MEAN = torch.tensor([0.5, -1.0, 0.2])
FACTOR = torch.tensor([[1.0, 0, 0], [0.6, 0.5, 0], [-0.3, 0.2, 0.3]])
COVARIANCE = FACTOR @ FACTOR.T


def exact_network(objective, mean=MEAN, covariance=COVARIANCE):
    """Posterior mean of x0 given z, for x0 ~ N(mean, covariance), expressed in the objective."""

    def predict(noised, logsnr_b):
        alpha, sigma = alpha_sigma(logsnr_b[:1], 2)
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(3))
        x0 = mean + (noised - alpha * mean) @ gain.T
        return target(objective, x0, (noised - alpha * x0) / sigma, logsnr_b)

    return predict


def draw(seed, count):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("objective", ["v", "x0", "eps"])
@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_samplers_reproduce_a_gaussian(method, objective, schedule):
    config = DiffusionConfig(objective=objective, schedule=schedule)
    generator = torch.Generator().manual_seed(1)
    x0 = sample(
        exact_network(objective),
        draw(0, 20_000),
        config,
        # the covariance of both is too small by an amount that halves with twice the steps: here by 0.01
        500 if method == "ddpm" else 200,
        method,
        noise_at=lambda step: torch.randn(20_000, 3, generator=generator),
        clip_x0=False,
    )
    torch.testing.assert_close(x0.mean(0), MEAN, atol=0.03, rtol=0)
    torch.testing.assert_close(x0.T.cov(), COVARIANCE, atol=0.045, rtol=0)


def test_ddim_is_a_map_of_its_noise_and_few_steps_come_close_to_many():
    config = DiffusionConfig()
    network, noise = exact_network("v"), draw(0, 64)
    many = sample(network, noise, config, 400, clip_x0=False)
    assert torch.equal(many, sample(network, noise, config, 400, clip_x0=False))
    errors = [(sample(network, noise, config, steps, clip_x0=False) - many).abs().max() for steps in (10, 40, 160)]
    assert errors[0] > errors[1] > errors[2]


def test_one_step_returns_the_prediction_of_x0():
    config = DiffusionConfig(objective="x0")
    fixed = torch.linspace(-2, 2, 12).reshape(4, 3)
    assert torch.equal(sample(lambda z, logsnr: fixed, draw(0, 4), config, 1, clip_x0=False), fixed)
    assert torch.equal(sample(lambda z, logsnr: fixed, draw(0, 4), config, 1, clip_x0=True), fixed.clamp(-1, 1))


def test_steps_run_in_order_and_draw_their_noise_by_index():
    seen, drawn, levels = [], [], []

    def predict(noised, logsnr_b):
        levels.append(logsnr_b[0].item())
        return torch.zeros_like(noised)

    def noise_at(step):
        drawn.append(step)
        return torch.zeros(2, 3)

    sample(predict, draw(0, 2), DiffusionConfig(), 5, "ddpm", noise_at, clip_x0=True, on_step=seen.append)
    assert seen == [0, 1, 2, 3, 4]
    assert drawn == [0, 1, 2, 3]
    assert levels == sorted(levels) and len(levels) == 5


def test_no_global_random_number_is_drawn():
    state = torch.get_rng_state()
    sample(exact_network("v"), draw(0, 4), DiffusionConfig(), 4, "ddpm", lambda step: draw(step, 4), clip_x0=True)
    assert torch.equal(state, torch.get_rng_state())


def test_user_errors_name_the_remedy():
    config, network = DiffusionConfig(), exact_network("v")
    with pytest.raises(ValueError, match="noise_at"):
        sample(network, draw(0, 2), config, 5, "ddpm", clip_x0=False)
    with pytest.raises(ValueError, match="1 or more"):
        sample(network, draw(0, 2), config, 0, clip_x0=False)
    with pytest.raises(ValueError, match="'ddim' or 'ddpm'"):
        sample(network, draw(0, 2), config, 5, "euler", clip_x0=False)  # type: ignore[arg-type]


class Recorder:
    """Prediction that depends on sample, noise level and condition; remembers the batch sizes it was called with."""

    def __init__(self):
        self.batches = []

    def __call__(self, noised, logsnr_b, keep_b):
        self.batches.append(len(noised))
        return noised * 2 + logsnr_b[:, None] + torch.where(keep_b, 3.0, -1.0)[:, None]


def test_guidance_blends_both_predictions_in_one_call():
    noised, logsnr = draw(0, 4), torch.randn(4)
    conditional = Recorder()(noised, logsnr, torch.ones(4, dtype=torch.bool))
    unconditional = Recorder()(noised, logsnr, torch.zeros(4, dtype=torch.bool))
    for scale, expected, batches in [
        (1.0, conditional, [4]),
        (0.0, unconditional, [8]),
        (3.0, unconditional + 3 * (conditional - unconditional), [8]),
    ]:
        recorder = Recorder()
        assert torch.equal(guided(recorder, scale)(noised, logsnr), expected)
        assert recorder.batches == batches
