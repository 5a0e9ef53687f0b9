from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nncontrol_prune.controllers.specs import ActionSpec
from nncontrol_prune.plants.state import HEADER
from nncontrol_prune.plants.tasks import Task
from nncontrol_prune.rollouts.recorder import Recorder
from nncontrol_prune.transport.controller_process import ControllerLink
from nncontrol_prune.transport.network import Network
from nncontrol_prune.transport.plant_process import PlantLink

ACTION = ActionSpec(joints=("hip", "knee"), lower=(-1.0, -1.0), upper=(1.0, 1.0))


@pytest.fixture
def links(network: Network):
    plant = PlantLink(network, Task())
    controller = ControllerLink(network, 3, ACTION)
    action = np.zeros(2)
    while math.isnan(plant.command(action)):  # a publisher drops what it sends before it knows of its subscriber
        controller.write(0.0, action)
        time.sleep(0.02)
    while not math.isnan(plant.command(action)):
        time.sleep(0.02)
    yield plant, controller
    controller.close()
    plant.close()


def received(plant: PlantLink) -> tuple[float, list[float]]:
    action = np.full(2, 5.0)
    for _ in range(100):
        stamp = plant.command(action)
        if action[0] != 5.0:
            return stamp, action.tolist()
        time.sleep(0.01)
    return math.nan, action.tolist()


def test_command_arrives_with_the_stamp_it_answers(links: tuple[PlantLink, ControllerLink]) -> None:
    plant, controller = links
    controller.write(1.25, np.array([1.0, -2.0]))
    assert received(plant) == (1.25, [1.0, -2.0])


def test_safe_command_that_answers_nothing_is_applied(links: tuple[PlantLink, ControllerLink]) -> None:
    plant, controller = links
    controller.write(math.nan, np.zeros(2))
    stamp, action = received(plant)
    assert math.isnan(stamp)
    assert action == [0.0, 0.0]


def test_command_that_is_no_number_is_not_applied(links: tuple[PlantLink, ControllerLink]) -> None:
    plant, controller = links
    controller.write(1.0, np.array([math.nan, 0.0]))
    assert received(plant)[1] == [5.0, 5.0]


def test_garbage_after_a_command_does_not_hide_it(links: tuple[PlantLink, ControllerLink], network: Network) -> None:
    plant, controller = links
    controller.write(1.25, np.array([1.0, -2.0]))
    for garbage in (b"x", b"", b"x" * 1000):
        controller._commands.send(garbage)
    controller.write(2.0, np.array([math.inf, 0.0]))
    time.sleep(0.2)  # all of them are there when the plant looks
    action = np.zeros(2)
    assert (plant.command(action), action.tolist()) == (1.25, [1.0, -2.0])


def test_state_arrives_and_a_state_of_another_size_is_counted(
    links: tuple[PlantLink, ControllerLink], network: Network
) -> None:
    plant, controller = links
    plant.publish(np.zeros(len(HEADER) + 7))
    plant.publish(np.arange(len(HEADER) + 3.0))
    observation = np.zeros(3)
    for _ in range(100):
        if controller.read(observation) == 0.0:
            break
        time.sleep(0.01)
    assert observation.tolist() == [7.0, 8.0, 9.0]
    assert controller.unfit == 1


def test_state_that_no_step_led_to_is_not_recorded_as_one(network: Network, tmp_path: Path) -> None:
    plant = PlantLink(network, Task())
    recorder = Recorder(tmp_path / "bag", observation_size=3, action_size=2, rate=100.0)
    controller = ControllerLink(network, 3, ACTION, recorder)
    try:
        state = np.zeros(len(HEADER) + 3)
        for before, accepted in ((math.nan, False), (0.9, True)):
            state[:2] = 1.0, before
            for _ in range(100):
                plant.publish(state)
                if controller.wait(0.05):
                    break
            controller.read(np.zeros(3))
            controller.after_tick()
            assert (recorder.accepted > 0) == accepted
    finally:
        controller.close()
        plant.close()
        recorder.close()


def test_header_that_is_no_number_is_not_recorded_and_the_loop_goes_on(network: Network, tmp_path: Path) -> None:
    plant = PlantLink(network, Task())
    recorder = Recorder(tmp_path / "bag", observation_size=3, action_size=2, rate=100.0)
    controller = ControllerLink(network, 3, ACTION, recorder)
    try:
        for number in (math.nan, math.inf):
            state = np.full(len(HEADER) + 3, number)
            state[:2] = 1.0, 0.9
            for _ in range(100):
                plant.publish(state)
                if controller.wait(0.05):
                    break
            controller.read(np.zeros(3))
            controller.after_tick()
        assert recorder.dropped >= 2
    finally:
        controller.close()
        plant.close()
        recorder.close()


WITHOUT_RIGHT = """
import ctypes, os, resource, sys
import zmq
from nncontrol_prune.transport.network import Network
PR_CAPBSET_DROP, CAP_SYS_NICE = 24, 23
network = Network(port=int(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_NICE, 0, 0, 0)
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
context = network.real_time_context(50)
socket = context.socket(zmq.PUB)
socket.bind(f"tcp://127.0.0.1:{sys.argv[1]}")
socket.send(b"fine")
context.destroy(linger=0)
print("fine")
"""


def test_user_without_the_right_to_real_time_is_served_too(port: int) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_RIGHT, str(port)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr


def test_commands_are_what_actions_stand_for(network: Network) -> None:
    positions = ActionSpec.model_validate({**ACTION.model_dump(), "scale": 0.25, "offset": (0.4, -0.8)})
    plant, controller = PlantLink(network, Task()), ControllerLink(network, 3, positions)
    try:
        command = np.zeros(2)
        for _ in range(100):
            controller.write(1.25, np.array([1.0, -2.0]))
            time.sleep(0.02)
            if plant.command(command) == 1.25:
                break
        np.testing.assert_allclose(command, [0.65, -1.3])
    finally:
        controller.close()
        plant.close()
