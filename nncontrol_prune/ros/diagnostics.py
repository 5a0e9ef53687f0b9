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


class Rivals:
    """Problems with other nodes, each of which is logged, too, when it comes up.

    Args:
        node: The node that has them.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._told: list[str] = []

    def problems(self, rivals: list[str]) -> list[Problem]:
        """Return sentences as problems; those that were not among the last ones are logged."""
        for rival in rivals:
            if rival not in self._told:
                self._node.get_logger().warning(rival)
        self._told = rivals
        return [(DiagnosticStatus.WARN, rival) for rival in rivals]


def publishers_of(node: Node, topic: str) -> list[str]:
    """Return the full names of the nodes that publish on a topic; one that does so twice is named twice."""
    return sorted(
        f"{publisher.node_namespace.rstrip('/')}/{publisher.node_name}"
        for publisher in node.get_publishers_info_by_topic(topic)
    )


def rival_clocks(node: Node) -> list[str]:
    """Return that several nodes tell the time, as a sentence, or nothing: two plants are mixed up then."""
    clocks = publishers_of(node, "/clock")
    if len(clocks) < 2:
        return []
    return [
        f"{' and '.join(clocks)} publish /clock, so two simulations are mixed up; end one of them, or give it "
        "another ROS_DOMAIN_ID"
    ]
