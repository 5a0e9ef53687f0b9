"""The package as a user builds and launches it."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from std_msgs.msg import Float64MultiArray

from tests.ros.graph import Graph, NodeProcess, alive, children, command_controller, wait_until
from tests.ros.workspace import ROOT, Launched, run


def test_pole_swings_up_with_no_further_command(launch, graph: Graph) -> None:
    transitions = graph.watch("/nn_controller/transition", Float64MultiArray, 100)
    started = time.monotonic()
    launched = launch("ros2 launch nncontrol_prune sim.launch.py")
    wait_until(lambda: transitions, what="the first command")
    assert time.monotonic() - started < 10.0, "under 5 s on a machine that has nothing else to do"
    wait_until(lambda: transitions[-1].data[3] > 0.95, 30, "the swing-up")
    processes = children(launched.process.pid)
    launched.end()
    assert "Traceback" not in launched.log
    wait_until(lambda: not any(alive(pid) for pid in processes), what="the end of every process")


@pytest.mark.parametrize("executable", ["controller_node", "pruning_node", "simulator_node"])
def test_node_that_is_interrupted_while_it_starts_ends_without_a_traceback(tmp_path: Path, executable: str) -> None:
    for moment in (0.2, 0.5, 0.8):
        node = NodeProcess(executable, tmp_path / "node.log", tmp_path / "store", [])
        time.sleep(moment)
        node.end()
        assert "Traceback" not in node.log


def test_killed_nodes_start_again_and_go_on(launch, graph: Graph) -> None:
    transitions = graph.watch("/left/nn_controller/transition", Float64MultiArray, 100)
    launched = launch("ros2 launch nncontrol_prune sim.launch.py respawn:=true namespace:=/left/ record:=false")
    for executable in ("controller_node", "simulator_node", "pruning_node"):
        wait_until(lambda: transitions, what="transitions")
        kill_and_wait(launched, executable)
        transitions.clear()
    wait_until(lambda: len(transitions) > 100)


def kill_and_wait(launched: Launched, executable: str) -> None:
    """Kill a node, and wait until launch has started it again."""
    pid = wait_until(lambda: launched.pid_of(executable))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: launched.pid_of(executable) != pid)


@pytest.mark.parametrize("file", ["sim.launch.py", "robot.launch.py"])
def test_every_argument_is_explained(workspace: Path, tmp_path: Path, file: str) -> None:
    text = run(workspace, f"ros2 launch nncontrol_prune {file} --show-args", tmp_path).stdout
    arguments = re.findall(r"^    '(\w+)':\n        (.*)$", text, re.MULTILINE)
    assert len(arguments) >= 10
    assert all(len(description) > 10 for _, description in arguments)
    if file == "sim.launch.py":
        wanted = {"env", "controller", "rate", "headless", "record", "namespace", "auto_deploy", "store", "lockstep"}
        assert wanted <= {name for name, _ in arguments}


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("sim.launch.py rate:=fast", "rate:=fast: it has to be a number"),
        ("sim.launch.py headless:=perhaps", "headless:=perhaps: allowed are true and false"),
        ("robot.launch.py parts:=most", "parts:=most: allowed are both, controller, pruning"),
        ("sim.launch.py config:=/nowhere/sim.yaml", "config:=/nowhere/sim.yaml: there is no such file"),
        ("robot.launch.py config:=/nowhere/arm.yaml", "config:=/nowhere/arm.yaml: there is no such file"),
    ],
)
def test_wrong_arguments_are_named_before_anything_starts(
    workspace: Path, tmp_path: Path, command: str, problem: str
) -> None:
    done = run(workspace, f"ros2 launch nncontrol_prune {command}", tmp_path)
    assert problem in done.stdout + done.stderr
    assert "process started" not in done.stdout + done.stderr


@pytest.mark.parametrize("executable", ["controller_node", "simulator_node", "pruning_node"])
def test_ros2_run_finds_every_node(workspace: Path, tmp_path: Path, executable: str) -> None:
    done = run(workspace, f"ros2 run nncontrol_prune {executable} --ros-args -p nonsense:=1", tmp_path)
    assert "there is no key 'nonsense'" in done.stdout + done.stderr


def test_robot_is_commanded_through_its_command_controller(launch, graph: Graph) -> None:
    config = ROOT / "config" / "robot_cartpole.yaml"
    with command_controller(graph, "force_controller", ["slider"]) as robot:
        launch(
            f"ros2 launch nncontrol_prune robot.launch.py config:={config} command_controller:=/force_controller/ "
            "record:=false"
        )
        wait_until(lambda: len(robot.commands) > 50)
        assert graph.trigger("/pruning_service/deploy")[1].startswith("there is nothing accepted")
