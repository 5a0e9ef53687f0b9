from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from std_msgs.msg import Float64MultiArray

from nncontrol_prune.resources import share_directory
from nncontrol_prune.rollouts.reader import read_rollouts
from tests.documentation import DOCS, commands
from tests.ros.graph import QUICK, Graph, ros_environment, wait_until

RECORD, KEEP_MORE = commands(DOCS / "ros2.md", "tests/ros/test_bags.py records with these commands")


@pytest.mark.skipif(importlib.util.find_spec("ros2bag") is None, reason="ros2 bag is not installed")
@pytest.mark.parametrize(
    ("record", "ending"), [(RECORD, signal.SIGINT), (KEEP_MORE, signal.SIGKILL)], ids=["interrupted", "killed"]
)
def test_bag_of_ros2_bag_record_is_as_good_as_our_own(graph: Graph, record: str, ending: signal.Signals) -> None:
    bag = graph.tmp_path / "recorded"
    _, *arguments = shlex.split(record, comments=True)
    command = [sys.executable, "-c", "from ros2cli.cli import main; main()", *arguments, "-o", str(bag)]
    recording = subprocess.Popen(command, env=ros_environment(graph.store_path), start_new_session=True)
    transitions = graph.watch("/nn_controller/transition", Float64MultiArray, 100)
    file = share_directory() / "config" / "sim.yaml"
    try:
        wait_until(lambda: "rosbag2_recorder" in graph.node.get_node_names(), what="the recorder")
        graph.start("simulator_node", file=file, realtime_priority=0)
        graph.start("controller_node", file=file, use_sim_time=True, realtime_priority=0)
        graph.start("pruning_node", file=file, rollouts=bag, **QUICK)
        wait_until(lambda: len(transitions) > 1500, 40)
        ours = wait_until(lambda: graph.status()["bag"])
    finally:
        os.killpg(recording.pid, ending)
        recording.wait(20)
    theirs, own = read_rollouts(bag), read_rollouts(ours)
    assert len(theirs) > 1200
    assert theirs.controllers == own.controllers
    assert theirs.has_rewards
    assert np.isin(theirs.stamp, own.stamp).mean() > 0.99
    assert graph.trigger("/pruning_service/prune")[0]
    wait_until(lambda: graph.status("/pruning_service")["progress"] > 0.2, 60, "the job's reading of the bag")
