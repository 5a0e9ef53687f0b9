"""The control loop within the controller node: a thread of its own, with an executor of its own.

Whatever the node's other callbacks do (stage a controller, answer services), the loop's inputs are taken and answered
by this thread. They belong to a second, hidden node, since an executor of rclpy's takes nodes whole.
"""

from __future__ import annotations

import math
import threading
import time
from statistics import median

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import Float64MultiArray

from nncontrol_prune.config import ControllerConfig
from nncontrol_prune.controllers.specs import Manifest
from nncontrol_prune.rollouts.recorder import Recorder
from nncontrol_prune.rollouts.schema import transition_layout, values_in
from nncontrol_prune.ros.callbacks import steady_timer
from nncontrol_prune.ros.plant_link import PlantLink
from nncontrol_prune.ros.running import fastest_executor
from nncontrol_prune.ros.serialized import ArrayWriter
from nncontrol_prune.runtime.loop import ControlLoop, settle_memory
from nncontrol_prune.runtime.slot import ControllerSlot

REHEARSAL = 0.8
"""When the next tick is rehearsed, as a share of a period after the last one: what it needs has left the processor's
caches by then."""

HIDDEN = ("_", "_loop")
"""What the hidden node's name has before and after the controller node's."""

WATCHES = 5
"""How often the watchdog looks within the time after which an observation is too old."""


class TransitionOutput:
    """Hands transitions to the topic and to the recorder; see `runtime.loop.TransitionSink`."""

    def __init__(self, node: Node, topic: str | None, manifest: Manifest) -> None:
        observation_size, action_size = manifest.observation.size, manifest.action.size
        layout = transition_layout(observation_size, action_size)
        self._row = np.zeros(values_in(layout))
        self._observation, self._action = self._row[2 : 2 + observation_size], self._row[2 + observation_size :]
        self._writer: ArrayWriter | None = None
        if topic is not None:
            self._writer = ArrayWriter(node.create_publisher(Float64MultiArray, topic, 10), layout)
        self.recorder: Recorder | None = None
        """Where transitions are recorded; None for nowhere."""

    def transition(
        self, stamp: float, bundle: int, observation: NDArray[np.float64], action: NDArray[np.float64]
    ) -> bool:
        """Take one transition; return False if it was dropped."""
        if self._writer is not None:
            self._row[0], self._row[1] = stamp, bundle
            self._observation[:] = observation
            self._action[:] = action
            self._writer.publish(self._row)
        return self.recorder is None or self.recorder.transition(stamp, bundle, observation, action)


class LoopRunner:
    """Runs the loop of a controller node.

    Args:
        parent: The controller node.
        config: Its configuration.
        manifest: Of the first controller.
    """

    def __init__(self, parent: Node, config: ControllerConfig, manifest: Manifest) -> None:
        self._config = config
        self._clock = parent.get_clock()
        # Global arguments would give this node the other's name; topics are resolved by the other one instead.
        self._node = Node(
            f"{HIDDEN[0]}{parent.get_name()}{HIDDEN[1]}",
            namespace=parent.get_namespace(),
            context=parent.context,
            use_global_arguments=False,
            enable_rosout=False,
            start_parameter_services=False,
            parameter_overrides=[Parameter("start_type_description_service", value=False)],
        )
        self.link = PlantLink(
            self._node,
            parent.resolve_topic_name,
            lambda: 1e-9 * parent.get_clock().now().nanoseconds,
            manifest,
            timeout=config.observation_timeout,
            limit=config.observation_limit,
            on_state=self._follow,
            keeps_beat=config.drive == "joint_states",
        )
        topic = parent.resolve_topic_name("~/transition") if config.publish_transitions else None
        self.output = TransitionOutput(self._node, topic, manifest)
        self._lock = threading.Lock()
        self._slot: ControllerSlot | None = None
        self.loop: ControlLoop | None = None
        """The loop; None before the first `start`."""
        self._running = False
        self._prepared = False
        self._timeout = max(config.observation_timeout, 2 / manifest.rate)
        self._own_thread: threading.Thread | None = None
        steady_timer(self._node, self._timeout / WATCHES, "watchdog", self._watch)
        self._rehearsal_time = 0.5 * (1 - REHEARSAL) / manifest.rate
        self._rehearsal = steady_timer(self._node, REHEARSAL / manifest.rate, "rehearsal", self._rehearse)
        self._executor = fastest_executor()
        self.executor_name = type(self._executor).__name__
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, name="control loop", daemon=True)
        self._thread.start()

    @property
    def node_name(self) -> str:
        """Full name of the hidden node, whose publisher the commands come from."""
        return str(self._node.get_fully_qualified_name())

    @property
    def pace(self) -> float:
        """Seconds of the plant's clock per second, as far as it is a simulator's and known; otherwise 1."""
        distances, plant_distances = list(self.link.distances), list(self.link.plant_distances)
        if not (self._clock.ros_time_is_active and distances and plant_distances):
            return 1.0
        return median(plant_distances) / median(distances)

    @property
    def stale(self) -> bool:
        """Whether no state that can be acted on has come for too long."""
        age = time.perf_counter() - self.link.last_state
        if age <= self._timeout:
            return False
        # A slow simulator has two periods of its own; a loop with a timer goes by its own clock.
        last = list(self.link.distances)[-3:]
        followed = self._config.drive != "timer" and self._clock.ros_time_is_active
        return not (followed and last and age <= 2 * median(last))

    def start(self, slot: ControllerSlot, recorder: Recorder | None) -> None:
        """Begin to command.

        Raises:
            ControllerError: The safe command does not fit the action.
        """
        config = self._config
        self.output.recorder = recorder
        loop = ControlLoop(
            slot,
            self.link,
            self.output,
            observation_timeout=config.observation_timeout,
            realtime_priority=config.realtime_priority,
            safe_command=config.safe_command,
            observation_limit=config.observation_limit,
        )
        if config.drive != "timer":  # whose loop does so itself
            settle_memory()
        with self._lock:
            self._slot, self.loop, self._prepared, self._running = slot, loop, False, True
            self.link.forget()
        if config.drive == "timer":
            self._own_thread = threading.Thread(target=loop.run, name="control loop", daemon=True)
            self._own_thread.start()

    def stop(self) -> None:
        """Stop commanding; the plant gets the safe command."""
        with self._lock:
            if not self._running:
                return
            self._running = False
            assert self.loop is not None
            self.loop.stop()
            if self._own_thread is None:
                self.loop.send_safe_command()
        if self._own_thread is not None:  # it sends the safe command on its way out
            self._own_thread.join()
            self._own_thread = None
        self.output.recorder = None

    def close(self) -> None:
        """Stop, and leave the graph."""
        self.stop()
        self._executor.shutdown()
        self._thread.join(timeout=2.0)
        self._node.destroy_node()

    def _follow(self) -> None:
        """Answer a state."""
        if self._config.drive == "timer":
            return
        with self._lock:
            if self._running and self.loop is not None:
                if not self._prepared:
                    self.loop.prepare()
                    self._prepared = True
                self.loop.follow()
        self._rehearsal.reset()

    def _rehearse(self) -> None:
        """Go through what the next state will need, without commanding anything."""
        with self._lock:
            if self._running and self._prepared and self.loop is not None and not self.stale:
                self.link.rehearse()
                self.loop.rehearse(time.perf_counter() + self._rehearsal_time)

    def _watch(self) -> None:
        """Where no states come, send the safe command, and carry out swaps all the same."""
        with self._lock:
            if not self._running or self.loop is None or self._own_thread is not None or not self.stale:
                return
            if math.isfinite(self.link.last_state):
                self.loop.follow()
            elif self._slot is not None:
                self._slot.swap_if_staged(self.loop.statistics.ticks)


def owner_of(name: str) -> str:
    """Return which node a node is seen as, by full name: a loop's hidden one as another controller node."""
    before, after = HIDDEN
    namespace, _, last = name.rpartition("/")
    if not (last.startswith(before) and last.endswith(after)):
        return name
    return f"another node {namespace}/{last.removeprefix(before).removesuffix(after)}"
