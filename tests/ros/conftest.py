from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("rclpy") is not None:
    from tests.ros.graph import Graph, Robot
    from tests.ros.workspace import Launched, build


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


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the package built by colcon."""
    pytest.importorskip("colcon_ros", reason="colcon-ros is not installed")
    base = tmp_path_factory.mktemp("workspace")
    build(base)
    return base


@pytest.fixture
def launch(workspace: Path, graph: Graph) -> Iterator[Callable[..., Launched]]:
    """Return a function that gives a command which goes on until it is interrupted, at the latest with the test."""
    started: list[Launched] = []

    def start(command: str, **variables: str) -> Launched:
        started.append(Launched(workspace, graph, command, **variables))
        return started[-1]

    yield start
    for launched in started:
        if launched.process.poll() is None:
            launched.end()
