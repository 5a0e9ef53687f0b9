"""Checking that the controller which takes the commands, a node of ros2_control's, takes them for the same joints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rcl_interfaces.srv import GetParameters
from rclpy.node import Node

from nncontrol_prune.config import ConfigError
from nncontrol_prune.ros.callbacks import guarded, steady_timer

PATIENCE = 3.0
"""Seconds for which an answer is waited for; a node that does not tell its joints is not checked."""


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
        self._asked = 0.0

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
        """Ask; the answer comes when it comes.

        Args:
            controller: Name of the command controller; empty not to check.
            joints: The bundle's joints, in the order of the commands.
        """
        self._controller, self._expected, self._found = controller, list(joints), None
        self._asked = time.monotonic()
        if not controller:
            return
        client = self._node.create_client(GetParameters, f"{controller}/get_parameters")

        def answered(future: Any) -> None:
            values = future.result().values
            self._found = list(values[0].string_array_value) if values else []
            self._node.destroy_client(client)

        def send() -> None:
            if client.service_is_ready():
                self._node.destroy_timer(timer)
                future = client.call_async(GetParameters.Request(names=["joints"]))
                future.add_done_callback(guarded(self._node, "joints", answered))

        timer = steady_timer(self._node, 0.05, "joints", send)

    def check(self) -> None:
        """Check the answer, if there is one.

        Raises:
            ConfigError: The joints are others, or in another order; or the answer may still come.
        """
        if self.waiting:
            raise ConfigError(f"{self._controller} has not told its joints yet; try again in {PATIENCE:g} s")
        if self.different:
            raise ConfigError(self.problem)
