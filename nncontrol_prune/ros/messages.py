"""Conversions between messages and what the package works with."""

from __future__ import annotations

import array
from collections.abc import Mapping, Sequence

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from numpy.typing import NDArray
from pydantic import ValidationError
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Float64MultiArray, MultiArrayDimension, MultiArrayLayout, UInt8MultiArray

from nncontrol_prune.controllers.bundle import MANIFEST, Bundle
from nncontrol_prune.controllers.errors import BundleError
from nncontrol_prune.controllers.specs import BUNDLE_FILES, problem_of
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.rollouts.schema import STEP_LAYOUT, Layout

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL, reliability=ReliabilityPolicy.RELIABLE)
"""For states: who subscribes late is sent the last one."""
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
"""For measurements: takes them from reliable and unreliable publishers alike, and keeps none but the newest."""
COMMAND = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)

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
    count = sum(size for _, size in layout)
    return Float64MultiArray(layout=MultiArrayLayout(dim=dimensions), data=array.array("d", bytes(8 * count)))


def doubles(values: NDArray[np.float64]) -> array.array[float]:
    """Return values as messages take them without looking at each."""
    return array.array("d", values.tobytes())


def labelled(message: Float64MultiArray) -> dict[str, Sequence[float]]:
    """Return the parts of a message by their labels.

    Raises:
        MessageError: Its layout names another number of values than it has.
    """
    parts: dict[str, Sequence[float]] = {}
    start = 0
    for dimension in message.layout.dim:
        parts[dimension.label] = message.data[start : start + dimension.size]
        start += dimension.size
    if start != len(message.data):
        raise MessageError(f"its layout names {start} values, and it has {len(message.data)}")
    return parts


def step_of(message: Float64MultiArray) -> dict[str, float]:
    """Return what the simulator says of a step, by the labels of `STEP_LAYOUT`.

    Raises:
        MessageError: It says something else.
    """
    layout = tuple((dimension.label, dimension.size) for dimension in message.layout.dim)
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
    files: dict[str, bytes] = {}
    start = 0
    for dimension in message.layout.dim:
        files[dimension.label] = data[start : start + dimension.size]
        start += dimension.size
    if start != len(data):
        raise BundleError(f"the message's layout names {start} bytes, and it has {len(data)}")
    digest = files.pop(DIGEST, b"").decode(errors="replace")
    verdict = files.pop(VERDICT, None)
    unknown = set(files) - {MANIFEST, *BUNDLE_FILES}
    if unknown:
        raise BundleError(f"the message holds {', '.join(sorted(unknown))}, which no bundle has")
    try:
        return digest, files, None if verdict is None else Verdict.model_validate_json(verdict)
    except ValidationError as error:
        raise BundleError(f"the verdict that came with the bundle is none: {problem_of(error)}") from error


def diagnostics(
    stamp: Time, name: str, problems: Sequence[tuple[bytes, str]], values: Mapping[str, object]
) -> DiagnosticArray:
    """Return a node's diagnostics.

    Args:
        stamp: When.
        name: Of the node.
        problems: Level and sentence of each; the worst decides, and OK is said where there are none.
        values: Figures by name.
    """
    level = max((level for level, _ in problems), default=DiagnosticStatus.OK)
    status = DiagnosticStatus(
        level=level,
        name=name,
        message="; ".join(text for _, text in problems) or "OK",
        hardware_id="",
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )
    array_message = DiagnosticArray(status=[status])
    array_message.header.stamp = stamp
    return array_message
