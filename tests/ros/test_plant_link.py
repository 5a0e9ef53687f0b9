"""The loop's inputs by themselves, message by message."""

from __future__ import annotations

import array
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from geometry_msgs.msg import Twist, Vector3
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Imu, JointState
from std_msgs.msg import Float64MultiArray

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.observations import ObservationSpec, ObservationTerm
from nncontrol_prune.controllers.specs import Manifest
from nncontrol_prune.ros.messages import COMMAND, array_of, time_of
from nncontrol_prune.ros.plant_link import PlantLink

TERMS = (
    ObservationTerm(name="angle", size=1, quantity="position", joints=("hinge",)),
    ObservationTerm(name="contact", size=1),
)
WALKER = (
    TERMS[0],
    ObservationTerm(name="gyro", size=3, quantity="angular_velocity"),
    ObservationTerm(name="command", size=3, quantity="velocity_command"),
)
LIMIT = 100.0


class Plant:
    """A link, and what a plant would send it; times are of a clock that stands still."""

    def __init__(self, manifest: Manifest) -> None:
        context = rclpy.Context()
        rclpy.init(context=context)
        self.node = Node("plant", context=context, use_global_arguments=False)
        self.states: list[float] = []
        self.link = PlantLink(
            self.node,
            lambda name: f"/plant_link/{name}",
            lambda: 0.0,
            manifest,
            timeout=1.0,
            limit=LIMIT,
            on_state=lambda: self.states.append(time.perf_counter()),
        )
        self._joints = self.node.create_publisher(JointState, "/plant_link/joint_states", 10)
        self._others = self.node.create_publisher(Float64MultiArray, "/plant_link/observation", COMMAND)
        self._imu = self.node.create_publisher(Imu, "/plant_link/imu", 10)
        self._twist = self.node.create_publisher(Twist, "/plant_link/cmd_vel", 10)
        self._size = manifest.observation.size
        self._other = array_of((("stamp", 1), ("contact", 1)))
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self.node)
        walks = manifest.observation.terms == WALKER
        needed = (self._joints, self._imu, self._twist) if walks else (self._joints, self._others)
        self.until(lambda: all(publisher.get_subscription_count() for publisher in needed))

    def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "nothing came"
            self._executor.spin_once(timeout_sec=0.1)

    def until_states(self, count: int) -> None:
        self.until(lambda: len(self.states) >= count)

    def spin(self, seconds: float = 0.2) -> None:
        """Take whatever has been sent."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.02)

    def joint_states(self, stamp: float, angle: float, name: str = "hinge") -> None:
        message = JointState(name=[name], position=array.array("d", [angle]))
        message.header.stamp = time_of(stamp)
        self._joints.publish(message)

    def contact(self, stamp: float, value: float) -> None:
        self._other.data = array.array("d", [stamp, value])
        self._others.publish(self._other)

    def walk(self, stamp: float, rate: float, forward: float) -> None:
        message = Imu(angular_velocity=Vector3(x=rate))
        message.header.stamp = time_of(stamp)
        self._imu.publish(message)
        self._twist.publish(Twist(linear=Vector3(x=forward)))

    def observation(self) -> list[float]:
        observation = np.zeros(self._size)
        self.link.read(observation)
        return observation.tolist()

    def close(self) -> None:
        context = self.node.context
        self._executor.shutdown()
        self.node.destroy_node()
        context.try_shutdown()


@pytest.fixture
def terms() -> tuple[ObservationTerm, ...]:
    return TERMS


@pytest.fixture
def plant(shipped_bundle: Bundle, terms: tuple[ObservationTerm, ...]) -> Iterator[Plant]:
    plant = Plant(shipped_bundle.manifest.model_copy(update={"observation": ObservationSpec(terms=terms)}))
    yield plant
    plant.close()


def test_rehearsing_changes_nothing_of_a_state_that_is_not_complete_yet(plant: Plant) -> None:
    plant.link.rehearse()  # before anything has come, too
    for number, angle in enumerate((1.0, 2.0)):
        stamp = -0.1 + 0.05 * number
        plant.joint_states(stamp, angle)
        plant.spin()
        assert len(plant.states) == number, "half of it has not come"
        plant.link.rehearse()
        plant.contact(stamp, 10 * angle)
        plant.until_states(number + 1)
        plant.link.rehearse()
        assert plant.observation() == [angle, 10 * angle]


@pytest.mark.parametrize("angle", [1.01 * LIMIT, -1.01 * LIMIT, np.inf, np.nan])
def test_what_is_no_number_or_too_large_is_nan_and_told(plant: Plant, angle: float) -> None:
    plant.joint_states(-0.1, angle)
    plant.contact(-0.1, LIMIT)
    plant.until_states(1)
    np.testing.assert_array_equal(plant.observation(), [np.nan, LIMIT])
    assert plant.link.problem == "entries [0] of the observation are no numbers, or larger than 100"


def test_states_are_not_lost_where_another_publishes_on_their_topic(plant: Plant) -> None:
    for number in range(5):
        stamp = -0.5 + 0.05 * number
        plant.contact(stamp, 1.0)
        plant.joint_states(stamp, 1.0 + number)
        plant.joint_states(stamp, 9.0, name="gripper")
        plant.until_states(number + 1)
        assert plant.observation() == [1.0 + number, 1.0]


def test_of_states_that_wait_only_the_newest_is_acted_on(plant: Plant) -> None:
    plant.contact(-0.1, 1.0)
    for number in range(5):
        plant.joint_states(-0.5 + 0.1 * number, 1.0 + number)
    plant.joint_states(-0.1, 9.0, name="gripper")
    plant.until_states(1)
    plant.spin()
    assert len(plant.states) == 1
    assert plant.observation() == [5.0, 1.0]


@pytest.mark.parametrize("terms", [WALKER])
def test_imu_and_wanted_velocity_that_wait_are_taken_before_the_joint_states(plant: Plant) -> None:
    for number in range(5):
        stamp = -0.5 + 0.05 * number
        plant.walk(stamp, 10.0 + number, 20.0 + number)
        plant.joint_states(stamp, 1.0 + number)
        time.sleep(0.02)  # all wait now, and the executor asks the joint states' subscription first
        plant.until_states(number + 1)
        assert plant.observation() == [1.0 + number, 10.0 + number, 0.0, 0.0, 20.0 + number, 0.0, 0.0]


@pytest.mark.parametrize("terms", [(TERMS[0], ObservationTerm(name="contact", size=2, history=2))])
def test_a_history_is_of_the_ticks_that_were_answered(plant: Plant) -> None:
    action, observation = np.zeros(1), np.zeros(3)

    def observed(number: int) -> list[float]:
        stamp = -0.5 + 0.05 * number
        plant.contact(stamp, 10.0 * number)
        plant.joint_states(stamp, float(number))
        plant.until_states(number)
        return plant.observation()

    assert observed(1) == [1.0, 10.0, 10.0]
    stamp = plant.link.read(observation)
    plant.link.write(stamp, action)
    plant.link.write(stamp, action)  # nothing has come since
    plant.link.write(np.nan, action)  # as the safe command, which answers nothing
    assert observed(2) == [2.0, 10.0, 20.0]
    assert observed(3) == [3.0, 10.0, 30.0], "the second one was not answered"
    stamp = plant.link.read(observation)
    plant.contact(-0.3, 40.0)
    plant.joint_states(-0.3, 4.0)
    plant.until_states(4)  # the next one comes before the answer
    plant.link.write(stamp, action)
    assert plant.observation() == [4.0, 30.0, 40.0]
    plant.link.forget()
    assert observed(5) == [5.0, 50.0, 50.0]


@pytest.mark.parametrize("terms", [(TERMS[0], ObservationTerm(name="contact", size=3, history=3))])
def test_what_cannot_be_believed_is_not_remembered(plant: Plant) -> None:
    seen = []
    for number, contact in enumerate((np.nan, 1.0, 2.0, np.nan, 4.0, 5.0), 1):
        stamp = -0.5 + 0.05 * number
        plant.contact(stamp, contact)
        plant.joint_states(stamp, float(number))
        plant.until_states(number)
        observation = np.zeros(4)
        plant.link.write(plant.link.read(observation), np.zeros(1))
        seen.append(observation[1:].tolist())
    assert seen[1:3] == [[1.0, 1.0, 1.0], [1.0, 1.0, 2.0]]
    assert seen[4:] == [[1.0, 2.0, 4.0], [2.0, 4.0, 5.0]]


@pytest.mark.parametrize("terms", [(TERMS[0], ObservationTerm(name="contact", size=2, history=2))])
def test_half_a_state_is_neither_observed_nor_remembered(plant: Plant) -> None:
    observation = np.zeros(3)
    for number in (1, 2):
        stamp = -0.5 + 0.05 * number
        plant.contact(stamp, 10.0 * number)
        plant.joint_states(stamp, float(number))
        plant.until_states(number)
        if number == 1:
            plant.link.write(plant.link.read(observation), np.zeros(1))
    plant.joint_states(-0.35, 3.0)
    plant.spin()
    stamp = plant.link.read(observation)
    assert stamp == pytest.approx(-0.4)
    assert observation.tolist() == [2.0, 10.0, 20.0]
    plant.link.write(stamp, np.zeros(1))
    plant.contact(-0.35, 30.0)
    plant.until_states(3)
    assert plant.observation() == [3.0, 20.0, 30.0]
