"""States on topics: told when they change, and again every second."""

from __future__ import annotations

import math
import time
from typing import Any

from rclpy.node import Node

from nncontrol_prune.ros.messages import LATCHED

PERIOD = 1.0
"""Seconds after which a state that has not changed is told again."""


class StatePublisher:
    """Publishes a state that is looked at again and again.

    It is repeated for who has heard another node of this name since, and for plots, which draw slopes from one message
    to the next.

    Args:
        node: The node.
        message_type: Of the topic.
        topic: The topic.
    """

    def __init__(self, node: Node, message_type: type, topic: str) -> None:
        self._publisher = node.create_publisher(message_type, topic, LATCHED)
        self._told: Any = None
        self._at = -math.inf

    def tell(self, message: Any) -> None:
        """Publish a message unless it was published within the last second."""
        now = time.monotonic()
        if message != self._told or now - self._at >= PERIOD:
            self._told, self._at = message, now
            self._publisher.publish(message)
