"""Running a node as a process."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from nncontrol_prune.ros.callbacks import EXPECTED

POLL = 0.1
"""Seconds after which a node looks, at the least, whether it has been told to end."""


def fastest_executor() -> Executor:
    """Return rclpy's events executor where there is one (later patches of Jazzy on), or the single-threaded one."""
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:
        return SingleThreadedExecutor()
    executor: Executor = EventsExecutor()
    return executor


def spin(
    make: Callable[[], Any],
    make_executor: Callable[[], Executor],
    expected: tuple[type[Exception], ...] = (),
    started: Callable[[Any], None] = lambda _: None,
) -> None:
    """Make a node and spin it until it is told to end; what is wrong with its parameters ends it with one line.

    Args:
        make: Makes the node.
        make_executor: Makes what spins it.
        expected: Exceptions whose message tells the user what is wrong.
        started: Called with the node before it spins.
    """
    # rclpy's own handlers would take the context away, and with it the way of the last, safe command.
    try:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # which rcl's errors are, as of a parameter file that is none
        sys.exit(f"ROS 2 cannot be initialized: {' '.join(str(error).split())}")
    stopped = threading.Event()
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda *_: stopped.set())
    node: Any = None
    code = 0
    try:
        node = make()
        executor = make_executor()
        executor.add_node(node)
        started(node)
        while not stopped.is_set():
            executor.spin_once(timeout_sec=POLL)
    except (*EXPECTED, *expected) as error:
        rclpy.logging.get_logger("startup").fatal(str(error))
        code = 1
    finally:
        if node is not None:
            node.close()
        # First the context: callbacks that other threads are still in then know why they fail; see `callbacks.guarded`.
        rclpy.try_shutdown()
        if node is not None:
            node.destroy_node()
    sys.exit(code)
