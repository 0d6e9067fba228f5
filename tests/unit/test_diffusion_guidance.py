"""Classifier-free guidance: the blend of two predictions, its scale by step, and what happens to the deviation."""

import pytest
import torch

from dalle2_video.diffusion.guidance import guidance_scales, guided, rescaled
from dalle2_video.diffusion.samplers import sample_guided
from dalle2_video.diffusion_config import DiffusionConfig, SamplerConfig


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Recorder:
    """Prediction that depends on sample, noise level and condition; remembers the batch sizes it was called with."""

    def __init__(self):
        self.batches = []

    def __call__(self, noised, logsnr_b, keep_b):
        self.batches.append(len(noised))
        return noised * 2 + logsnr_b[:, None] + torch.where(keep_b, 3.0, -1.0)[:, None]


def test_guidance_blends_both_predictions_in_one_call():
    noised, logsnr = draw(0, 4, 3), draw(1, 4)
    conditional = Recorder()(noised, logsnr, torch.ones(4, dtype=torch.bool))
    unconditional = Recorder()(noised, logsnr, torch.zeros(4, dtype=torch.bool))
    for scale, expected, batches in [
        (1.0, conditional, [4]),
        (0.0, unconditional, [8]),
        (3.0, unconditional + 3 * (conditional - unconditional), [8]),
    ]:
        recorder = Recorder()
        assert torch.equal(guided(recorder, [scale])(noised, logsnr, 0), expected)
        assert recorder.batches == batches


def test_every_step_has_its_own_scale_and_pays_for_it_alone():
    recorder = Recorder()
    predict = guided(recorder, [3.0, 1.0])
    noised, logsnr = draw(0, 4, 3), draw(1, 4)
    assert not torch.equal(predict(noised, logsnr, 0), predict(noised, logsnr, 1))
    assert recorder.batches == [8, 4]


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (SamplerConfig(), [7.0] * 6),
        (SamplerConfig(guidance_low=1.0, guidance_hold=0.5), [7.0, 7.0, 7.0, 1.0, 7.0, 1.0]),
        (SamplerConfig(guidance_low=2.0, guidance_hold=0.0), [2.0, 7.0, 2.0, 7.0, 2.0, 7.0]),
    ],
)
def test_oscillating_guidance_holds_first_and_then_alternates(sampler, expected):
    assert guidance_scales(7.0, 6, sampler) == expected


def test_rescaling_brings_the_deviation_back_by_its_share():
    kept, blended = draw(0, 5, 3, 4), 6 * draw(1, 5, 3, 4)
    deviation = kept.flatten(1).std(1)
    torch.testing.assert_close(rescaled(blended, kept, 1.0).flatten(1).std(1), deviation)
    torch.testing.assert_close(rescaled(blended, kept, 0.0), blended)
    # Lin et al. 2024, eq. 15 and 16: phi times the rescaled one and 1 - phi times the other
    expected = 0.7 * rescaled(blended, kept, 1.0) + 0.3 * blended
    torch.testing.assert_close(rescaled(blended, kept, 0.7), expected)
    constant = torch.ones(2, 3, 4)
    assert torch.equal(rescaled(constant, kept[:2], 1.0), constant)


def test_guidance_rescales_what_it_blends():
    noised, logsnr = draw(0, 4, 3), draw(1, 4)

    def model(noised, logsnr_b, keep_b):
        return noised * torch.where(keep_b, 3.0, 1.0)[:, None]

    found = guided(model, [5.0], 0.7)(noised, logsnr, 0)
    blended = noised * (1 + 5 * 2)
    torch.testing.assert_close(found, rescaled(blended, 3 * noised, 0.7))
    assert found.std() < blended.std()


def test_the_variance_is_the_conditional_ones_unguided():
    noised, logsnr = draw(0, 4, 3, 2), torch.zeros(4)

    def model(noised, logsnr_b, keep_b):
        kept = keep_b[:, None, None]
        return torch.cat([torch.where(kept, 3.0, 1.0) * noised, torch.where(kept, 5.0, -5.0) * noised], dim=1)

    found = guided(model, [2.0])(noised, logsnr, 0)
    torch.testing.assert_close(found, torch.cat([5 * noised, 5 * noised], dim=1))


def test_guided_sampling_takes_the_recipes_scale_unless_told_otherwise():
    config, sampler = DiffusionConfig(guidance_scale=1.0), SamplerConfig(steps=4)
    for guidance, batches in ((None, [2] * 4), (2.0, [4] * 4)):
        recorder = Recorder()
        sample_guided(recorder, draw(0, 2, 3), config, sampler, guidance=guidance, clip_x0=True)
        assert recorder.batches == batches
    recorder = Recorder()
    oscillating = SamplerConfig(steps=4, guidance_low=1.0, guidance_hold=0.5)
    sample_guided(recorder, draw(0, 2, 3), config, oscillating, guidance=4.0, clip_x0=True)
    assert recorder.batches == [4, 4, 2, 4]
