"""The node `mujoco_sim`: a gymnasium MuJoCo environment that looks like a robot under ros2_control."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from numpy.typing import NDArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool, Trigger

from nncontrol_prune.config import PlantConfig
from nncontrol_prune.plants.environments import PlantError, environment_specs
from nncontrol_prune.plants.joints import JointReadout
from nncontrol_prune.plants.live import LivePlant
from nncontrol_prune.plants.state import HEADER
from nncontrol_prune.rollouts.schema import STEP_LAYOUT
from nncontrol_prune.ros.callbacks import answering, guarded
from nncontrol_prune.ros.diagnostics import Problem, Rivals, rival_clocks, tell_diagnostics
from nncontrol_prune.ros.messages import COMMAND, doubles, time_of
from nncontrol_prune.ros.parameters import NodeParameters, ParameterNode
from nncontrol_prune.ros.running import spin
from nncontrol_prune.ros.serialized import ArrayWriter
from nncontrol_prune.ros.vector_publisher import VectorPublisher
from nncontrol_prune.runtime.scheduling import run_in_real_time, running_threads


class SimulatorLink:
    """The live plant's end of the topics; see `plants.live.CommandSource`.

    A command has no stamp: it is taken for the answer to the newest state that was sent before it came.
    """

    def __init__(self, node: Node, joints: JointReadout, action_size: int) -> None:
        self._joints = joints
        self._states = node.create_publisher(JointState, "joint_states", 10)
        self._clock = node.create_publisher(ClockMessage, "/clock", 10)
        self._steps = ArrayWriter(node.create_publisher(Float64MultiArray, "~/step", 50), STEP_LAYOUT)
        self._state = JointState(name=list(joints.names))
        self._vectors = VectorPublisher(node, joints.vectors)
        self._others: ArrayWriter | None = None
        if joints.others:
            layout = (("stamp", 1), *((name, len(values)) for name, values in joints.others.items()))
            self._others = ArrayWriter(node.create_publisher(Float64MultiArray, "observation", 10), layout)
        self._command = np.full(action_size, math.nan)
        self._answered = self._stamp = math.nan
        self._lock = threading.Lock()
        self._arrived = threading.Event()
        self.refused = ""
        """Why the last command was not taken; empty if it was."""
        node.create_subscription(Float64MultiArray, "commands", guarded(node, "commands", self._take), COMMAND)

    @property
    def time(self) -> float:
        """Time of the newest state in s, which is the clock of the others; 0 before the first."""
        return 0.0 if math.isnan(self._stamp) else self._stamp

    def command(self, command: NDArray[np.float64]) -> float:
        """Fill in the newest command; return the stamp it answers, NaN if none came since the last call."""
        with self._lock:
            answered, self._answered = self._answered, math.nan
            if not math.isnan(answered):
                command[:] = self._command
            return answered

    def publish(self, state: NDArray[np.float64]) -> None:
        """Send joint states, what other sensors say, the step that led to them, and the time."""
        stamp = float(state[0])
        self._joints.read(state[len(HEADER) :])
        with self._lock:
            self._stamp, self._answered = stamp, math.nan
        self._arrived.clear()
        time_now = time_of(stamp)
        self._clock.publish(ClockMessage(clock=time_now))
        if not math.isnan(state[1]):  # no step led to the first state
            self._steps.publish(state[1 : len(HEADER)])
        if self._others is not None:
            self._others.publish(np.concatenate([state[:1], *self._joints.others.values()]))
        self._vectors.publish(time_now)  # before the joint states, since those are acted on
        self._state.header.stamp = time_now
        self._state.position = doubles(self._joints.position)
        self._state.velocity = doubles(self._joints.velocity)
        self._state.effort = doubles(self._joints.effort)
        self._states.publish(self._state)

    def wait(self, timeout: float) -> None:
        """Wait for a command to arrive, for a number of seconds."""
        self._arrived.wait(timeout)

    def _take(self, message: Float64MultiArray) -> None:
        if len(message.data) != len(self._command):
            self.refused = f"a command has {len(message.data)} values, the plant has {len(self._command)} actuators"
        elif not np.isfinite(message.data).all():
            self.refused = "a command holds NaN or infinity"
        else:
            self.refused = ""
            with self._lock:
                self._command[:] = message.data
                self._answered = self._stamp
            self._arrived.set()


class SimulatorNode(ParameterNode):
    """Runs the plant in a thread of its own.

    Raises:
        ConfigError: A parameter does not exist, or its value is not allowed.
        PlantError: There is no such environment.
    """

    def __init__(self, **arguments: Any) -> None:
        before = running_threads()
        super().__init__("mujoco_sim", automatically_declare_parameters_from_overrides=True, **arguments)
        self._settings = NodeParameters(self, PlantConfig, fixed=PlantConfig.model_fields)
        # The middleware's threads hand commands to the plant, and must not wait for the processor either.
        run_in_real_time(self._settings.config.realtime_priority, running_threads() - before)
        config = self._settings.config
        specs = environment_specs(config.env)
        self._environment = config.env
        self._plant = LivePlant(
            config.env,
            seed=config.seed,
            real_time_factor=config.real_time_factor,
            viewer=not config.headless,
            lockstep=config.lockstep,
        )
        joints = JointReadout(self._plant.environment, specs.observation)
        if not joints.names:
            raise PlantError(f"{config.env} has no joint with a name, so there are no joint states to publish")
        self._link = SimulatorLink(self, joints, specs.action.size)
        self.create_service(Trigger, "~/reset", answering(self, "reset", self._reset))
        self.create_service(SetBool, "~/pause", answering(self, "pause", self._pause))
        self._rivals = Rivals(self)
        tell_diagnostics(self, self._diagnose, lambda: time_of(self._link.time))
        self._thread = threading.Thread(target=self._run, name="plant", daemon=True)
        self._thread.start()
        self.get_logger().info(f"{config.env}: joints {', '.join(joints.names)}; commands: {specs.action}")

    def close(self) -> None:
        """Stop the plant."""
        self._plant.stop()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        run_in_real_time(self._settings.config.realtime_priority)
        self._plant.run(self._link)

    def _reset(self, _: Trigger.Request) -> str:
        self._plant.reset()
        return "a new episode begins with the next step"

    def _pause(self, request: SetBool.Request) -> str:
        if request.data:
            self._plant.paused.set()
            return "time stands still"
        self._plant.paused.clear()
        return "time goes on"

    def _diagnose(self) -> tuple[list[Problem], dict[str, object]]:
        plant = self._plant
        problems: list[Problem] = []
        if not self._thread.is_alive():
            problems.append((DiagnosticStatus.ERROR, "the plant has stopped; see the log"))
        if self._link.refused:
            problems.append((DiagnosticStatus.ERROR, self._link.refused))
        if plant.steps == 0:
            problems.append((DiagnosticStatus.WARN, "time stands still until the first command comes"))
        return problems + self._rivals.problems(rival_clocks(self)), {
            "environment": self._environment,
            "steps": plant.steps,
            "steps without a fresh command": plant.missed_commands,
            "periods left out": plant.skipped,
            "paused": plant.paused.is_set(),
        }


def main() -> None:
    """Run the node."""
    spin(SimulatorNode, SingleThreadedExecutor, (PlantError,))
