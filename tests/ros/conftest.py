from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("rclpy") is not None:
    from tests.ros.graph import Graph, Robot


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Graph]:
    """A ROS graph of this test's own; the nodes in it end with it."""
    graph = Graph(tmp_path)
    yield graph
    graph.close()


@pytest.fixture
def robot(graph: Graph) -> Iterator[Robot]:
    """A cart-pole that moves by itself and takes commands."""
    robot = Robot(graph)
    yield robot
    robot.close()


@pytest.fixture
def controller(graph: Graph) -> Callable[..., Any]:
    """Return a function that starts the controller node for the shipped cart-pole controller."""

    def start(**parameters: Any) -> Any:
        given = {"default_controller": "cartpole_swingup_sac", "record": False, "realtime_priority": 0}
        return graph.start("controller_node", **{**given, **parameters})

    return start
