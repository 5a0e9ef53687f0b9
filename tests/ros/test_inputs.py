"""A controller that observes more than joints: an IMU, a wanted velocity, and what it commanded last."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from geometry_msgs.msg import Quaternion, Twist, Vector3
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import Imu
from std_msgs.msg import Float64MultiArray

from nncontrol_prune.controllers.bundle import Bundle, make_bundle
from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.observations import ObservationSpec, ObservationTerm
from nncontrol_prune.controllers.specs import ActionSpec, MlpArchitecture
from nncontrol_prune.ros.messages import labelled
from nncontrol_prune.runtime.store import BundleStore
from tests.ros.graph import Graph, Robot, commanding, wait_until

NODE = "/nn_controller"
SAFE = 1.5
TERMS = (
    ObservationTerm(name="sin", size=1, quantity="sin", joints=("hinge",)),
    ObservationTerm(name="gyro", size=3, quantity="angular_velocity", scale=0.25),
    ObservationTerm(name="gravity", size=3, quantity="projected_gravity"),
    ObservationTerm(name="command", size=3, quantity="velocity_command", scale=2.0),
    ObservationTerm(name="last", size=1, quantity="previous_action"),
)
SIN, GYRO, GRAVITY, COMMAND, LAST = (slice(0, 1), slice(1, 4), slice(4, 7), slice(7, 10), slice(10, 11))
ROLLED = math.sqrt(0.5)
"""x and w of a quaternion of a body rolled by 90 degrees, whose y axis points up."""


@pytest.fixture(scope="module")
def walker() -> Bundle:
    """A controller with random weights."""
    observation, action = ObservationSpec(terms=TERMS), ActionSpec(joints=("slider",), lower=(-3.0,), upper=(3.0,))
    torch.manual_seed(0)
    module = Mlp.for_action(MlpArchitecture(hidden=(8, 8)), observation.size, action)
    references = np.random.default_rng(0).normal(size=(300, observation.size))
    return make_bundle(
        module, name="walker", observation=observation, action=action, rate=100.0, reference_observations=references
    )


@pytest.fixture
def start(controller: Callable[..., Any], graph: Graph, walker: Bundle) -> Callable[..., Any]:
    """Return a function that starts the walker."""
    BundleStore(graph.store_path).add(walker)

    def start(**parameters: Any) -> Any:
        return controller(controller=walker.reference, safe_command=f"[{SAFE}]", **parameters)

    return start


@pytest.fixture
def transitions(graph: Graph) -> list[Float64MultiArray]:
    return graph.watch(f"{NODE}/transition", Float64MultiArray, 100)


def rolled_imu() -> Imu:
    return Imu(
        orientation=Quaternion(x=ROLLED, y=0.0, z=0.0, w=ROLLED), angular_velocity=Vector3(x=4.0, y=-8.0, z=12.0)
    )


def observations(messages: Sequence[Float64MultiArray]) -> np.ndarray:
    return np.array([labelled(message)["observation"] for message in messages])


def actions(messages: Sequence[Float64MultiArray]) -> np.ndarray:
    return np.array([labelled(message)["action"] for message in messages])


def walking(transitions: list[Float64MultiArray]) -> None:
    """Wait until the controller goes on commanding."""
    count = len(transitions)
    wait_until(lambda: len(transitions) > count + 20, what="transitions")


@pytest.mark.parametrize("drive", ["joint_states", "timer"])
def test_imu_and_wanted_velocity_reach_the_network_in_their_places(start, robot, walker, transitions, drive) -> None:
    robot.imu = rolled_imu()
    robot.twist = Twist(linear=Vector3(x=1.0, y=0.5, z=7.0), angular=Vector3(x=7.0, y=7.0, z=-0.25))
    start(drive=drive)
    walking(transitions)
    observation, action = observations(transitions)[-1], np.zeros(1)
    np.testing.assert_allclose(observation[SIN], math.sin(3.0))
    np.testing.assert_allclose(observation[GYRO], (1.0, -2.0, 3.0))
    np.testing.assert_allclose(observation[GRAVITY], (0.0, -1.0, 0.0), atol=1e-12)
    np.testing.assert_allclose(observation[COMMAND], (2.0, 1.0, -0.5))
    walker.policy.act(observation, action)
    np.testing.assert_allclose(actions(transitions)[-1], action, atol=1e-6)


def test_previous_action_is_the_command_sent_last_and_zero_before_the_first(start, robot, graph, transitions) -> None:
    robot.imu = rolled_imu()
    start(autostart=False)
    assert graph.change_state(NODE, Transition.TRANSITION_CONFIGURE)
    assert graph.change_state(NODE, Transition.TRANSITION_ACTIVATE)
    walking(transitions)
    last, sent = observations(transitions)[:, LAST], actions(transitions)
    assert last[0] == 0.0
    assert np.ptp(sent) > 0, "otherwise this would show nothing"
    np.testing.assert_array_equal(last[1:], sent[:-1])
    assert robot.commands[0] == list(sent[0])
    assert graph.change_state(NODE, Transition.TRANSITION_DEACTIVATE)
    count = len(transitions)
    assert graph.change_state(NODE, Transition.TRANSITION_ACTIVATE)
    walking(transitions)
    assert observations(transitions[count:])[0, LAST] == SAFE


def test_wanted_velocity_that_stops_is_zero(start, robot, graph, transitions) -> None:
    robot.imu = rolled_imu()
    start()
    newest = graph.diagnostics()
    walking(transitions)
    assert not observations(transitions)[-1, COMMAND].any(), "nobody steers yet"
    robot.twist = Twist(linear=Vector3(x=1.0))
    wait_until(lambda: observations(transitions)[-1, COMMAND][0] == 2.0)
    robot.twist = None
    wait_until(lambda: not observations(transitions)[-1, COMMAND].any())
    wait_until(lambda: newest() and newest().message == "OK")


def test_nothing_is_commanded_before_the_imu_has_come(start, robot, graph, transitions) -> None:
    start()
    newest = graph.diagnostics()
    wait_until(lambda: newest() and "for 0.25 s: nothing comes on topic imu" in newest().message)
    assert newest().level == b"\x02"
    assert robot.commands == []
    robot.imu = rolled_imu()
    walking(transitions)
    wait_until(lambda: newest().message == "OK")


def missing(robot: Robot) -> None:
    robot.imu = None


def late(robot: Robot) -> None:
    robot.imu_offset = -5.0


def without_orientation(robot: Robot) -> None:
    imu = rolled_imu()
    imu.orientation_covariance[0] = -1.0
    robot.imu = imu


def without_rates(robot: Robot) -> None:
    imu = rolled_imu()
    imu.angular_velocity_covariance[0] = -1.0
    robot.imu = imu


def without_rotation(robot: Robot) -> None:
    imu = rolled_imu()
    imu.orientation = Quaternion(w=0.0)
    robot.imu = imu


def without_numbers(robot: Robot) -> None:
    imu = rolled_imu()
    imu.angular_velocity.y = math.nan
    robot.imu = imu


@pytest.mark.parametrize(
    ("disturb", "problem"),
    [
        (missing, "no angular_velocity that can be used for 0.25 s: nothing comes on topic imu"),
        (late, "no angular_velocity that can be used for 0.25 s: the newest message was 5.0"),
        (without_orientation, "no projected_gravity that can be used for 0.25 s: the IMU says that it does not"),
        (without_rates, "no angular_velocity that can be used for 0.25 s: the IMU says that it does not measure it"),
        (without_rotation, "no projected_gravity that can be used for 0.25 s: its quaternion has norm 0, not 1"),
        (without_numbers, "entries [2] of the observation are no numbers"),
    ],
)
def test_imu_that_cannot_be_used_leads_to_the_safe_command_until_it_can(
    start, robot, graph, transitions, disturb, problem
) -> None:
    robot.imu = rolled_imu()
    start()
    newest = graph.diagnostics()
    walking(transitions)
    wait_until(lambda: newest() and newest().message == "OK")
    disturb(robot)
    commanding(robot, SAFE)
    wait_until(lambda: newest().level == b"\x02" and problem in newest().message, what=problem)
    robot.imu, robot.imu_offset = rolled_imu(), 0.0
    walking(transitions)
    wait_until(lambda: newest().message == "OK")
