from __future__ import annotations

import struct

import numpy as np
import pytest
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.stores.ros2_humble import std_msgs__msg__Float64MultiArray as Float64MultiArray
from rosbags.typesys.stores.ros2_humble import std_msgs__msg__MultiArrayDimension as MultiArrayDimension
from rosbags.typesys.stores.ros2_humble import std_msgs__msg__MultiArrayLayout as MultiArrayLayout

from nncontrol_prune.rollouts.schema import (
    ARRAY,
    array_prefix,
    deserialize_array,
    deserialize_arrays,
    deserialize_string,
    message_definition,
    parts,
    serialize_string,
    transition_layout,
)

TYPESTORE = get_typestore(Stores.ROS2_HUMBLE)  # not the one the package uses


def serialize(
    layout: tuple[tuple[str, int], ...], values: np.ndarray, *, little: bool = True, offset: int = 0
) -> bytes:
    dimensions = [MultiArrayDimension(label, size, len(values)) for label, size in layout]
    message = Float64MultiArray(MultiArrayLayout(dimensions, offset), values)
    return bytes(TYPESTORE.serialize_cdr(message, ARRAY, little_endian=little))


@pytest.mark.parametrize(("observation_size", "action_size"), [(1, 1), (5, 1), (17, 6)])
def test_prefix_and_values_are_a_message(observation_size: int, action_size: int) -> None:
    layout = transition_layout(observation_size, action_size)
    values = np.random.default_rng(0).normal(size=2 + observation_size + action_size)
    message = TYPESTORE.deserialize_cdr(array_prefix(layout) + values.tobytes(), ARRAY)
    np.testing.assert_array_equal(message.data, values)
    assert [(dimension.label, dimension.size) for dimension in message.layout.dim] == list(layout)
    assert message.layout.data_offset == 0


def test_parts_follow_one_another() -> None:
    assert parts(transition_layout(3, 2)) == {
        "stamp": slice(0, 1),
        "bundle": slice(1, 2),
        "observation": slice(2, 5),
        "action": slice(5, 7),
    }


@pytest.mark.parametrize("little", [True, False])
def test_messages_of_other_writers_are_read(little: bool) -> None:
    layout = (("stamp", 1), ("observation", 3))
    rows = np.random.default_rng(0).normal(size=(5, 4))
    found, values = deserialize_arrays([serialize(layout, row, little=little) for row in rows])
    assert found == layout
    np.testing.assert_array_equal(values, rows)


def test_data_offset_is_respected() -> None:
    rows = np.arange(8.0).reshape(2, 4)
    layout, values = deserialize_arrays([serialize((("stamp", 3),), row, offset=1) for row in rows])
    assert layout == (("stamp", 3),)
    np.testing.assert_array_equal(values, rows[:, 1:])


def test_nan_survives() -> None:
    rows = np.array([[np.nan, 1.0], [2.0, np.nan]])
    _, values = deserialize_arrays([serialize((("stamp", 2),), row) for row in rows])
    np.testing.assert_array_equal(values, rows)


def test_changing_layout_is_refused() -> None:
    messages = [serialize((("stamp", 1), ("action", size)), np.zeros(1 + size)) for size in (2, 3)]
    with pytest.raises(ValueError, match=r"message 1 is laid out as stamp\[1\], action\[3\], the first one as"):
        deserialize_arrays(messages)


def test_layout_that_does_not_fit_the_values_is_refused() -> None:
    with pytest.raises(ValueError, match="names 5 values, and it has 4"):
        deserialize_array(serialize((("stamp", 5),), np.zeros(4)))


@pytest.mark.parametrize("data", [b"", b"\x00\x01\x00\x00", struct.pack("<I", 1) * 10])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="is not a std_msgs/msg/Float64MultiArray"):
        deserialize_array(data)


def test_strings_survive() -> None:
    assert deserialize_string(serialize_string("3 größe@0123")) == "3 größe@0123"


def test_definitions_hold_all_parts() -> None:
    definition, type_hash = message_definition(ARRAY)
    assert "MSG: std_msgs/MultiArrayDimension" in definition
    assert type_hash == TYPESTORE.hash_rihs01(ARRAY)
