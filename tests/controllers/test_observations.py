from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.observations import JOINT_QUANTITIES, ObservationSpec, ObservationTerm
from nncontrol_prune.controllers.specs import layout_difference, problem_of


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


def pose(**changes: object) -> ObservationTerm:
    term = {"name": "pose", "size": 3, "quantity": "position", "joints": ("a", "b", "c"), "scale": 0.5}
    return ObservationTerm.model_validate({**term, **changes})


@pytest.mark.parametrize("scale", [2, 2.0, np.float32(2), [2.0, 2.0, 2.0], np.full(3, 2.0)])
def test_terms_that_say_the_same_are_equal(scale: object) -> None:
    assert pose(scale=scale, offset=np.zeros(3)) == pose(scale=2.0)
    assert pose(scale=2.0).scales == (2.0, 2.0, 2.0)
    assert pose(scale=2.0).offsets == (0.0, 0.0, 0.0)


def test_scale_and_offset_may_differ_from_entry_to_entry() -> None:
    term = pose(scale=[1, -2.0, 3], offset=np.array([0.0, 0.5, -1.0]))
    assert (term.scale, term.scales) == ((1.0, -2.0, 3.0), (1.0, -2.0, 3.0))
    assert (term.offset, term.offsets) == ((0.0, 0.5, -1.0), (0.0, 0.5, -1.0))
    assert ObservationTerm.model_validate_json(term.model_dump_json()) == term


EACH = "allowed are finite numbers, one for each of the 3 entries, or"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scale": [1.0, 2.0]}, f"scale = [1.0, 2.0]: {EACH} one for all"),
        ({"scale": math.inf}, f"scale = inf: {EACH} one for all"),
        ({"scale": "2"}, f"scale = '2': {EACH} one for all"),
        ({"scale": None}, f"scale = None: {EACH} one for all"),
        ({"scale": []}, f"scale = []: {EACH} one for all"),
        ({"scale": [1.0, 0.0, 1.0]}, "term 'pose' has the scale 0, by which nothing is measured"),
        ({"offset": 0.5}, f"offset = 0.5: {EACH} none"),
        ({"offset": [0.5]}, f"offset = [0.5]: {EACH} none"),
        ({"offset": [0.0, 0.5, math.nan]}, f"offset = [0.0, 0.5, nan]: {EACH} none"),
        ({"offset": [0.0, 0.5, 10**400]}, f"offset: {EACH} none"),
        ({"offset": {0: 1.0, 1: 1.0, 2: 1.0}}, f"offset = {{0: 1.0, 1: 1.0, 2: 1.0}}: {EACH} none"),
    ],
)
def test_scale_or_offset_that_fits_no_entries_is_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError) as error:
        pose(**changes)
    assert problem_of(error.value) == sentence


def test_term_from_before_there_were_offsets_is_read(shipped_bundle: Bundle) -> None:
    assert '"offset"' not in (shipped_bundle.files["manifest.json"]).decode()
    assert [term.scale for term in shipped_bundle.manifest.observation.terms] == [1.0] * 5


def test_controller_that_observes_with_another_offset_cannot_take_ones_place(shipped_bundle: Bundle) -> None:
    first, *others = shipped_bundle.manifest.observation.terms
    moved = ObservationSpec(terms=(first.model_copy(update={"offset": (0.5,)}), *others))
    said = layout_difference(shipped_bundle.manifest.model_copy(update={"observation": moved}), shipped_bundle.manifest)
    assert said == "its observation term 1, 'x' (1 position), has offset (0.5,), not ()"


@pytest.mark.parametrize(
    ("term", "words"),
    [
        ({"name": "height", "size": 1, "unit": "m"}, "height (1): other [m]"),
        (
            {"name": "w", "size": 3, "quantity": "angular_velocity", "unit": "rad/s", "scale": 0.25},
            "w (3): angular_velocity [rad/s], times 0.25",
        ),
        (
            {"name": "q", "size": 2, "quantity": "position", "joints": ["hip", "knee"], "unit": "rad",
             "offset": [0.4, -0.8], "scale": [1, 2]},
            "q (2): position of hip, knee [rad], less (0.4, -0.8), times (1, 2)",
        ),
    ],
)  # fmt: skip
def test_a_term_says_in_words_what_it_measures(term: dict[str, object], words: str) -> None:
    assert str(ObservationTerm.model_validate(term)) == words
