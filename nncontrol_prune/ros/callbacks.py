"""Callbacks that cannot take the node down: what goes wrong in them is logged, and answered where somebody waits."""

from __future__ import annotations

import functools
import math
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.timer import Timer

from nncontrol_prune.config import ConfigError
from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.rollouts.errors import RolloutError
from nncontrol_prune.ros.messages import MessageError

EXPECTED: tuple[type[Exception], ...] = (ConfigError, ControllerError, MessageError, RolloutError)
"""What goes wrong with what a user asks for, or another node sends: the message is the answer."""

Response = TypeVar("Response")
REPEAT = 2.0
"""Seconds between log lines that say the same."""


def guarded(node: Node, what: str, function: Callable[..., object]) -> Callable[..., None]:
    """Wrap the callback of a topic or a timer: what it raises is logged, and the node goes on."""
    told, at = "", -math.inf

    @functools.wraps(function)
    def call(*args: Any) -> None:
        nonlocal told, at
        try:
            function(*args)
        except Exception as error:  # a fault, of ours or of who sent something, must not take the node down with it
            if not node.context.ok():
                return  # the node ends while this runs
            text = f"{what}: {error if isinstance(error, EXPECTED) else explained(error)}"
            now = time.monotonic()
            if text != told or now - at > REPEAT:
                told, at = text, now
                node.get_logger().error(text)

    return call


def steady_timer(
    node: Node, period: float, what: str, function: Callable[[], object], group: CallbackGroup | None = None
) -> Timer:
    """Call a function periodically on the monotonic clock: a simulated one may stand still, or run fast.

    Args:
        node: The node.
        period: Seconds.
        what: What the function does, for the log of what it raises.
        function: The function.
        group: The node's own by default.
    """
    clock = Clock(clock_type=ClockType.STEADY_TIME)
    return node.create_timer(period, guarded(node, what, function), clock=clock, callback_group=group)


def answering(
    node: Node, what: str, function: Callable[[Any], str], expected: tuple[type[Exception], ...] = ()
) -> Callable[[Any, Response], Response]:
    """Wrap the callback of a service whose answer has `success` and `message`.

    Args:
        node: The node.
        what: What is asked for, for the log.
        function: Takes the request and returns the message of a success.
        expected: Exceptions, beside `EXPECTED`, whose message is the answer.
    """

    def call(request: Any, response: Any) -> Any:
        try:
            response.message = function(request)
            response.success = True
            node.get_logger().info(f"{what}: {response.message}")
        except (*EXPECTED, *expected) as error:
            response.success, response.message = False, str(error)
            node.get_logger().warning(f"{what} refused: {error}")
        except Exception as error:  # as above; whoever asked has to hear of it
            response.success, response.message = False, f"internal error: {type(error).__name__}: {error}"
            node.get_logger().error(f"{what}: {explained(error)}")
        return response

    return call


def setting(
    node: Node, function: Callable[[list[Parameter]], None]
) -> Callable[[Iterable[Parameter]], SetParametersResult]:
    """Wrap the callback that parameters are set by; what it raises refuses them."""

    def call(parameters: Iterable[Parameter]) -> SetParametersResult:
        try:
            function(list(parameters))
        except EXPECTED as error:
            node.get_logger().warning(f"parameters refused: {error}")
            return SetParametersResult(successful=False, reason=str(error))
        except Exception as error:  # escaping, it would kill the node and leave the client waiting
            node.get_logger().error(f"parameters: {explained(error)}")
            return SetParametersResult(successful=False, reason=f"internal error: {type(error).__name__}: {error}")
        return SetParametersResult(successful=True)

    return call


def transition(node: Node, what: str, function: Callable[[], None]) -> TransitionCallbackReturn:
    """Carry out a lifecycle transition; rclpy would swallow what it raises without a word."""
    try:
        function()
    except EXPECTED as error:
        node.get_logger().error(f"cannot {what}: {error}")
        return TransitionCallbackReturn.FAILURE
    except Exception as error:  # the lifecycle's error handling takes over
        node.get_logger().error(f"cannot {what}: {explained(error)}")
        return TransitionCallbackReturn.ERROR
    return TransitionCallbackReturn.SUCCESS


def guard_services(node: Node) -> None:
    """Have a request to a node's services that raises answered all the same: with what says nothing of a success.

    Those of rclpy itself would end the node: by a transition that its state has not, or a parameter of no type.
    """
    for service in node.services:
        service.callback = _answering_always(node, service.srv_name, service.callback)


def _answering_always(node: Node, name: str, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def call(request: Any, response: Any) -> Any:
        try:
            return function(request, response)
        except Exception as error:  # as above; a fault of who asked, or of rclpy
            node.get_logger().error(f"{name} refused: {type(error).__name__}: {error}")
            return response

    return call


def explained(error: Exception) -> str:
    """Return what is known of an error of ours, for the log."""
    return f"internal error: {''.join(traceback.format_exception(error)).rstrip()}"
