import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zarr

from dalle2_video.data.shard_layout import EMPTY, ShardLayout
from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.shard_writer import ShardWriter
from dalle2_video.data.store_arrays import create_sharded

SHAPE = (7, 10, 4, 3)


def layout_at(path: Path, *, compressed: bool = True, dtype: str = "uint8", fill_value: float = 0) -> ShardLayout:
    return create_sharded(
        path, SHAPE, dtype, items_per_shard=3, chunk_frames=4, compressed=compressed, fill_value=fill_value
    )


def write(layout: ShardLayout, shard: int, items: dict[int, np.ndarray]) -> dict:
    with ShardWriter(layout, shard) as writer:
        for item, frames in items.items():
            writer.write(item, frames)
        return writer.finish()


def stored_chunks(layout: ShardLayout, shard: int) -> list[list[int]]:
    """For each item of a shard the chunks that are in the file."""
    footer = layout.shard_path(shard).read_bytes()[-layout.index_bytes : -4]
    index = np.frombuffer(footer, "<u8").reshape(layout.items_per_shard, layout.chunks_per_item, 2)
    return [np.flatnonzero(of_item[:, 0] != EMPTY).tolist() for of_item in index]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64", "bool"])
@pytest.mark.parametrize("fill_value", [0, 1])
def test_zarr_and_the_reader_read_what_was_written(
    tmp_path: Path, compressed: bool, dtype: str, fill_value: int
) -> None:
    layout = layout_at(tmp_path / "a", compressed=compressed, dtype=dtype, fill_value=fill_value)
    wanted = np.full(SHAPE, fill_value, dtype)
    draw = np.random.default_rng(0)
    for shard in range(layout.num_shards):
        lengths = {
            item: 3 + 3 * shard + item for item in range(min(3, SHAPE[0] - 3 * shard)) if (shard, item) != (1, 1)
        }
        items = {item: draw.integers(0, 100, (length, 4, 3)).astype(dtype) for item, length in lengths.items()}
        for item, frames in items.items():
            wanted[3 * shard + item, : len(frames)] = frames
        write(layout, shard, items)
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "a"), mode="r")[...], wanted)
    reader = ShardReader(tmp_path / "a")
    for n in range(SHAPE[0]):
        np.testing.assert_array_equal(reader.read(n, 0, 10), wanted[n])


def test_a_chunk_is_stored_exactly_if_it_holds_a_frame_though_it_is_black(tmp_path: Path) -> None:
    layout = layout_at(tmp_path / "a")
    black = np.zeros((10, 4, 3), np.uint8)
    write(layout, 0, {0: black[:4], 2: black[:5]})
    write(layout, 1, {1: black, 0: black[:0]})
    assert stored_chunks(layout, 0) == [[0], [], [0, 1]]
    assert stored_chunks(layout, 1) == [[], [0, 1, 2], []]


def test_a_shard_without_a_frame_has_its_file_and_reads_as_the_fill_value(tmp_path: Path) -> None:
    layout = layout_at(tmp_path / "a", dtype="float32", fill_value=float("nan"))
    facts = write(layout, 1, {0: np.empty((0, 4, 3), np.float32)})
    assert facts["bytes"] == layout.index_bytes == layout.shard_path(1).stat().st_size
    assert np.isnan(ShardReader(tmp_path / "a").read(4, 0, 10)).all()
    assert np.isnan(zarr.open_array(str(tmp_path / "a"), mode="r")[3:6]).all()


@pytest.mark.parametrize("compressed", [True, False])
def test_bytes_follow_from_items_and_their_order_and_the_facts_are_the_file_s(tmp_path: Path, compressed: bool) -> None:
    frames = np.random.default_rng(1).integers(0, 255, (3, 9, 4, 3)).astype(np.uint8)
    layouts = [layout_at(tmp_path / name, compressed=compressed) for name in "abc"]
    in_order = {item: frames[item] for item in range(3)}
    facts = [write(layouts[0], 0, in_order), write(layouts[1], 0, in_order)]
    other = write(layouts[2], 0, dict(reversed(in_order.items())))
    data = layouts[0].shard_path(0).read_bytes()
    assert facts == [{"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}] * 2
    assert other["bytes"] == len(data) and other["sha256"] != facts[0]["sha256"]
    np.testing.assert_array_equal(ShardReader(tmp_path / "c").read(0, 0, 9), frames[0])


def test_chunks_are_compressed_as_zarr_does(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).integers(0, 9, (10, 4, 3)).astype(np.uint8)
    ours, zarrs = layout_at(tmp_path / "a"), layout_at(tmp_path / "b")
    write(ours, 0, {0: frames})
    zarr.open_array(str(tmp_path / "b"), mode="r+")[0, :] = frames
    assert ours.shard_path(0).read_bytes() == zarrs.shard_path(0).read_bytes()


def test_frames_in_any_memory_order_are_written_as_they_read(tmp_path: Path) -> None:
    layout = layout_at(tmp_path / "a")
    frames = np.random.default_rng(1).integers(0, 255, (3, 4, 20)).astype(np.uint8).transpose(2, 1, 0)[::2]
    write(layout, 0, {0: frames})
    np.testing.assert_array_equal(ShardReader(tmp_path / "a").read(0, 0, 10), frames)


def test_an_abandoned_file_is_removed_and_one_that_exists_is_never_touched(tmp_path: Path) -> None:
    layout = layout_at(tmp_path / "a")
    frames = np.ones((10, 4, 3), np.uint8)
    with pytest.raises(RuntimeError, match="decoder"), ShardWriter(layout, 0) as writer:
        writer.write(0, frames)
        raise RuntimeError("decoder")
    assert not layout.shard_path(0).exists()
    write(layout, 0, {0: frames})
    before = layout.shard_path(0).read_bytes()
    with pytest.raises(FileExistsError):
        ShardWriter(layout, 0)
    assert layout.shard_path(0).read_bytes() == before


@pytest.mark.parametrize(
    ("item", "frames"),
    [
        (3, np.zeros((1, 4, 3), np.uint8)),
        (-1, np.zeros((1, 4, 3), np.uint8)),
        (0, np.zeros((1, 4, 3), np.uint8)),
        (1, np.zeros((11, 4, 3), np.uint8)),
        (1, np.zeros((1, 3, 4), np.uint8)),
        (1, np.zeros((1, 4, 3), np.int8)),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, item: int, frames: np.ndarray) -> None:
    with ShardWriter(layout_at(tmp_path / "a"), 0) as writer:
        writer.write(0, np.zeros((1, 4, 3), np.uint8))
        with pytest.raises(AssertionError):
            writer.write(item, frames)


def test_memory_is_that_of_a_few_chunks_whatever_the_shard(tmp_path: Path) -> None:
    chunk = 8 * 64 * 64 * 3
    layout = create_sharded(
        tmp_path / "a", (64, 512, 64, 64, 3), "uint8", items_per_shard=64, chunk_frames=8, compressed=True
    )
    clip = np.zeros((20, 64, 64, 3), np.uint8)
    tracemalloc.start()
    with ShardWriter(layout, 0) as writer:
        for item in range(64):
            writer.write(item, clip)
        writer.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * chunk + 4 * layout.index_bytes
