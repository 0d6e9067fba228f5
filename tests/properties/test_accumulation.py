"""Sharing a global batch: every choice either gives exactly that batch or is refused with choices that do."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from dalle2_video.runtime import RuntimeConfig

batches = st.integers(1, 512)
worlds = st.integers(1, 64)
micros = st.none() | st.integers(1, 128)


def listed(message: str, start: str) -> list[int]:
    """Return the numbers that a message lists after `start`."""
    found = re.search(rf"{start} ([\d, ]+)", message)
    assert found, message
    return [int(number) for number in found[1].split(",")]


@given(batch_size=batches, world_size=worlds, micro_batch=micros)
def test_shares_make_up_the_batch_or_the_choices_that_do_are_listed(
    batch_size: int, world_size: int, micro_batch: int | None
) -> None:
    try:
        micro, accumulation = RuntimeConfig(micro_batch=micro_batch).accumulation(batch_size, world_size)
    except ValueError as error:
        if batch_size % world_size:
            choices = listed(str(error), "ranks that divide it:")
            assert world_size not in choices
            for choice in choices:
                micro, accumulation = RuntimeConfig().accumulation(batch_size, choice)
                assert micro * accumulation * choice == batch_size
        else:
            choices = listed(str(error), "choose --micro-batch from")
            assert micro_batch not in choices
            for choice in choices:
                micro, accumulation = RuntimeConfig(micro_batch=choice).accumulation(batch_size, world_size)
                assert micro * accumulation * world_size == batch_size
    else:
        assert micro * accumulation * world_size == batch_size
        assert micro == (micro_batch or micro)


@given(batch_size=batches, world_size=worlds)
def test_without_a_micro_batch_nothing_is_accumulated(batch_size: int, world_size: int) -> None:
    if batch_size % world_size == 0:
        assert RuntimeConfig().accumulation(batch_size, world_size) == (batch_size // world_size, 1)


@given(batch_size=batches, world_size=worlds, data=st.data())
def test_every_divisor_of_a_ranks_share_is_accepted(batch_size: int, world_size: int, data: st.DataObject) -> None:
    share = data.draw(st.sampled_from([micro for micro in range(1, batch_size + 1) if batch_size % micro == 0]))
    micro, accumulation = RuntimeConfig(micro_batch=share).accumulation(batch_size * world_size, world_size)
    assert (micro, accumulation) == (share, batch_size // share)
