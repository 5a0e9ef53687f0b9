import pytest
from pydantic import ValidationError

from nncontrol_prune.controllers.specs import JOINT_QUANTITIES, ObservationTerm


@pytest.mark.parametrize("quantity", JOINT_QUANTITIES)
def test_a_joint_quantity_without_joints_is_refused(quantity: str) -> None:
    with pytest.raises(ValidationError, match=rf"term 'x' measures the {quantity} of no joint: name its joints"):
        ObservationTerm.model_validate({"name": "x", "size": 1, "quantity": quantity})
