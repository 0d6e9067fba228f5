import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec

from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.store import create_sharded

SHAPE = (7, 10, 4, 3)


def write(path: Path, *, compressed: bool = True, dtype: str = "uint8") -> np.ndarray:
    """Write an array of 7 items in shards of 3, chunks of 4 frames; item i has only its first 3 + i frames."""
    values = np.random.default_rng(0).integers(1, 100, SHAPE).astype(dtype)
    for item in range(len(values)):
        values[item, 3 + item :] = 0
    array = create_sharded(path, SHAPE, dtype, items_per_shard=3, chunk_frames=4, compressed=compressed)
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
    with pytest.raises(OSError, match=r"shard is missing.*c\.1\.0\.0\.0"):
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
