"""The ROS commands of the documentation are run as they stand there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from std_msgs.msg import Float64MultiArray

from nncontrol_prune.resources import shipped_controllers
from tests.documentation import DOCS, README, commands
from tests.ros.graph import QUICK, Graph, command_controller, wait_until
from tests.ros.workspace import Launched, run

PAGE = DOCS / "ros2.md"
SIMULATION = commands(PAGE, "tests/ros/test_docs.py runs this block")
SERVICE = "/pruning_service"
Launch = Callable[..., Launched]


@pytest.fixture
def terminal(workspace: Path, graph: Graph) -> Iterator[Callable[[str], str]]:
    """Return a function that gives a command and returns what it prints."""

    def give(command: str) -> str:
        done = run(workspace, command, graph.store_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    yield give
    run(workspace, "ros2 daemon stop", graph.store_path)


def test_every_command_of_the_documentation_is_known_to_a_test() -> None:
    above = re.findall(r"^(.*)\n```sh\n", PAGE.read_text(), re.MULTILINE)
    assert len(above) >= 6
    assert [line for line in above if not line.startswith("<!-- tests/ros/")] == []
    recipe = re.search(r"## On ROS 2\n.*?```sh\n(.*?)```", README.read_text(), re.DOTALL)
    assert recipe is not None
    launched = [line.split("  ")[0] for line in recipe[1].splitlines() if line.startswith("ros2 ")]
    assert launched == [SIMULATION[0].split("  ")[0]]


def test_commands_for_the_simulation_work_in_their_order(launch: Launch, terminal, graph: Graph) -> None:
    start, prune, status, deploy, rollback = SIMULATION
    transitions = graph.watch("/nn_controller/transition", Float64MultiArray, 100)
    launched = launch(start)
    wait_until(lambda: len(transitions) > 1100, 40, "an episode")
    dense = graph.status()["active"]
    assert graph.set(SERVICE, **QUICK)[0]
    assert "success=True, message='job 1 has started'" in terminal(prune)
    assert '"job": 1' in terminal(status.replace("topic echo", "topic echo --once"))
    job = wait_until(
        lambda: graph.status(SERVICE)["state"] == "accepted" and graph.status(SERVICE), 90, "the job's end"
    )
    assert f"success=True, message='deployed {job['candidate']}'" in terminal(deploy)
    wait_until(lambda: graph.status()["active"] == job["candidate"])
    assert f"success=True, message='back to {dense}'" in terminal(rollback)
    wait_until(lambda: graph.status()["active"] == dense)
    (command,) = commands(PAGE, "tests/ros/test_docs.py sets this parameter")
    assert "no bundle pruned@0123456789ab" in terminal(command), "as it stands, it names nothing that is here"
    assert "successful" in terminal(command.replace("pruned@0123456789ab", job["candidate"]))
    wait_until(lambda: graph.status()["active"] == job["candidate"])
    launched.end()
    assert "Traceback" not in launched.log


def test_one_node_runs_alone(launch: Launch) -> None:
    (command,) = commands(PAGE, "tests/ros/test_docs.py runs one node alone")
    launched = launch(command)
    wait_until(lambda: "commanding slider on /commands at 100 Hz" in launched.log)
    assert launched.end() == 0


def test_robot_is_launched(launch: Launch, graph: Graph) -> None:
    (command,) = commands(PAGE, "tests/ros/test_docs.py launches this")
    there = command.replace("/home/robot/reach", str(shipped_controllers()["cartpole_swingup_sac"]))
    assert there != command
    with command_controller(graph, "effort_controller", ["slider"]) as robot:
        launch(there)
        wait_until(lambda: len(robot.commands) > 50)


def test_rqt_finds_its_perspective(terminal) -> None:
    (command,) = commands(PAGE, "tests/ros/test_docs.py looks for the perspective")
    assert '"mainwindow"' in terminal(f'rqt() {{ cat "${{@: -1}}"; }}; {command}')


def test_perspective_opens_on_screens_of_any_width_with_its_docks_arranged() -> None:
    perspective = json.loads((DOCS.parent / "config" / "nncontrol_prune.perspective").read_text())
    keys = perspective["groups"]["mainwindow"]["keys"]
    geometry, state = (bytes.fromhex(keys[key]["repr(QByteArray.hex)"][2:-1]) for key in ("geometry", "state"))
    assert geometry[46:50] == bytes(4), "Qt restores no geometry that was saved on a screen of another width"
    for plugin in ("rqt_plot__Plot", "rqt_service_caller__ServiceCaller", "rqt_reconfigure__Param"):
        assert plugin.encode("utf-16-be") in state
