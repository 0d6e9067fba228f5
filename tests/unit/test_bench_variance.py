"""The bench of learned variances: its control is the setup that failed, and its measures are what their names say."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.bound import bound
from dalle2_video.diffusion.likelihood import discretised_nll, gaussian_kl
from dalle2_video.diffusion.posterior import log_variances
from dalle2_video.diffusion.samplers import sample
from dalle2_video.diffusion.schedule import log_snr
from dalle2_video.diffusion.variance import learned_log_variance, split_output
from dalle2_video.diffusion_config import DiffusionConfig, SamplerConfig
from dalle2_video.models.unet3d import Unet3D
from experiments.recipes import tiny
from tools.bench import variance, variance_judging, variance_old, variance_runs
from tools.bench.variance_measures import Appearance, bounds, frechet, gradient_figures, picked_steps

RANGE = DiffusionConfig(learned_variance="range")
SHAPE = (2, 3, 4, 4, 4)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_old_log_variance_is_a_line_without_ends_from_a_floor_of_1e_20():
    now, after = log_snr(torch.tensor([1e-3, 0.5]), RANGE), torch.tensor([math.inf, 0.1])
    small, large = log_variances(now, after)

    def at(raw: float) -> torch.Tensor:
        return variance_old.old_log_variance(torch.full((2, 1), raw), now, after)[:, 0]

    torch.testing.assert_close(at(-1), torch.stack([torch.tensor(math.log(1e-20)), small[1]]))
    torch.testing.assert_close(at(1), large)
    torch.testing.assert_close(at(0), (at(-1) + at(1)) / 2)
    torch.testing.assert_close(at(5), 3 * at(1) - 2 * at(-1))  # beyond both ends
    assert at(0)[0] < -25 < learned_log_variance("range", torch.zeros(2, 1), now, after, now - 1)[0]


def test_the_old_probability_of_a_level_has_neither_value_nor_slope_beyond_its_cut_off():
    x0 = torch.tensor([-1.0, 1 / 255, 1.0, 1 / 255])
    mean = torch.tensor([-0.9, 0.05, 0.95, 0.9], requires_grad=True)
    log_variance = torch.tensor([-5.0, -5.0, -5.0, -28.0], requires_grad=True)
    found = variance_old.old_level_nll(x0, mean, log_variance)
    torch.testing.assert_close(found[:3], discretised_nll(x0, mean, log_variance)[:3], rtol=1e-4, atol=1e-4)
    assert found[3].item() == pytest.approx(-math.log(1e-12))
    found.sum().backward()
    assert log_variance.grad is not None and log_variance.grad[:3].all() and log_variance.grad[3] == 0


def test_the_wrong_axis_takes_the_mean_from_half_of_the_frames():
    output = noise(0, 2, 6, 4, 3, 3)
    prediction, raw = variance_old.split_frames(output, 3)
    assert prediction.shape == raw.shape == (2, 3, 4, 3, 3)
    assert torch.equal(prediction[:, 1, :2], output[:, 2, :2]) and torch.equal(prediction[:, 1, 2:], output[:, 3, :2])
    assert torch.equal(raw[:, 2, 3], output[:, 5, 3])


@pytest.mark.parametrize("split", [split_output, variance_old.split_frames])
def test_the_old_loss_weighs_one_term_by_a_thousandth_and_takes_the_mean_as_a_constant(split):
    x0 = noise(1, *SHAPE).clamp(-1, 1)
    output = (0.1 * noise(2, 2, 6, *SHAPE[2:])).requires_grad_()
    draws = Draws(0, torch.arange(2), "cpu")
    found = variance_old.denoise_old(lambda z, logsnr, keep: output, x0, draws, RANGE, split)
    parts = found.metrics["mean_loss"], found.metrics["variance_loss"]
    torch.testing.assert_close(found.loss.detach(), parts[0] + 0.001 * parts[1])
    found.loss.backward()
    gradient = output.grad
    assert gradient is not None
    of_mean, of_variance = split(gradient, 3)
    alone = output.detach().clone().requires_grad_()
    prediction, _ = split(alone, 3)
    time, eps = draws.uniform("time"), draws.normal("noise", SHAPE[1:])
    alpha, sigma = (torch.sigmoid(sign * log_snr(time, RANGE)).sqrt().reshape(-1, 1, 1, 1, 1) for sign in (1, -1))
    (prediction - alpha * eps + sigma * x0).square().mean().backward()
    torch.testing.assert_close(of_mean, split(alone.grad, 3)[0])
    assert of_variance.any()


def test_the_old_terms_are_the_bound_s_but_for_the_last_step():
    x0, predicted, log_variance = noise(0, 2, 3).clamp(-1, 1), noise(1, 2, 3).clamp(-1, 1), noise(2, 2, 3) - 5
    now, after = torch.tensor([0.0, 5.0]), torch.tensor([1.0, math.inf])
    terms = variance_old.old_terms(x0, predicted, log_variance, now, after)
    small, _ = log_variances(now, after)
    gain = after[0].sigmoid().sqrt() * -torch.expm1(now[0] - after[0])
    kl = gaussian_kl((gain * (x0[0] - predicted[0])).square(), small[0], log_variance[0])
    torch.testing.assert_close(terms[0], kl)
    torch.testing.assert_close(terms[1], variance_old.old_level_nll(x0, predicted, log_variance)[1])


def test_the_controls_change_the_trunk_and_begin_with_the_same_weights():
    networks = []
    for network in (Unet3D, variance_old.SharedTrunk):
        torch.manual_seed(0)
        networks.append(
            network(tiny.recipe().decoder.unet, embedding_dim=8, text_dim=8, low_res=False, learned_variance=True)
        )
    ours, shared = networks
    assert all(torch.equal(value, shared.state_dict()[name]) for name, value in ours.state_dict().items())
    features, reached = noise(0, 2, 32, 4, 4), []
    for network in networks:
        assert network.variance_out is not None
        torch.nn.init.ones_(network.variance_out[2].weight)
        x = features.clone().requires_grad_()
        network._out(x)[:, 3:].sum().backward()
        reached.append(x.grad is not None and bool(x.grad.any()))
    assert reached == [False, True]


def test_the_full_bound_teaches_the_mean_and_is_the_bound_of_all_steps():
    x0 = noise(1, *SHAPE).clamp(-1, 1)
    output = (0.1 * noise(2, 2, 6, *SHAPE[2:])).requires_grad_()
    draws = Draws(0, torch.arange(2), "cpu")
    found = variance_old.denoise_full_bound(lambda z, logsnr, keep: output, x0, draws, RANGE)
    found.loss.backward()
    assert output.grad is not None and output.grad[:, :3].any() and output.grad[:, 3:].any()
    assert found.loss > found.metrics["mean_loss"]


def test_old_samples_are_the_product_s_where_the_variance_is():
    def predict(noised: torch.Tensor, logsnr_b: torch.Tensor, index: int) -> torch.Tensor:
        return torch.cat([0.3 * noised, noised.flip(1)], dim=1)

    def noise_at(index: int) -> torch.Tensor:
        return noise(index, *SHAPE)

    sampler = SamplerConfig(method="ddpm", steps=6)
    ours = sample(predict, noise(9, *SHAPE), RANGE, sampler, noise_at, clip_x0=True)

    def log_variance(raw: torch.Tensor, now: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return learned_log_variance("range", raw, now, after)

    arguments = (predict, noise(9, *SHAPE), RANGE, 6, noise_at, split_output)
    assert torch.equal(variance_old.sample_old(*arguments, log_variance=log_variance), ours)
    assert not torch.equal(variance_old.sample_old(*arguments), ours)


def test_spikes_are_steps_beyond_ten_medians():
    found = gradient_figures([1.0] * 96 + [9.0, 11.0, 50.0, math.inf])
    assert found["spikes"] == 0.02 and found["non_finite"] == 1 and found["max_over_median"] == 50
    assert 9 < found["p99_over_median"] < 50
    with pytest.raises(ValueError, match="none of 2"):
        gradient_figures([math.nan, math.inf])


def test_bounds_are_the_product_s_and_strata_stand_for_all_steps():
    def network(noised: torch.Tensor, logsnr_b: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.3 * noised, noised.flip(1)], dim=1)

    x0 = torch.round((noise(0, *SHAPE).clamp(-1, 1) + 1) * 127.5) / 127.5 - 1
    setup = variance_runs.Setup(kind="range")
    contestants = variance_judging.terms(setup) | variance_judging.terms(variance_runs.Setup())

    def found(picked: dict[int, int]) -> dict[str, dict[str, float]]:
        return bounds(
            lambda z, logsnr: split_output(network(z, logsnr), 3),
            x0,
            lambda index: noise(index, *SHAPE),
            RANGE,
            40,
            picked,
            contestants,
        )

    everywhere, some = found(picked_steps(40, 64)), found(picked_steps(40, 14))
    for name in ("small", "large", "learned"):
        exact = bound(network, x0, lambda index: noise(index, *SHAPE), RANGE, 40, name)  # type: ignore[arg-type]
        assert everywhere[name]["prior"] == pytest.approx(exact.prior_b.mean().item(), abs=1e-6)
        assert everywhere[name]["steps"] == pytest.approx(exact.steps_sb.sum(0).mean().item(), rel=1e-4)
        assert everywhere[name]["last"] == some[name]["last"] == pytest.approx(exact.last_b.mean().item(), rel=1e-4)
        assert some[name]["steps"] == pytest.approx(everywhere[name]["steps"], rel=0.05)
    picked = picked_steps(1000, 64)
    assert len(picked) == 64 and sum(picked.values()) == 1000 and max(picked.values()) < 70
    assert list(picked.items())[-3:] == [(997, 1), (998, 1), (999, 1)]


def test_frechet_is_that_of_gaussians_and_appearance_sees_motion_and_noise():
    rng = np.random.default_rng(0)
    one = rng.standard_normal((4000, 3))
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet(one, 2 * one + 1) == pytest.approx(
        np.square(2 * one.mean(0) + 1 - one.mean(0)).sum() + np.trace(np.cov(one.T)), rel=1e-9
    )
    phase = rng.uniform(0, 6, (400, 3, 1, 1, 1))
    grid = np.arange(8)
    real = np.sin(grid + grid[:, None, None] + phase) * np.cos(grid[:, None] + phase)
    real = real + 0.1 * rng.standard_normal(real.shape)
    appearance = Appearance(real[:200])
    reference = appearance.features(real[200:])
    assert reference.shape == (200 * 7, 34)
    honest = frechet(appearance.features(real[:200]), reference)
    frozen = np.repeat(real[:200, :, :1], 8, axis=2)
    noisy = real[:200] + 0.1 * rng.standard_normal(real[:200].shape)
    assert min(frechet(appearance.features(fake), reference) for fake in (frozen, noisy)) > 2 * honest


AMOUNTS = variance_runs.Amounts(
    clips=24, clip_steps=1, dim=8, steps=4, unclipped_steps=4, batch=2, bound_windows=2, bound_terms=3, sampled=5,
    sample_steps=(2,), seeds=1,
)  # fmt: skip


def test_ours_leaves_the_mean_as_it_is_and_the_keys_are_those_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arguments = variance.Arguments(folder=tmp_path, **vars(AMOUNTS))
    results = variance.carry_out(arguments)
    fixed = results["fixed", 0]
    for name in ("range", "residual"):
        # equal to the bit but where a step is clipped, by a norm that holds the head's
        assert results[name, 0]["mean_loss"] == pytest.approx(fixed["mean_loss"], rel=1e-5)
        assert results[name, 0]["mean_mse"] == pytest.approx(fixed["mean_mse"], rel=1e-5)
    assert results["old", 0]["mean_loss"] != pytest.approx(fixed["mean_loss"], rel=1e-3)
    found = variance.figures(results | {(name, 1): of for (name, _), of in results.items()}, 2, 2, 1.0)
    promised = {"bpd_ours", "bpd_fixed_large", "bpd_fixed_small", "bpd_old", "spikes_ours", "spikes_old"}
    assert promised <= found.keys() and all(isinstance(value, float) for value in found.values())
    assert found["unclipped_difference_ours"] == found["unclipped_difference_residual"] == 0
    assert abs(found["mean_change_ours"]) < 1e-5
    assert found["bpd_old"] > found["bpd_ours"] + 1 and found["bpd_exact_old"] > found["bpd_old"]
    finished = {"bounds": results["range", 0]["bounds"], "mean_mse": 0.1}
    finished["samples"] = results["fixed", 0]["samples"] | {"learned 2": results["range", 0]["samples"]["learned 2"]}
    found |= variance.figures(
        results | {(name, 1): of for (name, _), of in results.items()} | {("finished", 0): finished}, 2, 2, 1.0
    )
    tables = variance.tables(found, (2,))
    assert len(tables) == 4 and all(len(row) == len(columns) for _, columns, rows in tables for row in rows)

    def worked(*_: object) -> None:
        raise AssertionError("a training that is there was made again")

    for method in ("train", "train_unclipped"):
        monkeypatch.setattr(variance.Bench, method, worked)
    for function in ("judge_bounds", "judge_samples"):
        monkeypatch.setattr(variance, function, worked)
    assert variance.carry_out(arguments) == results


def test_a_decoder_that_is_not_finished_is_refused_with_the_remedy(tmp_path: Path):
    with pytest.raises(ValueError, match=r"runs\.py list"):
        variance_judging.judge_finished(tmp_path, AMOUNTS, tmp_path / "figures.json", lambda: None)


def test_too_few_seeds_or_steps_are_refused(tmp_path: Path):
    for wrong, message in (({"seeds": 1}, "--seeds 1"), ({"steps": 20}, "--steps 20")):
        with pytest.raises(ValueError, match=message):
            variance.main(variance.Arguments(folder=tmp_path, **wrong))
    assert not any(tmp_path.iterdir())
