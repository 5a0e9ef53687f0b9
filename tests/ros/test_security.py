from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from nncontrol_prune.resources import share_directory
from tests.documentation import DOCS, commands
from tests.ros.graph import Graph, wait_until
from tests.ros.workspace import run

POLICY = share_directory() / "config" / "sros2_policy.xml"
KEYSTORE, ARTIFACTS, EXPORT, *ROOT_SESSION = commands(DOCS / "ros2.md", "tests/ros/test_security.py runs this block")
SED, *NAMESPACE_SESSION = commands(DOCS / "ros2.md", "tests/ros/test_security.py runs this block, too")
NODES = {
    "mujoco_sim": "simulator_node",
    "nn_controller": "controller_node",
    "pruning_service": "pruning_node",
    "_nn_controller_loop": None,
}
SOMETIMES = {"observation", "imu", "cmd_vel", "/parameter_events", "/rosout"}


@pytest.fixture(params=["/", "/robot1"])
def namespace(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def policy(namespace: str, tmp_path: Path) -> Path:
    """The policy for a namespace, made as the documentation says."""
    if namespace == "/":
        return POLICY
    command = SED.replace("$(ros2 pkg prefix --share nncontrol_prune)", str(share_directory()))
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    return tmp_path / "robot1.xml"


def full(name: str, namespace: str) -> str:
    return name if name.startswith("/") else f"{namespace.rstrip('/')}/{name}"


def allowed(policy: Path, node: str, kind: str, verb: str) -> set[str]:
    """Return the full names that a policy lets a node publish, subscribe, reply or request."""
    names = set()
    for profile in ElementTree.parse(policy).iter("profile"):
        if profile.get("node") == node:
            for group in profile.findall(f"{kind}s"):
                if group.get(verb) == "ALLOW":
                    texts = {str(entry.text).replace("~", node) for entry in group.findall(kind)}
                    names |= {full(text, str(profile.get("ns"))) for text in texts}
    return names


def test_policy_is_one_that_sros2_reads(policy: Path, namespace: str) -> None:
    sros2 = pytest.importorskip("sros2.policy", reason="sros2 is not installed")
    enclaves = sros2.load_policy(policy).find("enclaves")  # sros2 takes all that is in it, comments too, for enclaves
    names = ("mujoco_sim", "nn_controller", "pruning_service", "operator")
    assert [enclave.get("path") for enclave in enclaves] == [full(name, namespace) for name in names]


def test_policy_allows_what_the_nodes_do_and_nothing_else(graph: Graph, policy: Path, namespace: str) -> None:
    where = {} if namespace == "/" else {"namespace": namespace}
    for name, kind in NODES.items():
        if kind == "controller_node":
            graph.start(kind, **where, default_controller="cartpole_swingup_sac", use_sim_time=True, record=False)
        elif kind is not None:
            graph.start(kind, **where, **({"use_sim_time": True} if name == "pruning_service" else {}))
    present = graph.node.get_node_names
    wait_until(lambda: set(NODES) <= set(present()), what="all nodes")
    wait_until(lambda: graph.status(full("nn_controller", namespace))["state"] == "active")
    for node in NODES:
        for kind, verb, ask in (
            ("topic", "publish", graph.node.get_publisher_names_and_types_by_node),
            ("topic", "subscribe", graph.node.get_subscriber_names_and_types_by_node),
            ("service", "reply", graph.node.get_service_names_and_types_by_node),
            ("service", "request", graph.node.get_client_names_and_types_by_node),
        ):
            check(node, namespace, verb, listed=allowed(policy, node, kind, verb), ask=ask)


def check(
    node: str, namespace: str, verb: str, listed: set[str], ask: Callable[[str, str], list[tuple[str, list[str]]]]
) -> None:
    """Check that a node uses all it may but for what it only sometimes needs, and nothing else."""
    sometimes = {full(name, namespace) for name in SOMETIMES}
    wait_until(lambda: listed - names_of(ask(node, namespace)) <= sometimes, what=f"all that {node} may {verb}")
    assert names_of(ask(node, namespace)) - listed == set(), f"{node} may not {verb}"


def names_of(found: list[tuple[str, list[str]]]) -> set[str]:
    return {name for name, _ in found}


def test_secured_session_of_the_documentation(workspace: Path, launch, graph: Graph, namespace: str) -> None:
    pytest.importorskip("sros2.policy", reason="sros2 is not installed")
    *preparations, start, call = [KEYSTORE, ARTIFACTS, *ROOT_SESSION]
    if namespace != "/":
        *preparations, start, call = [KEYSTORE, SED, *NAMESPACE_SESSION]
    for command in preparations:
        done = run(workspace, command, graph.store_path, directory=graph.tmp_path)
        if command == KEYSTORE and done.returncode != 0:  # sros2 itself: it does not work with the newest cryptography
            pytest.skip(f"sros2 makes no keys here: {done.stderr.splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    secured = dict(word.split("=") for word in shlex.split(EXPORT.replace("$PWD", str(graph.tmp_path)))[1:])
    launched = launch(start, **secured)
    wait_until(lambda: f"commanding slider on {full('commands', namespace)}" in launched.log)
    answer = run(workspace, call, graph.store_path, **secured)
    assert "success=True, message='job 1 has started'" in answer.stdout, answer.stdout + answer.stderr
    seen = {name for name, _ in graph.node.get_topic_names_and_types()}
    assert seen <= {"/rosout", "/parameter_events"}, "this test has no keys"
    launched.end()
    assert "Traceback" not in launched.log
