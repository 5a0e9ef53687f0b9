"""The transition schema: how values are laid out in a message, and how a message becomes bytes (CDR) and back.

All is `std_msgs/Float64MultiArray`, whose layout names its parts: a *part* is a label and how many values it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np
from numpy.typing import NDArray
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.stores.ros2_jazzy import std_msgs__msg__Float64MultiArray as Float64MultiArray
from rosbags.typesys.stores.ros2_jazzy import std_msgs__msg__MultiArrayDimension as MultiArrayDimension
from rosbags.typesys.stores.ros2_jazzy import std_msgs__msg__MultiArrayLayout as MultiArrayLayout
from rosbags.typesys.stores.ros2_jazzy import std_msgs__msg__String as String

ARRAY = "std_msgs/msg/Float64MultiArray"
STRING = "std_msgs/msg/String"

Layout = tuple[tuple[str, int], ...]
"""Label and number of values of each part, in order."""

STEP_LAYOUT: Layout = tuple((label, 1) for label in ("stamp", "episode", "step", "reward", "terminated", "truncated"))
TRANSITION_LABELS = frozenset(("stamp", "bundle", "observation", "action"))
STEP_LABELS = frozenset(label for label, _ in STEP_LAYOUT)

_TYPESTORE = get_typestore(Stores.ROS2_JAZZY)  # the std_msgs used here are the same in every distribution


def transition_layout(observation_size: int, action_size: int) -> Layout:
    """Return the layout of a transition message."""
    return (("stamp", 1), ("bundle", 1), ("observation", observation_size), ("action", action_size))


def parts(layout: Layout) -> dict[str, slice]:
    """Return where in a message's values each part is, by label."""
    places: dict[str, slice] = {}
    start = 0
    for label, size in layout:
        places[label] = slice(start, start + size)
        start += size
    return places


def values_in(layout: Layout) -> int:
    """Return how many values a message of this layout has."""
    return sum(size for _, size in layout)


def array_prefix(layout: Layout) -> bytes:
    """Return all bytes that come before the values in a serialized message; they are the same in every message."""
    # The parts follow one another, so each one's stride is its own size.
    dimensions = [MultiArrayDimension(label=label, size=size, stride=size) for label, size in layout]
    count = values_in(layout)
    message = Float64MultiArray(layout=MultiArrayLayout(dim=dimensions, data_offset=0), data=np.zeros(count))
    return bytes(_TYPESTORE.serialize_cdr(message, ARRAY))[: -8 * count]


def serialize_string(text: str) -> bytes:
    """Serialize a `std_msgs/String`."""
    return bytes(_TYPESTORE.serialize_cdr(String(data=text), STRING))


def deserialize_string(data: bytes) -> str:
    """Deserialize a `std_msgs/String`.

    Raises:
        ValueError: It is none.
    """
    return cast(String, _deserialize(data, STRING)).data


def deserialize_array(data: bytes) -> tuple[Layout, NDArray[np.float64]]:
    """Deserialize a `std_msgs/Float64MultiArray` into its layout and values.

    Raises:
        ValueError: It is none, or its layout does not fit the number of its values.
    """
    message = cast(Float64MultiArray, _deserialize(data, ARRAY))
    layout = tuple((dimension.label, int(dimension.size)) for dimension in message.layout.dim)
    values = message.data[message.layout.data_offset :]
    if len(values) != values_in(layout):
        raise ValueError(f"its layout names {values_in(layout)} values, and it has {len(values)}")
    return layout, values.astype(np.float64, copy=False)


def deserialize_arrays(messages: list[bytes]) -> tuple[Layout, NDArray[np.float64]]:
    """Deserialize at least one message of one layout into that layout and the values (messages, values).

    Raises:
        ValueError: A message is not a Float64MultiArray, or its layout is another than the first one's.
    """
    layout, first = deserialize_array(messages[0])
    head = len(messages[0]) - first.nbytes
    if messages[0][head:] == first.astype("<f8").tobytes() and len({len(message) for message in messages}) == 1:
        # In nearly every bag only the values differ from message to message: no need to look at each in Python.
        block = np.frombuffer(b"".join(messages), np.uint8).reshape(len(messages), -1)
        if (block[:, :head] == block[0, :head]).all():
            return layout, np.ascontiguousarray(block[:, head:]).view("<f8").astype(np.float64, copy=False)
    rows = np.empty((len(messages), len(first)))
    for index, message in enumerate(messages):
        found, row = deserialize_array(message)
        if found != layout:
            raise ValueError(f"message {index} is laid out as {_describe(found)}, the first one as {_describe(layout)}")
        rows[index] = row
    return layout, rows


def message_definition(message_type: str) -> tuple[str, str]:
    """Return the full definition and the hash (RIHS01) of a message type, as bags hold them."""
    definition, _ = _TYPESTORE.generate_msgdef(message_type, ros_version=2)
    return definition, _TYPESTORE.hash_rihs01(message_type)


def _deserialize(data: bytes, message_type: str) -> object:
    try:
        return _TYPESTORE.deserialize_cdr(data, message_type)
    except Exception as error:  # bytes that are no such message make it raise anything
        raise ValueError(f"a message is not a {message_type}") from error


def _describe(layout: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{label}[{size}]" for label, size in layout)
