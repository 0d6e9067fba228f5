"""Checkpoints on real ranks: any world size and any ZeRO stage loads what any other wrote; damage and full disks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from zero_ranks import PEAK_STAGES, SAVED_AT, STAGES, WORLDS, checkpoint_name, loads, run_ranks

from dalle2_video.training import checkpoint


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, dict]]:
    """What each world size wrote at every stage, and what it found when it loaded what all had written."""
    folder = tmp_path_factory.mktemp("matrix")
    return folder, run_ranks("matrix", folder, *WORLDS)


@pytest.mark.parametrize("target", WORLDS)
@pytest.mark.parametrize("source", WORLDS)
def test_state_loads_to_the_bit_at_any_world_size_and_stage(
    matrix: tuple[Path, dict[int, dict]], source: int, target: int
) -> None:
    found, count = matrix[1], 0
    for precision, world_from, stage_from, world_to, stage_to in loads():
        if (world_from, world_to) == (source, target):
            name = checkpoint_name(source, stage_from, precision)
            written, loaded = found[source]["written"][name], found[target]["loaded"][f"{name} to stage{stage_to}"]
            assert (loaded["step"], loaded["digest"]) == (SAVED_AT, written["digest"]), (name, stage_to)
            count += 1
    assert count >= 8


def test_same_world_size_and_stage_goes_on_to_the_bit(matrix: tuple[Path, dict[int, dict]]) -> None:
    count = 0
    for precision, world_from, stage_from, world_to, stage_to in loads():
        if (world_from, stage_from) == (world_to, stage_to):
            name = checkpoint_name(world_from, stage_from, precision)
            written = matrix[1][world_to]["written"][name]
            loaded = matrix[1][world_to]["loaded"][f"{name} to stage{stage_to}"]
            assert (loaded["rest"], loaded["end"]) == (written["rest"], written["end"]), name
            assert written["end"] != written["digest"]
            count += 1
    assert count == 20


@pytest.mark.parametrize("target", WORLDS)
@pytest.mark.parametrize("source", WORLDS)
def test_another_world_size_or_stage_goes_on_alike(
    matrix: tuple[Path, dict[int, dict]], source: int, target: int
) -> None:
    count = 0
    for precision, world_from, stage_from, world_to, stage_to in loads():
        name = checkpoint_name(world_from, stage_from, precision)
        if (precision, world_from, world_to) == ("fp32", source, target):
            loaded = matrix[1][target]["loaded"][f"{name} to stage{stage_to}"]
            right = matrix[1][source]["written"][name]["rest"]
            for step, values in enumerate(loaded.get("rest", [])):
                assert values == pytest.approx(right[step], rel=1e-5), (name, stage_to)
                count += 1
    assert count >= 8


def test_all_world_sizes_and_stages_train_alike(matrix: tuple[Path, dict[int, dict]]) -> None:
    first = matrix[1][1]["written"][checkpoint_name(1, 0, "fp32")]
    for world in WORLDS:
        for stage in STAGES:
            written = matrix[1][world]["written"][checkpoint_name(world, stage, "fp32")]
            for found, right in zip(written["before"] + written["rest"], first["before"] + first["rest"], strict=True):
                assert found == pytest.approx(right, rel=1e-5), (world, stage)


def test_a_checkpoint_holds_every_value_once_and_no_pickle(matrix: tuple[Path, dict[int, dict]]) -> None:
    for stage in STAGES:
        folder = matrix[0] / checkpoint_name(4, stage, "fp32")
        assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
        content = json.loads((folder / checkpoint.STATE).read_text())
        assert content["parameters"]["body.0.weight"]["shape"] == [13, 7]
        decayed, free = content["groups"]
        assert (decayed["weight_decay"], decayed["parameters"]) == (0.1, ["body.0.weight", "body.3.weight"])
        assert free["weight_decay"] == 0.0 and "scale" in free["parameters"]
        values: dict[str, int] = {}
        for rank in range(4):
            # Their package reads what we write.
            with safe_open(folder / checkpoint.shard_name(rank, 4), "pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    values[name] = values.get(name, 0) + file.get_tensor(name).numel()
        for kind in ("fp32", "exp_avg", "exp_avg_sq", "ema"):
            assert values[f"{kind}/body.0.weight"] == 91 and values[f"{kind}/scale"] == 1
        assert values["untrained/frozen.weight"] == 15 and "untrained/cache" not in values


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
        lambda folder: (folder / checkpoint.MANIFEST).write_text("[]"),
        lambda folder: (folder / checkpoint.MANIFEST).write_text('{"files": {}}'),
    ],
    ids=[
        "flipped bit",
        "truncated",
        "missing shard",
        "state",
        "missing manifest",
        "torn manifest",
        "no mapping",
        "manifest without the files",
    ],
)
def test_damage_is_found(
    matrix: tuple[Path, dict[int, dict]], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    folder = shutil.copytree(matrix[0] / checkpoint_name(2, 1, "fp32"), tmp_path / "copy")
    checkpoint.verify(folder)
    damage(folder)
    with pytest.raises(checkpoint.DamagedCheckpointError, match=str(folder)):
        checkpoint.verify(folder)


@pytest.fixture(scope="module")
def troubles(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Full disks, refusals and peaks of memory on two ranks."""
    return run_ranks("troubles", tmp_path_factory.mktemp("troubles"), 2)[2]


@pytest.mark.parametrize(("file", "rank"), [("shard", 1), ("state", 0)])
def test_a_full_disk_on_one_rank_is_told_to_all_and_training_goes_on(troubles: dict, file: str, rank: int) -> None:
    assert len(troubles["full"][file]) == 2 and len(set(troubles["full"][file])) == 1
    assert "CheckpointNotSaved" in troubles["full"][file][0]
    assert f"rank {rank} could not write: [Errno 28] No space left on device" in troubles["full"][file][0]
    assert troubles["full"]["untouched"]


def test_a_full_disk_ends_an_export_on_all_ranks(troubles: dict) -> None:
    assert troubles["full"]["export"] == ["OSError: [Errno 28] No space left on device"] * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("groups", ["other parameter groups", "body.0.weight: {'weight_decay': 0.5", "body.3.weight"]),
        ("shapes", ["belongs to another model", "differ: body.0.weight"]),
        ("buffers", ["belongs to another model", "differ: count"]),
        ("format", ["checkpoint format 1", "start the run anew"]),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_on_all_ranks(troubles: dict, change: str, said: list[str]) -> None:
    assert len(troubles["refused"][change]) == 2
    for message in troubles["refused"][change]:
        assert message.startswith("ValueError") and all(part in message for part in said)
    assert troubles["refused"]["nothing"] == ["", ""]


SLACK = 12 << 20
"""Buffers of a few MiB, and what the allocator keeps."""


@pytest.mark.parametrize("stage", PEAK_STAGES)
def test_saving_takes_no_memory_and_loading_no_more_than_a_step(troubles: dict, stage: int) -> None:
    for rank in troubles["peaks"][f"stage{stage}"]:
        assert rank["save"] <= SLACK
        assert rank["load"] <= (SLACK if stage == 3 else rank["step"] + SLACK)
        assert rank["snapshot"] <= rank["state"] + SLACK


@pytest.mark.parametrize("stage", PEAK_STAGES)
def test_export_takes_at_most_two_of_the_largest_parameter_on_rank_0(troubles: dict, stage: int) -> None:
    first, second = troubles["peaks"][f"stage{stage}"]
    assert 0.5 * first["largest"] <= first["export"] <= 2 * first["largest"] + SLACK
    assert second["export"] <= SLACK
