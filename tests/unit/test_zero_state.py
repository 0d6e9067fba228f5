"""What the suite needs of DeepSpeed's private state, on real ranks: fails first when a release moves it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from zero_ranks import run_ranks

from dalle2_video.training import checkpoint
from slurm.local import _free_port


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A checkpoint of three steps at world size 2, and what its writer computed afterwards."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return folder, run_ranks(2, _free_port(), "save", folder)


def test_bf16_masters_keep_the_initial_fp32_weights(tmp_path: Path) -> None:
    found = run_ranks(1, _free_port(), "names", tmp_path, "bf16")
    assert found == {
        "names": ["0.bias", "0.weight", "1.bias", "1.weight", "3.bias", "3.weight"],
        "masters_equal_initial_weights": True,
    }


def test_same_world_size_goes_on_to_the_bit(saved: tuple[Path, dict]) -> None:
    folder, written = saved
    loaded = run_ranks(2, _free_port(), "load", folder)
    assert loaded["step"] == 3 and loaded["buffer"] == [0.0, 1.0, 2.0]
    assert (loaded["digest"], loaded["rest"], loaded["end"]) == (written["digest"], written["rest"], written["end"])


@pytest.mark.parametrize("world", [1, 3])
def test_another_world_size_loads_identical_state_and_continues_alike(saved: tuple[Path, dict], world: int) -> None:
    folder, written = saved
    loaded = run_ranks(world, _free_port(), "load", folder)
    assert loaded["digest"] == written["digest"]
    assert loaded["rest"] == pytest.approx(written["rest"], rel=1e-5)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / checkpoint.shard_name(1, 2)),
        lambda folder: (folder / checkpoint.shard_name(0, 2)).write_bytes(b"short"),
        lambda folder: (folder / checkpoint.shard_name(0, 2)).unlink(),
        lambda folder: flip(folder / checkpoint.STATE),
        lambda folder: (folder / checkpoint.MANIFEST).unlink(),
        lambda folder: (folder / checkpoint.MANIFEST).write_text("{"),
    ],
    ids=["flipped bit", "truncated", "missing shard", "state", "missing manifest", "torn manifest"],
)
def test_damage_is_found(saved: tuple[Path, dict], tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = shutil.copytree(saved[0], tmp_path / "copy")
    checkpoint.verify(folder)
    damage(folder)
    with pytest.raises(checkpoint.DamagedCheckpointError, match=str(folder)):
        checkpoint.verify(folder)


def test_checkpoint_has_no_pickle_and_names_every_parameter(saved: tuple[Path, dict]) -> None:
    folder, _ = saved
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    assert json.loads((folder / checkpoint.STATE).read_text())["shapes"]["0.weight"] == [13, 7]
