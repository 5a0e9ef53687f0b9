"""Messages read from and written to bytes, against the middleware's own reading of them."""

from __future__ import annotations

import array
import math
import struct
from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from nncontrol_prune.rollouts.schema import Layout, transition_layout, values_in
from nncontrol_prune.ros import serialized
from nncontrol_prune.ros.messages import time_of
from nncontrol_prune.ros.serialized import MOST_LAYOUTS, ArrayWriter, Joints, JointStateReader

NAMES = ("a", "slider", "left_knee_joint", "ä", "")


def state(names: Sequence[str], *values: Sequence[float], stamp: float = 0.0, frame: str = "") -> bytes:
    message = JointState(name=list(names))
    message.header.stamp = time_of(stamp)
    message.header.frame_id = frame
    for field, numbers in zip(("position", "velocity", "effort"), values, strict=False):
        setattr(message, field, array.array("d", numbers))
    return bytes(serialize_message(message))


def by_the_middleware(data: bytes) -> Joints:
    message = deserialize_message(data, JointState)
    stamp = message.header.stamp
    fields = (message.name, message.position, message.velocity, message.effort)
    return Joints(stamp.sec + 1e-9 * stamp.nanosec, *(tuple(field) for field in fields))


@pytest.fixture
def reader() -> JointStateReader:
    return JointStateReader()


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the middleware read nothing more."""

    def read(data: bytes, message_type: type) -> None:
        raise AssertionError("the middleware was asked")

    monkeypatch.setattr(serialized, "deserialize_message", read)


def test_messages_of_all_shapes_are_read_as_the_middleware_reads_them(
    reader: JointStateReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        names = [NAMES[at] for at in rng.permutation(len(NAMES))[: rng.integers(0, 6)]]
        sizes = [int(rng.integers(0, 2)) * len(names) for _ in range(3)]
        frame = "f" * int(rng.integers(0, 6))
        with monkeypatch.context() as context:
            for _ in range(3):
                values = [rng.normal(size=size) for size in sizes]
                data = state(names, *values, stamp=float(rng.integers(0, 10**9)) + 0.25, frame=frame)
                assert reader.read(data) == by_the_middleware(data)
                forbid(context)  # the next has the same layout


def test_no_number_and_infinity_come_through(reader: JointStateReader, monkeypatch: pytest.MonkeyPatch) -> None:
    reader.read(state(["a"], [math.nan], [math.inf]))
    forbid(monkeypatch)
    joints = reader.read(state(["a"], [math.inf], [math.nan]))
    assert joints.position == (math.inf,)
    assert math.isnan(joints.velocity[0])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (state(["a", "b"], [1.0, 2.0]), state(["b", "a"], [1.0, 2.0])),
        (state(["a"], [1.0, 2.0], [3.0]), state(["a"], [1.0], [2.0, 3.0])),
        (state(["a"], [1.0], [2.0, 3.0], [4.0]), state(["a"], [1.0], [2.0], [3.0, 4.0])),
        (state(["a"], [1.0], frame="x"), state(["a"], [1.0], frame="y")),
        (state(["ab"], [1.0], frame="x"), state(["a"], [1.0], frame="xy")),
    ],
    ids=["order", "positions", "velocities", "frame", "names and frame"],
)
def test_a_message_of_the_same_length_that_says_something_else_is_noticed(
    reader: JointStateReader, first: bytes, second: bytes
) -> None:
    assert len(first) == len(second)
    for data in (first, second, first):
        assert reader.read(data) == by_the_middleware(data)


def test_two_publishers_in_turns_are_both_remembered(reader: JointStateReader, monkeypatch: pytest.MonkeyPatch) -> None:
    robot, gripper = state(["hip", "knee"], [1.0, 2.0], [3.0, 4.0]), state(["finger"], [5.0])
    expected = [reader.read(robot), reader.read(gripper)]
    forbid(monkeypatch)
    assert [reader.read(robot), reader.read(gripper)] == expected


def test_publishers_without_end_fill_no_memory(reader: JointStateReader) -> None:
    for number in range(1, 5 * MOST_LAYOUTS):
        reader.read(state(["joint"] * number, [0.0] * number))
    assert len(reader._layouts) <= MOST_LAYOUTS


def test_bytes_of_another_order_are_left_to_the_middleware(reader: JointStateReader) -> None:
    for angle in (1.5, -2.5):
        data = b"\0\0\0\0" + _big_endian(7, 500_000_000, "a", angle)
        assert reader.read(data) == Joints(7.5, ("a",), (angle,), (), ())


def _big_endian(sec: int, nanosec: int, name: str, angle: float) -> bytes:
    frame = struct.pack(">Ix3x", 1)  # an empty text, and padding
    names = struct.pack(">II", 1, len(name) + 1) + name.encode() + b"\0\0\0"
    position = struct.pack(">I", 1)
    head = struct.pack(">iI", sec, nanosec) + frame + names + position
    head += b"\0" * (-len(head) % 8)
    return head + struct.pack(">dII", angle, 0, 0)


@pytest.mark.parametrize("data", [b"", b"\0\1", b"\0\1\0\0", b"\0\1\0\0" + b"\xff" * 60])
def test_what_is_no_joint_state_raises_and_is_not_remembered(reader: JointStateReader, data: bytes) -> None:
    with pytest.raises(Exception, match=".+"):
        reader.read(data)
    good = state(["a"], [1.0])
    assert reader.read(good) == by_the_middleware(good)


@pytest.mark.parametrize("data", [b"", b"\0\1\0"])
def test_less_than_a_header_never_reaches_the_middleware(
    reader: JointStateReader, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nncontrol_prune.ros.serialized.deserialize_message", lambda *_: pytest.fail("it did"))
    with pytest.raises(ValueError, match=f"a message of {len(data)} bytes is no joint state"):
        reader.read(data)


class Publisher:
    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def publish(self, message: bytes) -> None:
        self.sent.append(message)


@pytest.mark.parametrize(("layout", "count"), [((), 1), ((), 7), (transition_layout(5, 2), None)])
def test_arrays_are_written_as_the_middleware_reads_them(layout: Layout, count: int | None) -> None:
    publisher = Publisher()
    writer = ArrayWriter(publisher, layout, count)
    writer.repeat()
    assert publisher.sent == [], "nothing was published yet"
    values = np.random.default_rng(0).normal(size=count or values_in(layout))
    writer.publish(values)
    values_sent = values.tolist()
    values[:] = 0.0
    writer.repeat()
    for data in publisher.sent:
        message = deserialize_message(data, Float64MultiArray)
        assert message.data.tolist() == values_sent
        assert tuple((dimension.label, dimension.size) for dimension in message.layout.dim) == layout
    assert len(publisher.sent) == 2


def test_a_middleware_that_writes_arrays_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialized, "serialize_message", lambda message: bytes(serialize_message(message)) + b"\0" * 4)
    with pytest.raises(RuntimeError, match="more behind the values"):
        ArrayWriter(Publisher(), (), 1)
