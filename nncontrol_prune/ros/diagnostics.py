"""What a node says of itself in `/diagnostics`."""

from __future__ import annotations

from collections.abc import Callable

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node

from nncontrol_prune.ros.callbacks import steady_timer

PERIOD = 1.0
"""Seconds between diagnostics."""

Problem = tuple[bytes, str]
"""Level and sentence."""


def tell_diagnostics(
    node: Node,
    look: Callable[[], tuple[list[Problem], dict[str, object]]],
    now: Callable[[], Time] | None = None,
    group: CallbackGroup | None = None,
) -> None:
    """Say periodically how a node is.

    Args:
        node: The node.
        look: Returns what is wrong, of which the worst decides, and figures by name.
        now: The time; by default that of the node's clock.
        group: That looks belong to.
    """
    publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def tell() -> None:
        problems, values = look()
        status = DiagnosticStatus(
            level=max((level for level, _ in problems), default=DiagnosticStatus.OK),
            name=node.get_fully_qualified_name().lstrip("/"),
            message="; ".join(text for _, text in problems) or "OK",
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        message = DiagnosticArray(status=[status])
        message.header.stamp = node.get_clock().now().to_msg() if now is None else now()
        publisher.publish(message)

    steady_timer(node, PERIOD, "diagnostics", tell, group)
