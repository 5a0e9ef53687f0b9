import pytest
from pydantic import ValidationError

from nncontrol_prune.controllers.observations import JOINT_QUANTITIES, ObservationTerm
from nncontrol_prune.controllers.specs import problem_of


@pytest.mark.parametrize("quantity", JOINT_QUANTITIES)
def test_a_joint_quantity_without_joints_is_refused(quantity: str) -> None:
    with pytest.raises(ValidationError, match=rf"term 'x' measures the {quantity} of no joint: name its joints"):
        ObservationTerm.model_validate({"name": "x", "size": 1, "quantity": quantity})


@pytest.mark.parametrize(
    ("term", "sentence"),
    [
        ({"name": "angle", "size": 0}, "size = 0: input should be greater than or equal to 1"),
        ({"name": "angle"}, "size: field required"),
        ({"name": 1000 * "x", "size": "many"}, "size = 'many': input should be a valid integer"),
        ({"name": "angle", "size": 1000 * "x"}, "size: input should be a valid integer"),
        ({"name": "angle", "size": 1, "scale": 0.0}, "term 'angle' has the scale 0, by which nothing is measured"),
        ("angle", "input should be a valid dictionary"),
    ],
)
def test_a_problem_is_told_with_its_key_and_what_was_given(term: object, sentence: str) -> None:
    with pytest.raises(ValidationError) as error:
        ObservationTerm.model_validate(term)
    assert problem_of(error.value).startswith(sentence)
