from __future__ import annotations

import onnx
import pytest

from nncontrol_prune.controllers.onnx_metadata import note_on_commands
from nncontrol_prune.controllers.specs import ActionSpec

JOINTS = {"joints": ("hip", "knee"), "lower": (-4.0, -4.0), "upper": (4.0, 4.0)}
METADATA = {
    "joint_names": "knee,ankle,hip",
    "default_joint_pos": "-0.800,0.100,0.400",
    "action_scale": "0.250,0.500,0.333",
}


def model(metadata: dict[str, str]) -> onnx.ModelProto:
    made = onnx.helper.make_model(onnx.helper.make_graph([], "policy", [], []))
    onnx.helper.set_model_props(made, metadata)
    return made


def test_other_commands_than_the_environments_are_told_with_what_it_should_say() -> None:
    assert note_on_commands(model(METADATA), ActionSpec(**JOINTS)) == (
        "by the file's action_scale and default_joint_pos commands are (0.333, 0.25) · action + (0.4, -0.8) rad; of "
        "the environment commands are the action. If what it takes are the policy's outputs, let it say "
        "action_term = {'scale': (0.333, 0.25), 'offset': (0.4, -0.8), 'unit': 'rad'}"
    )


def test_one_scale_is_that_of_all_joints() -> None:
    note = note_on_commands(model({**METADATA, "action_scale": "0.5"}), ActionSpec(**JOINTS))
    assert "action_term = {'scale': 0.5, 'offset': (0.4, -0.8)" in str(note)


def test_what_differs_by_rounding_alone_agrees() -> None:
    assert note_on_commands(model(METADATA), ActionSpec(**JOINTS, scale=(1 / 3, 0.25), offset=(0.4004, -0.8))) is None
    assert note_on_commands(model(METADATA), ActionSpec(**JOINTS, scale=(1 / 3, 0.25), offset=(0.41, -0.8)))


@pytest.mark.parametrize(
    "changes",
    [
        {"joint_names": "left knee,ankle,hip"},
        {"joint_names": "knee,hip"},
        {"default_joint_pos": "[-0.8, 0.1, 0.4]"},
        {"action_scale": "0.25,0.5"},
        {"action_scale": "0.25,0.5,0.0"},
        {"action_scale": "nan,0.5,0.5"},
        {"action_scale": ""},
    ],
)
def test_what_says_nothing_of_these_joints_is_passed_over(changes: dict[str, str]) -> None:
    assert note_on_commands(model({**METADATA, **changes}), ActionSpec(**JOINTS)) is None


def test_a_file_without_metadata_says_nothing() -> None:
    assert note_on_commands(model({}), ActionSpec(**JOINTS)) is None
