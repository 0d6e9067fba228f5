"""Ranks for tests of losses and figures over ranks: `python contrastive_ranks.py FOLDER WORLD ...`.

One process forks every rank of every world size; rank 0 of each leaves its answer in FOLDER.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
BATCH, CLIPS = 8, 11
CASES = {
    "softmax": ("softmax", None),
    "softmax in blocks": ("softmax", 5),
    "sigmoid": ("sigmoid", None),
    "sigmoid in blocks": ("sigmoid", 5),
}
"""Loss and logits at once, None for what is the default."""
MEMORY_BATCHES, MEMORY_DIM, MEMORY_AT_ONCE = (256, 512, 1024), 64, 1 << 14


def run_ranks(folder: Path, *worlds: int) -> dict[int, Any]:
    """Return the answers of all ranks by world size."""
    import torch

    started = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, folder, *map(str, worlds)],
        # malloc: resident memory is what is in use.
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert started.returncode == 0, started.stderr[-5000:]
    return {world: torch.load(folder / f"{world}.pt", weights_only=False) for world in worlds}


def model(loss: str) -> Any:
    """A small CLIP, the same everywhere."""
    import torch

    from dalle2_video.config import ClipConfig, OptimConfig, TextEncoderConfig, TransformerConfig
    from dalle2_video.data_config import WindowConfig
    from dalle2_video.models.clip import Clip

    part = TransformerConfig(dim=16, depth=1, heads=2)
    config = ClipConfig(
        window=WindowConfig(size=8, num_frames=2),
        patch_size=4,
        embed_dim=12,
        text=TextEncoderConfig(dim=16, depth=1, heads=2),
        spatial=part,
        temporal=part,
        loss=loss,  # type: ignore[arg-type]
        optim=OptimConfig(steps=1, batch_size=BATCH, lr=1e-3),
    )
    torch.manual_seed(0)
    return Clip(config, 30, 10)


def batch() -> tuple[Any, ...]:
    """The global batch."""
    import torch

    generator = torch.Generator().manual_seed(1)
    video = torch.rand(BATCH, 3, 2, 8, 8, generator=generator) * 2 - 1
    tokens = torch.randint(0, 30, (BATCH, 10), generator=generator)
    return video, tokens, torch.randint(2, 11, (BATCH,), generator=generator)


def learnt(name: str, rows: slice) -> dict[str, Any]:
    """Return loss, accuracy and gradients of a case on this rank's rows, averaged over ranks as the engine does."""
    import torch.distributed as dist

    from dalle2_video.models.contrastive import contrastive_loss, sigmoid_loss

    loss_name, at_once = CASES[name]
    clip = model(loss_name)
    options = {} if at_once is None else {"at_once": at_once}
    outputs = clip(*(part[rows] for part in batch()))
    loss, accuracy = (contrastive_loss if loss_name == "softmax" else sigmoid_loss)(*outputs, **options)
    (3 * loss).backward()
    gradients = {}
    for parameter_name, parameter in clip.named_parameters():
        dist.all_reduce(parameter.grad)
        gradients[parameter_name] = parameter.grad / dist.get_world_size() / 3
    return {"loss": loss.detach(), "accuracy": accuracy, "gradients": gradients}


def peak_bytes(loss_name: str, count: int) -> int:
    """Return by how much forward and backward of so many local pairs raise the peak of resident memory."""
    import torch

    from dalle2_video.models.contrastive import contrastive_loss, sigmoid_loss

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

    rows = [torch.nn.functional.normalize(torch.randn(count, MEMORY_DIM), dim=-1).requires_grad_() for _ in range(2)]
    scalars = [torch.ones(1, requires_grad=True) for _ in range(1 if loss_name == "softmax" else 2)]
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    (contrastive_loss if loss_name == "softmax" else sigmoid_loss)(*rows, *scalars, at_once=MEMORY_AT_ONCE)[
        0
    ].backward()
    return status("VmHWM") - before


def judged(rank: int, world: int) -> dict[str, Any]:
    """Judge a stage whose rows are the sample numbers."""
    import torch

    from dalle2_video.training import judging

    class Clips:
        num_clips = CLIPS

        def __getitems__(self, numbers: list[int]) -> dict[str, Any]:
            return {"sample": torch.tensor(numbers)}

    class Stage:
        calls = 0

        def judged(self, num_clips: int) -> int:
            return num_clips

        def judge(self, model: Any, batch: Any, draws: Any) -> dict[str, Any]:
            self.calls += 1
            return {"number": batch["sample"], "noise": draws.normal("noise", (2,))}

        def figures(self, rows: dict[str, Any]) -> dict[str, Any]:
            return {"number": rows["number"].tolist(), "noise": rows["noise"].tolist()}

    stage = Stage()
    figures = judging.figures(
        stage,
        None,  # type: ignore[arg-type]
        Clips(),  # type: ignore[arg-type]
        seed=3,
        micro_batch=2,
        device=torch.device("cpu"),
        to_device=lambda batch: batch,
        on_progress=lambda done, count: None,
    )
    return {"figures": figures, "calls": stage.calls}


def answers(rank: int, world: int) -> Iterator[tuple[str, Any]]:
    """Yield all that is asked of a rank."""
    share = BATCH // world
    rows = slice(rank * share, (rank + 1) * share)
    for name in CASES:
        yield name, learnt(name, rows)
    yield "judged", judged(rank, world)
    if world == 2:
        for loss_name in ("softmax", "sigmoid"):
            peak_bytes(loss_name, MEMORY_BATCHES[-1])  # what the first use of all kernels takes
            yield f"{loss_name} peaks", [peak_bytes(loss_name, count) for count in MEMORY_BATCHES]


def main(folder: Path, worlds: list[int]) -> bool:
    """Fork the ranks; return whether all ended."""
    import torch
    import torch.distributed as dist

    import dalle2_video.models.clip
    import dalle2_video.models.contrastive
    import dalle2_video.training.judging  # noqa: F401 - once, and not in every rank
    from tools.bench import forked_ranks

    def work(rank: int, world: int) -> None:
        dist.init_process_group("gloo")
        found = dict(answers(rank, world))
        everywhere: list[Any] = [None] * world
        dist.all_gather_object(everywhere, found)
        if rank == 0:
            torch.save(everywhere, folder / f"{world}.pt")
        dist.barrier()
        dist.destroy_process_group()

    return forked_ranks.run(worlds, work)


if __name__ == "__main__":
    sys.exit(not main(Path(sys.argv[1]), list(map(int, sys.argv[2:]))))
