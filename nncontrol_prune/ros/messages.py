"""Conversions between messages and what the package works with."""

from __future__ import annotations

import array
from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from pydantic import ValidationError
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Float64MultiArray, MultiArrayDimension, MultiArrayLayout, UInt8MultiArray

from nncontrol_prune.controllers.bundle import MANIFEST, Bundle
from nncontrol_prune.controllers.errors import BundleError
from nncontrol_prune.controllers.specs import BUNDLE_FILES, problem_of
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.rollouts.schema import STEP_LAYOUT, Layout, parts, values_in

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL, reliability=ReliabilityPolicy.RELIABLE)
"""For states: who subscribes late is sent the last one."""
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
"""For measurements: takes them from reliable and unreliable publishers alike, and keeps none but the newest."""
COMMAND = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)

NOT_MEASURED = -1.0
"""What the first entry of a covariance is where an IMU does not measure the quantity; see `sensor_msgs/Imu`."""

DIGEST, VERDICT = "digest", "verdict.json"
"""What a parcel holds beside the files of a bundle."""


class MessageError(Exception):
    """A message is not what its topic is for; the message of this says why."""


def seconds(stamp: Time) -> float:
    """Return a stamp in seconds."""
    return float(stamp.sec + 1e-9 * stamp.nanosec)


def time_of(stamp: float) -> Time:
    """Return seconds as a stamp."""
    nanoseconds = round(stamp * 1e9)
    return Time(sec=nanoseconds // 1_000_000_000, nanosec=nanoseconds % 1_000_000_000)


def array_of(layout: Layout) -> Float64MultiArray:
    """Return a message with this layout and zeros for its values."""
    dimensions = [MultiArrayDimension(label=label, size=size, stride=size) for label, size in layout]
    data = array.array("d", bytes(8 * values_in(layout)))
    return Float64MultiArray(layout=MultiArrayLayout(dim=dimensions), data=data)


def layout_of(message: Float64MultiArray | UInt8MultiArray) -> Layout:
    """Return the parts that a message's layout names."""
    return tuple((dimension.label, dimension.size) for dimension in message.layout.dim)


def doubles(values: NDArray[np.float64]) -> array.array[float]:
    """Return values as messages take them without looking at each."""
    return array.array("d", values.tobytes())


def labelled(message: Float64MultiArray) -> dict[str, Sequence[float]]:
    """Return the parts of a message by their labels.

    Raises:
        MessageError: Its layout names another number of values than it has.
    """
    layout = layout_of(message)
    if values_in(layout) != len(message.data):
        raise MessageError(f"its layout names {values_in(layout)} values, and it has {len(message.data)}")
    return {label: message.data[place] for label, place in parts(layout).items()}


def step_of(message: Float64MultiArray) -> dict[str, float]:
    """Return what the simulator says of a step, by the labels of `STEP_LAYOUT`.

    Raises:
        MessageError: It says something else.
    """
    layout = layout_of(message)
    if layout != STEP_LAYOUT:
        raise MessageError(f"a step has one value each of {', '.join(label for label, _ in STEP_LAYOUT)}, not {layout}")
    return {label: float(values[0]) for label, values in labelled(message).items()}


def parcel_of(bundle: Bundle, verdict: Verdict | None) -> UInt8MultiArray:
    """Pack a bundle, and what the gate said of it, into one message: a dimension a file, one file after the other."""
    files = {DIGEST: bundle.digest.encode(), MANIFEST: bundle.files[MANIFEST]}
    files.update({name: bundle.files[name] for name in BUNDLE_FILES})
    if verdict is not None:
        files[VERDICT] = verdict.model_dump_json().encode()
    dimensions = [MultiArrayDimension(label=name, size=len(data), stride=len(data)) for name, data in files.items()]
    return UInt8MultiArray(layout=MultiArrayLayout(dim=dimensions), data=array.array("B", b"".join(files.values())))


def contents_of(message: UInt8MultiArray) -> tuple[str, dict[str, bytes], Verdict | None]:
    """Unpack a message into the digest it announces, the files of a bundle, not yet checked, and a verdict.

    Raises:
        BundleError: It is no such message.
    """
    data = bytes(message.data)
    layout = layout_of(message)
    if values_in(layout) != len(data):
        raise BundleError(f"the message's layout names {values_in(layout)} bytes, and it has {len(data)}")
    files = {label: data[place] for label, place in parts(layout).items()}
    digest = files.pop(DIGEST, b"").decode(errors="replace")
    verdict = files.pop(VERDICT, None)
    unknown = set(files) - {MANIFEST, *BUNDLE_FILES}
    if unknown:
        raise BundleError(f"the message holds {', '.join(sorted(unknown))}, which no bundle has")
    try:
        return digest, files, None if verdict is None else Verdict.model_validate_json(verdict)
    except ValidationError as error:
        raise BundleError(f"the verdict that came with the bundle is none: {problem_of(error)}") from error
