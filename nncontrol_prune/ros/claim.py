"""One pruning service a controller: the others see its claim and refuse to work."""

from __future__ import annotations

import time
import uuid

from pydantic import BaseModel, ValidationError
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import String

from nncontrol_prune.controllers.specs import problem_of
from nncontrol_prune.ros.callbacks import guarded, steady_timer
from nncontrol_prune.ros.messages import MessageError
from nncontrol_prune.service.pruning_service import ServiceError

PERIOD = 0.5
"""Seconds between claims."""
EXPIRY = 2.0
"""Seconds after which a claim that is not repeated is void."""


class Message(BaseModel):
    """A claim: who works for the controller, and since when; the first one has it."""

    node: str
    since: float
    """Wall clock in s."""
    identity: str


class Claim:
    """Says on `<controller>/pruning_claim` that a pruning service works for a controller, and hears the others.

    Args:
        node: The pruning service's node.
        controller: Name of the controller node.
    """

    def __init__(self, node: Node, controller: str) -> None:
        self._controller = controller
        self._node = node
        self._mine = Message(node=node.get_fully_qualified_name(), since=time.time(), identity=uuid.uuid4().hex)
        self._others: dict[str, tuple[Message, float]] = {}
        self._publisher = node.create_publisher(String, f"{controller}/pruning_claim", QoSProfile(depth=10))
        group = MutuallyExclusiveCallbackGroup()
        node.create_subscription(
            String,
            f"{controller}/pruning_claim",
            guarded(node, "pruning_claim", self._hear),
            QoSProfile(depth=10),
            callback_group=group,
        )
        steady_timer(node, PERIOD, "claim", self._repeat, group)

    def check(self) -> None:
        """Check that no other service has the controller.

        Raises:
            ServiceError: One has, or may have.
        """
        now = time.monotonic()
        others = [other for other, heard in self._others.values() if now - heard < EXPIRY]
        mine = (self._mine.since, self._mine.identity)
        earlier = [other for other in others if (other.since, other.identity) < mine]
        if earlier:
            raise ServiceError(
                f"another pruning service, {earlier[0].node}, works for {self._controller} already; end one of the two"
            )
        topic = self._node.resolve_topic_name(f"{self._controller}/pruning_claim")
        unheard = self._node.count_publishers(topic) - 1 - len(others)
        if time.time() - self._mine.since < EXPIRY and unheard > 0:
            raise ServiceError(f"another pruning service for {self._controller} has been seen; try again in 2 s")

    def _repeat(self) -> None:
        self._publisher.publish(String(data=self._mine.model_dump_json()))

    def _hear(self, message: String) -> None:
        try:
            other = Message.model_validate_json(message.data)
        except ValidationError as error:
            raise MessageError(f"a claim is none: {problem_of(error)}") from error
        if other.identity != self._mine.identity:
            self._others[other.identity] = (other, time.monotonic())
