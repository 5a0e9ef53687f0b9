"""Joint states and arrays of doubles straight from and to a message's bytes (CDR), for the loop and its plant.

rclpy makes a Python object of each field of a message, through setters that look at every value. In messages that
come again and again only the numbers differ, and where these are follows from one message.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rclpy.publisher import Publisher
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import JointState

from nncontrol_prune.rollouts.schema import Layout, values_in
from nncontrol_prune.ros.messages import array_of, doubles, seconds

HEAD = 4
"""Bytes that tell how the rest is written; alignment counts from behind them."""
STAMP_END = 12
"""Where the stamp, of two numbers of four bytes, ends."""
MOST_LAYOUTS = 8
"""Layouts remembered at a time: of publishers whose messages come in turns."""


class Joints(NamedTuple):
    """What a `sensor_msgs/JointState` says."""

    stamp: float
    """In s."""
    names: tuple[str, ...]
    position: tuple[float, ...]
    """In rad or m, a value a joint or none, as those that follow."""
    velocity: tuple[float, ...]
    effort: tuple[float, ...]


class JointStateReader:
    """Reads serialized joint states; those that are laid out as one before them in a few microseconds."""

    def __init__(self) -> None:
        self._layouts: dict[int, _JointStateLayout] = {}

    def read(self, data: bytes) -> Joints:
        """Return what a message says.

        Args:
            data: The message as it came.

        Raises:
            Exception: It is no such message; which one the middleware decides.
        """
        layout = self._layouts.get(len(data))
        joints = None if layout is None else layout.read(data)
        return self._learn(data) if joints is None else joints

    def _learn(self, data: bytes) -> Joints:
        if len(data) < HEAD:  # Cyclone DDS would read behind their end, and may crash
            raise ValueError(f"a message of {len(data)} bytes is no joint state: {HEAD} tell how the rest is written")
        message = deserialize_message(data, JointState)
        joints = Joints(
            seconds(message.header.stamp),
            tuple(message.name),
            tuple(message.position),
            tuple(message.velocity),
            tuple(message.effort),
        )
        self._layouts.pop(len(data), None)
        if len(self._layouts) >= MOST_LAYOUTS:
            self._layouts.clear()
        layout = _JointStateLayout(data, message.header.frame_id, joints)
        # Compared as text, in which NaN is like NaN. Bytes of another order or alignment are left to the middleware.
        if repr(layout.read(data)) == repr(joints):
            self._layouts[len(data)] = layout
        return joints


class _JointStateLayout:
    """Where the numbers of a message are, and what else it holds."""

    def __init__(self, data: bytes, frame: str, joints: Joints) -> None:
        self._names = joints.names
        end = STAMP_END
        for text in (frame, None, *joints.names):  # None stands for the number of names
            end = _aligned(end, 4) + 4 + (0 if text is None else len(text.encode()) + 1)
        end = _aligned(end, 4)
        self._start, self._fixed = data[:HEAD], data[STAMP_END:end]
        self._end = end
        self._counts = len(joints.position), len(joints.velocity), len(joints.effort)
        form, at = f"<{HEAD}xiI{end - STAMP_END}x", end
        for count in self._counts:
            padding = _aligned(at + 4, 8) - (at + 4) if count else 0
            form += f"I{padding}x{count}d"
            at += 4 + padding + 8 * count
        self._numbers = struct.Struct(form)

    def read(self, data: bytes) -> Joints | None:
        """Return what a message of the same length says; None if more than the numbers differs."""
        if data[STAMP_END : self._end] != self._fixed or data[:HEAD] != self._start or len(data) < self._numbers.size:
            return None
        numbers = self._numbers.unpack_from(data)
        positions, velocities, _ = self._counts
        velocity = 3 + positions
        effort = velocity + 1 + velocities
        if (numbers[2], numbers[velocity], numbers[effort]) != self._counts:
            return None
        return Joints(
            numbers[0] + 1e-9 * numbers[1],
            self._names,
            numbers[3:velocity],
            numbers[velocity + 1 : effort],
            numbers[effort + 1 :],
        )


class ArrayWriter:
    """Publishes `std_msgs/Float64MultiArray` of one layout; only the values, at their end, differ.

    Args:
        publisher: Where to.
        layout: What the messages' layout names; empty for messages that name nothing.
        count: How many values a message has; by default as many as the layout names.

    Raises:
        RuntimeError: The middleware writes such messages in another way.
    """

    def __init__(self, publisher: Publisher, layout: Layout, count: int | None = None) -> None:
        self._publisher = publisher
        message = array_of(layout)
        values = np.arange(1.0, 1.0 + (values_in(layout) if count is None else count))
        message.data = doubles(values)
        data = serialize_message(message)
        self._prefix = data[: len(data) - values.nbytes]
        if not data.endswith(values.tobytes()):
            raise RuntimeError("the middleware writes more behind the values of an array, so none can be published")
        self._sent: bytes | None = None

    def publish(self, values: NDArray[np.float64]) -> None:
        """Publish these values (count,)."""
        self._sent = self._prefix + values.tobytes()
        self._publisher.publish(self._sent)

    def repeat(self) -> None:
        """Publish what was published last, if anything was."""
        if self._sent is not None:
            self._publisher.publish(self._sent)


def _aligned(place: int, size: int) -> int:
    """Return the next place where a number of that many bytes may be."""
    return HEAD + -(-(place - HEAD) // size) * size
