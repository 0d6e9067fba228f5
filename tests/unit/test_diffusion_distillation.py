"""Progressive distillation: a student that meets its target does in N steps what its teacher does in 2 N."""

import math

import pytest
import torch
from gaussian_diffusion import exact_network

from dalle2_video.diffusion.distillation import distillation_target, student_times
from dalle2_video.diffusion.parameterization import to_x0
from dalle2_video.diffusion.samplers import ddim_step, sample
from dalle2_video.diffusion.schedule import alpha_sigma, log_snr
from dalle2_video.diffusion_config import DiffusionConfig, SamplerConfig

CASES = [
    DiffusionConfig(objective=objective, zero_terminal_snr=zero)
    for objective, zero in (("v", False), ("x0", False), ("eps", False), ("v", True))
]


def draw(count):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("config", CASES, ids=lambda config: f"{config.objective}{config.zero_terminal_snr:d}")
def test_a_student_at_its_target_samples_in_half_the_steps_what_its_teacher_does(config, clip):
    teacher, steps = exact_network(config.objective), 8

    def student(noised, logsnr_b, index):
        time = torch.full((len(noised),), (steps - index) / steps, dtype=torch.float64)
        prediction, _ = distillation_target(teacher, noised, time, steps, config, clip_x0=clip)
        return prediction

    def teacher_step(noised, logsnr_b, index):
        return teacher(noised, logsnr_b)

    # the student's own x0 is not cut off: what it stands for may lie outside, as only the teacher's was
    of_student = sample(student, draw(64), config, SamplerConfig(steps=steps), clip_x0=False)
    of_teacher = sample(teacher_step, draw(64), config, SamplerConfig(steps=2 * steps), clip_x0=clip)
    torch.testing.assert_close(of_student, of_teacher, atol=2e-3 if config.objective == "eps" else 2e-5, rtol=0)


def test_one_step_from_the_target_is_two_of_the_teacher_written_out():
    config, steps = DiffusionConfig(), 4
    teacher, noised = exact_network("v"), draw(16)
    time = torch.full((16,), 0.75, dtype=torch.float64)
    prediction, x0 = distillation_target(teacher, noised, time, steps, config, clip_x0=False)
    levels = [log_snr(time - back, config) for back in (0.0, 0.125, 0.25)]
    torch.testing.assert_close(to_x0("v", prediction, noised, levels[0]), x0)
    # Salimans & Ho 2022, alg. 2
    (alpha, sigma), (alpha_end, sigma_end) = alpha_sigma(levels[0], 2), alpha_sigma(levels[2], 2)
    z = noised
    for before, after in ((levels[0], levels[1]), (levels[1], levels[2])):
        z = ddim_step(to_x0("v", teacher(z, before), z, before), z, before, after)
    torch.testing.assert_close(x0, (z - sigma_end / sigma * noised) / (alpha_end - sigma_end / sigma * alpha))
    torch.testing.assert_close(ddim_step(x0, noised, levels[0], levels[2]), z)


def test_the_last_steps_target_is_what_the_teacher_ends_with():
    config, steps = DiffusionConfig(), 4
    teacher, noised = exact_network("v"), draw(16)
    time = torch.full((16,), 0.25, dtype=torch.float64)
    _, x0 = distillation_target(teacher, noised, time, steps, config, clip_x0=False)
    start, middle = log_snr(time, config), log_snr(time - 0.125, config)
    halfway = ddim_step(to_x0("v", teacher(noised, start), noised, start), noised, start, middle)
    torch.testing.assert_close(x0, to_x0("v", teacher(halfway, middle), halfway, middle))


def test_a_teacher_that_a_student_already_equals_is_its_own_target():
    # data that is one point: the perfect x0 is that point at every level, so steps of any size agree
    config, point = DiffusionConfig(), torch.tensor([0.3, -0.2, 0.9])
    teacher = exact_network("v", point, torch.zeros(3, 3))
    time = student_times(torch.tensor([0.1, 0.4, 0.99]), 5)
    for level in time:
        prediction, x0 = distillation_target(teacher, draw(8), level.expand(8), 5, config, clip_x0=False)
        torch.testing.assert_close(x0, point.expand(8, 3), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(prediction, teacher(draw(8), log_snr(level.expand(8), config)), atol=1e-4, rtol=1e-4)


def test_a_student_learns_at_the_ends_of_its_steps():
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.999999])
    assert student_times(uniform, 4).tolist() == [0.25, 0.25, 0.5, 1.0]
    assert math.isclose(student_times(torch.tensor([0.5]), 1).item(), 1.0)
