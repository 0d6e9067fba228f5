"""The one place that calls `deepspeed.initialize`.

The DeepSpeed config is built here from dataclasses. AdamW is torch's fused one: exact on resume, without a JIT build.
The learning rate is a pure function of the step, so there is no scheduler whose state could be lost.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from deepspeed.utils import set_z3_leaf_modules
from torch import Tensor, nn

from dalle2_video.config import OptimConfig
from dalle2_video.training import distributed
from dalle2_video.training.adamw import LimitedAdamW, SkippingAdamW
from dalle2_video.training.zero_layout import gradient_norm_of
from dalle2_video.training.zero_state import ShardedState

log = logging.getLogger(__name__)


def learning_rate(step: int, config: OptimConfig) -> float:
    """Rate of optimiser step `step` (0 is the first): linear warm-up, then constant or cosine to a tenth."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.lr_decay == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    return config.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def deepspeed_config(
    config: OptimConfig, micro_batch: int, accumulation: int, world_size: int, *, cuda: bool, zero_stage: int
) -> dict:
    """DeepSpeed's JSON config for a training.

    zero_stage: 0 to 3. In bf16, 0 gives what 1 gives: with fp32 accumulation DeepSpeed refuses 0, and its 1 keeps whole
    gradients on every rank as 0 does, with masters and moments shared out.
    """
    bf16 = config.precision == "bf16"
    stage = max(zero_stage, 1) if bf16 else zero_stage
    # The defaults of 5e8 and 1e9 elements make a small model use more memory than without ZeRO.
    bucket = 50_000_000 if cuda else 1_000_000
    zero: dict[str, Any] = {"stage": stage}
    if stage > 0:
        zero |= {"reduce_bucket_size": bucket}
    if stage in (1, 2):
        zero |= {"allgather_bucket_size": bucket}
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": bucket,
            "stage3_max_live_parameters": bucket,
            # Persistent parameters are gathered one by one after each step: over gloo a fifth of a small step.
            "stage3_param_persistence_threshold": 100_000 if cuda else 0,
            "stage3_max_reuse_distance": 0 if not cuda else bucket,
        }
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch * accumulation * world_size,
        # At stage 0 SkippingAdamW clips.
        "gradient_clipping": config.max_grad_norm if stage > 0 else 0.0,
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        # It knows classes by name; LimitedAdamW is torch's AdamW in all that ZeRO relies on.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
    }


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices only: norms, biases and embedding tables stay free."""
    tables = {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if parameter.ndim >= 2 and id(parameter) not in tables]
    kept = {id(parameter) for parameter in decayed}
    free = [parameter for parameter in parameters if id(parameter) not in kept]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def gather_whole(module: nn.Module) -> None:
    """Have ZeRO-3 fetch the weights of each part that says so, `gathered_whole`, at once.

    Otherwise every layer is fetched and let go by hooks of its own, which cost a small step more than the transfers.
    """
    kinds = {type(part) for part in module.modules() if getattr(part, "gathered_whole", False)}
    if kinds:
        set_z3_leaf_modules(module, list(kinds))


class Engine:
    """A model, its optimiser and its sharded state."""

    def __init__(
        self,
        module: nn.Module,
        config: OptimConfig,
        *,
        micro_batch: int,
        accumulation: int,
        device: torch.device,
        zero_stage: int = 3,
    ) -> None:
        """module: full fp32 weights, equal on all ranks."""
        self.config, self.accumulation = config, accumulation
        initial = None
        if config.precision == "bf16":
            initial = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
            if zero_stage == 0 and distributed.rank() == 0:
                log.warning(
                    "zero_stage 0 with precision bf16 runs as 1, the lowest for which DeepSpeed has fp32 masters"
                )
        settings = deepspeed_config(
            config,
            micro_batch,
            accumulation,
            distributed.world_size(),
            cuda=device.type == "cuda",
            zero_stage=zero_stage,
        )
        groups = _parameter_groups(module, config.weight_decay)
        optimizer: LimitedAdamW | SkippingAdamW
        if settings["zero_optimization"]["stage"] == 0:
            optimizer = SkippingAdamW(
                groups, max_grad_norm=config.max_grad_norm, lr=config.lr, betas=config.betas, fused=True
            )
        else:
            optimizer = LimitedAdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        self.adamw = optimizer
        if settings["zero_optimization"]["stage"] == 3:
            gather_whole(module)
        self.model, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        if isinstance(optimizer, LimitedAdamW):
            optimizer.norm = gradient_norm_of(self.model)
        self.state = ShardedState(self.model)
        if initial is not None:
            # DeepSpeed makes the masters from weights already rounded to bf16.
            self.state.start_from(initial)

    def step(self, step: int, micro_losses: list[Callable[[], Tensor]], *, norm_limit: float = math.inf) -> bool:
        """Do optimiser step `step`: forward and backward of each micro-batch, then one update.

        micro_losses: for each accumulation step a function that computes the loss of its micro-batch.
        Returns whether the update was applied, the same on all ranks. It is not where the norm of the gradient is not
        finite or beyond norm_limit: weights and moments are then exactly as before, and gradients cleared.
        """
        self.adamw.norm_limit = norm_limit
        for group in self.state.param_groups:
            group["lr"] = learning_rate(step, self.config)
        for micro_loss in micro_losses:
            self.model.backward(micro_loss())
            self.model.step()
        return self.model.was_step_applied() and self.grad_norm() <= norm_limit

    def grad_norm(self) -> float:
        """Global gradient norm of the last step, before clipping; not finite where the step was skipped for that."""
        return float(self.model.get_global_grad_norm())
