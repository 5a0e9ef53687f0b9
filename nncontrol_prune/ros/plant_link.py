"""The loop's plant over ROS: joint states and other inputs in, commands out."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import Twist
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Imu, JointState
from std_msgs.msg import Float64MultiArray

from nncontrol_prune.controllers.commands import CommandConverter
from nncontrol_prune.controllers.specs import Manifest
from nncontrol_prune.ros.callbacks import guarded
from nncontrol_prune.ros.messages import COMMAND, NEWEST, NOT_MEASURED, MessageError, labelled, seconds
from nncontrol_prune.ros.serialized import ArrayWriter, Joints, JointStateReader
from nncontrol_prune.runtime.inputs import Arrival, InputMonitor
from nncontrol_prune.runtime.observation import ObservationAssembler, projected_gravity, rotation_problem

SAME = 1e-6
"""Stamps that are closer than this, in seconds, are of the same instant; messages round them to nanoseconds."""
PACE = 51
"""Of how many states the distances are kept."""
WAITING = 10
"""Joint states that may wait: their topic may be shared, and with room for one another's would replace ours."""

_Input = tuple[Any, type, Callable[..., None]]
"""A subscription, the type of its messages, and what takes them."""


class PlantLink:
    """Keeps the newest inputs, and sends commands; see `runtime.loop.PlantConnection`.

    Args:
        node: Whose subscriptions and publisher these are; its executor calls `on_state`.
        resolve: Gives the full name of a topic, with the remappings of the controller's node.
        now: Gives the time in seconds of the plant's clock.
        manifest: The controller's.
        timeout: Age of an input in seconds past which it is not acted on.
        limit: Magnitude past which an entry of the observation is as wrong as NaN.
        on_state: Called with each new state; returns nothing.
        keeps_beat: See `runtime.inputs.InputMonitor`.
    """

    def __init__(
        self,
        node: Node,
        resolve: Callable[[str], str],
        now: Callable[[], float],
        manifest: Manifest,
        *,
        timeout: float,
        limit: float,
        on_state: Callable[[], None],
        keeps_beat: bool = True,
    ) -> None:
        self._now = now
        self._limit = limit
        self._timeout = max(timeout, 2 / manifest.rate)
        self._on_state = on_state
        self._assembler = ObservationAssembler(manifest.observation, manifest.action.size)
        self._observes_action = any(term.quantity == "previous_action" for term in manifest.observation.terms)
        self._lock = threading.Lock()
        self._arrived = threading.Event()
        self._vector_times = dict.fromkeys(self._assembler.vectors, -math.inf)
        self._vector_problems = dict.fromkeys(self._assembler.vectors, "")
        self._vector_inputs: list[_Input] = []
        self._other_stamp = self._pending = self._stamp = math.nan
        self._reader = JointStateReader()
        self._foreign: tuple[str, ...] | None = None
        self._names: tuple[str, ...] | None = None
        self._newest: bytes | None = None
        self._magnitude = np.zeros(manifest.observation.size)
        self._observed = np.zeros(manifest.observation.size)
        self._believed, self._answered = False, math.nan
        self.monitor = InputMonitor(1 / manifest.rate, self._timeout, keeps_beat=keeps_beat)
        self.last_state = -math.inf
        """When the last state came that can be acted on, in seconds of `time.perf_counter`."""
        self.distances: deque[float] = deque(maxlen=PACE)
        """How long each of the last such states came after the one before, in seconds of `time.perf_counter`."""
        self.plant_distances: deque[float] = deque(maxlen=PACE)
        """The same by their stamps."""
        self.problem = ""
        """Why the last state could not be acted on; empty if it could."""
        self.problem_time = -math.inf
        publisher = node.create_publisher(Float64MultiArray, resolve("commands"), COMMAND)
        self.command_topic: str = publisher.topic_name
        self._commands = ArrayWriter(publisher, (), manifest.action.size)
        self._converter = CommandConverter(manifest.action)
        self._subscribe(node, resolve)

    @property
    def absence(self) -> str:
        """That no state has come yet which can be acted on, as a sentence."""
        told = "no joint states that can be acted on have come yet"
        if not math.isnan(self._pending):
            return f"{told}: nothing on the topic observation is of the same time"
        if self._names is None and self._foreign is not None:
            return f"{told}: those that come have none of the controller's joints, {', '.join(self._assembler.joints)}"
        return told

    def wait(self, timeout: float) -> bool:
        """Wait for the next state to arrive, for a number of seconds; return whether it did."""
        self._arrived.clear()
        return self._arrived.wait(timeout)

    def read(self, observation: NDArray[np.float64]) -> float:
        """Fill in the newest observation (n,) and return its stamp; NaN for entries beyond all belief."""
        with self._lock:
            observation[:] = self._assembler.observation
            stamp = self._stamp
            if self._assembler.remembers:
                self._observed[:] = observation
        np.absolute(observation, out=self._magnitude)
        self._believed = bool(np.maximum.reduce(self._magnitude) <= self._limit)  # which NaN is not either
        if not self._believed:
            wild = ~(self._magnitude <= self._limit)
            observation[wild] = math.nan
            bad = np.flatnonzero(wild).tolist()
            self._tell(f"entries {bad} of the observation are no numbers, or larger than {self._limit:g}")
        return stamp

    def write(self, stamp: float, action: NDArray[np.float64]) -> None:
        """Send what an action commands, in the order of the controller's joints."""
        # The stamp stays here: ros2_control's command controllers have no place for it.
        self._commands.publish(self._converter.command(action))
        # A tick without a new observation is not another one, and what cannot be believed is not remembered.
        if self._assembler.remembers and self._believed and stamp == stamp and stamp != self._answered:
            self._answered = stamp
            with self._lock:
                self._assembler.answered(self._observed)
        if self._observes_action:
            with self._lock:
                self._assembler.previous_action(action)

    def rehearse(self) -> None:
        """Go through what the next joint states will need, so that it is in the processor's caches when they come."""
        if self._newest is not None:
            self._now()
            self._assemble(self._reader.read(self._newest))  # a second time: it changes nothing

    def after_tick(self) -> None:
        """Do nothing: nothing waits for the command to leave."""

    def forget(self) -> None:
        """Take the next state for new, whatever its stamp: a loop begins."""
        self.monitor.forget()
        self.last_state = -math.inf
        self._answered = math.nan
        with self._lock:
            self._assembler.begin()

    def _subscribe(self, node: Node, resolve: Callable[[str], str]) -> None:
        def listen(message_type: type, topic: str, callback: Callable[..., None]) -> _Input:
            safe = guarded(node, topic, callback)
            return node.create_subscription(message_type, resolve(topic), safe, NEWEST), message_type, safe

        self._joint_subscription = node.create_subscription(
            JointState,
            resolve("joint_states"),
            guarded(node, "joint_states", self._joint_states),
            QoSProfile(depth=WAITING, reliability=NEWEST.reliability),
            raw=True,
        )
        if set(self._assembler.vectors) - {"velocity_command"}:
            self._vector_inputs.append(listen(Imu, "imu", self._imu))
        if "velocity_command" in self._assembler.vectors:
            self._vector_inputs.append(listen(Twist, "cmd_vel", self._velocity_command))
        if self._assembler.others:
            listen(Float64MultiArray, "observation", self._others)

    def _joint_states(self, message: bytes) -> None:
        """Act on the newest joint states of ours, of those that wait: old ones must not be answered one by one."""
        joints = self._own(message)
        for _ in range(WAITING):
            waiting = self._joint_subscription.handle.take_message(JointState, True)
            if waiting is None:
                break
            later = self._own(waiting[0])
            if later is not None:
                message, joints = waiting[0], later
        if joints is not None:
            self._judge(message, joints)

    def _own(self, message: bytes) -> Joints | None:
        """Return what a message says; None if it has none of the controller's joints, as a gripper's."""
        joints = self._reader.read(message)
        if joints.names == self._foreign:
            return None
        known = joints.names == self._names
        if not known and self._assembler.joints and not set(self._assembler.joints) & set(joints.names):
            self._foreign = joints.names
            return None
        return joints

    def _judge(self, message: bytes, joints: Joints) -> None:
        arrival = self.monitor.judge(joints.stamp, self._now())
        if arrival is Arrival.DUPLICATE:
            self._commands.repeat()  # a plant that asks again has not had its answer
        elif arrival is Arrival.LATE:
            self._tell(f"the newest joint states are {self.monitor.last_age:.3f} s old, or overtaken by newer ones")
        elif arrival is Arrival.NEW:
            problem = self._assemble(joints)
            if problem is not None:
                self._tell(problem)
                return
            self._newest, self._names = message, joints.names
            if self._assembler.others and not abs(joints.stamp - self._other_stamp) < SAME:
                self._pending = joints.stamp
            else:
                self._take(joints.stamp)

    def _assemble(self, joints: Joints) -> str | None:
        with self._lock:
            return self._assembler.joint_states(joints.names, joints.position, joints.velocity, joints.effort)

    def _others(self, message: Float64MultiArray) -> None:
        parts = labelled(message)
        stamp = parts.pop("stamp", ())
        if len(stamp) != 1:
            raise MessageError("observation lacks the one value of its stamp")
        (self._other_stamp,) = stamp
        for name, values in parts.items():
            with self._lock:
                known = self._assembler.other(name, values)
            if not known:
                self._tell(f"observation holds {name} with {len(values)} values, which is no term of the controller's")
        if abs(self._pending - self._other_stamp) < SAME:
            self._take(self._pending)

    def _imu(self, message: Imu) -> None:
        orientation, rate, acceleration = message.orientation, message.angular_velocity, message.linear_acceleration
        quaternion = (orientation.x, orientation.y, orientation.z, orientation.w)
        turned = not_measured(message.orientation_covariance) or rotation_problem(quaternion)
        age = self._now() - seconds(message.header.stamp)
        late = f"the newest message was {age:.3f} s old" if age > self._timeout else ""
        for quantity, values, problem in (
            ("orientation", quaternion, turned),
            ("projected_gravity", projected_gravity(quaternion), turned),
            ("angular_velocity", (rate.x, rate.y, rate.z), not_measured(message.angular_velocity_covariance)),
            (
                "linear_acceleration",
                (acceleration.x, acceleration.y, acceleration.z),
                not_measured(message.linear_acceleration_covariance),
            ),
        ):
            if quantity in self._vector_times:
                if late or problem:
                    self._vector_problems[quantity] = late or problem
                else:
                    self._vector(quantity, values)

    def _velocity_command(self, message: Twist) -> None:
        self._vector("velocity_command", (message.linear.x, message.linear.y, message.angular.z))

    def _vector(self, quantity: str, values: tuple[float, ...]) -> None:
        self._vector_times[quantity], self._vector_problems[quantity] = time.perf_counter(), ""
        with self._lock:
            self._assembler.vector(quantity, values)

    def _take(self, stamp: float) -> None:
        """Act on the state of a stamp, unless something else that is observed is missing."""
        for subscription, message_type, callback in self._vector_inputs:
            # Executors may hand over what waits in any order: what was sent before the joint states is of their time.
            waiting = subscription.handle.take_message(message_type, False)
            if waiting is not None:
                callback(waiting[0])
        now = time.perf_counter()
        for quantity, at in self._vector_times.items():
            if now - at <= self._timeout:
                continue
            if quantity != "velocity_command":
                why = self._vector_problems[quantity] or "nothing comes on topic imu"
                self._tell(f"no {quantity} that can be used for {self._timeout:g} s: {why}")
                return
            with self._lock:
                self._assembler.vector(quantity, (0.0, 0.0, 0.0))  # nobody steers: stand
        with self._lock:
            self._assembler.complete()
            last_stamp, self._stamp = self._stamp, stamp
        self._pending = math.nan
        last_state, self.last_state = self.last_state, now
        self.problem = ""
        if not self._arrived.is_set():
            self._arrived.set()
        self._on_state()
        if last_state > -math.inf and stamp > last_stamp:  # and not a first one, nor of a clock that went back
            self.distances.append(now - last_state)
            self.plant_distances.append(stamp - last_stamp)

    def _tell(self, problem: str) -> None:
        self.problem, self.problem_time = problem, time.perf_counter()


def not_measured(covariance: Sequence[float]) -> str:
    """Return that an IMU does not measure a quantity, as a sentence, if its covariance says so; empty if not."""
    return "the IMU says that it does not measure it" if covariance[0] == NOT_MEASURED else ""
