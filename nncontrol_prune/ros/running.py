"""Running a node as a process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

import rclpy
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from nncontrol_prune.ros.callbacks import EXPECTED


class Closable(Protocol):
    """A node that has something to end before it is destroyed."""

    def close(self) -> None:
        """Stop everything."""
        ...


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
    rclpy.init(signal_handler_options=SignalHandlerOptions.ALL)
    node: Any = None
    code = 0
    try:
        node = make()
        executor = make_executor()
        executor.add_node(node)
        started(node)
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (*EXPECTED, *expected) as error:
        rclpy.logging.get_logger(node.get_name() if isinstance(node, Node) else "startup").fatal(str(error))
        code = 1
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    sys.exit(code)
