"""What the log says of the commands: when the safe one takes their place and why, and when it does no more."""

from __future__ import annotations

import math
import time

from rclpy.node import Node

from nncontrol_prune.ros.loop_runner import LoopRunner

CALM = 1.0
"""Seconds without the safe command after which the controller's are said to be sent again; so the log stays short where
they come in turns."""


WAIT, AGAIN = 3.0, 10.0
"""Seconds after which it is told that nothing is commanded, since no state has come that can be acted on; and after
which it is told again, if there is another reason."""


class CommandLog:
    """Looks at a loop now and then, and logs once that the safe command is sent, and once that it is no more.

    Before the first state that can be acted on, nothing is sent at all; that is logged, too, if it takes long.

    Args:
        runner: Runs the loop, which has begun.
        node: The controller node.
    """

    def __init__(self, runner: LoopRunner, node: Node) -> None:
        self._runner = runner
        self._node = node
        self._stale = self._unsound = self._faults = 0
        self._told = False
        self._absence, self._due = "", time.monotonic() + WAIT
        self._last = -math.inf

    def look(self) -> None:
        """Log what has changed since the last look."""
        now = time.monotonic()
        self._look_for_first(now)
        reason = self._reason()
        if reason:
            self._last = now
        if reason and not self._told:
            self._node.get_logger().error(f"the safe command is sent: {reason}")
            self._told = True
        elif self._told and now - self._last > CALM:
            self._node.get_logger().info("the controller's commands are sent again")
            self._told = False

    def _look_for_first(self, now: float) -> None:
        link = self._runner.link
        if link.last_state > -math.inf:
            if self._absence:
                self._node.get_logger().info("the first joint states that can be acted on have come")
                self._absence = ""
        elif now > self._due and (reason := link.problem or link.absence) != self._absence:
            self._node.get_logger().warning(f"nothing is commanded: {reason}")
            self._absence, self._due = reason, now + AGAIN

    def _reason(self) -> str:
        """Return why the safe command was sent since the last look; empty if it was not."""
        loop, link = self._runner.loop, self._runner.link
        if loop is None:
            return ""
        stale, unsound, faults = loop.stale - self._stale, loop.unsound - self._unsound, loop.faults - self._faults
        self._stale, self._unsound, self._faults = loop.stale, loop.unsound, loop.faults
        if faults:
            return "the controller gave an action that is no number"
        if stale or unsound or (loop.statistics.ticks and not loop.commanding):
            return link.problem or "no joint states that can be acted on are coming"
        return ""
