"""Event files hold a run's metrics to the last record, as protocol buffers' own reader finds them."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from registry_fixtures import make_spec

from experiments.registry import HOME_VARIABLE, Registry
from experiments.run import Run
from tools import tensorboard_events

FIELD = descriptor_pb2.FieldDescriptorProto


def event_class() -> Any:
    """Return the part of tensorflow.Event that matters, as TensorFlow's event.proto and summary.proto number it."""
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="tensorflow")
    fields = {
        "Value": [("tag", 1, FIELD.TYPE_STRING, ""), ("simple_value", 2, FIELD.TYPE_FLOAT, "")],
        "Summary": [("value", 1, FIELD.TYPE_MESSAGE, "Value")],
        "Event": [
            ("wall_time", 1, FIELD.TYPE_DOUBLE, ""), ("step", 2, FIELD.TYPE_INT64, ""),
            ("file_version", 3, FIELD.TYPE_STRING, ""), ("summary", 5, FIELD.TYPE_MESSAGE, "Summary"),
        ],
    }  # fmt: skip
    for message, rows in fields.items():
        added = file.message_type.add(name=message)
        for name, number, kind, of in rows:
            label = FIELD.LABEL_REPEATED if of == "Value" else FIELD.LABEL_OPTIONAL
            field = added.field.add(name=name, number=number, type=kind, label=label)
            if of:
                field.type_name = f".tensorflow.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Event"))


def masked_crc(data: bytes) -> int:
    """CRC-32C bit by bit (RFC 3720, reflected polynomial 0x82f63b78), masked as TFRecord does."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def read_events(path: Path) -> list[Any]:
    content, found, event = path.read_bytes(), [], event_class()
    while content:
        length, crc = struct.unpack("<QI", content[:12])
        data, rest = content[12 : 12 + length], content[12 + length :]
        assert crc == masked_crc(content[:8])
        assert rest[:4] == struct.pack("<I", masked_crc(data))
        found.append(event.FromString(data))
        content = rest[4:]
    return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return Registry(tmp_path / "home").create(make_spec())


def test_every_record_of_every_attempt_is_one_event(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (run.claim_attempt({"intent": 1, "group": 0}) for _ in range(2))
    for step in (1, 200):
        first.append("metrics", {"step": step, "split": "train", "loss": 1 / step, "samples": 4 * step})
    second.append("metrics", {"step": 200, "split": "train", "loss": math.nan, "samples": 800})
    second.append("metrics", {"step": 3 << 40, "split": "val", "loss": 1e60})
    assert tensorboard_events.main([run.id, "--out", str(tmp_path / "out")]) == 0
    path = Path(capsys.readouterr().out.strip())
    version, *events = read_events(path)
    assert path.parent == tmp_path / "out" / "clip" / run.folder.name and "tfevents" in path.name
    assert version.file_version == "brain.Event:2"
    assert [event.step for event in events] == [1, 200, 3 << 40]
    assert [event.wall_time for event in events] == [record["time"] for record in run.metrics()]
    values = [{value.tag: value.simple_value for value in event.summary.value} for event in events]
    assert values[0] == {"train/loss": 1.0, "train/samples": 4.0}
    assert math.isnan(values[1]["train/loss"]) and values[1]["train/samples"] == 800.0
    assert values[2] == {"val/loss": math.inf}


def test_writing_again_replaces(run: Run, tmp_path: Path) -> None:
    attempt = run.claim_attempt({"intent": 1, "group": 0})
    for step in (10, 20):
        attempt.append("metrics", {"step": step, "split": "train", "loss": 1.0})
        path = tensorboard_events.write(run, tmp_path / "out")
    assert [event.step for event in read_events(path)[1:]] == [10, 20]
    assert list(path.parent.iterdir()) == [path]


def test_a_run_without_metrics_is_an_error_of_the_user(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tensorboard_events.main([run.id, "--out", str(tmp_path / "out")]) == tensorboard_events.USER_ERROR
    assert "no metrics" in capsys.readouterr().err
