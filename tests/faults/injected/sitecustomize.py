"""Faults in a real training: Python imports this in every process that has this folder on PYTHONPATH.

FAULTS is JSON, {"attempt": {"kind": K, "rank": R, "steps": [...]}}: what rank R of that attempt does as it computes the
loss of these steps (1 is the first; without gradient accumulation). The kind "reading" fails at the global sample
"sample" and after instead. FAULT_FOLDER is where the kind "wait" says that it came there and awaits the test's word.
"""

import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path

FAULTS = json.loads(os.environ.get("FAULTS", "{}"))
FAULT = FAULTS.get(os.environ.get("DALLE2_VIDEO_ATTEMPT"), {})
TARGETS = {"dalle2_video.stages.prior", "dalle2_video.data.batches"}


def wait(step):
    folder = Path(os.environ["FAULT_FOLDER"])
    (folder / f"reached-{step}").touch()
    while not (folder / f"go-{step}").exists():
        time.sleep(0.02)


def break_loss(stage):
    original, calls = stage.loss, 0

    def loss(self, model, batch, draws):
        import torch

        nonlocal calls
        training = torch.is_grad_enabled()
        calls += training
        value, metrics = original(self, model, batch, draws)
        if not training or calls not in FAULT["steps"] or int(os.environ["RANK"]) != FAULT["rank"]:
            return value, metrics
        match FAULT["kind"]:
            case "error":
                raise RuntimeError("injected: the loss is broken")
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "hang":
                time.sleep(3600)
            case "nan":
                # Its gradient is finite: only this rank's loss tells.
                value = value + float("nan")
            case "spike":
                value = value * 1000
            case "wait":
                wait(calls)
        return value, metrics

    stage.loss = loss


def break_reading(dataset):
    original = dataset.__getitems__

    def getitems(self, numbers):
        if os.environ["RANK"] == str(FAULT["rank"]) and min(numbers) >= FAULT["sample"]:
            raise OSError("injected: the shard cannot be read")
        return original(self, numbers)

    dataset.__getitems__ = getitems


class Patch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in TARGETS:
            return None
        TARGETS.discard(name)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            if FAULT["kind"] == "reading":
                if hasattr(module, "WindowDataset"):
                    break_reading(module.WindowDataset)
            elif name == "dalle2_video.stages.prior":
                break_loss(module.PriorStage)

        spec.loader.exec_module = exec_module
        return spec


if FAULT:
    sys.meta_path.insert(0, Patch())
