"""The training loop's small parts: learning rate, EMA ramp, stop flag, exports, video files."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from deepspeed.utils import z3_leaf_module
from PIL import Image

from dalle2_video.config import OptimConfig
from dalle2_video.generation.video_file import contact_sheet, enlarge, read_mp4, write_mp4
from dalle2_video.models.factory import ModelDims, build, export_files, load_export
from dalle2_video.models.unet_blocks import Block
from dalle2_video.training import stop
from dalle2_video.training.ema import decay_at
from dalle2_video.training.engine import gather_whole, learning_rate
from dalle2_video.training.export import export_digest
from dalle2_video.training.stop import PREEMPT, STOP, StopFlag, Switch
from experiments.recipes import tiny


def optim(**changes: object) -> OptimConfig:
    return OptimConfig(**({"steps": 100, "batch_size": 4, "lr": 1.0, "warmup_steps": 10} | changes))  # type: ignore[arg-type]


def test_learning_rate_warms_up_from_the_first_step_and_stays() -> None:
    rates = [learning_rate(step, optim()) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and set(rates[10:]) == {1.0}


def test_zero_fetches_each_block_of_a_unet_whole() -> None:
    dims = ModelDims(vocab_size=8, text_context=4, embed_dim=8, text_dim=8)
    with torch.device("meta"):
        unet = build(tiny.recipe().decoder, dims)
    gather_whole(unet)
    whole = [part for part in unet.modules() if z3_leaf_module(part)]
    assert whole == [part for part in unet.modules() if isinstance(part, Block)] != []


def test_cosine_decay_ends_at_a_tenth() -> None:
    rates = [learning_rate(step, optim(lr_decay="cosine")) for step in range(100)]
    assert rates[10] == pytest.approx(1.0) and rates[-1] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_ema_follows_at_first_and_reaches_its_decay() -> None:
    assert decay_at(1, 0.9999) == pytest.approx(2 / 11)
    assert decay_at(10**6, 0.9999) == 0.9999


@pytest.fixture
def keep_signal_handlers() -> object:
    numbers = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("keep_signal_handlers")
def test_signals_raise_the_flag_and_the_highest_stays() -> None:
    flag = StopFlag(lambda: False)
    assert flag.poll() == 0
    os.kill(os.getpid(), signal.SIGUSR2)
    assert flag.poll() == PREEMPT
    os.kill(os.getpid(), signal.SIGTERM)
    assert flag.poll() == PREEMPT


@pytest.mark.usefixtures("keep_signal_handlers")
def test_switch_raises_the_flag_to_stop() -> None:
    assert StopFlag(lambda: True).poll() == STOP


def test_a_switch_is_looked_at_once_a_second_and_seen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    switch = Switch(lambda: not looks.append(stop.time.monotonic()))  # type: ignore[func-returns-value]
    seen = []
    for now in (100.0, 100.4, 100.9, 101.0, 101.5, 103.0):
        monkeypatch.setattr(stop.time, "monotonic", lambda now=now: now)
        seen.append(switch.poll())
    assert seen == [True, False, False, True, False, True] and looks == [100.0, 101.0, 103.0]


@pytest.mark.usefixtures("keep_signal_handlers")
def test_a_forked_worker_leaves_the_trainers_flag_alone() -> None:
    flag = StopFlag(lambda: False)
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(flag.poll())
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0 and flag.poll() == 0


@pytest.mark.parametrize("stage", ["clip", "prior", "decoder", "temporal_sr"])
def test_export_loads_as_the_same_model(stage: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    dims = ModelDims(vocab_size=300, text_context=32, embed_dim=64, text_dim=64)
    config = getattr(tiny.recipe(), stage)
    module = build(config, dims)
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    for name, text in export_files(stage, config, dims, fps=8.0, tokenizer_json="{}").items():
        (tmp_path / name).write_text(text)
    before = export_digest(tmp_path)
    loaded = load_export(tmp_path, stage)
    assert loaded.config == config and loaded.dims == dims and loaded.fps == 8.0
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], value)
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    with pytest.raises(ValueError, match=f"is an export of stage {stage}"):
        load_export(tmp_path, "spatial_sr")
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace("8.0", "9.0"))
    assert export_digest(tmp_path) != before
    # A loaded model is its own: what becomes of the file does not matter to it.
    weights = tmp_path / "model.safetensors"
    with weights.open("r+b") as file:
        file.write(bytes(weights.stat().st_size))
    assert all(torch.equal(loaded.module.state_dict()[name], value) for name, value in module.state_dict().items())


def test_mp4_keeps_colours_order_rate_and_tags(tmp_path: Path) -> None:
    frames = np.zeros((6, 64, 64, 3), np.uint8)
    for index in range(6):
        frames[index, :, :, 0] = 40 * index
    write_mp4(tmp_path / "a.mp4", frames, 8, metadata={"title": "rising red"})
    assert np.abs(read_mp4(tmp_path / "a.mp4").astype(int) - frames).max() <= 6
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == 8 and container.metadata["title"] == "rising red"


def test_enlarging_repeats_pixels() -> None:
    frames = np.arange(2 * 16 * 16 * 3, dtype=np.uint8).reshape(2, 16, 16, 3)
    large = enlarge(frames)
    assert large.shape == (2, 256, 256, 3) and np.array_equal(large[:, ::16, ::16], frames)


def test_contact_sheet_has_a_row_a_video(tmp_path: Path) -> None:
    red = np.full((4, 16, 16, 3), (255, 0, 0), np.uint8)
    contact_sheet(tmp_path / "one.png", [red], ["red"])
    contact_sheet(tmp_path / "two.png", [red, red], ["red", "red"])
    one, two = Image.open(tmp_path / "one.png"), Image.open(tmp_path / "two.png")
    assert two.height > one.height * 1.8
    assert (255, 0, 0) in {colour for _, colour in one.getcolors(1 << 20)}
