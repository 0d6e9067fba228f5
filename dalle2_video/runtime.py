"""How a training runs on the machine it is given: nothing here changes what is learnt, so nothing enters the identity.

The global batch is the recipe's; here it is shared among ranks, micro-batches and accumulation steps, exactly or not at
all. Imports no torch, like `config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dalle2_video.checks import require, require_positive

Checkpointing = Literal["none", "selective", "full"]


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How a training runs on the machine it is given. Never part of the identity."""

    micro_batch: int | None = None
    """Samples a rank computes at once; None: the whole share of the rank, without gradient accumulation."""
    workers: int = 0
    """Loader processes a rank; 0 loads in the training process."""
    prefetch: int = 2
    """Batches that each loader process prepares ahead; 1 or more. Without loader processes none is."""
    checkpoint_every: int = 500
    """Steps between periodic checkpoints; greater than 0."""
    log_every: int = 10
    """Steps between metric records; greater than 0."""
    validate_every: int = 500
    """Steps between validation losses; greater than 0."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """What DeepSpeed shares out among the ranks: 0 nothing, 1 the optimiser's state, 2 gradients too, 3 weights too.
    A run may go on with another. In bf16, 0 runs as 1."""
    activation_checkpointing: Checkpointing = "none"
    """What the backward pass computes again instead of keeping it. selective: what is cheap (norms, activations). full:
    whole blocks, the least memory. Results are the same to the bit."""
    torch_threads: int = 0
    """CPU threads a rank; 0 shares the machine's cores among its ranks."""

    keep_every: int = 0
    """Checkpoints of steps that this divides are never removed, whatever later launches say; 0 or more. 0: only the
    newest two are kept. Child runs pin the export, which always stays."""
    hang_factor: float = 20.0
    """A step that takes longer than so many times the median step is a hang: the stacks of all threads go to the log
    and the attempt ends; 2 or more."""
    hang_min_s: float = 600.0
    """Seconds before which no step is taken for a hang, the first ones included; greater than 0."""
    on_nonfinite: Literal["skip", "stop"] = "skip"
    """A step whose loss or gradient is NaN or infinite. skip: weights, moments and EMA stay as they are, and the run
    ends after max_skipped of them in a row. stop: it ends at once. Recorded in either case."""
    on_spike: Literal["record", "stop"] = "record"
    """A step whose gradient norm is more than 10 times the median of the last 100. record: training goes on. stop: the
    run ends before the step changes anything. Recorded in either case; the recipe's optim.skip_spikes comes first."""
    max_skipped: int = 10
    """Steps in a row that may be skipped; 1 or more."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Mirror the metrics to Weights & Biases. offline: into the run folder, for tools/wandb_sync.py."""
    wandb_project: str = "dalle2-video"
    """Project at Weights & Biases."""
    wandb_entity: str | None = None
    """User or team at Weights & Biases; None takes the account's default."""

    def __post_init__(self) -> None:
        require_positive(
            self, "prefetch", "checkpoint_every", "log_every", "validate_every", "hang_min_s", "max_skipped"
        )
        require(self.keep_every >= 0, "keep_every", self.keep_every, "must be 0 or more")
        require(self.hang_factor >= 2, "hang_factor", self.hang_factor, "must be 2 or more")
        require(self.workers >= 0, "workers", self.workers, "must be 0 or more")
        require(self.torch_threads >= 0, "torch_threads", self.torch_threads, "must be 0 or more")
        if self.micro_batch is not None:
            require_positive(self, "micro_batch")

    def accumulation(self, batch_size: int, world_size: int) -> tuple[int, int]:
        """Return (micro-batch, accumulation steps) with micro * accumulation * world_size == batch_size.

        Raises ValueError that lists the choices that divide.
        """
        share, rest = divmod(batch_size, world_size)
        if rest or share == 0:
            worlds = [w for w in range(1, batch_size + 1) if batch_size % w == 0]
            raise ValueError(
                f"batch_size={batch_size} cannot be shared by {world_size} ranks; ranks that divide it: "
                f"{', '.join(map(str, worlds))} (nodes x ranks per node)"
            )
        micro = share if self.micro_batch is None else self.micro_batch
        if share % micro:
            choices = [m for m in range(1, share + 1) if share % m == 0]
            raise ValueError(
                f"micro_batch={micro} does not divide the {share} samples of each of {world_size} ranks "
                f"(batch_size={batch_size}); choose --micro-batch from {', '.join(map(str, choices))}"
            )
        return micro, share // micro

    def shares(self, batch_size: int, world_size: int) -> bool:
        """Whether so many ranks share the batch."""
        try:
            self.accumulation(batch_size, world_size)
        except ValueError:
            return False
        return True
