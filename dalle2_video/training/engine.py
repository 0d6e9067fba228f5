"""The one place that calls `deepspeed.initialize`.

The DeepSpeed config is built here from dataclasses. AdamW is torch's fused one: exact on resume, without a JIT build.
The learning rate is a pure function of the step, so there is no scheduler whose state could be lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from dalle2_video.config import OptimConfig
from dalle2_video.training import distributed
from dalle2_video.training.zero_state import ShardedState


def learning_rate(step: int, config: OptimConfig) -> float:
    """Rate of optimiser step `step` (0 is the first): linear warm-up, then constant or cosine to a tenth."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.lr_decay == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    return config.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def deepspeed_config(config: OptimConfig, micro_batch: int, accumulation: int, world_size: int, cuda: bool) -> dict:
    """DeepSpeed's JSON config for a training."""
    # The defaults of 5e8 and 1e9 elements make a small model use more memory than without ZeRO.
    bucket = 50_000_000 if cuda else 1_000_000
    # Persistent parameters are gathered one by one after each step, which over gloo costs a fifth of a small step.
    persistent = 100_000 if cuda else 0
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch * accumulation * world_size,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
            "stage3_max_live_parameters": bucket,
            "stage3_param_persistence_threshold": persistent,
            "stage3_max_reuse_distance": 0 if not cuda else bucket,
        },
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


class Engine:
    """A model, its optimiser and its sharded state."""

    def __init__(
        self, module: nn.Module, config: OptimConfig, *, micro_batch: int, accumulation: int, device: torch.device
    ) -> None:
        """module: full fp32 weights, equal on all ranks."""
        self.config, self.accumulation = config, accumulation
        initial = None
        if config.precision == "bf16":
            initial = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        optimizer = torch.optim.AdamW(
            _parameter_groups(module, config.weight_decay), lr=config.lr, betas=config.betas, fused=True
        )
        settings = deepspeed_config(config, micro_batch, accumulation, distributed.world_size(), device.type == "cuda")
        self.model, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self.state = ShardedState(self.model)
        if initial is not None:
            # DeepSpeed makes the masters from weights already rounded to bf16.
            self.state.set_masters(initial)
            for ema, master in zip(self.state.ema_flats, self.state.master_flats, strict=True):
                ema.copy_(master)

    def step(self, step: int, micro_losses: list[Callable[[], Tensor]]) -> None:
        """Do optimiser step `step`: forward and backward of each micro-batch, then one update.

        micro_losses: for each accumulation step a function that computes the loss of its micro-batch.
        """
        for group in self.state.param_groups:
            group["lr"] = learning_rate(step, self.config)
        for micro_loss in micro_losses:
            self.model.backward(micro_loss())
            self.model.step()

    def grad_norm(self) -> float:
        """Global gradient norm of the last step, before clipping."""
        return float(self.model.get_global_grad_norm())
