"""The diffusion part of a recipe: what is learnt, and how a finished stage samples.

`DiffusionConfig` and `DistillationConfig` belong to a trained stage and its identity. `SamplerConfig` belongs to
`launch/sample.py`: a trained stage samples in any of these ways, a distilled one in its own. Nothing here imports
torch; every field's docstring is its `--help` text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dalle2_video.checks import require, require_fraction, require_positive

Objective = Literal["v", "x0", "eps"]
LearnedVariance = Literal["none", "range", "residual"]
PAPER_GAMMA = {"min_snr": 5.0, "p2": 1.0}


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Continuous-time Gaussian diffusion, t in [0, 1], variance preserving."""

    objective: Objective = "v"
    """What the network predicts."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Noise schedule (cosine: Nichol & Dhariwal 2021; linear: the variance-preserving SDE of Song et al. 2021)."""
    logsnr_shift: float = 0.0
    """Added to log SNR at every t; 2*log(64/size) keeps the noise of 64 px at larger sizes (Hoogeboom et al. 2023)."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that nothing of the sample is left at t = 1 (Lin et al. 2024); objective v or x0."""
    loss_weight: Literal["none", "min_snr", "p2"] = "none"
    """Weight of the loss by noise level (min_snr: Hang et al. 2023; p2: Choi et al. 2022). Losses of two weights do not
    compare."""
    loss_weight_gamma: float = 0.0
    """Gamma of that weight, 0 or more; 0 takes the paper's: 5 for min_snr, 1 for p2."""
    learned_variance: LearnedVariance = "none"
    """Let a head of its own learn the variance of ddpm steps, which leaves the mean as it is; video stages only. range:
    a share between the least and the largest variance (Nichol & Dhariwal 2021); residual: the squared error of the mean
    (NPR, Bao et al. 2022). Pays with few steps."""
    variance_steps: int = 1000
    """Steps of the bound that learned_variance range minimises; 2 or more."""
    variance_weight: float = 1.0
    """Weight of the head's loss beside the mean's; 1 is 0.001 of the bound of 1000 steps; greater than 0."""
    condition_dropout: float = 0.1
    """Share of samples whose condition is dropped, which makes guidance possible; [0, 1)."""
    sampling_steps: int = 50
    """Default number of sampling steps; 1 or more."""
    guidance_scale: float = 3.0
    """Default classifier-free guidance: 1 is none; 0 or more."""

    def __post_init__(self) -> None:
        require_positive(self, "sampling_steps", "variance_weight")
        require_fraction(self, "condition_dropout")
        require(self.guidance_scale >= 0, "DiffusionConfig.guidance_scale", self.guidance_scale, "must be 0 or more")
        require(
            not (self.zero_terminal_snr and self.objective == "eps"),
            "DiffusionConfig.objective",
            self.objective,
            "cannot give x0 where zero_terminal_snr leaves noise alone; set objective to v or x0",
        )
        gamma = self.loss_weight_gamma
        require(gamma >= 0, "DiffusionConfig.loss_weight_gamma", gamma, "must be 0 or more")
        require(
            gamma == 0 or self.loss_weight != "none",
            "DiffusionConfig.loss_weight_gamma",
            gamma,
            "is read with loss_weight min_snr or p2 alone; set one of them",
        )
        require(self.variance_steps >= 2, "DiffusionConfig.variance_steps", self.variance_steps, "must be 2 or more")
        require(
            self.variance_steps == 1000 or self.learned_variance == "range",
            "DiffusionConfig.variance_steps",
            self.variance_steps,
            "is read with learned_variance range alone; set that",
        )
        require(
            self.variance_weight == 1 or self.learned_variance != "none",
            "DiffusionConfig.variance_weight",
            self.variance_weight,
            "is read with learned_variance range or residual alone; set one of them",
        )

    @property
    def gamma(self) -> float:
        """Gamma of the loss weight; of `loss_weight` min_snr or p2."""
        return self.loss_weight_gamma or PAPER_GAMMA[self.loss_weight]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a stage goes from noise to a sample; see `dalle2_video.diffusion.samplers`."""

    method: Literal["ddim", "ddpm", "dpmpp"] = "ddim"
    """ddim: deterministic unless eta is more than 0 (Song et al. 2021); ddpm: ancestral (Ho et al. 2020); dpmpp:
    DPM-Solver++(2M), deterministic and of second order, for few steps (Lu et al. 2022)."""
    steps: int = 0
    """Calls of the network, 1 or more; 0 takes the recipe's."""
    spacing: Literal["time", "quadratic", "logsnr"] = "time"
    """Steps are even in t, in the square root of t (more of them near the clean end), or in log SNR."""
    eta: float = 0.0
    """Noise of ddim steps: 0 none, 1 that of ddpm with the small variance; [0, 1]."""
    variance: Literal["auto", "small", "large", "learned"] = "auto"
    """Variance of ddpm steps. small: right for a sample that is certain; large: for one of unit variance; auto: learned
    where the stage has learned it, else small."""
    guidance_rescale: float = 0.0
    """Share by which guided predictions get the standard deviation of the conditional one again (Lin et al. 2024: 0.7);
    [0, 1]."""
    guidance_low: float | None = None
    """Guidance of every second step once guidance_hold of the steps are done (oscillating guidance, Ho et al. 2022,
    Imagen Video); 0 or more; None: all steps have the same."""
    guidance_hold: float = 0.25
    """Share of the steps that guidance_low leaves alone, the first ones; [0, 1)."""
    dynamic_threshold: float | None = None
    """Quantile of |x0| that is brought to 1 where it is more (Saharia et al. 2022: 0.995), instead of cutting x0 off at
    1; (0, 1]; None: it is cut off."""

    def __post_init__(self) -> None:
        require(self.steps >= 0, "SamplerConfig.steps", self.steps, "must be 1 or more, or 0 for the recipe's")
        require(0 <= self.eta <= 1, "SamplerConfig.eta", self.eta, "must lie in [0, 1]")
        require(
            self.eta == 0 or self.method == "ddim", "SamplerConfig.eta", self.eta, "is of method ddim alone; set that"
        )
        require(
            self.variance == "auto" or self.method == "ddpm",
            "SamplerConfig.variance",
            self.variance,
            "is of method ddpm alone; set that",
        )
        rescale, low, threshold = self.guidance_rescale, self.guidance_low, self.dynamic_threshold
        require(0 <= rescale <= 1, "SamplerConfig.guidance_rescale", rescale, "must lie in [0, 1]")
        require(low is None or low >= 0, "SamplerConfig.guidance_low", low, "must be 0 or more, or None")
        require_fraction(self, "guidance_hold")
        require(
            self.guidance_hold == 0.25 or low is not None,
            "SamplerConfig.guidance_hold",
            self.guidance_hold,
            "is read with guidance_low alone; set that",
        )
        require(
            threshold is None or 0 < threshold <= 1,
            "SamplerConfig.dynamic_threshold",
            threshold,
            "must lie in (0, 1], or be None",
        )

    def check(self, name: str, diffusion: DiffusionConfig) -> None:
        """Raise ValueError, with the field `name` of these options, where a stage cannot sample like this."""
        require(
            self.variance != "learned" or diffusion.learned_variance != "none",
            f"{name}.variance",
            self.variance,
            "needs a stage trained with diffusion.learned_variance range or residual; take small or large",
        )
        require(
            self.spacing != "logsnr" or not diffusion.zero_terminal_snr,
            f"{name}.spacing",
            self.spacing,
            "cannot start from the log SNR of diffusion.zero_terminal_snr, which is -inf; take time or quadratic",
        )


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Progressive distillation: a student learns to do two steps of a finished run of its stage in one.

    (Salimans & Ho 2022.) Repeat it with half the steps each time. The teacher's guidance is folded in by the first
    student (Meng et al. 2023), so that a student calls the network once a step.
    """

    steps: int = 0
    """Steps that the student samples in; 1 or more. Its teacher is the student of twice as many, or the undistilled run
    where these are at least diffusion.sampling_steps. 0: the stage learns from data alone."""
    guidance: float | None = None
    """Guidance of the teacher that the student learns, the same for all students of a line; 0 or more, 1 is none. None:
    diffusion.guidance_scale."""
    updates: int = 0
    """Optimiser steps of the student; 1 or more, or 0: as many as optim.steps."""
    lr: float = 0.0
    """Peak learning rate of the student, greater than 0, or 0: that of optim."""

    def __post_init__(self) -> None:
        for name in ("steps", "updates", "lr"):
            value = getattr(self, name)
            require(value >= 0, f"DistillationConfig.{name}", value, "must be 0 or more")
        guidance = self.guidance
        require(
            guidance is None or guidance >= 0, "DistillationConfig.guidance", guidance, "must be 0 or more, or None"
        )
        for name, unused in (("guidance", None), ("updates", 0), ("lr", 0)):
            value = getattr(self, name)
            require(
                self.steps > 0 or value == unused,
                f"DistillationConfig.{name}",
                value,
                "is read with distillation.steps alone; set that",
            )

    def check(self, name: str, diffusion: DiffusionConfig) -> None:
        """Raise ValueError, with the field `name` of this config, where a diffusion cannot be distilled."""
        require(
            self.steps == 0 or diffusion.objective != "eps",
            f"{name}.steps",
            self.steps,
            "cannot be learnt with diffusion.objective eps, whose x0 is lost where there is most noise (Salimans & Ho "
            "2022, sec. 4); distil a run of objective v or x0",
        )

    def sampling(self, diffusion: DiffusionConfig) -> DiffusionConfig:
        """Return the diffusion as the finished stage samples: a student in its steps and without guidance."""
        return replace(diffusion, sampling_steps=self.steps, guidance_scale=1.0) if self.steps else diffusion

    def taught_guidance(self, diffusion: DiffusionConfig) -> float:
        """Return the guidance that the student learns."""
        return diffusion.guidance_scale if self.guidance is None else self.guidance

    def check_sampler(self, name: str, sampler: SamplerConfig, guidance: float | None) -> None:
        """Raise ValueError, with the field `name` of the sampler, where a student cannot sample like this.

        guidance: asked for; None: the stage's own.
        """
        if self.steps == 0:
            return
        only = f"the run is distilled to {self.steps} ddim steps at its own guidance"
        plain = SamplerConfig(steps=sampler.steps, dynamic_threshold=sampler.dynamic_threshold)
        require(sampler.steps in (0, self.steps), f"{name}.steps", sampler.steps, f"cannot be: {only}; leave it out")
        for option, usual in vars(plain).items():
            value = getattr(sampler, option)
            require(value == usual, f"{name}.{option}", value, f"cannot be: {only}; leave it out")
        require(guidance in (None, 1.0), f"{name}_guidance", guidance, f"cannot be: {only}; leave it out")
