from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from nncontrol_prune.resources import share_directory
from tests.ros.graph import Graph, wait_until

POLICY = share_directory() / "config" / "sros2_policy.xml"
NODES = {
    "mujoco_sim": "simulator_node",
    "nn_controller": "controller_node",
    "pruning_service": "pruning_node",
    "_nn_controller_loop": None,
}
SOMETIMES = {"/observation", "/imu", "/cmd_vel", "/parameter_events", "/rosout"}


def allowed(node: str, kind: str, verb: str) -> set[str]:
    """Return the full names that the policy lets a node publish, subscribe, reply or request."""
    names = set()
    for profile in ElementTree.parse(POLICY).iter("profile"):
        if profile.get("node") == node:
            for group in profile.findall(f"{kind}s"):
                if group.get(verb) == "ALLOW":
                    names |= {str(entry.text).replace("~", f"/{node}") for entry in group.findall(kind)}
    return names


def test_policy_is_one_that_sros2_reads() -> None:
    policy = pytest.importorskip("sros2.policy", reason="sros2 is not installed")
    tree = policy.load_policy(POLICY)
    assert {enclave.get("path") for enclave in tree.iter("enclave")} == {
        "/mujoco_sim",
        "/nn_controller",
        "/pruning_service",
    }


def test_policy_allows_what_the_nodes_do_and_nothing_else(graph: Graph) -> None:
    for name, kind in NODES.items():
        if kind == "controller_node":
            graph.start(kind, default_controller="cartpole_swingup_sac", use_sim_time=True, record=False)
        elif kind is not None:
            graph.start(kind, **({"use_sim_time": True} if name == "pruning_service" else {}))
    present = graph.node.get_node_names
    wait_until(lambda: set(NODES) <= set(present()), what="all nodes")
    wait_until(lambda: graph.status()["state"] == "active")
    for node in NODES:
        for kind, verb, ask in (
            ("topic", "publish", graph.node.get_publisher_names_and_types_by_node),
            ("topic", "subscribe", graph.node.get_subscriber_names_and_types_by_node),
            ("service", "reply", graph.node.get_service_names_and_types_by_node),
            ("service", "request", graph.node.get_client_names_and_types_by_node),
        ):
            check(node, verb, listed=allowed(node, kind, verb), ask=ask)


def check(node: str, verb: str, listed: set[str], ask: Callable[[str, str], list[tuple[str, list[str]]]]) -> None:
    """Check that a node uses all it may but for what it only sometimes needs, and nothing else."""
    wait_until(lambda: listed - names_of(ask(node, "/")) <= SOMETIMES, what=f"all that {node} may {verb}")
    assert names_of(ask(node, "/")) - listed == set(), f"{node} may not {verb}"


def names_of(found: list[tuple[str, list[str]]]) -> set[str]:
    return {name for name, _ in found}
