"""Real DeepSpeed ZeRO-3 ranks for tests: `python zero_ranks.py RANK WORLD PORT COMMAND FOLDER PRECISION`.

Each command prints one JSON line on rank 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BATCH = 6


def run_ranks(world: int, port: int, command: str, folder: Path, precision: str = "fp32") -> dict:
    """Run a command on `world` ranks and return what rank 0 printed."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(rank), str(world), str(port), command, folder, precision],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    answers = [rank.communicate(timeout=120) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(error[-3000:] for _, error in answers)
    return json.loads(answers[0][0].strip().splitlines()[-1])


def main(command: str, folder: Path, precision: str) -> dict:
    import torch
    from torch import nn

    from dalle2_video.config import OptimConfig
    from dalle2_video.training import checkpoint, distributed, ema
    from dalle2_video.training.engine import Engine
    from dalle2_video.training.zero_state import KINDS, MASTER

    device = distributed.start(threads=1)
    world, rank = distributed.world_size(), distributed.rank()
    torch.manual_seed(0)
    # Odd sizes: no parameter divides evenly among the ranks.
    module = nn.Sequential(nn.Linear(7, 13), nn.LayerNorm(13), nn.GELU(), nn.Linear(13, 5))
    module.register_buffer("mean", torch.arange(3.0))
    initial = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optim = OptimConfig(
        steps=10, batch_size=BATCH, lr=1e-2, warmup_steps=2, weight_decay=0.1, ema_decay=0.9, precision=precision
    )
    engine = Engine(module, optim, micro_batch=BATCH // world, accumulation=1, device=device)
    data = torch.randn(10, BATCH, 7, generator=torch.Generator().manual_seed(1))

    def train(first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            mine = data[step, rank * BATCH // world : (rank + 1) * BATCH // world]

            def loss(mine: torch.Tensor = mine) -> torch.Tensor:
                dtype = torch.bfloat16 if precision == "bf16" else torch.float32
                value = engine.model(mine.to(dtype)).float().square().mean()
                losses.append(distributed.total(value.detach().clone()).item() / world)
                return value

            engine.step(step, [loss])
            ema.update(engine.state, step + 1, optim.ema_decay)
        return losses

    def digest() -> str:
        content = hashlib.sha256()
        for kind in KINDS:
            for name, full in engine.state.gather(kind):
                if full is not None:
                    content.update(f"{kind}/{name}".encode() + full.numpy().tobytes())
        return content.hexdigest()

    if command == "names":
        masters = {name: full for name, full in engine.state.gather(MASTER) if full is not None}
        exact = all(torch.equal(masters[name], initial[name]) for name in masters)
        return {"names": sorted(engine.state.slots), "masters_equal_initial_weights": exact} if rank == 0 else {}
    if command == "save":
        losses = train(0, 3)
        checkpoint.save(folder, engine.state, engine.model.module, 3)
        return {"digest": digest(), "losses": losses, "rest": train(3, 6), "end": digest()}
    assert command == "load"
    checkpoint.verify(folder)
    engine.model.module.mean.zero_()
    step = checkpoint.load(folder, engine.state, engine.model.module)
    return {
        "step": step,
        "digest": digest(),
        "buffer": engine.model.module.mean.float().tolist(),
        "rest": train(3, 6),
        "end": digest(),
    }


if __name__ == "__main__":
    rank, world, port = sys.argv[1:4]
    os.environ.update(
        RANK=rank,
        WORLD_SIZE=world,
        LOCAL_RANK=rank,
        LOCAL_WORLD_SIZE=world,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
    )
    result = main(sys.argv[4], Path(sys.argv[5]), sys.argv[6])
    from dalle2_video.training import distributed

    distributed.end()
    if rank == "0":
        print(json.dumps(result), flush=True)
    os._exit(0)  # as slurm/job.py does, for the same reason
