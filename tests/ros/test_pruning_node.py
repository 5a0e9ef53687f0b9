from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from lifecycle_msgs.msg import Transition
from std_msgs.msg import Float64, Float64MultiArray, String, UInt8MultiArray

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.resources import share_directory
from nncontrol_prune.ros.messages import parcel_of
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.service.rollouts import record_episodes
from tests.ros.graph import LATCHED, QUICK, Graph, NodeProcess, alive, children, wait_until

SERVICE, CONTROLLER = "/pruning_service", "/nn_controller"
Start = Callable[..., NodeProcess]


@pytest.fixture(scope="session")
def bag(shipped_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "bag"
    record_episodes(shipped_bundle, CARTPOLE, range(4), path, lambda _: None)
    return path


@pytest.fixture
def service(graph: Graph, bag: Path) -> Start:
    """Return a function that starts the pruning service for quick jobs from a bag."""

    def start(**parameters: Any) -> NodeProcess:
        return graph.start("pruning_node", **{**QUICK, "rollouts": bag, **parameters})

    return start


def status(graph: Graph) -> dict[str, Any]:
    return graph.status(SERVICE)


def ready(graph: Graph) -> None:
    """Wait until the service knows its controller."""
    wait_until(lambda: graph.trigger(f"{SERVICE}/validate")[1].startswith("there is no candidate"))
    wait_until(lambda: graph.status()["active"])


def ended(graph: Graph, timeout: float = 300.0) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        now = status(graph)
        finished = now["state"] in ("failed", "cancelled") or now["progress"] == 1.0
        return now if finished and now["state"] not in ("running", "idle") else None

    return wait_until(over, timeout)


def logged(node: NodeProcess, text: str) -> None:
    wait_until(lambda: text in node.log, what=text)


def test_pole_swings_up_and_its_controller_is_pruned_and_deployed(graph: Graph) -> None:
    file = share_directory() / "config" / "sim.yaml"
    started = time.monotonic()
    graph.start("simulator_node", file=file, realtime_priority=0)
    graph.start("controller_node", file=file, use_sim_time=True, realtime_priority=0, probation=0.5)
    graph.start("pruning_node", file=file, use_sim_time=True, auto_deploy=True, **QUICK)
    transitions = graph.watch(f"{CONTROLLER}/transition", Float64MultiArray, 100)
    wait_until(lambda: transitions, what="the first command")
    assert time.monotonic() - started < 10
    wait_until(lambda: transitions[-1].data[3] > 0.95, 30, "the swing-up")
    wait_until(lambda: len(transitions) > 1100, 30)
    dense = graph.status()["active"]
    assert graph.trigger(f"{SERVICE}/prune") == (True, "job 1 has started")
    done, reason = graph.trigger(f"{SERVICE}/prune")
    assert not done
    assert reason.startswith("busy: job 1 is in stage")
    job = ended(graph)
    assert job["state"] == "accepted", job["message"]
    wait_until(lambda: graph.status()["active"] == job["candidate"])
    wait_until(lambda: transitions[-1].data[1] == 1.0)
    wait_until(lambda: status(graph)["deployment"] == f"deployed {job['candidate']}")
    wait_until(lambda: graph.get(CONTROLLER, "controller") == job["candidate"])
    late = graph.watch(f"{SERVICE}/progress", Float64, LATCHED)
    wait_until(lambda: late and late[-1].data == 1.0, what="the last progress, sent to who comes late")
    wait_until(lambda: not graph.status()["on_probation"])
    assert graph.trigger(f"{CONTROLLER}/rollback")[0]
    wait_until(lambda: graph.status()["active"] == dense)


def test_deploying_is_left_to_the_user_and_refused_before_anything_is_accepted(graph, controller, service) -> None:
    controller()
    node = service()
    ready(graph)
    assert graph.trigger(f"{SERVICE}/deploy") == (False, "there is nothing accepted to deploy; the last job is idle")
    assert graph.trigger(f"{SERVICE}/cancel") == (False, "there is no running job to cancel")
    assert graph.trigger(f"{SERVICE}/prune")[0]
    job = ended(graph)
    assert job["state"] == "accepted"
    time.sleep(0.5)
    assert re.findall(r"\[(\w+)\] .*: job 1 accepted: (.*)", node.log) == [("INFO", job["message"])]
    assert graph.status()["swaps"] == 0
    done, message = graph.trigger(f"{SERVICE}/deploy")
    assert done, message
    wait_until(lambda: graph.status()["active"] == status(graph)["candidate"])
    assert graph.trigger(f"{SERVICE}/validate") == (True, "job 2 has started")
    wait_until(lambda: status(graph)["job"] == 2 and status(graph)["state"] == "accepted", 60)
    assert graph.trigger(f"{SERVICE}/cancel") == (True, "job 2 was accepted already; its report is not written")
    wait_until(lambda: "job 2: there is no report: cancelled" in node.log)
    assert graph.change_state(CONTROLLER, Transition.TRANSITION_DEACTIVATE)
    assert graph.change_state(CONTROLLER, Transition.TRANSITION_CLEANUP)
    refused = (False, "the controller node nn_controller is unconfigured: it runs no controller")
    wait_until(lambda: graph.trigger(f"{SERVICE}/prune") == refused, what="the service has heard of it")
    assert graph.trigger(f"{SERVICE}/deploy") == refused


def test_rejected_controller_is_never_deployed(graph, controller, service) -> None:
    controller()
    node = service(sparsity=0.998, tolerance=0.05, variations=0, auto_deploy=True)
    ready(graph)
    graph.trigger(f"{SERVICE}/prune")
    job = ended(graph)
    assert job["state"] == "rejected"
    assert re.findall(r"\[(\w+)\] .*: job 1 rejected: (.*)", node.log) == [("WARN", job["message"])]
    assert graph.trigger(f"{SERVICE}/deploy") == (
        False,
        "there is nothing accepted to deploy; the last job is rejected",
    )
    done, reason = graph.set(CONTROLLER, controller=job["candidate"])
    assert not done
    assert "the gate rejected it" in reason
    assert graph.status()["swaps"] == 0


def test_job_that_fails_is_logged_with_the_reason(graph, controller, service, tmp_path) -> None:
    controller()
    (tmp_path / "empty").mkdir()
    node = service(rollouts=tmp_path / "empty")
    ready(graph)
    assert graph.trigger(f"{SERVICE}/prune")[0]
    job = ended(graph)
    assert job["state"] == "failed"
    logged(node, f"job 1 failed: {job['message']}")
    assert "[ERROR]" in node.log


@pytest.mark.parametrize("stage", ["starting", "importance", "coefficients", "validation", "robustness"])
def test_job_is_cancelled_in_every_stage_and_leaves_nothing(graph, controller, service, stage) -> None:
    controller()
    node = service(method="gradient", robustness__enabled=True)
    ready(graph)
    assert graph.trigger(f"{SERVICE}/prune")[0]
    order = ["", "starting", "rollouts", "groups", "importance", "coefficients", "reconstruction", "choice"]
    order += ["closed-loop search", "on-policy rounds", "validation", "robustness"]
    wait_until(lambda: order.index(status(graph)["stage"]) >= order.index(stage), 60)
    workers = children(node.pid)
    assert graph.trigger(f"{SERVICE}/cancel") == (True, "job 1 is cancelled")
    assert not any(alive(pid) for pid in workers)
    wait_until(lambda: status(graph)["state"] == "cancelled")
    assert graph.trigger(f"{SERVICE}/prune")[1] == "job 2 has started"


def test_jobs_that_cannot_start_are_refused_with_the_reason(graph, controller, service) -> None:
    service(rollouts="/nowhere/bag")
    wait_until(lambda: graph.trigger(f"{SERVICE}/prune") == (False, "there are no rollouts at /nowhere/bag"))
    assert graph.set(SERVICE, rollouts="") == (True, "")
    assert graph.trigger(f"{SERVICE}/prune") == (False, "there is no controller node nn_controller")
    controller()
    wait_until(
        lambda: (
            graph.trigger(f"{SERVICE}/prune")
            == (False, "the controller records no rollouts; name bags, or set record to true")
        )
    )
    done, reason = graph.set(SERVICE, min_episodes=700)
    assert not done
    assert "min_episodes 700 is more than max_episodes 600" in reason
    assert "sparsity" in graph.set(SERVICE, sparsity=1.5)[1]
    assert "method" in graph.set(SERVICE, method="magic")[1]
    assert "read-only parameter: controller_node" in graph.set(SERVICE, controller_node="x")[1]
    assert graph.get(SERVICE, "min_episodes") == 50
    assert not graph.set(SERVICE, sparsty=0.5)[0]
    assert graph.set(SERVICE, sparsity=0) == (True, ""), "a whole number for a float"


def test_second_service_for_the_same_controller_refuses_to_work(graph, controller, service) -> None:
    controller()
    first = service()
    ready(graph)
    service(name="other_service")
    reason = "another pruning service, /pruning_service, works for nn_controller already; end one of the two"
    wait_until(lambda: graph.trigger("/other_service/prune") == (False, reason))
    wait_until(lambda: graph.trigger(f"{SERVICE}/prune")[0])  # once it has heard that the other one came later
    first.kill()
    wait_until(lambda: graph.trigger("/other_service/prune")[0], what="the second service to take over")


def test_second_controller_node_that_was_refused_does_not_speak_for_the_first(graph, controller, service) -> None:
    controller()
    service()
    ready(graph)
    states: list[str] = []
    graph.node.create_subscription(
        String, f"{CONTROLLER}/status", lambda message: states.append(json.loads(message.data)["state"]), LATCHED
    )
    second = controller()
    wait_until(lambda: "another loop has slot nn_controller" in second.log)
    wait_until(lambda: "unconfigured" in states)
    assert graph.trigger(f"{SERVICE}/prune") == (True, "job 1 has started")
    graph.trigger(f"{SERVICE}/cancel")
    second.kill()  # what it said last is all that is left of it
    states.clear()
    wait_until(lambda: "active" in states, what="the first one, once more")
    assert graph.trigger(f"{SERVICE}/prune") == (True, "job 2 has started")


def test_killed_service_leaves_no_worker_and_the_loop_undisturbed(graph, controller, robot, service) -> None:
    controller()
    node = service(method="gradient", min_episodes=50_000, max_episodes=50_000)
    ready(graph)
    graph.trigger(f"{SERVICE}/prune")
    workers = wait_until(lambda: status(graph)["stage"] == "coefficients" and children(node.pid), 60)
    node.kill()
    wait_until(lambda: not any(alive(pid) for pid in workers), 5, "the worker's end")
    count = len(robot.commands)
    time.sleep(0.5)
    assert len(robot.commands) > count + 30
    graph._latest.pop(SERVICE)
    service()
    wait_until(lambda: status(graph)["message"] == "the pruning service ended during this job")
    wait_until(lambda: graph.trigger(f"{SERVICE}/prune") == (True, "job 2 has started"))


def test_bundle_deleted_before_it_is_deployed_is_missed(graph, controller, service) -> None:
    controller()
    service()
    ready(graph)
    graph.trigger(f"{SERVICE}/prune")
    job = ended(graph)
    shutil.rmtree(BundleStore(graph.store_path).directory(job["candidate"].partition("@")[2]))
    done, reason = graph.trigger(f"{SERVICE}/deploy")
    assert not done
    assert "no bundle" in reason
    assert graph.status()["swaps"] == 0


def test_service_on_another_machine_fetches_and_sends_bundles(graph, controller, service, shipped_bundle) -> None:
    controller()
    far = graph.tmp_path / "far"
    service(store=str(far))
    ready(graph)
    assert graph.trigger(f"{SERVICE}/prune")[0]
    assert BundleStore(far).load(shipped_bundle.reference).digest == shipped_bundle.digest
    job = ended(graph)
    assert job["state"] == "accepted", job["message"]
    directory = BundleStore(graph.store_path).directory(job["candidate"].partition("@")[2])
    assert not directory.exists()
    directory.touch()
    done, message = graph.trigger(f"{SERVICE}/deploy")
    assert not done
    assert "refuses the bundle" in message
    directory.unlink()
    done, message = graph.trigger(f"{SERVICE}/deploy")
    assert done, f"sent again, it has an answer of its own: {message}"
    wait_until(lambda: graph.status()["active"] == job["candidate"])
    BundleStore(graph.store_path).check_accepted(BundleStore(graph.store_path).load(job["candidate"]))


def test_bundle_damaged_on_its_way_is_refused(graph, controller, make_cartpole_bundle) -> None:
    node = controller()
    wait_until(lambda: graph.status()["active"])
    bundle = make_cartpole_bundle(name="sent")
    message = parcel_of(bundle, None)
    message.data[-1] ^= 255
    publisher = graph.node.create_publisher(UInt8MultiArray, f"{SERVICE}/candidate", LATCHED)
    publisher.publish(message)
    wait_until(lambda: "reference.npz is damaged" in node.log)
    assert "damaged" in graph.status()["received"]["error"]
    assert not BundleStore(graph.store_path).directory(bundle.digest).exists()
    publisher.publish(UInt8MultiArray(data=[1, 2, 3]))
    wait_until(lambda: "the message's layout names 0 bytes, and it has 3" in node.log)
    publisher.publish(parcel_of(bundle, None))
    wait_until(lambda: BundleStore(graph.store_path).directory(bundle.digest).exists())


def test_garbage_on_its_topics_is_told_in_a_sentence_and_changes_nothing(graph, controller, service) -> None:
    controller()
    node = service(store=str(graph.tmp_path / "far"))
    ready(graph)
    for topic, message_type, message, told in (
        (
            "status",
            String,
            String(data="garbage"),
            "status: nn_controller says something that is no status: invalid JSON",
        ),
        ("pruning_claim", String, String(data="{}"), "pruning_claim: a claim is none: node: field required"),
        ("dense", UInt8MultiArray, UInt8MultiArray(data=[1, 2]), "dense: nn_controller/dense holds no bundle: the"),
    ):
        publisher = graph.node.create_publisher(message_type, f"{CONTROLLER}/{topic}", LATCHED)
        wait_until(publisher.get_subscription_count)
        publisher.publish(message)
        logged(node, told)
        graph.node.destroy_publisher(publisher)
    assert "Traceback" not in node.log
    wait_until(lambda: graph.trigger(f"{SERVICE}/prune") == (True, "job 1 has started"))


def test_status_is_json_for_whoever_comes_late(graph, controller, service) -> None:
    service()
    messages = graph.watch(f"{SERVICE}/status", String, LATCHED)
    wait_until(lambda: messages)
    assert json.loads(messages[0].data)["state"] == "idle"
