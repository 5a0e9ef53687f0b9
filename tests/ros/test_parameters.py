from __future__ import annotations

from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters, SetParameters

from nncontrol_prune.config import ControllerConfig, PlantConfig, PruningServiceConfig
from nncontrol_prune.ros.parameter_files import unaddressed_keys
from nncontrol_prune.ros.parameters import keys_of
from tests.ros.graph import Graph
from tests.ros.workspace import run


@pytest.mark.parametrize("model", [PlantConfig, ControllerConfig, PruningServiceConfig])
def test_every_parameter_has_a_description(model) -> None:
    for key in keys_of(model):
        assert len(key.description) > 10 or key.name.startswith("robustness."), key.name


def test_sliders_have_ends(graph: Graph) -> None:
    graph.start("pruning_node")
    names = ["sparsity", "tolerance", "success_margin", "distill_steps", "robustness.margin", "method"]
    answer = graph.call(
        DescribeParameters, "/pruning_service/describe_parameters", DescribeParameters.Request(names=names)
    )
    sparsity, tolerance, margin, steps, nested, method = answer.descriptors
    assert (sparsity.floating_point_range[0].from_value, tolerance.floating_point_range[0].to_value) == (0.0, 0.5)
    assert sparsity.floating_point_range[0].to_value == 1.0, "a slider's steps are hundredths"
    assert sparsity.additional_constraints == "less than 1"
    assert "input should be less than 1" in graph.set("/pruning_service", sparsity=1.0)[1]
    assert margin.additional_constraints == "greater than 0"
    assert steps.integer_range[0].to_value == 1_000_000
    assert nested.floating_point_range[0].to_value == 0.5
    assert method.additional_constraints == "one of uniform, threshold, grid, gradient, tpe"


@pytest.mark.parametrize(
    ("module", "node", "fixed", "free"),
    [
        ("pruning_node", "/pruning_service", ["controller_node", "store", "env"], ["auto_deploy", "sparsity"]),
        ("controller_node", "/nn_controller", ["store", "simulator", "pruning_service"], ["autostart", "rate"]),
    ],
)
def test_what_only_a_start_can_set_is_read_only(
    graph: Graph, module: str, node: str, fixed: list[str], free: list[str]
) -> None:
    graph.start(module)
    request = DescribeParameters.Request(names=[*fixed, *free])
    for descriptor in graph.call(DescribeParameters, f"{node}/describe_parameters", request).descriptors:
        assert descriptor.read_only == (descriptor.name in fixed)
        told = descriptor.additional_constraints == "can be set only when the node is started"
        assert told == (descriptor.name in fixed)
    assert "read-only" in graph.set(node, store="elsewhere")[1]


@pytest.mark.parametrize("module", ["controller_node", "simulator_node", "pruning_node"])
def test_parameter_of_no_type_does_not_end_the_node(graph: Graph, module: str) -> None:
    node = graph.start(module)
    name = {"controller_node": "/nn_controller", "simulator_node": "/mujoco_sim", "pruning_node": "/pruning_service"}
    wrong = SetParameters.Request(parameters=[ParameterMessage(name="store", value=ParameterValue(type=99))])
    graph.call(SetParameters, f"{name[module]}/set_parameters", wrong)
    assert "set_parameters refused" in node.log
    assert graph.get(name[module], "use_sim_time") is False


def test_choice_that_is_left_to_us_has_a_number_of_the_parameters_own_type(graph: Graph) -> None:
    assert [key.constraints for key in keys_of(PruningServiceConfig) if key.none is not None] == [
        "-1: chosen automatically"
    ] * 2
    graph.start("controller_node", autostart=False)
    assert graph.get("/nn_controller", "rate") == 0.0
    assert graph.set("/nn_controller", rate=100.0) == (True, "")
    assert graph.set("/nn_controller", rate=0) == (True, "")
    assert graph.get("/nn_controller", "rate") == 0.0


def test_list_may_be_empty_and_every_parameter_has_a_value(graph: Graph) -> None:
    graph.start("controller_node", autostart=False)
    names = graph.call(ListParameters, "/nn_controller/list_parameters").result.names
    assert "safe_command" in names
    answer = graph.call(GetParameters, "/nn_controller/get_parameters", GetParameters.Request(names=names))
    assert [name for name, value in zip(names, answer.values, strict=True) if not value.type] == []
    assert list(graph.get("/nn_controller", "safe_command")) == []
    assert graph.set("/nn_controller", safe_command=[1]) == (True, "")
    assert list(graph.get("/nn_controller", "safe_command")) == [1.0]
    assert graph.set("/nn_controller", safe_command=[]) == (True, ""), "which comes as a list of another type"
    assert list(graph.get("/nn_controller", "safe_command")) == []
    assert "Wrong parameter type" in graph.set("/nn_controller", safe_command=["a"])[1]


def test_what_a_node_dumps_it_takes(workspace: Path, graph: Graph, tmp_path: Path) -> None:
    node = graph.start("controller_node", default_controller="cartpole_swingup_sac", probation=3.0, autostart=False)
    graph.state("/nn_controller")
    file = tmp_path / "dumped.yaml"
    file.write_text(run(workspace, "ros2 param dump /nn_controller", tmp_path).stdout)
    assert "safe_command: []" in file.read_text()
    node.end()
    graph.start("controller_node", file=file)
    assert graph.state("/nn_controller") == "unconfigured"
    assert graph.get("/nn_controller", "probation") == 3.0


def test_number_where_a_list_belongs_ends_the_node_with_one_sentence(graph: Graph) -> None:
    node = graph.start("controller_node", safe_command=1.0)
    assert node.process.wait(20) == 1
    assert "nn_controller: safe_command = 1.0: input should be a valid tuple" in node.log
    assert "Traceback" not in node.log


def test_task_is_no_parameter_unless_a_file_gives_it(graph: Graph, tmp_path: Path) -> None:
    assert "task" not in {key.name for key in keys_of(PruningServiceConfig)}
    file = tmp_path / "task.yaml"
    file.write_text(
        "/**/pruning_service:\n  ros__parameters:\n    task:\n"
        "      signals:\n        height: {entry: 0, unit: m, reference: 1.25}\n      goal: {height: 0.3}\n"
        "      starts: {low: [0.0, 1.0], high: [0.5, 1.5], names: [x, z], plane: [1, 0]}\n"
    )
    graph.start("pruning_node", file=file)
    assert graph.get("/pruning_service", "task.goal.height") == 0.3
    done, reason = graph.set("/pruning_service", task__goal__height=-1.0)
    assert not done
    assert "task.goal.height = -1.0: input should be greater than 0" in reason


def test_keys_given_to_all_nodes_are_told_from_those_given_to_one(tmp_path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(
        "/**:\n  ros__parameters:\n    a: 1\n    b: {c: 2}\n/**/nn_controller:\n  ros__parameters: {a: 3, d: 4}\n"
    )
    arguments = ["node", "--ros-args", "--params-file", str(file)]
    assert unaddressed_keys("nn_controller", arguments) == {"b.c"}
    assert unaddressed_keys("other", arguments) == {"a", "b.c"}
