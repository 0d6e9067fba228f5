"""Write runs' metrics as event files that TensorBoard opens; TensorBoard itself need not be installed here.

    python tools/tensorboard_events.py ID [ID ...] --out DIR
    tensorboard --logdir DIR          wherever it is installed

Each run becomes one file in DIR/STAGE/NAME, written whole and anew each time, with the curves that W&B would show:
train/loss, val/loss and so on over the run's own step. Exit code 2: an error of the user.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script, whose own folder comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import google_crc32c
import numpy as np
from rich.progress import track

from experiments.files import write_atomic
from experiments.registry import Registry, default_home
from experiments.run import Run
from launch.console import print_error

USER_ERROR = 2
FILE_NAME = "events.out.tfevents.0000000000.metrics"
"""One name for all times: writing again replaces, and TensorBoard never sees a step twice."""
_NO_METRIC = ("split", "time", "step")
# Protocol buffer keys (field number * 8 + wire type) of tensorflow.Event, Summary and Summary.Value.
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY = 1 << 3 | 1, 2 << 3 | 0, 3 << 3 | 2, 5 << 3 | 2
_VALUE = 1 << 3 | 2
_TAG, _SIMPLE_VALUE = 1 << 3 | 2, 2 << 3 | 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/tensorboard_events.py", description="Write runs' metrics as TensorBoard event files."
    )
    parser.add_argument("runs", nargs="+", metavar="ID", help="a run's id, its folder's name or the start of either")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for TensorBoard's --logdir")
    options = parser.parse_args(arguments)
    registry = Registry(default_home())
    try:
        runs = [_find(registry, reference) for reference in options.runs]
        for run in track(runs, description="writing", disable=not sys.stdout.isatty(), transient=True):
            print(write(run, options.out))
    except (ValueError, OSError) as error:
        print_error(error)
        return USER_ERROR
    return 0


def _find(registry: Registry, reference: str) -> Run:
    stage, _, name = reference.rpartition("/")
    return registry.find(name, stage or None)


def write(run: Run, out: Path) -> Path:
    """Write a run's event file below `out` and return its path. Raises ValueError where the run has no metrics."""
    records = run.metrics()
    if not records:
        raise ValueError(f"{run.name} has no metrics; see: python tools/runs.py show {run.id}")
    path = out / run.stage / run.folder.name / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, b"".join(framed(event) for event in events(run.created, records)))
    return path


def events(created: float, records: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    """Yield the file's version, then one serialised tensorflow.Event a record."""
    version = b"brain.Event:2"
    yield _double(_WALL_TIME, created) + _bytes(_FILE_VERSION, version)
    for record in records:
        values = b"".join(
            _bytes(_VALUE, _bytes(_TAG, f"{record['split']}/{name}".encode()) + _float(_SIMPLE_VALUE, value))
            for name, value in record.items()
            if name not in _NO_METRIC and isinstance(value, (int, float)) and not isinstance(value, bool)
        )
        step = bytes([_STEP]) + _varint(record["step"])
        yield _double(_WALL_TIME, record["time"]) + step + _bytes(_SUMMARY, values)


def framed(data: bytes) -> bytes:
    """Return a record of TensorFlow's TFRecord format: length, its checksum, data, their checksum."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """Return CRC-32C, rotated and offset as the format asks, so that a record may itself hold checksums."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    """Return a number of 0 or more, seven bits a byte, the lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _bytes(key: int, value: bytes) -> bytes:
    return bytes([key]) + _varint(len(value)) + value


def _double(key: int, value: float) -> bytes:
    return bytes([key]) + struct.pack("<d", value)


def _float(key: int, value: float) -> bytes:
    with np.errstate(over="ignore"):  # beyond float32 it is infinite, as it would be drawn
        return bytes([key]) + np.array(value).astype("<f4").tobytes()


if __name__ == "__main__":
    sys.exit(main())
