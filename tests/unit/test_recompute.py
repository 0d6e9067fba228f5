"""Activation checkpointing: what is computed again, and that the peak of a process is really lower, as predicted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_models_unet3d import CONFIG, inputs, unet
from torch.utils._python_dispatch import TorchDispatchMode

from dalle2_video.config import TransformerConfig
from dalle2_video.models.attention import Transformer
from dalle2_video.models.recompute import FUSED_ATTENTION

DEAR = {torch.ops.aten.convolution.default, *FUSED_ATTENTION}
CHEAP = {torch.ops.aten.native_group_norm.default, torch.ops.aten.silu.default}


class Calls(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[object] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.of[func] += 1
        return func(*args, **(kwargs or {}))


def calls(checkpointing: str) -> Counter[object]:
    """Operations of a forward and backward pass."""
    model = unet(config=CONFIG, activation_checkpointing=checkpointing)
    with Calls() as seen:
        model(**inputs()).square().mean().backward()
    return seen.of


def test_selective_computes_the_cheap_again_and_nothing_dear() -> None:
    plain, selective, full = calls("none"), calls("selective"), calls("full")
    for operation in DEAR:
        assert selective[operation] == plain[operation] <= full[operation]
    assert sum(plain[operation] for operation in FUSED_ATTENTION) > 0
    for operation in CHEAP:
        assert selective[operation] > plain[operation]
    assert full[torch.ops.aten.convolution.default] > plain[torch.ops.aten.convolution.default]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_a_transformer_learns_the_same_to_the_bit(checkpointing: str, dropout: float) -> None:
    def gradients(checkpointing: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = Transformer(
            TransformerConfig(dim=16, depth=2, heads=2, dropout=dropout),
            activation_checkpointing=checkpointing,  # type: ignore[arg-type]
        )
        model(torch.randn(3, 5, 16), causal=True).square().mean().backward()
        return [parameter.grad for parameter in model.parameters()]  # type: ignore[misc]

    for one, other in zip(gradients("none"), gradients(checkpointing), strict=True):
        assert torch.equal(one, other)


CHILD = """
import json, os
import torch
from dalle2_video.config import UnetConfig
from dalle2_video.models.unet3d import Unet3D
from dalle2_video.training.allocation import be_thrifty
from dalle2_video.training.live_memory import LiveMemory, fake_tensors

LEVELS = (False, True)
CONFIG = UnetConfig(
    dim=16, dim_mults=(1, 2), blocks=1, spatial_attention=LEVELS, cross_attention=LEVELS,
    temporal_attention=(True, True), temporal_convolution=LEVELS, head_dim=16,
)

def step(checkpointing, frames=16):
    model = Unet3D(CONFIG, embedding_dim=None, text_dim=8, low_res=False, activation_checkpointing=checkpointing)
    values = {
        "noised_bcthw": torch.ones(1, 3, frames, 64, 64), "logsnr_b": torch.ones(1),
        "encodings_bld": torch.ones(1, 4, 8), "text_mask_bl": torch.ones(1, 4, dtype=torch.bool),
        "keep_b": torch.ones(1, dtype=torch.bool),
    }
    model(**values).square().mean().backward()

def status(field):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(field + ":"))

def measured(checkpointing):
    reading, writing = os.pipe()
    if os.fork() == 0:
        step(checkpointing, frames=1)  # kernels and their code are in memory from now on
        open("/proc/self/clear_refs", "w").write("5")
        before = status("VmRSS")
        step(checkpointing)
        os.write(writing, str(status("VmHWM") - before).encode())
        os._exit(0)
    os.wait()
    return float(os.read(reading, 99))

torch.set_num_threads(1)
be_thrifty()
MODES = ("none", "selective", "full")
wide = torch.ones(2**21)
asks_for_large_pages = any("VmFlags:" in line and " hg" in line for line in open("/proc/self/smaps"))
del wide
found = {mode: [measured(mode)] for mode in MODES}
for mode in MODES:
    with fake_tensors(), LiveMemory() as memory:
        step(mode)
    found[mode].append(memory.peak / 2**20)
print(json.dumps(found | {"large_pages": asks_for_large_pages}))
"""


def test_the_peak_of_a_process_is_lower_and_as_predicted() -> None:
    """Highest resident memory of a process of its own, in MiB, against what fake tensors told."""
    ran = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        env={"OMP_NUM_THREADS": "1", "PATH": ""},
    )
    found = json.loads(ran.stdout)
    assert found.pop("large_pages") or not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
    none, selective, full = (found[mode][0] for mode in ("none", "selective", "full"))
    assert selective < 0.55 * none
    assert full < 0.85 * selective
    for mode, (peak, told) in found.items():
        assert abs(told / peak - 1) < 0.2, (mode, found)
