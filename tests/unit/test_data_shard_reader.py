import multiprocessing
import os
import pickle
import resource
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from numcodecs import Zstd
from zarr.codecs import BloscCodec

from dalle2_video.data.shard_layout import ShardLayout
from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.shard_writer import ShardWriter
from dalle2_video.data.store_arrays import create_sharded

SHAPE = (7, 10, 4, 3)


def write(path: Path, *, compressed: bool = True, dtype: str = "uint8") -> np.ndarray:
    """Have zarr write 7 items in shards of 3, chunks of 4 frames; item i has only its first 3 + i frames."""
    values = np.random.default_rng(0).integers(1, 100, SHAPE).astype(dtype)
    for item in range(len(values)):
        values[item, 3 + item :] = 0
    create_sharded(path, SHAPE, dtype, items_per_shard=3, chunk_frames=4, compressed=compressed)
    array = zarr.open_array(str(path), mode="r+")
    for first in range(0, len(values), 3):
        array[first : first + 3] = values[first : first + 3]
    return values


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64", "bool"])
def test_reads_equal_zarr_for_every_item_range_and_step(tmp_path: Path, compressed: bool, dtype: str) -> None:
    write(tmp_path / "a", compressed=compressed, dtype=dtype)
    array, reader = zarr.open_array(str(tmp_path / "a"), mode="r"), ShardReader(tmp_path / "a")
    whole = array[...]
    for n in range(SHAPE[0]):
        for start in range(SHAPE[1]):
            for stop in range(start + 1, SHAPE[1] + 1):
                for step in (1, 2, 5):
                    found = reader.read(n, start, stop, step)
                    assert found.dtype == whole.dtype
                    np.testing.assert_array_equal(found, whole[n, start:stop:step])
                    out = np.full_like(found, 1)
                    assert reader.read(n, start, stop, step, out) is out
                    np.testing.assert_array_equal(out, found)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_row_of_a_batch_is_read_in_place_and_its_neighbours_stay(tmp_path: Path, compressed: bool) -> None:
    values = write(tmp_path / "a", compressed=compressed)
    reader, batch = ShardReader(tmp_path / "a"), np.full((3, 8, 4, 3), 200, np.uint8)
    reader.read(6, 1, 9, out=batch[1])
    np.testing.assert_array_equal(batch[1], values[6, 1:9])
    assert (batch[[0, 2]] == 200).all()


def test_memory_of_another_shape_type_or_order_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a")
    reader, read_only = ShardReader(tmp_path / "a"), np.empty((4, 4, 3), np.uint8)
    read_only.flags.writeable = False
    for out in (
        np.empty((3, 4, 3), np.uint8),
        np.empty((4, 4, 3), np.int8),
        np.empty((4, 3, 4), np.uint8).swapaxes(1, 2),
        np.empty((8, 4, 3), np.uint8)[::2],
        read_only,
    ):
        with pytest.raises(ValueError, match="wanted writeable C-contiguous uint8"):
            reader.read(0, 0, 4, out=out)


@pytest.mark.parametrize(
    "bounds", [(-1, 0, 1, 1), (7, 0, 1, 1), (0, -1, 1, 1), (0, 0, 11, 1), (0, 3, 3, 1), (0, 0, 1, 0)]
)
def test_reads_out_of_range_raise(tmp_path: Path, bounds: tuple[int, int, int, int]) -> None:
    write(tmp_path / "a")
    with pytest.raises(IndexError):
        ShardReader(tmp_path / "a").read(*bounds)


def test_a_missing_shard_is_an_error_not_zeros(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (tmp_path / "a/c.1.0.0.0").unlink()
    assert not zarr.open_array(str(tmp_path / "a"), mode="r")[4].any()  # what Zarr makes of it
    with pytest.raises(OSError, match=r"shard is missing; have it made again: python .* --repair.*c\.1\.0\.0\.0"):
        ShardReader(tmp_path / "a").read(4, 0, 4)


def test_a_flipped_byte_anywhere_in_a_compressed_shard_is_found(tmp_path: Path) -> None:
    values = write(tmp_path / "a")
    path = tmp_path / "a/c.0.0.0.0"
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        reader, failures = ShardReader(tmp_path / "a"), 0
        for n in range(3):
            try:
                np.testing.assert_array_equal(reader.read(n, 0, 10), values[n])
            except OSError:
                failures += 1
        assert failures > 0


def test_a_cut_shard_is_found(tmp_path: Path) -> None:
    write(tmp_path / "a", compressed=False)
    path = tmp_path / "a/c.0.0.0.0"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(OSError, match="index is damaged or cut"):
        ShardReader(tmp_path / "a").read(0, 0, 1)


def test_a_chunk_of_another_size_is_found(tmp_path: Path) -> None:
    """A whole zstd frame with a sound checksum, but of too few frames."""
    layout = create_sharded(tmp_path / "a", SHAPE, "uint8", items_per_shard=3, chunk_frames=4, compressed=True)
    with ShardWriter(layout, 0) as writer:
        writer.write(0, np.ones((4, 4, 3), np.uint8))
        writer.finish()
    file = tmp_path / "a/c.0.0.0.0"
    small, footer = Zstd(1, checksum=True).encode(b"\1" * 47), bytearray(file.read_bytes()[-layout.index_bytes :])
    footer[:16] = np.array([0, len(small)], "<u8").tobytes()
    footer[-4:] = google_crc32c.value(bytes(footer[:-4])).to_bytes(4, "little")
    file.write_bytes(small + footer)
    with pytest.raises(OSError, match=r"c\.0\.0\.0\.0: damaged item 0: not the size of a chunk"):
        ShardReader(tmp_path / "a").read(0, 0, 4)


def test_a_shard_that_was_written_again_is_read_by_its_own_index(tmp_path: Path) -> None:
    values = write(tmp_path / "a")
    reader = ShardReader(tmp_path / "a")
    np.testing.assert_array_equal(reader.read(0, 0, 10), values[0])
    layout = ShardLayout.open(tmp_path / "a")
    (tmp_path / "a/c.0.0.0.0").unlink()
    with ShardWriter(layout, 0) as writer:
        for item in (2, 1, 0):
            writer.write(item, values[item])
        writer.finish()
    reader.close()
    np.testing.assert_array_equal(reader.read(0, 0, 10), values[0])


def test_errors_name_the_shard_and_leave_other_shards_readable(tmp_path: Path) -> None:
    values = write(tmp_path / "a", compressed=False)
    path, reader = tmp_path / "a/c.1.0.0.0", ShardReader(tmp_path / "a")
    np.testing.assert_array_equal(reader.read(3, 0, 10), values[3])
    os.truncate(path, 5)  # under an open file
    with pytest.raises(OSError, match=r"c\.1\.0\.0\.0: short read"):
        reader.read(3, 0, 10)
    reader.close()
    with pytest.raises(OSError, match=r"c\.1\.0\.0\.0.*index is damaged or cut"):
        reader.read(3, 0, 10)
    np.testing.assert_array_equal(reader.read(0, 0, 10), values[0])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_open_files_are_bounded_and_closed(tmp_path: Path) -> None:
    values = write(tmp_path / "a")
    before = open_files()
    reader = ShardReader(tmp_path / "a", max_open=2)
    for n in (0, 3, 6, 0, 6, 3):
        np.testing.assert_array_equal(reader.read(n, 0, 3), values[n, :3])
        assert open_files() <= before + 2
    reader.close()
    assert open_files() == before
    np.testing.assert_array_equal(reader.read(0, 0, 3), values[0, :3])


def _read_with_few_files(path: Path, results: multiprocessing.Queue) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    readers = [ShardReader(path) for _ in range(20)]
    used = open_files()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    most = 0
    for _ in range(2):
        for reader in readers:
            for n in range(SHAPE[0]):
                reader.read(n, 0, 10)
                most = max(most, open_files() - used)
    results.put(most)


def test_readers_leave_half_of_the_files_that_the_process_may_open_to_others(tmp_path: Path) -> None:
    write(tmp_path / "a")
    context = multiprocessing.get_context("forkserver")  # a fork would begin with this process's open files
    results = context.Queue()
    child = context.Process(target=_read_with_few_files, args=(tmp_path / "a", results))
    child.start()
    assert 32 <= results.get(timeout=60) < 32 + 20  # of the 60 that they read; each may have one
    child.join()


def test_indexes_are_kept_within_their_room_and_outlive_their_files(tmp_path: Path) -> None:
    values = write(tmp_path / "a")
    size = ShardLayout.open(tmp_path / "a").index_bytes
    reader = ShardReader(tmp_path / "a", max_open=1, max_index_bytes=2 * size)
    for n in (0, 3, 6, 0, 6, 3, 4):
        np.testing.assert_array_equal(reader.read(n, 0, 10), values[n])
        assert len(reader._indexes) <= 2
    assert list(reader._indexes) == [2, 1] and list(reader._files) == [1]
    tiny = ShardReader(tmp_path / "a", max_index_bytes=0)
    np.testing.assert_array_equal(tiny.read(5, 0, 10), values[5])


def _read_in_child(reader: ShardReader, results: multiprocessing.Queue) -> None:
    results.put([reader.read(n, 0, 10) for n in range(7)])


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_used_reader_works_in_other_processes(tmp_path: Path, method: str) -> None:
    values = write(tmp_path / "a")
    reader = ShardReader(tmp_path / "a")
    reader.read(0, 0, 10)
    context = multiprocessing.get_context(method)
    results = context.Queue()
    child = context.Process(target=_read_in_child, args=(reader, results))
    child.start()
    for n, found in enumerate(results.get(timeout=60)):
        np.testing.assert_array_equal(found, values[n])
        np.testing.assert_array_equal(reader.read(n, 0, 10), values[n])
    child.join()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read(2, 0, 5), values[2, :5])


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    def create(name: str, **layout: object) -> Path:
        options = {"shape": SHAPE, "dtype": "uint8", "chunks": (1, 4, 4, 3), "shards": (3, 12, 4, 3)} | layout
        zarr.create_array(str(tmp_path / name), **options)
        return tmp_path / name

    with pytest.raises(ValueError, match="chunk shape"):
        ShardReader(create("a", chunks=(3, 4, 4, 3)))
    with pytest.raises(ValueError, match="shard shape"):
        ShardReader(create("b", shards=(3, 8, 4, 3)))
    with pytest.raises(ValueError, match="inner codecs"):
        ShardReader(create("c", compressors=BloscCodec()))
    with pytest.raises(ValueError, match="sharding_indexed"):
        ShardReader(create("d", shards=None))
    with pytest.raises(ValueError, match="data type complex64"):
        ShardReader(create("e", dtype="complex64", compressors=None))
