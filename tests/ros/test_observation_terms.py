"""A robot that says what it observes, simulated: the controller node sees what the environment observes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from geometry_msgs.msg import Twist
from sensor_msgs.msg import Imu
from std_msgs.msg import Float64MultiArray

from nncontrol_prune.plants.environments import make_environment
from nncontrol_prune.ros.messages import labelled
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.service.imports import bundle_from_onnx
from tests.legged_robot import EXAMPLE, LEGGED, STEPS
from tests.ros.graph import TIMEOUT, Graph, wait_until

SEED = 3
LAST, SPEEDS = slice(17, 19), slice(11, 17)


class Policy(nn.Module):
    """Random weights; gives out how far joints should be from the default pose, as the documentation's robot has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(20, 8), nn.ELU(), nn.Linear(8, 2))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.network(observation)
        return output


@pytest.fixture
def policy() -> Policy:
    return Policy().eval()


@pytest.fixture
def reference(policy: Policy, graph: Graph, tmp_path: Path) -> str:
    """The policy, imported as a user's is."""
    file = str(tmp_path / "walker.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch would rather use its newer exporter
        torch.onnx.export(policy, (torch.zeros(1, 20),), file, dynamo=False)
    bundle = bundle_from_onnx(Path(file), LEGGED)
    BundleStore(graph.store_path).add(bundle)
    return bundle.reference


def test_controller_observes_what_the_environment_does(
    graph: Graph, controller: Callable[..., Any], policy: Policy, reference: str
) -> None:
    transitions = graph.watch("/nn_controller/transition", Float64MultiArray, 500)
    imus, twists = graph.watch("/imu", Imu, 500), graph.watch("/cmd_vel", Twist, 500)
    commands = graph.watch("/commands", Float64MultiArray, 500)
    graph.start("simulator_node", env=LEGGED, lockstep=True, seed=SEED, real_time_factor=5.0, realtime_priority=0)
    # On a busy machine the first command may come before the plant listens; then no safe one may take its place.
    controller(controller=reference, use_sim_time=True, observation_timeout=TIMEOUT)
    wait_until(lambda: len(transitions) > STEPS + 10, what="transitions")
    parts = [labelled(message) for message in transitions[: STEPS + 10]]
    seen = np.array([part["observation"] for part in parts])
    actions = np.array([part["action"] for part in parts])

    env = make_environment(LEGGED)
    observation, _ = env.reset(seed=SEED)
    expected = []
    for number, action in enumerate(actions, 1):
        expected.append(observation)
        observation, *_ = env.step(action)
        if number == STEPS:
            observation, _ = env.reset()
    env.close()
    assert (np.ptp(expected, axis=0) > 0.01).all(), "otherwise this would show little"
    with torch.no_grad():
        outputs = policy.network(torch.as_tensor(seen[:-1], dtype=torch.float32)).numpy()
    np.testing.assert_allclose(seen[1:, LAST], outputs, atol=1e-4, err_msg="the policy's output of the tick before")
    for step, entries in ((STEPS, LAST), (STEPS, SPEEDS), (STEPS + 1, SPEEDS)):
        expected[step][entries] = seen[step, entries]  # nobody tells the controller that an episode has ended
    np.testing.assert_allclose(seen[STEPS : STEPS + 2, SPEEDS][:, :4], seen[STEPS - 1 : STEPS + 1, SPEEDS][:, 2:])
    np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-6)

    # The commands are positions, and in lockstep each is sent once, but for those before the plant listened.
    sent = np.array([message.data for message in commands])
    wanted = np.array(EXAMPLE["DEFAULT_POSE"]) + 0.25 * actions
    for command in wanted:
        assert np.isclose(sent, command, rtol=0, atol=1e-12).all(axis=1).any()

    assert {message.angular_velocity_covariance[0] for message in imus} == {0.0}
    assert {message.orientation_covariance[0] for message in imus} == {0.0}
    assert {message.linear_acceleration_covariance[0] for message in imus} == {-1.0}, "it is not observed"
    assert twists[-1].linear.z == twists[-1].angular.x == 0.0
