"""Sampling given known frames: exact for Gaussian data, known frames kept, blocks that only add to fewer blocks."""

from __future__ import annotations

import pytest
import torch
from gaussian_diffusion import exact_network, posterior_x0
from safetensors.torch import save_file
from torch import Tensor

from dalle2_video.config import DecoderConfig
from dalle2_video.data.draws import Draws
from dalle2_video.data_config import WindowConfig
from dalle2_video.diffusion.parameterization import to_x0
from dalle2_video.diffusion.schedule import alpha_sigma
from dalle2_video.diffusion_config import DiffusionConfig, SamplerConfig
from dalle2_video.generation.extension import complete, extend, reconstruction_guided
from dalle2_video.models.factory import WEIGHTS, Exported, ModelDims, build, export_files, load_export
from experiments.recipes import tiny

FRAMES = 6
DISTANCE = (torch.arange(FRAMES)[:, None] - torch.arange(FRAMES)).abs()
MEAN, COVARIANCE = torch.linspace(-0.3, 0.4, FRAMES), 0.5 * 0.8**DISTANCE
KNOWN = torch.tensor([0.9, -0.5, 1.1, 0, 0, 0])
"""Far from the mean, and not smooth."""
PLAIN = SamplerConfig(steps=4)


class UnitDraws:
    """One unit of noise a row, and a last row without any: a sampler's answer is its affine map."""

    def __init__(self, steps: int) -> None:
        self.count = FRAMES * steps + 1
        self.rows = torch.cat([torch.eye(FRAMES * steps), torch.zeros(1, FRAMES * steps)])

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        first = FRAMES * (int(purpose.split()[-1]) + 1 if "step" in purpose else 0)
        return self.rows[:, first : first + FRAMES].reshape(self.count, *shape)


def of_frames(config: DiffusionConfig):
    """The network that no training can better, of videos of one pixel."""
    network = exact_network(config.objective, MEAN, COVARIANCE)
    return lambda noised, logsnr_b, keep_b: network(noised.reshape(-1, FRAMES), logsnr_b).reshape(noised.shape)


def completed_moments(config: DiffusionConfig, sampler: SamplerConfig, count: int, **how) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the frames after the first `count`, which are known, to rounding."""
    draws = UnitDraws(sampler.steps)
    known = KNOWN[:, None, None].expand(draws.count, 1, FRAMES, 1, 1)
    mask = torch.arange(FRAMES) < count
    found = complete(of_frames(config), known, mask, draws, config, sampler, name="video", clip_x0=False, **how)
    assert torch.equal(found[:, :, :count], known[:, :, :count])
    values = found.reshape(draws.count, FRAMES)[:, count:].double()
    effects = values[:-1] - values[-1]
    return values[-1], effects.T @ effects


def conditional_moments(count: int) -> tuple[Tensor, Tensor]:
    """What they are: Bishop 2006, eq. 2.81 and 2.82."""
    covariance = COVARIANCE.double()
    gain = covariance[count:, :count] @ torch.linalg.inv(covariance[:count, :count])
    mean = MEAN[count:] + gain @ (KNOWN - MEAN)[:count].double()
    return mean, covariance[count:, count:] - gain @ covariance[:count, count:]


# Of 50 steps; what is left is the error of the sampler's steps, which it makes without known frames too.
BOUNDS = {"ddim": 0.03, "ddpm": 0.05, "dpmpp": 0.003}


@pytest.mark.parametrize("objective", ["v", "eps"])
@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("count", [1, 2])
def test_what_follows_known_frames_has_the_mean_and_covariance_that_gaussian_data_has_given_them(
    objective, method, count
):
    config = DiffusionConfig(objective=objective, guidance_scale=1.0)
    mean, covariance = completed_moments(config, SamplerConfig(method=method, steps=50), count, solver_steps=count)
    true_mean, true_covariance = conditional_moments(count)
    assert (mean - true_mean).abs().max() < 0.01
    assert (covariance - true_covariance).abs().max() < BOUNDS[method]


def test_the_paper_s_weight_draws_the_mean_near_and_one_solver_step_nearer_than_any_weight():
    """One known frame: without guidance 0.60 off the mean, at weight 1 0.50, at weight 4 0.28."""
    config, sampler = DiffusionConfig(guidance_scale=1.0), SamplerConfig(steps=50)

    def errors(**how) -> tuple[float, float]:
        found, true = completed_moments(config, sampler, 1, **how), conditional_moments(1)
        return tuple((one - two).abs().max().item() for one, two in zip(found, true, strict=True))

    means = [errors(solver_steps=0, weight=weight)[0] for weight in (0.0, 1.0, 2.0, 4.0)]
    assert means == sorted(means, reverse=True) and means[0] > 0.55 and means[3] < 0.3
    for weight in (1.0, 2.0, 4.0, 8.0):
        mean, covariance = errors(solver_steps=0, weight=weight)
        exact_mean, exact_covariance = errors(solver_steps=1)
        assert exact_mean < 0.01 * mean and exact_covariance < covariance


def test_equation_7_to_the_letter():
    """x - weight * alpha / 2 * the gradient of the squared error (Ho et al. 2022, eq. 7), by differences."""
    config, mask = DiffusionConfig(objective="v"), torch.arange(FRAMES) < 2
    torch.manual_seed(0)
    noised, logsnr_b = torch.randn(3, FRAMES), torch.full((3,), -1.0)
    alpha, _ = alpha_sigma(logsnr_b, 2)

    def x0(noised: Tensor) -> Tensor:
        return posterior_x0(noised, logsnr_b, MEAN, COVARIANCE).double()

    def squared_error(noised: Tensor) -> Tensor:
        return ((KNOWN - x0(noised))[:, :2] ** 2).sum(1)

    steps = 0.01 * torch.eye(FRAMES)
    gradient = torch.stack([(squared_error(noised + s) - squared_error(noised - s)) / 0.02 for s in steps], dim=1)
    expected = torch.where(mask, KNOWN.double(), x0(noised) - 1.5 * alpha / 2 * gradient)
    network = exact_network("v", MEAN, COVARIANCE)

    def predict(noised, logsnr_b, index):
        return network(noised, logsnr_b)

    guided = reconstruction_guided(predict, KNOWN.expand(3, -1), mask, config, weight=1.5, solver_steps=0)
    found = to_x0("v", guided(noised, logsnr_b, 0), noised, logsnr_b)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("solver_steps", [0, 1, 3])
def test_a_first_step_without_any_signal_is_finite(solver_steps):
    config = DiffusionConfig(objective="v", zero_terminal_snr=True, guidance_scale=1.0)
    mean, covariance = completed_moments(config, SamplerConfig(steps=20), 1, solver_steps=solver_steps)
    assert torch.isfinite(mean).all() and torch.isfinite(covariance).all()


# With a network


DIMS = ModelDims(vocab_size=300, text_context=8, embed_dim=16, text_dim=16)
WINDOW = WindowConfig(size=8, num_frames=4, stride=2)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An exported decoder with learned variance, whose layers that start at zero were moved as training would."""
    base = tiny.recipe().decoder
    config = DecoderConfig(
        window=WINDOW,
        unet=base.unet,
        diffusion=DiffusionConfig(sampling_steps=4, guidance_scale=2.0, learned_variance="range"),
        optim=base.optim,
    )
    torch.manual_seed(0)
    module = build(config, DIMS)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    folder = tmp_path_factory.mktemp("decoder")
    save_file(module.state_dict(), str(folder / WEIGHTS))
    for name, text in export_files("decoder", config, DIMS, fps=8.0).items():
        (folder / name).write_text(text)
    return load_export(folder, "decoder")


def draws_of(*numbers: int) -> Draws:
    return Draws(0, torch.tensor(numbers), "cpu")


def conditioned(decoder: Exported, draws: Draws):
    """The decoder as `extend` takes it; each sample has conditions of its own."""
    encodings, embedding = draws.normal("encodings", (8, 16)), draws.normal("embedding", (16,))

    def predict(noised: Tensor, logsnr_b: Tensor, keep_b: Tensor) -> Tensor:
        times = len(noised) // len(embedding)
        return decoder.module(
            noised,
            logsnr_b,
            encodings_bld=encodings.repeat(times, 1, 1),
            text_mask_bl=torch.ones(len(noised), 8, dtype=torch.bool),
            keep_b=keep_b,
            embedding_bd=embedding.repeat(times, 1),
        )

    return lambda block: predict


def extended(decoder: Exported, draws: Draws, video: Tensor, sampler: SamplerConfig = PLAIN, **changes) -> Tensor:
    numbers = {"name": "decoder", "window": 4, "overlap": 2, "blocks": 2} | changes
    return extend(conditioned(decoder, draws), video, draws, decoder.config.diffusion, sampler, **numbers)


def clips(count: int, frames: int) -> Tensor:
    return draws_of(*range(count)).normal("clip", (3, frames, 8, 8)).clamp(-1, 1)


@pytest.mark.parametrize(
    "sampler",
    [PLAIN, SamplerConfig(method="ddpm", steps=3), SamplerConfig(method="dpmpp", steps=3, dynamic_threshold=0.5)],
    ids=["ddim", "ddpm_learned_variance", "dpmpp_threshold"],
)
def test_a_clip_goes_on_by_blocks_and_its_own_frames_come_back_to_the_bit(decoder: Exported, sampler: SamplerConfig):
    video = clips(2, 5)
    found = extended(decoder, draws_of(7, 8), video, sampler)
    assert found.shape == (2, 3, 5 + 2 * 2, 8, 8)
    assert torch.equal(found[:, :, :5], video)
    assert torch.isfinite(found).all() and found.abs().max() <= 1


def test_more_blocks_only_add_to_fewer_and_each_block_draws_noise_of_its_own(decoder: Exported):
    two, three = (extended(decoder, draws_of(7), clips(1, 4), blocks=blocks) for blocks in (2, 3))
    assert torch.equal(three[:, :, :8], two)
    network = conditioned(decoder, draws_of(7))(1)
    known, mask = torch.zeros(1, 3, 4, 8, 8), torch.arange(4) < 2
    one, other = (
        complete(network, known, mask, draws_of(7), decoder.config.diffusion, PLAIN, name=name)
        for name in ("decoder block 1", "decoder block 2")
    )
    assert not torch.allclose(one, other)


def test_an_extension_depends_on_its_own_frames_and_number_alone(decoder: Exported):
    video = clips(2, 4)
    together = extended(decoder, draws_of(7, 8), video)
    assert torch.equal(together, extended(decoder, draws_of(7, 8), video))
    torch.testing.assert_close(extended(decoder, draws_of(8), video[1:]), together[1:], atol=1e-4, rtol=0)
    for other in (extended(decoder, draws_of(9), video[1:]), extended(decoder, draws_of(8), -video[1:])):
        assert (other - together[1:])[:, :, 4:].abs().max() > 0.01
    # only the last frames are gone on from
    earlier = video.clone()
    earlier[:, :, :2] = 0
    assert torch.equal(extended(decoder, draws_of(7, 8), earlier)[:, :, 4:], together[:, :, 4:])


def test_an_image_becomes_a_video_that_the_image_guides(decoder: Exported):
    image = clips(1, 1)
    found = extended(decoder, draws_of(3), image, overlap=1, blocks=1)
    assert found.shape == (1, 3, 4, 8, 8) and torch.equal(found[:, :, :1], image)
    unguided = extended(decoder, draws_of(3), image, overlap=1, blocks=1, solver_steps=0, weight=0.0)
    assert torch.equal(unguided[:, :, :1], image)
    assert (found - unguided)[:, :, 1:].abs().max() > 1e-3


def test_progress_is_told_by_block_and_step(decoder: Exported):
    seen: list[tuple[int, int]] = []
    extended(decoder, draws_of(1), clips(1, 4), on_step=lambda block, step: seen.append((block, step)))
    assert seen == [(block, step) for block in (1, 2) for step in range(4)]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"overlap": 4}, "must lie in"),
        ({"overlap": 0}, "must lie in"),
        ({"overlap": 3}, "the video has 2"),
        ({"blocks": 0}, "must be 1 or more"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(decoder: Exported, numbers: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        extended(decoder, draws_of(1), clips(1, 2), **numbers)
