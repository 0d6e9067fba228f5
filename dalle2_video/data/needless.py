"""The packets of a video stream with the times around each, by which one knows that its frame is not wanted.

Stored at 8 frames per second, two of three source frames are thrown away. Those of them that no other frame refers to
(most B-frames) need not be decoded, which takes a third off decoding. Packets come in the order of decoding, which is
not the order of display: a packet's neighbours in time may come before or after it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator

from av.packet import Packet

_REORDERED = 32
"""Packets between a frame and its neighbours in time: codecs reorder by 16 at most."""


Times = tuple[int, int, int]
"""Time stamps of a frame displayed before another, of that frame, and of the one displayed after it."""


def with_neighbours(packets: Iterable[Packet]) -> Iterator[tuple[Packet, Times | None]]:
    """Yield every packet, in order, with its times.

    They are None for the first and the last frame displayed, and for a packet without a time stamp, such as the one
    that ends the stream.
    """
    waiting: deque[Packet] = deque()
    times: list[int] = []  # sorted, of the last and the next packets
    passed: deque[int] = deque()

    def next_up() -> tuple[Packet, Times | None]:
        packet = waiting.popleft()
        if packet.pts is None:
            return packet, None
        before, after = bisect_left(times, packet.pts) - 1, bisect_right(times, packet.pts)
        inside = before >= 0 and after < len(times)
        found = packet, (times[before], packet.pts, times[after]) if inside else None
        passed.append(packet.pts)
        if len(passed) > _REORDERED:
            times.remove(passed.popleft())
        return found

    for packet in packets:
        waiting.append(packet)
        if packet.pts is not None:
            insort(times, packet.pts)
        if len(waiting) > _REORDERED:
            yield next_up()
    while waiting:
        yield next_up()
