from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from rosgraph_msgs.msg import Clock

from nncontrol_prune.runtime.scheduling import real_time_granted
from tests.ros.graph import Graph, Robot, wait_until

pytestmark = pytest.mark.skipif(not real_time_granted(50), reason="real-time scheduling is not granted here")


def real_time_threads(pid: int) -> dict[int, str]:
    """Return the names of a process's threads under SCHED_FIFO, by id."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            if os.sched_getscheduler(int(task.name)) == os.SCHED_FIFO:
                found[int(task.name)] = (task / "comm").read_text().strip()
    return found


def check_threads(pid: int, priority: int) -> None:
    """Check that loop and middleware run in real time if they shall, and what answers services does not."""
    found = real_time_threads(pid)
    if priority == 0:
        assert not found
        return
    assert pid not in found, "the main thread"
    assert len(found) > 1, "the loop's, and the middleware's"
    if rclpy.get_rmw_implementation_identifier() == "rmw_cyclonedds_cpp":
        assert {"recv", "recvUC"} <= set(found.values())


@pytest.mark.parametrize("priority", [0, 50])
def test_what_hands_states_to_the_loop_runs_in_real_time_with_it(controller, robot: Robot, priority: int) -> None:
    node = controller(realtime_priority=priority)
    wait_until(lambda: robot.commands)
    check_threads(node.pid, priority)


@pytest.mark.parametrize("priority", [0, 50])
def test_what_hands_commands_to_the_plant_runs_in_real_time_with_it(graph: Graph, priority: int) -> None:
    clocks = graph.watch("/clock", Clock)
    node = graph.start("simulator_node", realtime_priority=priority)
    wait_until(lambda: clocks)
    check_threads(node.pid, priority)
