"""One contender of `train_step.py` in a process of its own: one JSON request a line on stdin, one answer a line.

    OMP_NUM_THREADS=1 PYTHON train_step_work.py NAME SIZE TARGET DEVICE PRECISION

TARGET: the number of parameters to come near to, 0 for our own. Before it answers anything it forks a process that
measures memory, with every tensor of 1 MiB or more given back to the system when it is freed, which costs time; the
times come from this process, with the C library as it is. Imports nothing of the product but for our own networks.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import nn

from tools.bench.train_step_contenders import CONTENDERS, Contender, Size, inputs, matched, parameters

M_MMAP_THRESHOLD, THRIFTY_BYTES = -3, 1 << 20
MEMORY_STEPS = 5


class Training:
    """A network, its optimiser and one batch."""

    def __init__(self, module: nn.Module, contender: Contender, size: Size, device: torch.device, bf16: bool) -> None:
        self.device, self.predict = device, contender.predict
        self.module = module.to(device).train()
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-4, fused=True)
        self.batch = inputs(contender, size, device)
        # weights stay fp32, as in the peers' own trainers
        self.autocast: Callable[[], Any] = contextlib.nullcontext
        if bf16:
            self.autocast = lambda: torch.autocast(device.type, torch.bfloat16)

    def step(self) -> None:
        """Forward, backward, update."""
        with self.autocast():
            prediction = self.predict(self.module, self.batch)
        torch.nn.functional.mse_loss(prediction.float(), self.batch["target"]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def status_mib(field: str) -> float:
    """Return a figure of this process's memory, VmRSS or VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(field)


def peaks_mib(make: Callable[[], Training]) -> list[float]:
    """Return the highest resident memory of each step over what was there before the network, in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, THRIFTY_BYTES)
            before, peaks = status_mib("VmRSS"), []
            training = make()
            training.step()  # makes the optimiser's state
            for _ in range(MEMORY_STEPS):
                Path("/proc/self/clear_refs").write_text("5")
                training.step()
                peaks.append(status_mib("VmHWM") - before)
            os.write(writing, json.dumps(peaks).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as answer:
        told = answer.read()
    os.waitpid(child, 0)
    if not told:
        raise RuntimeError("the process that measures memory died")
    return json.loads(told)


def cuda_peaks_mib(training: Training) -> list[float]:
    """Return the highest allocated memory of each step."""
    peaks = []
    for _ in range(MEMORY_STEPS):
        torch.cuda.reset_peak_memory_stats()
        training.step()
        peaks.append(torch.cuda.max_memory_allocated() / 2**20)
    return peaks


def flops(training: Training) -> float:
    """Return the floating-point operations of a step's products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        training.step()
    return float(counter.get_total_flops())


def main() -> None:
    """Answer until stdin ends: `describe` with what there is to know, `step` with its seconds."""
    name, size_json, target, device_name, precision = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # a peer prints advice
    device, size, contender = torch.device(device_name), Size(**json.loads(size_json)), CONTENDERS[name]
    torch.set_num_threads(1)
    cuda = device.type == "cuda"
    if contender.thrifty and not cuda:
        from dalle2_video.training import allocation

        allocation.be_thrifty()
    build = matched(name, size, int(target) or None)
    # The first optimiser imports half of torch's compiler, which must not count as the network's memory.
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)

    def make() -> Training:
        torch.manual_seed(0)
        return Training(build(), contender, size, device, precision == "bf16")

    peaks = [] if cuda else peaks_mib(make)
    training = make()
    training.step()  # kernels are chosen, the optimiser's state is made
    about: dict[str, Any] = {"parameters": parameters(training.module), "peak_mib": peaks}
    if cuda:
        about = about | {
            "peak_mib": cuda_peaks_mib(training),
            "flops": flops(training),
            "device": torch.cuda.get_device_name(),
        }
    clock = time.perf_counter if cuda else time.process_time

    def step() -> dict[str, Any]:
        started_s = clock()
        training.step()
        return {"seconds": clock() - started_s}

    tasks: dict[str, Callable[[], dict[str, Any]]] = {"describe": lambda: about, "step": step}
    for line in sys.stdin:
        print(json.dumps(tasks[json.loads(line)["task"]]()), file=answers, flush=True)


if __name__ == "__main__":
    main()
