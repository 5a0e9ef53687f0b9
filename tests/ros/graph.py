"""What the tests of the ROS nodes share: a graph of their own, nodes as processes, and a robot that answers."""

from __future__ import annotations

import array
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Twist
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Imu, JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import Trigger

from nncontrol_prune.ros.messages import seconds, time_of

DOMAIN = 1 + os.getpid() % 100
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
PACKAGE = str(Path(__file__).resolve().parents[2])
TIMEOUT = 20.0
QUICK: dict[str, Any] = {"method": "uniform", "robustness__enabled": False, "attraction_starts": 0}
"""Parameters of the pruning service for a job of some seconds."""


def ros_environment(store: Path) -> dict[str, str]:
    """Return the environment of a node's process: a domain of its own on this machine, and a store."""
    return {
        **os.environ,
        "ROS_DOMAIN_ID": str(DOMAIN),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOCALHOST_ONLY": "1",
        "NNCONTROL_PRUNE_STORE": str(store),
        "PYTHONPATH": os.pathsep.join([PACKAGE, os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }


def wait_until(condition: Callable[[], Any], timeout: float = TIMEOUT, what: str = "it") -> Any:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {timeout:g} s")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """Return the processes that one has started, and those they have."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return []
    found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [*found, *(grandchild for child in found for grandchild in children(child))]


class NodeProcess:
    """A node of ours as a process."""

    def __init__(self, kind: str, log: Path, store: Path, arguments: Sequence[str]) -> None:
        code = f"from nncontrol_prune.ros.entry_points import {kind}; {kind}()"
        self._log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, "--ros-args", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=ros_environment(store),
                cwd=log.parent,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self, timeout: float = 10.0) -> int:
        """Ask it to end, as launch does, and return its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout)


class Graph:
    """A node of the tests' own, spun in the background, and the nodes it started."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.store_path = tmp_path / "store"
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=DOMAIN)
        self.node = rclpy.create_node(f"test_{os.getpid()}", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()
        self._processes: list[NodeProcess] = []
        self._latest: dict[str, Any] = {}

    def close(self) -> None:
        for process in self._processes:
            if process.process.poll() is None:
                process.process.send_signal(signal.SIGINT)
        for process in self._processes:
            try:
                process.process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
        self._executor.shutdown()
        self._thread.join(5.0)
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def start(
        self,
        kind: str,
        *,
        namespace: str = "",
        name: str = "",
        file: Path | None = None,
        store: Path | None = None,
        remap: Sequence[str] = (),
        **parameters: Any,
    ) -> NodeProcess:
        """Start `controller_node`, `simulator_node` or `pruning_node`."""
        arguments: list[str] = []
        if namespace:
            arguments += ["-r", f"__ns:={namespace}"]
        if name:
            arguments += ["-r", f"__node:={name}"]
        for rule in remap:
            arguments += ["-r", rule]
        if file is not None:
            arguments += ["--params-file", str(file)]
        for key, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            arguments += ["-p", f"{key.replace('__', '.')}:={text}"]
        log = self.tmp_path / f"{kind}_{len(self._processes)}.log"
        process = NodeProcess(kind, log, store or self.store_path, arguments)
        self._processes.append(process)
        return process

    def add(self, node: Node) -> None:
        """Spin another node, too."""
        self._executor.add_node(node)

    def watch(self, topic: str, message_type: type, qos: Any = 10) -> list[Any]:
        """Subscribe, and return the list that messages are added to."""
        messages: list[Any] = []
        self.node.create_subscription(message_type, topic, messages.append, qos)
        return messages

    def call(self, service_type: type, name: str, request: Any = None, timeout: float = TIMEOUT) -> Any:
        client = self.node.create_client(service_type, name)
        try:
            assert client.wait_for_service(timeout), f"there is no service {name}"
            done = threading.Event()
            future = client.call_async(request or service_type.Request())
            future.add_done_callback(lambda _: done.set())
            assert done.wait(timeout), f"{name} has not answered"
            return future.result()
        finally:
            self.node.destroy_client(client)

    def trigger(self, name: str) -> tuple[bool, str]:
        answer = self.call(Trigger, name)
        return answer.success, answer.message

    def set(self, node: str, **values: Any) -> tuple[bool, str]:
        """Set parameters of a node, as `ros2 param set` does; return whether all were, and the first reason."""
        parameters = [
            Parameter(name.replace("__", "."), value=value).to_parameter_msg() for name, value in values.items()
        ]
        results = self.call(SetParameters, f"{node}/set_parameters", SetParameters.Request(parameters=parameters))
        reasons = [result.reason for result in results.results if not result.successful]
        return not reasons, "; ".join(reasons)

    def get(self, node: str, name: str) -> Any:
        answer = self.call(GetParameters, f"{node}/get_parameters", GetParameters.Request(names=[name]))
        return Parameter.from_parameter_msg(rclpy.parameter.ParameterMsg(name=name, value=answer.values[0])).value

    def change_state(self, node: str, transition: int) -> bool:
        request = ChangeState.Request()
        request.transition.id = transition
        return bool(self.call(ChangeState, f"{node}/change_state", request).success)

    def state(self, node: str) -> str:
        return str(self.call(GetState, f"{node}/get_state").current_state.label)

    def status(self, node: str = "/nn_controller") -> dict[str, Any]:
        """Return what a node says on ~/status."""
        messages = self._latest.get(node)
        if messages is None:
            messages = self._latest[node] = self.watch(f"{node}/status", String, LATCHED)
        wait_until(lambda: messages, what=f"a status of {node}")
        return dict(json.loads(messages[-1].data))

    def diagnostics(self, name: str = "nn_controller") -> Callable[[], Any]:
        """Return a function that gives the newest diagnostics of a node, or None."""
        messages = self.watch("/diagnostics", DiagnosticArray)

        def newest() -> Any:
            found = [status for message in messages for status in message.status if status.name == name]
            return found[-1] if found else None

        return newest


class Robot:
    """Publishes joint states at a rate, from a thread, and keeps the commands it gets."""

    def __init__(self, graph: Graph, *, rate: float = 100.0, namespace: str = "", commands: str = "commands") -> None:
        self._graph = graph
        self.names = ["hinge", "slider"]  # not in the controller's order
        self.position = [3.0, 0.25]
        self.velocity: list[float] = [0.5, -0.5]
        self.rate = rate
        self.offset = 0.0
        self.silent = False
        self.repeat = 1
        self.imu: Imu | None = None
        """What comes before each state, with its stamp; None for nothing."""
        self.imu_offset = 0.0
        self.twist: Twist | None = None
        """Likewise."""
        self.simulated: float | None = None
        """The simulated time, which is published; None for the system's."""
        self.commands: list[list[float]] = []
        self.times: list[float] = []
        self._publisher = graph.node.create_publisher(JointState, f"{namespace}/joint_states", 10)
        self._clock = graph.node.create_publisher(Clock, "/clock", 10)
        self._imu = graph.node.create_publisher(Imu, f"{namespace}/imu", 10)
        self._twist = graph.node.create_publisher(Twist, f"{namespace}/cmd_vel", 10)
        graph.node.create_subscription(Float64MultiArray, f"{namespace}/{commands}", self._take, 10)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _take(self, message: Float64MultiArray) -> None:
        self.commands.append(list(message.data))
        self.times.append(time.perf_counter())

    def _run(self) -> None:
        due = time.perf_counter()
        while not self._stopped.is_set():
            due += 1 / self.rate
            time.sleep(max(0.0, due - time.perf_counter()))
            if self.silent:
                continue
            message = JointState(name=list(self.names), position=array.array("d", self.position))
            message.velocity = array.array("d", self.velocity)
            message.header.stamp = time_of(time.time() + self.offset)
            if self.simulated is not None:
                self.simulated += 1 / self.rate
                message.header.stamp = time_of(self.simulated)
                self._clock.publish(Clock(clock=message.header.stamp))
            if self.imu is not None:
                self.imu.header.stamp = time_of(seconds(message.header.stamp) + self.imu_offset)
                self._imu.publish(self.imu)
            if self.twist is not None:
                self._twist.publish(self.twist)
            for _ in range(self.repeat):
                self._publisher.publish(message)


@contextmanager
def command_controller(graph: Graph, name: str, joints: Sequence[str]) -> Iterator[Robot]:
    """Run a robot that is commanded through a controller of ros2_control's, which tells its joints."""
    robot = Robot(graph, commands=f"{name}/commands")
    node = rclpy.create_node(name, context=graph.context)
    node.declare_parameter("joints", list(joints))
    graph.add(node)
    try:
        yield robot
    finally:
        robot.close()
        node.destroy_node()


def commanding(robot: Robot, force: float) -> None:
    """Wait until the newest commands are a force."""
    start = len(robot.commands)
    wait_until(
        lambda: len(robot.commands) > start + 2 and abs(robot.commands[-1][0] - force) <= 1e-5 * max(1.0, abs(force)),
        what=f"a command of {force:g}",
    )
