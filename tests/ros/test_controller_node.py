from __future__ import annotations

import math
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from lifecycle_msgs.msg import Transition
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Float64MultiArray, String

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.rollouts.reader import read_rollouts
from nncontrol_prune.rollouts.schema import STEP_LAYOUT
from nncontrol_prune.ros.messages import array_of
from nncontrol_prune.runtime.store import BundleStore, SlotRecord
from tests.ros.graph import LATCHED, Graph, Robot, children, command_controller, commanding, wait_until

NODE = "/nn_controller"


def action_of(bundle: Bundle, robot: Robot) -> float:
    """Return what a controller commands a robot."""
    states = dict(zip(robot.names, zip(robot.position, robot.velocity, strict=True), strict=True))
    (x, x_dot), (theta, theta_dot) = states["slider"], states["hinge"]
    action = np.zeros(1)
    bundle.policy.act(np.array([x, math.cos(theta), math.sin(theta), x_dot, theta_dot]), action)
    return float(action[0])


@pytest.fixture
def pruned(graph: Graph, shipped_bundle: Bundle, make_cartpole_bundle, make_verdict) -> Bundle:
    """An accepted pruned controller in the store."""
    bundle = make_cartpole_bundle(hidden=(8, 8), parent=shipped_bundle, name="pruned")
    store = BundleStore(graph.store_path)
    store.add(bundle)
    store.write_verdict(make_verdict(bundle))
    return bundle


def test_it_activates_itself_and_answers_joints_by_name(controller, graph, robot, shipped_bundle) -> None:
    controller()
    expected = action_of(shipped_bundle, robot)
    commanding(robot, expected)
    assert graph.state(NODE) == "active"
    wait_until(lambda: graph.get(NODE, "controller") == shipped_bundle.reference)
    robot.names = ["gripper", "slider", "hinge"]
    robot.position = [9.0, 0.25, 3.0]
    robot.velocity = [9.0, -0.5, 0.5]
    time.sleep(0.1)
    commanding(robot, expected)


def test_process_is_small_and_imports_no_torch(controller, robot) -> None:
    node = controller(record=True)
    wait_until(lambda: robot.commands)
    status = Path(f"/proc/{node.pid}/status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
    assert resident < 200
    assert "libtorch" not in Path(f"/proc/{node.pid}/maps").read_text()


def test_lifecycle(controller, graph, robot, shipped_bundle) -> None:
    controller(autostart=False, safe_command="[1.5]")
    assert graph.state(NODE) == "unconfigured"
    assert graph.trigger(f"{NODE}/rollback") == (
        False,
        "there is no controller to roll back: the node is not configured",
    )
    assert graph.change_state(NODE, Transition.TRANSITION_CONFIGURE)
    assert graph.state(NODE) == "inactive"
    time.sleep(0.3)
    assert robot.commands == []
    assert graph.change_state(NODE, Transition.TRANSITION_ACTIVATE)
    commanding(robot, action_of(shipped_bundle, robot))
    assert graph.change_state(NODE, Transition.TRANSITION_DEACTIVATE)
    time.sleep(0.2)
    count = len(robot.commands)
    assert robot.commands[-1] == [1.5]
    time.sleep(0.2)
    assert len(robot.commands) == count
    assert graph.change_state(NODE, Transition.TRANSITION_ACTIVATE)
    commanding(robot, action_of(shipped_bundle, robot))
    assert graph.change_state(NODE, Transition.TRANSITION_DEACTIVATE)
    assert graph.change_state(NODE, Transition.TRANSITION_CLEANUP)
    assert graph.state(NODE) == "unconfigured"
    assert graph.change_state(NODE, Transition.TRANSITION_CONFIGURE)
    wait_until(lambda: graph.status()["state"] == "inactive")
    assert graph.change_state(NODE, Transition.TRANSITION_INACTIVE_SHUTDOWN)
    assert graph.state(NODE) == "finalized"
    wait_until(lambda: graph.status()["state"] == "finalized")


def test_transition_that_its_state_has_not_is_refused_and_the_node_goes_on(controller, graph, robot) -> None:
    node = controller()
    wait_until(lambda: robot.commands)
    for wrong in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_INACTIVE_SHUTDOWN, 200):
        assert not graph.change_state(NODE, wrong)
    assert "change_state refused: RCLError: Failed to trigger" in node.log
    assert graph.state(NODE) == "active"
    count = len(robot.commands)
    wait_until(lambda: len(robot.commands) > count + 10)


@pytest.mark.parametrize("command", ["[1.0, 2.0]", "[1000.0]"])
def test_safe_command_that_does_not_fit_the_controller_is_refused_when_it_is_configured(
    controller, graph, command
) -> None:
    node = controller(safe_command=command)
    wait_until(lambda: f"cannot configure: safe_command {command} is not one value within each of: slider" in node.log)
    assert graph.state(NODE) == "unconfigured"


def test_configuring_without_a_controller_fails_with_the_reason_and_can_be_tried_again(controller, graph) -> None:
    node = controller(default_controller="''")
    wait_until(lambda: "cannot configure: slot nn_controller of the store" in node.log)
    assert graph.state(NODE) == "unconfigured"
    assert graph.set(NODE, default_controller="cartpole_swingup_sac") == (True, "")
    assert graph.change_state(NODE, Transition.TRANSITION_CONFIGURE)


def test_it_ends_with_the_safe_command(controller, robot) -> None:
    node = controller()
    wait_until(lambda: robot.commands)
    assert node.end() == 0
    wait_until(lambda: robot.commands[-1] == [0.0])


def test_states_that_stop_lead_to_the_safe_command_until_they_come_again(
    controller, graph, robot, shipped_bundle
) -> None:
    node = controller()
    newest = graph.diagnostics()
    commanding(robot, action_of(shipped_bundle, robot))
    wait_until(lambda: newest() and newest().message == "OK")
    robot.silent = True
    commanding(robot, 0.0)
    wait_until(lambda: newest().level == b"\x02" and "the safe command is sent" in newest().message)
    robot.silent = False
    commanding(robot, action_of(shipped_bundle, robot))
    wait_until(lambda: newest().message == "OK")
    wait_until(lambda: "the controller's commands are sent again" in node.log)
    assert node.log.count("the safe command is sent: no joint states that can be acted on are coming") == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"position": [math.nan, 0.25]}, "entries [1, 2] of the observation are no numbers"),
        ({"position": [3.0, math.inf]}, "entries [0] of the observation are no numbers"),
        ({"velocity": [1e9, 0.0]}, "entries [4] of the observation are no numbers, or larger than 1e+06"),
        ({"names": ["hinge", "wheel"]}, "the joint states lack slider; they have hinge, wheel"),
        ({"velocity": []}, "the joint states have 0 values of velocity for 2 joints"),
        ({"offset": -5.0}, "s old"),
    ],
)
def test_states_that_cannot_be_acted_on_lead_to_the_safe_command_and_are_told(
    controller, graph, robot, shipped_bundle, change, problem
) -> None:
    node = controller()
    newest = graph.diagnostics()
    commanding(robot, action_of(shipped_bundle, robot))
    before = {name: getattr(robot, name) for name in change}
    for name, value in change.items():
        setattr(robot, name, value)
    commanding(robot, 0.0)
    wait_until(lambda: newest() and newest().level == b"\x02" and problem in newest().message, what=problem)
    for name, value in before.items():
        setattr(robot, name, value)
    commanding(robot, action_of(shipped_bundle, robot))
    wait_until(lambda: "the controller's commands are sent again" in node.log)
    (line,) = re.findall("the safe command is sent: .*", node.log)
    assert problem in line


def test_safe_command_that_comes_in_turns_with_the_controllers_is_logged_once(
    controller, graph, robot, shipped_bundle
) -> None:
    node = controller()
    newest = graph.diagnostics()
    commanding(robot, action_of(shipped_bundle, robot))
    good = robot.position
    for _ in range(10):
        robot.position = [math.nan, 0.25]
        time.sleep(0.15)
        robot.position = good
        time.sleep(0.15)
    wait_until(lambda: "the controller's commands are sent again" in node.log)
    wait_until(lambda: newest() and newest().message == "OK")
    assert (
        node.log.count("the safe command is sent:") == node.log.count("the controller's commands are sent again") == 1
    )


def test_state_that_comes_twice_is_answered_twice_and_counted_once(controller, graph, robot) -> None:
    robot.silent = True
    controller()
    transitions = graph.watch(f"{NODE}/transition", Float64MultiArray, 100)
    wait_until(lambda: graph.state(NODE) == "active")
    wait_until(lambda: graph.node.count_subscribers("/joint_states") == 1)
    robot.repeat = 2
    robot.rate = 50.0
    robot.silent = False
    wait_until(lambda: len(transitions) > 20)
    stamps = [message.data[0] for message in transitions]
    assert len(set(stamps)) == len(stamps)


def test_clock_that_jumps_back_is_followed_and_told(controller, graph, robot, shipped_bundle) -> None:
    robot.simulated = 100.0
    controller(use_sim_time=True)
    newest = graph.diagnostics()
    commanding(robot, action_of(shipped_bundle, robot))
    robot.simulated = 0.0
    commanding(robot, action_of(shipped_bundle, robot))
    wait_until(
        lambda: newest() and ("clock jumps back", "1") in [(value.key, value.value) for value in newest().values]
    )
    commanding(robot, action_of(shipped_bundle, robot))


def test_stamps_ahead_of_the_clock_are_told(controller, graph, robot, shipped_bundle) -> None:
    controller()
    newest = graph.diagnostics()
    commanding(robot, action_of(shipped_bundle, robot))
    wait_until(lambda: newest() and newest().message == "OK")
    robot.offset = 5.0
    wait_until(lambda: newest().level == b"\x01" and "s ahead of the clock" in newest().message)
    assert "joint states are stamped" in newest().message
    commanding(robot, action_of(shipped_bundle, robot))


def test_accepted_controller_is_swapped_in_without_a_gap(controller, graph, robot, shipped_bundle, pruned) -> None:
    controller(probation=0.2)
    bundles = graph.watch(f"{NODE}/bundle", String, LATCHED)
    commanding(robot, action_of(shipped_bundle, robot))
    assert graph.set(NODE, controller=pruned.reference) == (True, "")
    commanding(robot, action_of(pruned, robot))
    wait_until(lambda: [message.data for message in bundles][-1:] == [f"1 {pruned.reference}"])
    assert graph.status()["active"] == pruned.reference
    wait_until(lambda: BundleStore(graph.store_path).slot("nn_controller").current == pruned.reference)
    assert graph.trigger(f"{NODE}/rollback")[0]
    commanding(robot, action_of(shipped_bundle, robot))
    wait_until(lambda: graph.get(NODE, "controller") == shipped_bundle.reference)


def test_rollback_at_once_leads_back_whether_the_loop_has_taken_the_controller_or_not(
    controller, graph, robot, shipped_bundle, pruned
) -> None:
    controller()
    commanding(robot, action_of(shipped_bundle, robot))
    for _ in range(5):
        assert graph.set(NODE, controller=pruned.reference)[0]
        assert graph.trigger(f"{NODE}/rollback") == (True, f"back to {shipped_bundle.reference}")
        wait_until(lambda: graph.get(NODE, "controller") == shipped_bundle.reference)
        commanding(robot, action_of(shipped_bundle, robot))


def test_slot_that_another_loop_has_is_refused_until_that_has_ended(controller, graph) -> None:
    with BundleStore(graph.store_path).held_slot("nn_controller"):
        controller(autostart=False)
        assert not graph.change_state(NODE, Transition.TRANSITION_CONFIGURE)
        assert graph.state(NODE) == "unconfigured"
    assert graph.change_state(NODE, Transition.TRANSITION_CONFIGURE)
    assert graph.change_state(NODE, Transition.TRANSITION_CLEANUP)
    assert graph.change_state(NODE, Transition.TRANSITION_CONFIGURE), "the node let go of it"


def current(graph: Graph) -> str:
    """Return what the store remembers of the node."""
    record = wait_until(lambda: BundleStore(graph.store_path).slot("nn_controller"))
    return record.current


def reconfigure(graph: Graph) -> None:
    for change in (
        Transition.TRANSITION_DEACTIVATE,
        Transition.TRANSITION_CLEANUP,
        Transition.TRANSITION_CONFIGURE,
        Transition.TRANSITION_ACTIVATE,
    ):
        assert graph.change_state(NODE, change)


def test_controller_on_probation_still_is_when_the_node_is_configured_again(
    controller, graph, robot, shipped_bundle, pruned
) -> None:
    controller(probation=600.0)
    commanding(robot, action_of(shipped_bundle, robot))
    assert current(graph) == shipped_bundle.reference
    assert graph.set(NODE, controller=pruned.reference) == (True, "")
    wait_until(lambda: graph.status()["active"] == pruned.reference)
    reconfigure(graph)
    commanding(robot, action_of(pruned, robot))
    wait_until(lambda: graph.status()["on_probation"] and graph.status()["active"] == pruned.reference)
    assert current(graph) == shipped_bundle.reference
    assert graph.trigger(f"{NODE}/rollback")[0]
    commanding(robot, action_of(shipped_bundle, robot))
    wait_until(lambda: graph.get(NODE, "controller") == shipped_bundle.reference)


def test_controller_that_is_set_before_the_node_is_configured_is_on_probation(
    controller, graph, robot, shipped_bundle, pruned
) -> None:
    BundleStore(graph.store_path).add(shipped_bundle)
    BundleStore(graph.store_path).write_slot("nn_controller", SlotRecord(current=shipped_bundle.reference))
    controller(probation=0.5, autostart=False)
    robot.silent = True
    assert graph.set(NODE, controller=pruned.reference) == (True, "")
    assert graph.change_state(NODE, Transition.TRANSITION_CONFIGURE)
    assert graph.change_state(NODE, Transition.TRANSITION_ACTIVATE)
    wait_until(lambda: graph.status()["on_probation"])
    assert current(graph) == shipped_bundle.reference
    robot.silent = False
    commanding(robot, action_of(pruned, robot))
    wait_until(lambda: current(graph) == pruned.reference)


def test_controller_for_another_robot_than_the_stores_current_one_is_configured_all_the_same(
    controller, graph, robot, shipped_bundle, make_cartpole_bundle
) -> None:
    store = BundleStore(graph.store_path)
    slow = make_cartpole_bundle(hidden=(4, 4), name="slow", rate=50.0)
    store.add(slow)
    store.write_slot("nn_controller", SlotRecord(current=slow.reference))
    node = controller(controller="cartpole_swingup_sac")
    commanding(robot, action_of(shipped_bundle, robot))
    assert "begins without a probation: cartpole_swingup_sac cannot take the place of slow" in node.log
    wait_until(lambda: current(graph) == shipped_bundle.reference)


def test_controllers_that_may_not_run_are_refused_with_the_reason(
    controller, graph, robot, shipped_bundle, pruned, make_cartpole_bundle, make_verdict
) -> None:
    controller()
    commanding(robot, action_of(shipped_bundle, robot))
    store = BundleStore(graph.store_path)
    unvalidated = make_cartpole_bundle(hidden=(4, 4), parent=shipped_bundle, name="unvalidated")
    store.add(unvalidated)
    slow = make_cartpole_bundle(hidden=(4, 4), name="slow", rate=50.0)
    store.add(slow)
    for reference, reason in (
        ("nobody@" + "0" * 64, "no bundle nobody@"),
        ("nonsense", "there is no controller 'nonsense'"),
        (unvalidated.reference, "was never validated"),
        (slow.reference, "its rate is 50 Hz, not 100 Hz"),
    ):
        done, found = graph.set(NODE, controller=reference)
        assert not done
        assert reason in found
    store.write_verdict(make_verdict(unvalidated, accepted=False))
    assert "the gate rejected it" in graph.set(NODE, controller=unvalidated.reference)[1]
    (store.directory(pruned.digest) / "policy.onnx").unlink()
    assert "policy.onnx is missing" in graph.set(NODE, controller=pruned.reference)[1]
    assert graph.get(NODE, "controller") == shipped_bundle.reference
    assert graph.trigger(f"{NODE}/rollback") == (False, "there is no earlier controller to roll back to")
    commanding(robot, action_of(shipped_bundle, robot))


@pytest.mark.parametrize("allowed", [False, True])
def test_controller_that_no_closed_loop_was_run_of_is_swapped_in_only_where_that_is_allowed(
    controller, graph, robot, shipped_bundle, pruned, make_verdict, allowed
) -> None:
    (graph.store_path / "verdicts" / f"{pruned.digest}.json").unlink()
    BundleStore(graph.store_path).write_verdict(make_verdict(pruned, offline=True))
    controller(allow_offline=allowed)
    commanding(robot, action_of(shipped_bundle, robot))
    done, reason = graph.set(NODE, controller=pruned.reference)
    assert done == allowed
    assert allowed or "set allow_offline of the controller to true" in reason
    commanding(robot, action_of(pruned if allowed else shipped_bundle, robot))


def test_store_that_cannot_be_written_is_told_in_a_sentence(controller, graph) -> None:
    node = controller(store="/proc/store")
    wait_until(lambda: "cannot configure: the store /proc/store cannot be written" in node.log)
    assert "Traceback" not in node.log
    assert graph.state(NODE) == "unconfigured"


def test_controller_that_cannot_be_stored_is_refused_with_the_reason(
    controller, graph, robot, shipped_bundle, make_cartpole_bundle, tmp_path
) -> None:
    node = controller()
    commanding(robot, action_of(shipped_bundle, robot))
    wait_until(lambda: current(graph))
    make_cartpole_bundle(hidden=(4, 4), name="other").write(tmp_path / "other")
    shutil.move(graph.store_path / "bundles", tmp_path / "bundles")
    (graph.store_path / "bundles").touch()
    done, reason = graph.set(NODE, controller=str(tmp_path / "other"))
    assert not done
    assert reason == f"the store {graph.store_path} cannot be written: File exists"
    assert "Traceback" not in node.log


def test_parameters_of_the_wrong_type_out_of_range_or_not_now_are_refused(controller, graph, robot) -> None:
    controller(autostart=False, probation=3)  # a whole number for a float
    assert graph.get(NODE, "probation") == 3.0
    assert graph.set(NODE, probation=1) == (True, "")
    assert graph.get(NODE, "probation") == 1.0
    assert "Wrong parameter type" in graph.set(NODE, probation="long")[1]
    assert "probation" in graph.set(NODE, probation=1e9)[1]
    assert "drive" in graph.set(NODE, drive="steam")[1]
    assert not graph.set(NODE, wheels=4)[0]
    assert graph.change_state(NODE, Transition.TRANSITION_CONFIGURE)
    assert "only before the node is configured" in graph.set(NODE, probation=2.0)[1]
    wait_until(lambda: graph.get(NODE, "controller"))
    assert "controller cannot be empty while one runs" in graph.set(NODE, controller="")[1]


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("ratte: 100", "there is no key 'ratte'; did you mean rate?"),
        ("rate: -5", "rate = -5.0: input should be greater than 0"),
        ("record: 7", "record = 7: input should be a valid boolean"),
        ("7", "ROS 2 cannot be initialized: failed to initialize rcl"),
    ],
)
def test_parameter_file_that_is_wrong_ends_the_node_with_one_sentence(graph, tmp_path, section, problem) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(f"/**/nn_controller:\n  ros__parameters:\n    {section}\n")
    node = graph.start("controller_node", file=file)
    assert node.process.wait(20) == 1
    assert problem in node.log
    assert "Traceback" not in node.log


def test_keys_for_all_nodes_are_left_to_those_they_are_for(controller, graph, tmp_path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text("/**:\n  ros__parameters:\n    colour: red\n    use_sim_time: false\n")
    controller(file=file)
    assert wait_until(lambda: graph.state(NODE)) in ("active", "inactive")


def test_another_rate_than_the_controllers_is_refused(controller, graph) -> None:
    node = controller(rate=50)
    wait_until(lambda: "rate = 50 Hz: controller cartpole_swingup_sac runs at 100 Hz" in node.log)
    assert graph.state(NODE) == "unconfigured"


def test_steps_that_are_none_are_told_in_a_sentence_and_the_node_lives_on(
    controller, graph, robot, shipped_bundle
) -> None:
    node = controller(record=True)
    newest = graph.diagnostics()
    commanding(robot, action_of(shipped_bundle, robot))
    publisher = graph.node.create_publisher(Float64MultiArray, "/mujoco_sim/step", 10)
    wait_until(publisher.get_subscription_count)
    publisher.publish(Float64MultiArray(data=[1.0, 2.0]))
    wait_until(lambda: "steps: a step has one value each of stamp, episode, step, reward" in node.log)
    publisher.publish(array_of(tuple((label, 1) for label in ("stamp", "episode", "step", "reward", "a", "b"))))
    wait_until(lambda: "('b', 1))" in node.log)
    message = array_of(STEP_LAYOUT)
    message.data[1] = math.nan
    publisher.publish(message)
    wait_until(lambda: newest() and "1 messages could not be recorded: a step could not be" in newest().message)
    assert "Traceback" not in node.log
    commanding(robot, action_of(shipped_bundle, robot))


def test_what_it_does_is_recorded(controller, graph, robot, shipped_bundle, pruned) -> None:
    node = controller(record=True)
    wait_until(lambda: len(robot.commands) > 50)
    bag = Path(wait_until(lambda: graph.status()["bag"]))
    graph.set(NODE, controller=pruned.reference)
    count = len(robot.commands)
    wait_until(lambda: len(robot.commands) > count + 50)
    assert children(node.pid)
    recorder = children(node.pid)
    node.end()
    assert not any(Path(f"/proc/{pid}").exists() for pid in recorder)
    rollouts = read_rollouts(bag)
    assert rollouts.controllers == [shipped_bundle.reference, pruned.reference]
    assert len(rollouts) > 90
    np.testing.assert_allclose(rollouts.observation[0], [0.25, math.cos(3.0), math.sin(3.0), -0.5, 0.5])


def test_it_commands_without_recording_where_no_bag_can_be_written(
    controller, graph, robot, shipped_bundle, tmp_path
) -> None:
    (tmp_path / "file").touch()
    node = controller(record=True, bags=tmp_path / "file")
    newest = graph.diagnostics()
    commanding(robot, action_of(shipped_bundle, robot))
    problem = "nothing is recorded: "
    wait_until(lambda: newest() and newest().level == b"\x02" and problem in newest().message)
    assert str(tmp_path / "file") in newest().message
    assert node.log.count(problem) == 1
    assert graph.status()["bag"] == ""


def test_recorder_that_ends_is_told_at_once_and_its_bag_named_no_more(controller, graph, robot, shipped_bundle) -> None:
    node = controller(record=True)
    newest = graph.diagnostics()
    commanding(robot, action_of(shipped_bundle, robot))
    wait_until(lambda: graph.status()["bag"])
    (recorder,) = children(node.pid)
    os.kill(recorder, signal.SIGKILL)
    problem = "nothing is recorded: the recorder's process was killed by signal 9 (SIGKILL)"
    wait_until(lambda: newest() and newest().level == b"\x02" and problem in newest().message)
    assert graph.status()["bag"] == ""
    commanding(robot, action_of(shipped_bundle, robot))
    assert graph.change_state(NODE, Transition.TRANSITION_DEACTIVATE)
    assert node.log.count("nothing is recorded") == 1
    assert graph.change_state(NODE, Transition.TRANSITION_ACTIVATE)
    wait_until(lambda: graph.status()["bag"])
    wait_until(lambda: newest().message == "OK")


def test_killed_node_takes_its_recorder_along_and_the_next_goes_on_with_what_ran(
    controller, graph, robot, shipped_bundle, pruned
) -> None:
    node = controller(record=True, probation=0.1)
    commanding(robot, action_of(shipped_bundle, robot))
    bag = Path(wait_until(lambda: graph.status()["bag"]))
    graph.set(NODE, controller=pruned.reference)
    wait_until(lambda: BundleStore(graph.store_path).slot("nn_controller").current == pruned.reference)
    helpers = children(node.pid)
    node.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in helpers), what="the recorder's end")
    assert len(read_rollouts(bag))
    controller(record=True)
    commanding(robot, action_of(pruned, robot))
    wait_until(lambda: graph.get(NODE, "controller") == pruned.reference)  # told after the first commands


def test_two_controllers_in_two_namespaces_do_not_meet(controller, graph, shipped_bundle, pruned) -> None:
    left, right = Robot(graph, namespace="/left"), Robot(graph, namespace="/right")
    right.position = [2.0, 0.0]
    try:
        controller(namespace="/left")
        controller(namespace="/right")
        commanding(left, action_of(shipped_bundle, left))
        commanding(right, action_of(shipped_bundle, right))
        assert graph.set("/left/nn_controller", controller=pruned.reference) == (True, "")
        commanding(left, action_of(pruned, left))
        commanding(right, action_of(shipped_bundle, right))
        assert graph.status("/right/nn_controller")["swaps"] == 0
    finally:
        left.close()
        right.close()


@pytest.mark.parametrize("simulated", [None, 0.0])
def test_timer_drives_a_robot_whose_states_come_faster(
    controller, graph, shipped_bundle, simulated: float | None
) -> None:
    robot = Robot(graph, rate=400.0)
    robot.simulated = simulated
    newest = graph.diagnostics()
    try:
        controller(drive="timer", use_sim_time=simulated is not None)
        commanding(robot, action_of(shipped_bundle, robot))
        start, begun = len(robot.commands), time.monotonic()
        time.sleep(1.0)
        rate = (len(robot.commands) - start) / (time.monotonic() - begun)
        assert 80 < rate < 110
        wait_until(lambda: newest() and newest().message == "OK")
        robot.silent = True
        commanding(robot, 0.0)
    finally:
        robot.close()


@pytest.mark.parametrize("joints", [["slider"], ["hinge"]])
def test_joints_of_the_command_controller_have_to_be_the_bundles(controller, graph, shipped_bundle, joints) -> None:
    with command_controller(graph, "force_controller", joints) as robot:
        node = controller(command_controller="/force_controller", remap=["commands:=/force_controller/commands"])
        if joints == ["slider"]:
            commanding(robot, action_of(shipped_bundle, robot))
        else:
            wait_until(lambda: "takes commands for ['hinge'], the bundle's are ['slider']" in node.log)
            time.sleep(0.3)
            assert robot.commands == []
            assert graph.state(NODE) == "inactive"
            assert not graph.change_state(NODE, Transition.TRANSITION_ACTIVATE)


def test_command_controller_that_tells_nothing_is_not_waited_for_long(controller, graph, robot, shipped_bundle) -> None:
    newest = graph.diagnostics()
    node = controller(command_controller="/nobody")
    commanding(robot, action_of(shipped_bundle, robot))
    unchecked = "/nobody does not tell its joints, so their order is not checked"
    wait_until(lambda: newest() and newest().level == b"\x01" and unchecked in newest().message)
    wait_until(lambda: unchecked in node.log)
    time.sleep(0.5)
    assert node.log.count(unchecked) == 1


def test_command_controller_that_turns_out_later_to_take_other_joints_is_commanded_no_more(
    controller, graph, robot, shipped_bundle
) -> None:
    newest = graph.diagnostics()
    node = controller(command_controller="/force_controller", safe_command="[1.5]")
    commanding(robot, action_of(shipped_bundle, robot))
    with command_controller(graph, "force_controller", ["hinge"]):
        wait_until(lambda: graph.state(NODE) == "inactive")
    problem = "/force_controller takes commands for ['hinge'], the bundle's are ['slider']"
    wait_until(lambda: newest() and newest().level == b"\x02" and problem in newest().message)
    wait_until(lambda: robot.commands[-1] == [1.5])
    assert f"no more commands: {problem}" in node.log
    assert not graph.change_state(NODE, Transition.TRANSITION_ACTIVATE)


def test_answer_of_a_command_controller_that_was_asked_before_counts_for_nothing(controller, graph, robot) -> None:
    controller(autostart=False, command_controller="/before")
    assert graph.change_state(NODE, Transition.TRANSITION_CONFIGURE)
    assert graph.change_state(NODE, Transition.TRANSITION_CLEANUP)
    assert graph.set(NODE, command_controller="/force_controller") == (True, "")
    with command_controller(graph, "force_controller", ["hinge"]):
        assert graph.change_state(NODE, Transition.TRANSITION_CONFIGURE)
        time.sleep(1.0)
        with command_controller(graph, "before", ["slider"]):
            time.sleep(1.0)
            assert not graph.change_state(NODE, Transition.TRANSITION_ACTIVATE)
    assert robot.commands == []


def test_command_controller_that_starts_again_before_it_has_answered_is_asked_again(
    controller, graph, robot, shipped_bundle
) -> None:
    hung = rclpy.create_node("force_controller", context=graph.context)  # nobody spins it
    controller(command_controller="/force_controller", safe_command="[1.5]")
    commanding(robot, action_of(shipped_bundle, robot))
    hung.destroy_node()
    with command_controller(graph, "force_controller", ["hinge"]):
        wait_until(lambda: graph.state(NODE) == "inactive")
    wait_until(lambda: robot.commands[-1] == [1.5])


def test_what_the_user_decides_meanwhile_ends_the_autostart(controller, graph, robot) -> None:
    node = controller(command_controller="/nobody")
    assert wait_until(lambda: graph.state(NODE)) == "inactive", "it waits for an answer"
    assert graph.change_state(NODE, Transition.TRANSITION_CLEANUP)
    assert graph.change_state(NODE, Transition.TRANSITION_CONFIGURE)
    time.sleep(4.0)
    assert graph.state(NODE) == "inactive"
    assert robot.commands == []
    assert "Traceback" not in node.log


def test_controller_that_is_set_back_before_the_loop_has_taken_another_stays(
    controller, graph, robot, shipped_bundle, pruned
) -> None:
    controller(observation_timeout=15.0)
    expected = action_of(shipped_bundle, robot)
    commanding(robot, expected)
    robot.silent = True
    time.sleep(0.1)
    for bundle in (pruned, shipped_bundle):
        assert graph.set(NODE, controller=bundle.reference) == (True, "")
    robot.silent = False
    commanding(robot, expected)
    assert graph.status()["swaps"] == 0


def test_states_of_other_joints_alone_are_told(controller, graph, robot) -> None:
    robot.names = ["left", "right"]
    node = controller()
    newest = graph.diagnostics()
    told = (
        "nothing is commanded: no joint states that can be acted on have come yet: those that come have none of the "
        "controller's joints, slider, hinge"
    )
    wait_until(lambda: told in node.log)
    wait_until(lambda: newest() and told in newest().message)
    assert robot.commands == []
    robot.names = ["hinge", "slider"]
    wait_until(lambda: "the first joint states that can be acted on have come" in node.log)
    assert node.log.count(told) == 1


def test_slow_simulator_is_given_time(controller, graph) -> None:
    controller(use_sim_time=True)
    commands = graph.watch("/commands", Float64MultiArray)
    transitions = graph.watch(f"{NODE}/transition", Float64MultiArray)
    graph.start("simulator_node", real_time_factor=0.02)
    wait_until(lambda: len(transitions) > 2, what="states by which its pace is known")
    count = len(commands)
    wait_until(lambda: len(commands) > count + 5)
    assert all(message.data[0] != 0.0 for message in commands[count:])
    newest = graph.diagnostics()
    wait_until(newest)
    assert newest().message == "OK"


def test_rate_is_told_by_the_plants_clock(controller, graph) -> None:
    controller(use_sim_time=True)
    newest = graph.diagnostics()
    graph.start("simulator_node", real_time_factor=3.0)

    def told() -> float:
        values = {} if newest() is None else {value.key: value.value for value in newest().values}
        return float(values.get("rate [Hz]", "nan"))

    wait_until(lambda: 70 < told() < 140, what="a rate that is not three times the controller's")
    wait_until(lambda: newest().message == "OK")


def test_another_that_commands_the_same_plant_is_told(controller, graph, robot, shipped_bundle, tmp_path: Path) -> None:
    node = controller()
    newest = graph.diagnostics()
    commanding(robot, action_of(shipped_bundle, robot))
    wait_until(lambda: newest() and newest().message == "OK")
    publisher = graph.node.create_publisher(Float64MultiArray, "/commands", 10)
    problem = f"{graph.node.get_fully_qualified_name()} may send commands on /commands, too"
    wait_until(lambda: newest().level == b"\x01" and problem in newest().message)
    time.sleep(1.5)
    assert node.log.count(problem) == 1
    graph.node.destroy_publisher(publisher)
    wait_until(lambda: newest().message == "OK")
    controller(store=str(tmp_path / "other"))  # one of the same name
    wait_until(lambda: "another node /nn_controller may send commands on /commands, too" in newest().message)


def test_two_clocks_are_told_where_the_time_is_a_simulators(controller, graph, robot) -> None:
    for _ in range(2):
        graph.node.create_publisher(Clock, "/clock", 10)
    newest = graph.diagnostics()
    node = controller(use_sim_time=True)
    wait_until(lambda: "publish /clock, so two simulations are mixed up" in node.log)
    wait_until(lambda: newest() and "publish /clock" in newest().message)


def test_staging_while_the_loop_runs_leaves_no_gap(controller, graph, shipped_bundle, pruned) -> None:
    robot = Robot(graph, rate=100.0)
    try:
        controller(realtime_priority=50)
        commanding(robot, action_of(shipped_bundle, robot))
        begin = len(robot.times)
        for reference in (pruned.reference, shipped_bundle.reference) * 3:
            graph.set(NODE, controller=reference)
            time.sleep(0.1)
        gaps = np.diff(robot.times[begin:])
        assert np.median(gaps) == pytest.approx(0.01, rel=0.2)
        assert gaps.max() < 0.1, "far less than staging takes with another executor, and room for a busy machine"
    finally:
        robot.close()
