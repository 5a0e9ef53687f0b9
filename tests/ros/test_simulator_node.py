from __future__ import annotations

import math
import time

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from diagnostic_msgs.msg import DiagnosticArray
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool

from nncontrol_prune.ros.messages import labelled, seconds
from tests.ros.graph import Graph, wait_until


class Commander:
    """Answers every joint state with a constant command."""

    def __init__(self, graph: Graph, command: list[float]) -> None:
        self.command = command
        self.states: list[JointState] = []
        self.silent = False
        self._publisher = graph.node.create_publisher(Float64MultiArray, "/commands", 10)
        graph.node.create_subscription(JointState, "/joint_states", self._answer, 10)

    def _answer(self, message: JointState) -> None:
        self.states.append(message)
        if not self.silent:
            self._publisher.publish(Float64MultiArray(data=self.command))


def stamp(message: JointState) -> float:
    return seconds(message.header.stamp)


def test_time_stands_still_until_the_first_command_and_then_keeps_its_factor(graph: Graph) -> None:
    commander = Commander(graph, [0.0])
    commander.silent = True
    clocks = graph.watch("/clock", Clock)
    steps = graph.watch("/mujoco_sim/step", Float64MultiArray, 100)
    graph.start("simulator_node", real_time_factor=2.0, realtime_priority=0)
    wait_until(lambda: len(commander.states) > 5)
    assert {stamp(state) for state in commander.states} == {0.0}
    commander.silent = False
    wait_until(lambda: stamp(commander.states[-1]) > 0.5)
    begun, first = time.monotonic(), stamp(commander.states[-1])
    time.sleep(1.0)
    factor = (stamp(commander.states[-1]) - first) / (time.monotonic() - begun)
    assert 1.5 < factor < 2.1
    assert abs(seconds(clocks[-1].clock) - stamp(commander.states[-1])) < 0.1
    assert commander.states[-1].name == ["slider", "hinge"]
    parts = labelled(steps[-1])
    assert list(parts) == ["stamp", "episode", "step", "reward", "terminated", "truncated"]
    assert 0.0 <= parts["reward"][0] <= 1.0


def test_pause_and_reset(graph: Graph) -> None:
    commander = Commander(graph, [0.0])
    steps = graph.watch("/mujoco_sim/step", Float64MultiArray, 100)
    graph.start("simulator_node", realtime_priority=0)
    wait_until(lambda: len(steps) > 20)
    assert graph.call(SetBool, "/mujoco_sim/pause", SetBool.Request(data=True)).message == "time stands still"
    time.sleep(0.1)
    count, states = len(steps), len(commander.states)
    time.sleep(0.2)
    assert len(steps) == count
    assert graph.trigger("/mujoco_sim/reset") == (True, "a new episode begins with the next step")
    assert graph.call(SetBool, "/mujoco_sim/pause", SetBool.Request(data=False)).success
    wait_until(lambda: labelled(steps[-1])["episode"][0] == 1.0)
    assert [labelled(step)["truncated"][0] for step in steps].count(1.0) == 1
    wait_until(lambda: len(commander.states) > states)  # of another topic: they may come after the steps


def run_in_lockstep(graph: Graph, factor: float) -> list[tuple[float, ...]]:
    """Return the first states of a run; commands depend on the state."""
    states: dict[float, tuple[float, ...]] = {}
    publisher = graph.node.create_publisher(Float64MultiArray, "/commands", 10)

    def answer(message: JointState) -> None:
        states[stamp(message)] = tuple(message.position)
        publisher.publish(Float64MultiArray(data=[3.0 * math.sin(10.0 * message.position[1])]))

    subscription = graph.node.create_subscription(JointState, "/joint_states", answer, 10)
    node = graph.start("simulator_node", lockstep=True, seed=5, real_time_factor=factor, realtime_priority=0)
    wait_until(lambda: len(states) > 100)
    node.end()
    graph.node.destroy_subscription(subscription)
    graph.node.destroy_publisher(publisher)
    return [states[key] for key in sorted(states)][:100]


def test_runs_in_lockstep_are_reproducible(graph: Graph) -> None:
    first = run_in_lockstep(graph, 1.0)
    assert run_in_lockstep(graph, 20.0) == first
    assert len(set(first)) == 100


def test_diagnostics_have_the_plants_time(graph: Graph) -> None:
    commander = Commander(graph, [0.0])
    messages = graph.watch("/diagnostics", DiagnosticArray)
    graph.start("simulator_node", realtime_priority=0)
    wait_until(lambda: len(messages) > 1)
    assert 0.0 <= seconds(messages[-1].header.stamp) <= stamp(commander.states[-1])
    assert seconds(messages[-1].header.stamp) > 0.0


def test_two_simulations_at_once_are_told_of_each_other(graph: Graph) -> None:
    found = graph.diagnostics("mujoco_sim")
    first, second = (graph.start("simulator_node", realtime_priority=0) for _ in range(2))
    problem = "/mujoco_sim and /mujoco_sim publish /clock, so two simulations are mixed up"
    wait_until(lambda: problem in first.log and problem in second.log)
    wait_until(lambda: found() and problem in found().message)
    second.kill()
    wait_until(lambda: problem not in found().message)
    assert first.log.count(problem) == 1


def test_commands_that_do_not_fit_are_told_and_not_carried_out(graph: Graph) -> None:
    commander = Commander(graph, [1.0, 2.0])
    newest = graph.diagnostics("mujoco_sim")
    graph.start("simulator_node", realtime_priority=0)
    wait_until(lambda: newest() and "a command has 2 values, the plant has 1 actuators" in newest().message)
    commander.command = [math.nan]
    wait_until(lambda: "a command holds NaN or infinity" in newest().message)
    assert stamp(commander.states[-1]) == 0.0
    commander.command = [1.0]
    wait_until(lambda: newest().message == "OK")


@pytest.mark.parametrize(("environment", "others"), [("Hopper-v5", False), ("InvertedDoublePendulum-v5", True)])
def test_any_environment_with_named_joints_runs(graph: Graph, environment: str, others: bool) -> None:
    observations = graph.watch("/observation", Float64MultiArray)
    commander = Commander(graph, [0.0] * (3 if environment == "Hopper-v5" else 1))
    graph.start("simulator_node", env=environment, realtime_priority=0)
    wait_until(lambda: commander.states and stamp(commander.states[-1]) > 0.2)
    assert bool(observations) == others
    if others:
        assert list(labelled(observations[-1])) == ["stamp", "observation"]


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"env": "Hoper-v5"}, "there is no environment 'Hoper-v5'; did you mean"),
        ({"real_time_factor": 0}, "real_time_factor = 0.0: input should be greater than or equal to 0.01"),
        ({"headles": True}, "there is no key 'headles'; did you mean headless?"),
        ({"headless": False}, "without a display, leave headless at true"),
    ],
)
def test_what_is_wrong_ends_the_node_with_one_sentence(graph: Graph, monkeypatch, parameters, problem) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    node = graph.start("simulator_node", **parameters)
    assert node.process.wait(20) == 1
    assert problem in node.log
    assert "Traceback" not in node.log


def test_its_parameters_are_fixed(graph: Graph) -> None:
    graph.start("simulator_node", realtime_priority=0)
    assert graph.set("/mujoco_sim", seed=3) == (False, "Trying to set a read-only parameter: seed.")
