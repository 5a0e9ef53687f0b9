"""Checking that the controller which takes the commands, a node of ros2_control's, takes them for the same joints."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from rcl_interfaces.srv import GetParameters
from rclpy.client import Client
from rclpy.node import Node
from rclpy.task import Future
from rclpy.timer import Timer

from nncontrol_prune.config import ConfigError
from nncontrol_prune.ros.callbacks import guarded, steady_timer

PATIENCE = 3.0
"""Seconds for which an answer is waited for; a node that does not tell its joints is not checked."""
LOOK = 0.05
"""Seconds between looks at whether it can be asked."""
AGAIN = 1.0
"""Seconds after which it is asked again: what was asked may have ended meanwhile, and another have taken its place."""
QUESTIONS = 10
"""How many of the last ones may still be answered, by a controller that takes its time."""


class CommandJoints:
    """Asks a command controller for its parameter `joints`.

    Args:
        node: The controller node.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._controller = ""
        self._expected: list[str] = []
        self._found: list[str] | None = None
        self._asked = self._sent = -math.inf
        self._client: Client | None = None
        self._timer: Timer | None = None
        self._questions: list[Future] = []

    @property
    def waiting(self) -> bool:
        """Whether the answer may still come."""
        return bool(self._controller) and self._found is None and time.monotonic() - self._asked < PATIENCE

    @property
    def different(self) -> bool:
        """Whether the answer has come, however late, and names other joints."""
        return bool(self._controller) and self._found is not None and self._found != self._expected

    @property
    def problem(self) -> str:
        """What is wrong, or not known, as a sentence; empty if nothing is."""
        if not self._controller or self._found == self._expected:
            return ""
        if self._found is None:
            return f"{self._controller} does not tell its joints, so their order is not checked"
        return f"{self._controller} takes commands for {self._found}, the bundle's are {self._expected}"

    def ask(self, controller: str, joints: Sequence[str]) -> None:
        """Ask, until there is an answer; it comes when it comes.

        Args:
            controller: Name of the command controller; empty not to check.
            joints: The bundle's joints, in the order of the commands.
        """
        self.cease()
        self._controller, self._expected, self._found = controller, list(joints), None
        self._asked, self._sent = time.monotonic(), -math.inf
        if controller:
            self._client = self._node.create_client(GetParameters, f"{controller}/get_parameters")
            self._timer = steady_timer(self._node, LOOK, "joints", self._send)

    def cease(self) -> None:
        """Ask no more; an answer that still comes counts for nothing."""
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
        if self._client is not None:
            self._node.destroy_client(self._client)
        self._timer = self._client = None
        self._questions.clear()

    def _send(self) -> None:
        client = self._client
        if client is None or time.monotonic() - self._sent < AGAIN or not client.service_is_ready():
            return
        if len(self._questions) == QUESTIONS:
            client.remove_pending_request(self._questions.pop(0))
        self._sent = time.monotonic()
        question = client.call_async(GetParameters.Request(names=["joints"]))
        self._questions.append(question)
        question.add_done_callback(guarded(self._node, "joints", self._take))

    def _take(self, answer: Any) -> None:
        if answer not in self._questions:
            return  # another controller was asked that, before
        values = answer.result().values
        self._found = list(values[0].string_array_value) if values else []
        self.cease()

    def check(self) -> None:
        """Check the answer, if there is one.

        Raises:
            ConfigError: The joints are others, or in another order; or the answer may still come.
        """
        if self.waiting:
            raise ConfigError(f"{self._controller} has not told its joints yet; try again in {PATIENCE:g} s")
        if self.different:
            raise ConfigError(self.problem)
