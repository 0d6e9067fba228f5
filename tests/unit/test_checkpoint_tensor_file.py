"""Safetensors files written and read piece by piece are those of the safetensors package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dalle2_video.training.durable_file import file_checksum
from dalle2_video.training.tensor_file import TensorFile, TensorSpec, file_order, write_tensors


def written(path: Path, tensors: dict[str, torch.Tensor]) -> tuple[int, str]:
    specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
    return write_tensors(path, specs, (tensors[name] for name in file_order(specs)))


TENSORS = {
    "weight": torch.randn(5, 7),
    "größe": torch.randn(3).to(torch.bfloat16),
    "flag": torch.tensor([True, False, True]),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 4),
    "turned": torch.randn(4, 6).T,
}


def test_the_package_reads_what_is_written_and_size_and_checksum_are_the_files(tmp_path: Path) -> None:
    assert written(tmp_path / "a", TENSORS) == ((tmp_path / "a").stat().st_size, file_checksum(tmp_path / "a"))
    loaded = load_file(tmp_path / "a")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    with TensorFile(tmp_path / "a") as file:
        for name, tensor in TENSORS.items():
            assert torch.equal(file.read(name), tensor)


@given(sizes=st.dictionaries(st.text("abc.é", min_size=1), st.lists(st.integers(0, 4), max_size=3), max_size=5))
def test_fp32_files_are_the_packages_to_the_byte(tmp_path_factory: pytest.TempPathFactory, sizes: dict) -> None:
    folder = tmp_path_factory.mktemp("files")
    tensors = {name: torch.randn(shape) for name, shape in sizes.items()}
    written(folder / "ours", tensors)
    save_file(tensors, folder / "theirs")
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


@given(first=st.integers(0, 34), count=st.integers(0, 35))
def test_any_range_is_read_straight_into_its_place(
    tmp_path_factory: pytest.TempPathFactory, first: int, count: int
) -> None:
    path = tmp_path_factory.mktemp("files") / "a"
    save_file({"other": torch.ones(3), "weight": TENSORS["weight"]}, path)
    count = min(count, 35 - first)
    target = torch.zeros(40)
    with TensorFile(path) as file:
        file.read_into(target[2 : 2 + count], "weight", first)
    assert torch.equal(target[2 : 2 + count], TENSORS["weight"].reshape(-1)[first : first + count])
    assert not target[:2].any() and not target[2 + count :].any()


def test_another_type_and_a_short_file_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "a", TENSORS)
    with TensorFile(tmp_path / "a") as file:
        with pytest.raises(ValueError, match="weight is F32, wanted F64"):
            file.read_into(torch.zeros(2, dtype=torch.float64), "weight")
        with pytest.raises(ValueError, match="weight ends before value 36"):
            file.read_into(torch.zeros(35), "weight", 1)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-4])
    with TensorFile(tmp_path / "a") as file, pytest.raises(ValueError, match="the file ends within flag"):
        file.read("flag")
