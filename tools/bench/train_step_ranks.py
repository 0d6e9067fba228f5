"""Our U-Net on two gloo ranks: a step of the product's engine at ZeRO stage 3 against torch's DDP, in turns.

    OMP_NUM_THREADS=1 python -m tools.bench.train_step_ranks SIZE ANSWER

Both train the same network with the same fused AdamW and clip the gradients. Rank 0 leaves seconds by contestant in
ANSWER: of the clock (`ZeRO-3`, `DDP`), and of the ranks' CPUs, without their waiting for each other.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dalle2_video.config import OptimConfig
from dalle2_video.training import distributed
from tools.bench import forked_ranks
from tools.bench.timing import interleaved
from tools.bench.train_step_contenders import CONTENDERS, OURS, Size, inputs, matched

ZERO, DDP = "ZeRO-3", "DDP"
WORLD = 2


def contestants(size: Size) -> dict[str, Callable[[], None]]:
    """Return one step of each, both begun with the same weights."""
    from dalle2_video.training.engine import Engine

    device, contender = torch.device("cpu"), CONTENDERS[OURS]
    optim = OptimConfig(steps=1_000_000, batch_size=WORLD * size.batch, lr=1e-4, warmup_steps=1)
    batch = inputs(contender, size, device)

    def network() -> nn.Module:
        torch.manual_seed(0)
        return matched(OURS, size, None)()

    plain_linear = nn.functional.linear

    def loss(module: nn.Module) -> Tensor:
        return nn.functional.mse_loss(contender.predict(module, batch), batch["target"])

    # DeepSpeed replaces torch's linear layers in the whole process by its own, which keep no gathered weight.
    engine = Engine(network(), optim, micro_batch=size.batch, accumulation=1, device=device, zero_stage=3)
    zero_linear = nn.functional.linear
    replica = nn.parallel.DistributedDataParallel(network())
    adamw = torch.optim.AdamW(replica.parameters(), lr=optim.lr, betas=optim.betas, fused=True)

    def zero_step() -> None:
        nn.functional.linear = zero_linear
        engine.step(0, [lambda: loss(engine.model)])

    def ddp_step() -> None:
        nn.functional.linear = plain_linear
        loss(replica).backward()
        nn.utils.clip_grad_norm_(replica.parameters(), optim.max_grad_norm)
        adamw.step()
        adamw.zero_grad()

    return {ZERO: zero_step, DDP: ddp_step}


def timed(step: Callable[[], None], cpu_s: list[float]) -> float:
    """Return the seconds until a step is done on all ranks; add the mean of the ranks' CPU time."""
    dist.barrier()
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    step()
    own = torch.tensor(time.process_time() - started_cpu_s)
    dist.all_reduce(own)
    cpu_s.append(float(own) / WORLD)
    return time.perf_counter() - started_s


def carry_out(size: Size, answer: Path) -> None:
    """Measure, on one rank."""
    distributed.start(threads=1)
    steps = contestants(size)
    for name in (ZERO, DDP, ZERO):  # ZeRO notes the order of the modules first
        steps[name]()
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    turns = {name: partial(timed, step, cpu[name]) for name, step in steps.items()}
    seconds = interleaved(turns, show=False)
    if distributed.rank() == 0:
        answer.write_text(json.dumps(seconds | {f"{name}, CPU": values for name, values in cpu.items()}))
    distributed.end()


def main(size: Size, answer: Path) -> bool:
    """Measure on forked ranks; return whether all ended."""
    logging.disable(logging.WARNING)
    forked_ranks.preload()
    return forked_ranks.run([WORLD], lambda *_: carry_out(size, answer))


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    sys.exit(not main(Size(**json.loads(sys.argv[1])), Path(sys.argv[2])))
