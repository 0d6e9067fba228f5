"""One stage's sampler as the pipeline runs it: its diffusion and options, its draws, and how far a batch is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from einops import repeat
from torch import Tensor

from dalle2_video.data.draws import Draws
from dalle2_video.diffusion.guidance import ConditionalPredict
from dalle2_video.diffusion.samplers import num_steps, sample_guided
from dalle2_video.diffusion_config import DiffusionConfig, SamplerConfig
from dalle2_video.models.factory import Exported
from dalle2_video.sample_config import SampleConfig

OnStep = Callable[[str, int, int], None]
"""(step of the chain, calls of its networks so far, calls in all) for one batch."""


class StageSampling:
    """How a stage's videos are sampled."""

    def __init__(self, stage: Exported, draws: Draws, options: SampleConfig, guidance: float | None) -> None:
        self.name, self.draws, self.guidance = stage.stage, draws, guidance
        self.sampler: SamplerConfig = getattr(options, stage.stage)
        stage.config.distillation.check_sampler(f"sample.{stage.stage}", self.sampler, guidance)
        self.diffusion: DiffusionConfig = stage.config.distillation.sampling(stage.config.diffusion)
        self.steps = num_steps(self.diffusion, self.sampler)

    def sample(self, predict: ConditionalPredict, shape: tuple[int, ...], count: StepCounter) -> Tensor:
        """Sample first windows, (b, *shape)."""
        return sample_guided(
            predict,
            self.draws.normal(self.name, shape),
            self.diffusion,
            self.sampler,
            lambda step: self.draws.normal(f"{self.name} step {step}", shape),
            guidance=self.guidance,
            clip_x0=True,
            on_step=count.of(self.steps),
        )


class StepCounter:
    """Tells how far a batch is in a step of the chain that takes several runs of a sampler."""

    def __init__(self, on_step: OnStep | None, name: str, runs: int) -> None:
        self._on_step, self._name, self._runs, self._done = on_step, name, runs, 0

    def of(self, steps: int) -> Callable[[int], None]:
        """Return what to call after each step of the next run, of so many steps."""

        def told(_: Any) -> None:
            self._done += 1
            if self._on_step is not None:
                self._on_step(self._name, self._done, self._runs * steps)

        return told


def repeated(noised: Tensor, condition: Tensor) -> Tensor:
    """Repeat a condition along the batch as often as guidance repeated the noised batch."""
    return repeat(condition, "b ... -> (n b) ...", n=len(noised) // len(condition))
