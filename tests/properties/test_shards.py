"""Whatever is written into a shard, in any order, is what zarr and the reader give back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle2_video.data.shard_reader import ShardReader
from dalle2_video.data.shard_writer import ShardWriter
from dalle2_video.data.store_arrays import create_sharded


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shard_reads_back(data: st.DataObject) -> None:
    def number(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    items, per_shard, most, chunk = number(1, 7), number(1, 4), number(1, 12), number(1, 6)
    rest = tuple(data.draw(st.lists(st.integers(1, 3), min_size=0, max_size=3)))
    dtype, fill = data.draw(st.sampled_from([("uint8", 0), ("uint8", 7), ("float32", float("nan")), ("int32", -1)]))
    wanted = np.full((items, most, *rest), fill, dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "array"
        layout = create_sharded(
            path, wanted.shape, dtype, items_per_shard=per_shard, chunk_frames=min(chunk, most),
            compressed=data.draw(st.booleans()), fill_value=fill,
        )  # fmt: skip
        random = np.random.default_rng(number(0, 2**32 - 1))
        lengths = {}
        for shard in range(layout.num_shards):
            mine = range(shard * per_shard, min((shard + 1) * per_shard, items))
            with ShardWriter(layout, shard) as writer:
                for n in data.draw(st.permutations([n for n in mine if number(0, 3) > 0])):
                    lengths[n] = number(0, most)
                    frames = random.integers(0, 3, (lengths[n], *rest)).astype(dtype)
                    writer.write(n - mine[0], frames)
                    wanted[n, : lengths[n]] = frames
                facts = writer.finish()
            assert facts["bytes"] == writer.path.stat().st_size
        np.testing.assert_array_equal(zarr.open_array(str(path), mode="r")[...], wanted)

        reader = ShardReader(path, max_open=number(1, 3), max_index_bytes=number(0, 3) * layout.index_bytes)
        for _ in range(10):
            n, start, step = number(0, items - 1), number(0, most - 1), number(1, most)
            stop = number(start + 1, most)
            np.testing.assert_array_equal(reader.read(n, start, stop, step), wanted[n, start:stop:step])
        reader.close()
