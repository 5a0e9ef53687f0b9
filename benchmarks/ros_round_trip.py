"""The round trip over ROS 2: joint state in, command out; the controller node against an empty rclpy echo node.

    source /opt/ros/jazzy/setup.bash
    python benchmarks/ros_round_trip.py                      # 200 Hz, 60 s for each node, in turns of 5 s
    python benchmarks/ros_round_trip.py --busy --swaps       # beside pruning jobs, with swaps in every turn
    python benchmarks/ros_round_trip.py --executor single    # with rclpy's SingleThreadedExecutor in both nodes

A driver publishes `sensor_msgs/JointState` at a fixed rate and takes the time until the `std_msgs/Float64MultiArray`
comes; a state that has no answer when the next one is sent is lost. Both nodes run all the time, each on topics of its
own, and take turns. Machines are shared: compare the columns, and medians over the turns. A node that computes answers
later than one that does not, so a machine that often holds answers up for nearly a period loses it more of them: the
last line tells how many the echo node would have lost with answers later by the difference of the medians.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from loop_timing import PruningJobs
from rcl_interfaces.srv import SetParameters
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from nncontrol_prune.controllers.bundle import MANIFEST, Bundle, check_bundle, load_bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.resources import shipped_controllers
from nncontrol_prune.ros.messages import COMMAND, NEWEST, time_of
from nncontrol_prune.ros.running import fastest_executor
from nncontrol_prune.runtime.scheduling import CALLING, run_in_real_time, running_threads
from nncontrol_prune.runtime.store import BundleStore

STEAL, GUEST = 7, 8
"""Columns of `processor_times`; from the second on, time is counted a second time."""

TURN = 5.0
WARM_UP = 100
"""States at the start of a turn that do not count."""
KINDS = ("echo", "ours")


def executor_named(name: str) -> Executor:
    """Return the executor that an option names."""
    return SingleThreadedExecutor() if name == "single" else fastest_executor()


def be_ours(executor: str) -> None:
    """Be the controller node, its loop on an executor of this name."""
    from nncontrol_prune.ros import controller_node, loop_runner

    loop_runner.fastest_executor = functools.partial(executor_named, executor)
    controller_node.main()


def be_echo(executor_name: str, priority: int) -> None:
    """Be the empty node: answer each state with the same command."""
    before = running_threads()
    rclpy.init()
    node = rclpy.create_node("echo", namespace="/echo")
    command = Float64MultiArray(data=[0.0])
    publisher = node.create_publisher(Float64MultiArray, "commands", COMMAND)
    node.create_subscription(JointState, "joint_states", lambda _: publisher.publish(command), NEWEST)
    executor = executor_named(executor_name)
    executor.add_node(node)
    # Its middleware's threads too, as those of the controller node.
    run_in_real_time(priority, {CALLING} | running_threads() - before)
    with contextlib.suppress(KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        executor.spin()


def bundles(rate: float) -> tuple[Bundle, Bundle]:
    """Return the shipped controller for another rate, under two names."""
    shipped = load_bundle(shipped_controllers()["cartpole_swingup_sac"])
    made = []
    for name in ("first", "second"):
        manifest = shipped.manifest.model_copy(update={"rate": rate, "name": name})
        made.append(check_bundle({**shipped.files, MANIFEST: manifest.model_dump_json().encode()}))
    return made[0], made[1]


class Driver:
    """Sends states and times the answers."""

    def __init__(self, rate: float) -> None:
        self.node = rclpy.create_node("driver")
        self._rate = rate
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._publishers = {
            kind: self.node.create_publisher(JointState, f"/{kind}/joint_states", COMMAND) for kind in KINDS
        }
        for kind in KINDS:
            self.node.create_subscription(Float64MultiArray, f"/{kind}/commands", self._answer, COMMAND)
        self._parameters = self.node.create_client(SetParameters, "/ours/nn_controller/set_parameters")
        self._sent = self._answered = 0.0
        self.state = JointState(
            name=["slider", "hinge"], position=array.array("d", [0.1, 3.0]), velocity=array.array("d", [0.0, 0.0])
        )

    def turn(self, kind: str, seconds: float, swaps: tuple[str, ...]) -> tuple[list[float], int, float]:
        """Drive one node; return the round trips in s, how many states were lost, and the worst gap in s."""
        period, publisher = 1.0 / self._rate, self._publishers[kind]
        times: list[float] = []
        answers: list[float] = []
        lost = 0
        due = time.perf_counter() + period
        count = round(seconds * self._rate)
        at = {round((number + 1) * count / (len(swaps) + 1)): swap for number, swap in enumerate(swaps)}
        for number in range(count):
            if number in at:
                value = Parameter("controller", value=at[number]).to_parameter_msg()
                self._parameters.call_async(SetParameters.Request(parameters=[value]))
            self.state.header.stamp = time_of(time.time())
            self._answered = 0.0
            self._sent = time.perf_counter()
            publisher.publish(self.state)
            while (left := due - time.perf_counter()) > 0:
                self._executor.spin_once(timeout_sec=left)
            if number >= WARM_UP:
                if self._answered:
                    times.append(self._answered - self._sent)
                    answers.append(self._answered)
                else:
                    lost += 1
            due = max(due + period, time.perf_counter())  # a driver that was held up does not send a burst
        return times, lost, float(np.diff(answers).max())

    def wait_for(self, kind: str) -> None:
        """Wait until a node answers."""
        deadline = time.monotonic() + 20
        while not self._answered and time.monotonic() < deadline:
            self.state.header.stamp = time_of(time.time())
            self._publishers[kind].publish(self.state)
            self._executor.spin_once(timeout_sec=0.1)
        if not self._answered:
            raise SystemExit(f"the node {kind} does not answer")
        self._answered = 0.0

    def _answer(self, _: Float64MultiArray) -> None:
        if not self._answered:
            self._answered = time.perf_counter()


@contextlib.contextmanager
def nodes(store: Path, first: Bundle, executor: str, priority: int) -> Iterator[None]:
    """Run both nodes."""
    parameters = {"controller": first.reference, "record": "true", "store": store, "realtime_priority": priority}
    arguments = ["--ros-args", "-r", "__ns:=/ours"]
    this = [sys.executable, __file__, "--executor", executor, "--realtime", str(priority)]
    for name, value in parameters.items():
        arguments += ["-p", f"{name}:={value}"]
    commands = [[*this, "--be", "echo"], [*this, "--be", "ours", *arguments]]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            process.wait(10)


def processor_times() -> list[int]:
    """Return the ticks of all processors since the start, by kind (proc_stat(5)); empty if this is not Linux."""
    stat = Path("/proc/stat")
    return [int(ticks) for ticks in stat.read_text().split("\n", 1)[0].split()[1:]] if stat.exists() else []


def report(turns: dict[str, list[tuple[list[float], int, float]]], period: float) -> None:
    """Print medians over the turns, and their ratio."""
    print(f"{'':30}{'echo':>10}{'ours':>10}{'ratio':>8}")
    medians: dict[int, dict[str, float]] = {}
    for quantile in (50, 99):
        medians[quantile] = found = {
            kind: float(np.median([1e3 * np.percentile(run[0], quantile) for run in turns[kind]])) for kind in KINDS
        }
        ratio = found["ours"] / found["echo"]
        print(f"round trip p{quantile:<3} [ms], median {found['echo']:>10.3f}{found['ours']:>10.3f}{ratio:>8.2f}")
    for label, figure in (
        ("states answered", lambda runs: f"{sum(len(run[0]) for run in runs):,}"),
        ("states lost", lambda runs: f"{sum(run[1] for run in runs):,}"),
        ("worst gap [ms], median", lambda runs: f"{np.median([1e3 * run[2] for run in runs]):.2f}"),
        ("worst gap [ms], of all", lambda runs: f"{max(1e3 * run[2] for run in runs):.2f}"),
    ):
        print(f"{label:30}" + "".join(f"{figure(turns[kind]):>10}" for kind in KINDS))
    later = medians[50]["ours"] - medians[50]["echo"]
    lost = sum(run[1] + sum(seconds + 1e-3 * later > period for seconds in run[0]) for run in turns["echo"])
    print(f"{f'lost if {later:.3f} ms later':30}{lost:>10,}")


def main() -> None:
    """Run the benchmark, or one of its nodes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each node")
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--realtime", type=int, default=50, metavar="PRIORITY", help="of both nodes and the driver")
    parser.add_argument("--busy", action="store_true", help="keep pruning beside it")
    parser.add_argument("--swaps", action="store_true", help="swap controllers four times in every turn of ours")
    parser.add_argument("--executor", choices=("fastest", "single"), default="fastest", help="of both nodes")
    parser.add_argument("--be", choices=KINDS, help=argparse.SUPPRESS)
    arguments, for_rclpy = parser.parse_known_args()
    if for_rclpy and not arguments.be:
        parser.error(f"unrecognized arguments: {' '.join(for_rclpy)}")
    if arguments.be == "ours":
        be_ours(arguments.executor)
        return
    if arguments.be == "echo":
        be_echo(arguments.executor, arguments.realtime)
        return
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    before = running_threads()
    rclpy.init()
    first, second = bundles(arguments.rate)
    turns: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        store = BundleStore(directory / "store")
        store.add(first)
        store.add(second)
        driver = Driver(arguments.rate)
        # Its middleware's threads too: a measuring instrument must not wait for the processor.
        run_in_real_time(arguments.realtime, running_threads() - before)
        jobs: PruningJobs | None = None
        if arguments.busy:
            from nncontrol_prune.service.rollouts import record_episodes

            dense = load_bundle(shipped_controllers()["cartpole_swingup_sac"])
            record_episodes(dense, CARTPOLE, range(5), directory / "bag", lambda _: None)
            jobs = stack.enter_context(PruningJobs(directory / "bag", directory))
        stack.enter_context(nodes(store.root, first, arguments.executor, arguments.realtime))
        for kind in KINDS:
            driver.wait_for(kind)
        run_in_real_time(arguments.realtime)
        swaps = (second.reference, first.reference) * 2 if arguments.swaps else ()
        begin = processor_times()
        for _ in range(max(1, round(arguments.seconds / TURN))):
            for kind in KINDS:
                turns[kind].append(driver.turn(kind, TURN, swaps if kind == "ours" else ()))
        spent = np.subtract(processor_times(), begin)
    print(f"{arguments.rate:g} Hz, executor {type(executor_named(arguments.executor)).__name__}")
    if len(spent):
        print(f"{spent[STEAL] / spent[:GUEST].sum():.1%} of the processors' time was taken by other virtual machines")
    if jobs is not None:
        print(f"{jobs.jobs} pruning jobs were begun")
    report(turns, 1.0 / arguments.rate)


if __name__ == "__main__":
    main()
