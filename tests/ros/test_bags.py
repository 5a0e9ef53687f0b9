from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from std_msgs.msg import Float64MultiArray

from nncontrol_prune.resources import share_directory
from nncontrol_prune.rollouts.reader import read_rollouts
from tests.ros.graph import Graph, ros_environment, wait_until

TOPICS = ("/nn_controller/transition", "/nn_controller/bundle", "/mujoco_sim/step")


@pytest.mark.skipif(importlib.util.find_spec("ros2bag") is None, reason="ros2 bag is not installed")
def test_bag_of_ros2_bag_record_is_as_good_as_our_own(graph: Graph) -> None:
    bag = graph.tmp_path / "recorded"
    command = [sys.executable, "-c", "from ros2cli.cli import main; main()", "bag", "record", "-s", "mcap"]
    command += ["-o", str(bag), *TOPICS]
    recording = subprocess.Popen(command, env=ros_environment(graph.store_path), start_new_session=True)
    transitions = graph.watch(TOPICS[0], Float64MultiArray, 100)
    file = share_directory() / "config" / "sim.yaml"
    try:
        wait_until(lambda: all(graph.node.count_subscribers(topic) for topic in TOPICS[:1]), what="the recorder")
        graph.start("simulator_node", file=file, realtime_priority=0)
        graph.start("controller_node", file=file, use_sim_time=True, realtime_priority=0)
        graph.start("pruning_node", file=file, rollouts=bag, method="uniform", robustness__enabled=False)
        wait_until(lambda: len(transitions) > 1500, 40)
        ours = graph.status()["bag"]
    finally:
        recording.send_signal(signal.SIGINT)
        recording.wait(20)
    theirs, own = read_rollouts(bag), read_rollouts(ours)
    assert theirs.controllers == own.controllers
    assert theirs.has_rewards
    assert np.isin(theirs.stamp, own.stamp).mean() > 0.99
    assert graph.trigger("/pruning_service/prune")[0]
