"""The package as a user builds and launches it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from std_msgs.msg import Float64MultiArray

from tests.ros.graph import Graph, NodeProcess, Robot, alive, children, ros_environment, wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the package built by colcon, from this environment."""
    pytest.importorskip("colcon_ros", reason="colcon-ros is not installed")
    base = tmp_path_factory.mktemp("workspace")
    command = [sys.executable, "-m", "colcon", "--log-base", str(base / "log"), "build", "--base-paths", str(ROOT)]
    command += ["--build-base", str(base / "build"), "--install-base", str(base / "install")]
    done = subprocess.run(command, cwd=base, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return base


def in_workspace(workspace: Path, command: str) -> list[str]:
    setup = next(path for path in (workspace / "install").glob("setup.*sh") if path.name in ("setup.bash", "setup.sh"))
    return ["bash", "-c", f"source {shlex.quote(str(setup))} && exec {command}"]


def run(workspace: Path, command: str, store: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        in_workspace(workspace, command),
        env=ros_environment(store),
        cwd=workspace,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Launched:
    """A launch under way; its end takes everything along."""

    def __init__(self, workspace: Path, graph: Graph, command: str) -> None:
        self._log = graph.tmp_path / "launch.log"
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                in_workspace(workspace, command),
                env={key: value for key, value in ros_environment(graph.store_path).items() if key != "PYTHONPATH"}
                | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=graph.tmp_path,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def pid_of(self, executable: str) -> int:
        """Return the process of a node that launch has started, the last one if it was started again."""
        found = re.findall(rf"\[{executable}-\d+\]: process started with pid \[(\d+)\]", self.log)
        return int(found[-1]) if found else 0

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)


@pytest.fixture
def launch(workspace: Path, graph: Graph) -> Iterator[object]:
    started: list[Launched] = []

    def start(command: str) -> Launched:
        started.append(Launched(workspace, graph, f"ros2 launch nncontrol_prune {command}"))
        return started[-1]

    yield start
    for launched in started:
        if launched.process.poll() is None:
            launched.end()


def test_pole_swings_up_with_no_further_command(launch, graph: Graph) -> None:
    transitions = graph.watch("/nn_controller/transition", Float64MultiArray, 100)
    started = time.monotonic()
    launched = launch("sim.launch.py")
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
    launched = launch("sim.launch.py respawn:=true namespace:=left record:=false")
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
    ],
)
def test_wrong_arguments_are_named(workspace: Path, tmp_path: Path, command: str, problem: str) -> None:
    done = run(workspace, f"ros2 launch nncontrol_prune {command}", tmp_path)
    assert problem in done.stdout + done.stderr


@pytest.mark.parametrize("executable", ["controller_node", "simulator_node", "pruning_node"])
def test_ros2_run_finds_every_node(workspace: Path, tmp_path: Path, executable: str) -> None:
    done = run(workspace, f"ros2 run nncontrol_prune {executable} --ros-args -p nonsense:=1", tmp_path)
    assert "there is no key 'nonsense'" in done.stdout + done.stderr


def test_robot_is_commanded_through_its_command_controller(launch, graph: Graph) -> None:
    robot = Robot(graph, commands="force_controller/commands")
    manager = rclpy.create_node("force_controller", context=graph.context)
    manager.declare_parameter("joints", ["slider"])
    graph._executor.add_node(manager)
    try:
        config = ROOT / "config" / "robot_cartpole.yaml"
        launch(f"robot.launch.py config:={config} command_controller:=/force_controller record:=false")
        wait_until(lambda: len(robot.commands) > 50)
        assert graph.trigger("/pruning_service/deploy")[1].startswith("there is nothing accepted")
    finally:
        robot.close()
        manager.destroy_node()
