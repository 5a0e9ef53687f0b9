from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import environment_specs
from nncontrol_prune.plants.tasks import Signal, StartBox, Task, task_of

KNOWN = [CARTPOLE, "InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Hopper-v5"]


def test_signal_is_an_entry_of_the_observation_or_the_angle_of_two() -> None:
    observations = np.array([[0.1, 1.0, 0.0], [0.2, 0.0, -1.0]])
    np.testing.assert_array_equal(Signal(entry=0).of(observations), [0.1, 0.2])
    np.testing.assert_allclose(Signal(sine=1, cosine=2).of(observations), [math.pi / 2, math.pi])


def test_an_angle_is_as_far_from_its_reference_as_the_short_way_around() -> None:
    angle = Signal(sine=0, cosine=1, unit="rad", reference=3.0)
    angles = np.array([3.1, -3.1, -0.2, 0.0])
    observations = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(angle.deviation(observations), [0.1, 2 * math.pi - 6.1, 2 * math.pi - 3.2, -3.0])
    hanging = Task(signals={"angle": angle}, goal={"angle": 0.3})
    np.testing.assert_array_equal(hanging.at_goal(observations), [True, True, False, False])
    np.testing.assert_array_equal(Signal(entry=0, reference=8.0).deviation(np.array([[-8.0]])), [-16.0])


@pytest.mark.parametrize("values", [{}, {"sine": 1}, {"entry": 0, "sine": 1, "cosine": 2}, {"entry": 0, "cosine": 2}])
def test_signal_of_no_source_or_several_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="either one entry of the observation, or the angle"):
        Signal(**values)


def test_goal_is_every_signal_near_its_reference() -> None:
    task = Task(signals={"a": Signal(entry=0), "b": Signal(entry=1, reference=2.0)}, goal={"a": 0.5, "b": 0.1})
    np.testing.assert_array_equal(task.at_goal(np.array([[0.4, 2.0], [0.6, 2.0], [0.0, 1.8]])), [True, False, False])
    assert bool(task.at_goal(np.array([0.0, 2.0])))
    assert task.success == "a within 0.5 and b within 0.1 of its reference at the end"
    held = task.model_copy(update={"hold": 2.0})
    assert held.success == "a within 0.5 and b within 0.1 of its reference for the last 2 s"


def test_goal_about_an_unknown_signal_is_refused() -> None:
    with pytest.raises(ValidationError, match="the goal names 'c', which is not one of the signals"):
        Task(signals={"a": Signal(entry=0)}, goal={"c": 1.0})


def test_cartpole_is_upright_within_18_degrees() -> None:
    task = task_of(CARTPOLE)
    angles = np.radians([0.0, 18.0, -18.0, 18.5, 180.0])
    observations = np.stack([0 * angles, np.cos(angles), np.sin(angles), 0 * angles, 0 * angles], axis=1)
    np.testing.assert_array_equal(task.at_goal(observations), [True, True, True, False, False])


@pytest.mark.parametrize("environment", KNOWN)
def test_what_is_known_of_environments_fits_them(environment: str) -> None:
    specs = environment_specs(environment)
    assert task_of(environment).mismatch(specs.observation.size, specs.states) is None


def test_mismatch_names_what_does_not_fit() -> None:
    signal = Task(signals={"pole": Signal(sine=2, cosine=7)})
    assert signal.mismatch(5, 4) == "signal 'pole' is entry 7 of the observation, whose entries are 0 to 4"
    box = Task(starts=StartBox(low=(0.0, 0.0), high=(1.0, 1.0), names=("x", "v")))
    assert box.mismatch(5, 4) == "the box of starts has 2 states, not 4: positions, then velocities"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"high": (1.0,)}, "as many entries as each other"),
        ({"high": (1.0, -1.0)}, "lower bound above its upper"),
        ({"plane": (0, 2)}, "not two of its 2 states"),
        ({"plane": (1, 1)}, "not two of its 2 states"),
    ],
)
def test_box_of_starts_that_is_none_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        StartBox(**{"low": (0.0, 0.0), "high": (1.0, 1.0), "names": ("x", "v"), **values})


def test_slice_of_the_box_leaves_the_rest_in_the_middle() -> None:
    box = StartBox(low=(0.0, -1.0, 2.0), high=(1.0, 1.0, 4.0), names=("a", "b", "c"), plane=(0, 2))
    assert box.slice == ((0.0, 1.0), (0.0, 0.0), (2.0, 4.0))
