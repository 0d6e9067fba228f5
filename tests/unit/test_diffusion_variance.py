"""Learned variance: where it must lie, what it must not touch, and that both kinds find the best variance there is."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.likelihood import step_gain
from dalle2_video.diffusion.posterior import log_variances, step_share
from dalle2_video.diffusion.samplers import sample
from dalle2_video.diffusion.schedule import add_noise, alpha_sigma, log_snr
from dalle2_video.diffusion.variance import (
    RESIDUAL_SCALE,
    SLOPE_LIMIT,
    bound_step,
    head_loss,
    learned_log_variance,
    residual,
    split_output,
)
from dalle2_video.diffusion_config import DiffusionConfig, SamplerConfig
from dalle2_video.models.unet3d import Unet3D
from dalle2_video.stages.denoising import denoise
from experiments.recipes import tiny

KINDS = ("range", "residual")
DEVIATION = 0.25
"""Of the Gaussian data of one dimension: hardly any of it is beyond 1, where x0 is cut off."""


def of_kind(kind, **more) -> DiffusionConfig:
    return DiffusionConfig(learned_variance=kind, **more)


def unsure(logsnr_b: Tensor) -> Tensor:
    """Variance of x0 given z, for x0 ~ N(0, DEVIATION^2); (b,) fp64."""
    signal, noise = logsnr_b.double().sigmoid(), (-logsnr_b.double()).sigmoid()
    return DEVIATION**2 * noise / (DEVIATION**2 * signal + noise)


def best_raw(kind: str, logsnr_b: Tensor, next_logsnr_b: Tensor, noisier_logsnr_b: Tensor | None = None) -> Tensor:
    """What a perfect head gives for that data: (b,)."""
    small, large = (bound.double() for bound in log_variances(logsnr_b, next_logsnr_b, noisier_logsnr_b))
    if kind == "residual":
        of_v = unsure(logsnr_b) / (-logsnr_b.double()).sigmoid()
        return torch.log(torch.expm1(of_v * math.log(2))).float()
    gain = next_logsnr_b.double().sigmoid().sqrt() * step_share(logsnr_b, next_logsnr_b).double()
    exact, _ = log_variances(logsnr_b, next_logsnr_b)
    best = torch.log(exact.double().exp() + gain**2 * unsure(logsnr_b))
    # the floor of the last of few steps may lie a little above the best
    return torch.logit(((best - small) / (large - small)).clamp(min=1e-6)).float()


def test_a_head_that_is_zero_starts_between_the_two_fixed_variances():
    now, after = torch.tensor([-2.0, 0.0, 5.0]), torch.tensor([-1.0, 0.5, 6.0])
    small, large = log_variances(now, after)
    raw = torch.zeros(3, 1)
    torch.testing.assert_close(learned_log_variance("range", raw, now, after)[:, 0], (small + large) / 2)
    # the residual of data of unit variance gives the large variance
    torch.testing.assert_close(learned_log_variance("residual", raw, now, after)[:, 0], large)
    for kind in KINDS:
        for extreme in (-1e4, 1e4):
            found = learned_log_variance(kind, raw + extreme, now, after)[:, 0]
            assert found.isfinite().all() and (found >= small - 1e-5).all()
            assert kind == "residual" or (found <= large + 1e-5).all()


def test_the_floor_of_the_last_step_is_the_posterior_variance_of_the_step_before():
    config = of_kind("range", schedule="linear")
    t = torch.tensor([1e-3, 1.4e-3, 1.6e-3])
    after, noisier = bound_step(t, config)
    assert after.isposinf().tolist() == [True, True, False]
    small, large = log_variances(log_snr(t, config), after, noisier)
    # Ho et al. 2020: beta_2 (1 - alpha_1^2) / (1 - alpha_2^2), and beta_1
    assert small[0].item() == pytest.approx(math.log(5.4e-5), abs=0.1)
    assert large[0].item() == pytest.approx(math.log(1e-4), abs=0.1)
    unbounded, _ = log_variances(log_snr(t, config), after)
    assert unbounded[0] == -math.inf


def test_the_steps_of_the_bound_are_those_of_its_grid():
    config = of_kind("range", variance_steps=50)
    t = torch.arange(1, 51, dtype=torch.float64) / 50
    after, noisier = bound_step(t, config)
    torch.testing.assert_close(after[1:], log_snr(t[:-1], config), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(noisier[:-1], log_snr(t[1:], config), atol=1e-4, rtol=1e-5)
    assert after[0] == math.inf and noisier[-1] == log_snr(t[-1:], config)


@pytest.mark.parametrize("time", [0.07, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_the_head_is_least_at_the_best_variance(kind, time):
    config = of_kind(kind, **({"variance_steps": 20} if kind == "range" else {}))
    generator = torch.Generator().manual_seed(0)
    count = 50_000
    t = torch.full((1,), time)
    logsnr = log_snr(t, config)
    x0 = DEVIATION * torch.randn(1, 1, count, generator=generator)
    if time == 0.07:  # the last step gives the probability of 8-bit levels
        x0 = torch.round((x0 + 1) * 127.5) / 127.5 - 1
    noised = add_noise(x0, torch.randn(1, 1, count, generator=generator), logsnr)
    signal, noise = alpha_sigma(logsnr, 3)
    mean = noised * signal * DEVIATION**2 / (DEVIATION**2 * signal**2 + noise**2)
    after, noisier = bound_step(t, config)
    raw = best_raw(kind, logsnr, after if kind == "range" else logsnr + 1, noisier)
    losses = [head_loss((raw + off).expand(1, 1, count), mean, x0, t, config).item() for off in (-0.3, 0.0, 0.3)]
    assert losses[1] == min(losses)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("steps", [2, 4, 25])
@pytest.mark.parametrize("kind", KINDS)
def test_with_the_best_variance_any_number_of_steps_gives_the_data_back(kind, steps, zero):
    config = of_kind(kind, zero_terminal_snr=zero)
    levels = log_snr(torch.linspace(1, 0, steps + 1, dtype=torch.float64), config)

    def predict(noised, logsnr_b, index):
        alpha, sigma = alpha_sigma(logsnr_b, noised.ndim)
        x0 = noised * alpha * DEVIATION**2 / (DEVIATION**2 * alpha**2 + sigma**2)
        raw = best_raw(kind, logsnr_b, levels[index + 1].expand(len(noised)))
        v = (alpha * noised - x0) / sigma
        return torch.cat([v, raw[:, None]], dim=1)

    rows = torch.eye(steps)
    sampler = SamplerConfig(method="ddpm", steps=steps)
    effects = sample(predict, rows[:, :1], config, sampler, lambda index: rows[:, index + 1 : index + 2], clip_x0=False)
    # by the law of total variance, the mean of the last step leaves out what is unsure there
    expected = DEVIATION**2 - unsure(levels[-2:-1])
    torch.testing.assert_close(effects.double().square().sum(), expected[0], atol=2e-6, rtol=2e-4)


def test_a_sample_with_large_errors_is_scaled_down_by_itself_alone():
    for kind in KINDS:
        config = of_kind(kind)
        t = torch.tensor([0.002, 0.5])
        x0 = torch.zeros(2, 1, 64)
        calm = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 1e-3
        wild = torch.stack([torch.full((64,), 0.9), calm])[:, None]
        raw = torch.zeros(2, 1, 64, requires_grad=True)
        found = head_loss(raw, wild, x0, t, config)
        found.sum().backward()
        alone = head_loss(raw[1:], wild[1:], x0[1:], t[1:], config)
        assert torch.equal(found[1:], alone)
        assert raw.grad is not None and found.isfinite().all()
        after, noisier = bound_step(t, config)
        if kind == "range":
            small, large = log_variances(log_snr(t, config), after, noisier)
            steepest = 0.25 * (large - small)  # of the log variance in raw
        else:
            steepest = torch.full((2,), RESIDUAL_SCALE * 0.5 / math.log(2))
        size = (raw.grad[:, 0] * 64).square().mean(1).sqrt()
        assert (size <= SLOPE_LIMIT * steepest * (1 + 1e-4)).all()
        assert size[0] == pytest.approx(SLOPE_LIMIT * steepest[0].item(), rel=1e-3)


def test_no_gradient_of_the_head_reaches_the_mean_and_padded_frames_count_for_nothing():
    for kind in KINDS:
        predicted = torch.zeros(2, 3, 4, 2, 2, requires_grad=True)
        raw = torch.zeros(2, 3, 4, 2, 2, requires_grad=True)
        x0 = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
        valid, t = torch.tensor([4, 2]), torch.tensor([0.3, 0.6])
        loss = head_loss(raw, predicted, x0, t, of_kind(kind), valid)
        loss.sum().backward()
        assert predicted.grad is None
        assert raw.grad is not None and not raw.grad[1, :, 2:].any() and raw.grad[1, :, :2].all()
        short = head_loss(raw[1:, :, :2], predicted[1:, :, :2], x0[1:, :, :2], t[1:], of_kind(kind))
        torch.testing.assert_close(loss[1:], short)


def test_residual_is_positive_and_one_at_zero():
    assert residual(torch.zeros(1)).item() == pytest.approx(1)
    assert (residual(torch.tensor([-50.0, -5.0, 5.0])) > 0).all()
    now, after = torch.tensor([0.0]), torch.tensor([1.0])
    assert step_gain(now, after, 1).item() == pytest.approx(
        after.sigmoid().sqrt().item() * step_share(now, after).item()
    )


def test_an_output_is_split_by_channels_and_never_by_frames():
    output = torch.arange(2 * 6 * 6 * 2 * 2).reshape(2, 6, 6, 2, 2)
    prediction, raw = split_output(output, 3)
    assert torch.equal(prediction, output[:, :3])
    assert raw is not None and torch.equal(raw, output[:, 3:])
    assert split_output(output, 6)[1] is None
    with pytest.raises(ValueError, match="neither 4 nor 8 channels"):
        split_output(output, 4)
    with pytest.raises(ValueError, match="take variance small or large"):
        learned_log_variance("range", None, torch.zeros(2), torch.ones(2))


DECODER = tiny.recipe().decoder


def trained(config: DiffusionConfig) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Return gradients and metrics of one training step of the decoder's network, and its output."""
    torch.manual_seed(0)
    model = Unet3D(
        DECODER.unet, embedding_dim=8, text_dim=8, low_res=False, learned_variance=config.learned_variance != "none"
    )
    with torch.no_grad():  # as after some training: zero layers would stop every gradient behind them
        for number, parameter in enumerate(model.parameters()):
            if not parameter.any():
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(2, 3, 4, 8, 8, generator=generator).clamp(-1, 1)
    texts, embedding = torch.randn(2, 5, 8, generator=generator), torch.randn(2, 8, generator=generator)
    outputs = []

    def predict(noised: Tensor, logsnr: Tensor, keep: Tensor) -> Tensor:
        seen = torch.ones(2, 5, dtype=torch.bool)
        outputs.append(
            model(noised, logsnr, encodings_bld=texts, text_mask_bl=seen, keep_b=keep, embedding_bd=embedding)
        )
        return outputs[-1]

    found = denoise(predict, video, Draws(0, torch.arange(2), "cpu"), config)
    found.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    return gradients, found.metrics | {"loss": found.loss.detach()}, outputs[0].detach()


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_learns_with_a_learned_variance_what_it_learns_without_to_the_bit(kind):
    plain, plain_metrics, plain_output = trained(DiffusionConfig())
    learned, metrics, output = trained(of_kind(kind, variance_weight=3.0))
    assert {name.split(".")[0] for name in learned.keys() - plain.keys()} == {"variance_out"}
    for name, gradient in plain.items():
        assert torch.equal(gradient, learned[name]), name
    assert torch.equal(plain_output, output[:, :3]) and output.shape[1] == 6
    assert metrics["mean_loss"] == plain_metrics["loss"]
    torch.testing.assert_close(metrics["loss"], metrics["mean_loss"] + 3 * metrics["variance_loss"])
    assert learned["variance_out.0.weight"].any()


def test_a_fresh_head_gives_zero_and_leaves_the_other_weights_as_they_are_drawn():
    made = []
    for learned in (False, True):
        torch.manual_seed(0)
        made.append(Unet3D(DECODER.unet, embedding_dim=8, text_dim=8, low_res=False, learned_variance=learned))
    plain, with_head = (model.state_dict() for model in made)
    assert all(torch.equal(value, with_head[name]) for name, value in plain.items())
    assert not with_head["variance_out.2.weight"].any() and not with_head["variance_out.2.bias"].any()


def test_a_loss_weight_is_applied_to_the_mean_alone():
    _, plain, _ = trained(of_kind("range"))
    _, weighted, _ = trained(dataclasses.replace(of_kind("range"), loss_weight="min_snr"))
    assert weighted["variance_loss"] == plain["variance_loss"]
    assert weighted["mean_loss"] < plain["mean_loss"]
