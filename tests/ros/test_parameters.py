from __future__ import annotations

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy cannot be imported: no ROS 2 here, or it is not sourced")

from rcl_interfaces.srv import DescribeParameters

from nncontrol_prune.config import ControllerConfig, PlantConfig, PruningServiceConfig
from nncontrol_prune.ros.parameter_files import unaddressed_keys
from nncontrol_prune.ros.parameters import keys_of
from tests.ros.graph import Graph


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


def test_keys_given_to_all_nodes_are_told_from_those_given_to_one(tmp_path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(
        "/**:\n  ros__parameters:\n    a: 1\n    b: {c: 2}\n/**/nn_controller:\n  ros__parameters: {a: 3, d: 4}\n"
    )
    arguments = ["node", "--ros-args", "--params-file", str(file)]
    assert unaddressed_keys("nn_controller", arguments) == {"b.c"}
    assert unaddressed_keys("other", arguments) == {"a", "b.c"}
