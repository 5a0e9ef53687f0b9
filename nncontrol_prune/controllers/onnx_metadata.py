"""What exporters say in an ONNX file's metadata about a policy's actions: which commands they stand for.

mjlab's and whole_body_tracking's write `joint_names`, `default_joint_pos` and `action_scale` as text, with commas
between entries and numbers to three decimals.
"""

from __future__ import annotations

from onnx import ModelProto

from nncontrol_prune.controllers.specs import ActionSpec

ROUNDING = 1e-3
"""How far a number in the metadata may be off."""


def note_on_commands(model: ModelProto, action: ActionSpec) -> str | None:
    """Return what to say where a file and an environment differ in the commands that actions stand for.

    Args:
        model: The file.
        action: What the environment says.

    Returns:
        A sentence; None where the two agree, or the file does not say it of these joints.
    """
    said = _commands_said(model, action)
    if said is None or _agree(said, action):
        return None
    term = {"scale": said.scale, "offset": said.offset, "unit": said.unit}
    return (
        f"by the file's action_scale and default_joint_pos {said.conversion}; of the environment {action.conversion}. "
        f"If what it takes are the policy's outputs, let it say action_term = {term}"
    )


def _commands_said(model: ModelProto, action: ActionSpec) -> ActionSpec | None:
    """Return the action with the conversion that the metadata has; None where it has none for all of its joints."""
    text = {entry.key: [part.strip() for part in entry.value.split(",")] for entry in model.metadata_props}
    names = text.get("joint_names", [])
    try:
        scales, pose = (list(map(float, text[key])) for key in ("action_scale", "default_joint_pos"))
    except (KeyError, ValueError):  # it is not there, or written in another way
        return None
    if len(scales) == 1:
        scales = scales * len(names)
    if not len(names) == len(scales) == len(pose) or not set(action.joints) <= set(names):
        return None
    order = [names.index(joint) for joint in action.joints]
    conversion = {"scale": [scales[at] for at in order], "offset": [pose[at] for at in order], "unit": "rad"}
    try:
        return ActionSpec.model_validate({**action.model_dump(), **conversion})
    except ValueError:  # numbers that convert nothing
        return None


def _agree(said: ActionSpec, action: ActionSpec) -> bool:
    ours, theirs = (*action.scales, *action.offsets), (*said.scales, *said.offsets)
    return all(abs(our - their) <= ROUNDING for our, their in zip(ours, theirs, strict=True))
