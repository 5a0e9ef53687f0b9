from __future__ import annotations

import math

import numpy as np
import pytest

from nncontrol_prune.controllers.errors import ControllerError
from nncontrol_prune.controllers.observations import ObservationSpec, ObservationTerm
from nncontrol_prune.runtime.observation import (
    ObservationAssembler,
    level_orientation,
    projected_gravity,
    rotation_problem,
)

CARTPOLE = ObservationSpec(
    terms=(
        ObservationTerm(name="x", size=1, quantity="position", joints=("slider",)),
        ObservationTerm(name="cos", size=1, quantity="cos", joints=("hinge",)),
        ObservationTerm(name="sin", size=1, quantity="sin", joints=("hinge",)),
        ObservationTerm(name="v", size=1, quantity="velocity", joints=("slider",), scale=0.5),
    )
)


def test_joints_are_found_by_name_in_any_order_among_others() -> None:
    assembler = ObservationAssembler(CARTPOLE, 1)
    expected = [1.0, math.cos(2.0), math.sin(2.0), 1.5]
    assert assembler.joint_states(["slider", "hinge"], [1.0, 2.0], [3.0, 4.0], []) is None
    assembler.complete()
    np.testing.assert_allclose(assembler.observation, expected)
    assert assembler.joint_states(["gripper", "hinge", "slider"], [9.0, 2.0, 1.0], [9.0, 4.0, 3.0], []) is None
    assembler.complete()
    np.testing.assert_allclose(assembler.observation, expected)


def test_missing_joints_and_values_are_named_and_nothing_is_taken() -> None:
    assembler = ObservationAssembler(CARTPOLE, 1)
    assert "lack hinge; they have slider" in str(assembler.joint_states(["slider"], [1.0], [3.0], []))
    assert "0 values of velocity for 2 joints" in str(assembler.joint_states(["slider", "hinge"], [1.0, 2.0], [], []))
    assembler.complete()
    assert np.isnan(assembler.observation).all()


def test_non_finite_angles_give_nan_and_no_error() -> None:
    assembler = ObservationAssembler(CARTPOLE, 1)
    assert assembler.joint_states(["slider", "hinge"], [1.0, math.inf], [3.0, math.nan], []) is None
    assembler.complete()
    assert np.isnan(assembler.observation[1:3]).all()


def test_imu_command_and_previous_action_have_their_places() -> None:
    spec = ObservationSpec(
        terms=(
            ObservationTerm(name="gyro", size=3, quantity="angular_velocity", scale=0.25),
            ObservationTerm(name="command", size=3, quantity="velocity_command"),
            ObservationTerm(name="last", size=2, quantity="previous_action"),
            ObservationTerm(name="contact", size=1),
        )
    )
    assembler = ObservationAssembler(spec, 2)
    assert assembler.observation[6:8].tolist() == [0.0, 0.0], "nothing was commanded yet"
    assert assembler.vectors == ("angular_velocity", "velocity_command")
    assembler.vector("angular_velocity", [4.0, 8.0, 12.0])
    assembler.vector("velocity_command", [1.0, 0.0, 0.5])
    assembler.previous_action(np.array([7.0, 8.0]))
    assert assembler.other("contact", [1.0])
    assert not assembler.other("contact", [1.0, 2.0])
    assembler.complete()
    assert assembler.observation.tolist() == [1.0, 2.0, 3.0, 1.0, 0.0, 0.5, 7.0, 8.0, 1.0]


def test_entries_are_measured_values_without_their_offset_scaled() -> None:
    spec = ObservationSpec(
        terms=(
            ObservationTerm(name="pose", size=2, quantity="position", joints=("b", "a"), offset=(0.5, -1.0), scale=2.0),
            ObservationTerm(name="gyro", size=3, quantity="angular_velocity", scale=(1.0, 2.0, -0.5), offset=(0, 0, 1)),
            ObservationTerm(name="cos", size=1, quantity="cos", joints=("a",), offset=(1.0,), scale=10.0),
            ObservationTerm(name="last", size=2, quantity="previous_action", offset=(0.5, -1.0), scale=4.0),
            ObservationTerm(name="height", size=1, offset=(0.3,), scale=10.0),
        )
    )
    assembler = ObservationAssembler(spec, 2)
    assert assembler.observation[6:8].tolist() == [0.0, 0.0], "the policy has given nothing yet"
    assert assembler.joint_states(["a", "b"], [3.0, 1.0], [], []) is None
    assembler.vector("angular_velocity", [4.0, 8.0, 12.0])
    assembler.previous_action(np.array([0.75, -2.0]))
    assert assembler.other("height", [0.5])
    expected = [1.0, 8.0, 4.0, 16.0, -5.5, 10 * (math.cos(3.0) - 1.0), 1.0, -4.0, 2.0]
    assembler.complete()
    np.testing.assert_allclose(assembler.observation, expected)


def test_previous_action_of_another_size_is_refused() -> None:
    spec = ObservationSpec(terms=(ObservationTerm(name="last", size=2, quantity="previous_action"),))
    with pytest.raises(ControllerError, match="'last' has 2 values a tick, and the action has 1"):
        ObservationAssembler(spec, 1)


def test_gravity_points_down_in_the_bodys_frame() -> None:
    assert projected_gravity((0.0, 0.0, 0.0, 1.0)) == (0.0, 0.0, -1.0)
    half = math.sqrt(0.5)  # rolled by 90 degrees: the body's y axis points up
    np.testing.assert_allclose(projected_gravity((half, 0.0, 0.0, half)), (0.0, -1.0, 0.0), atol=1e-12)


@pytest.mark.parametrize("gravity", [(0.0, 0.0, -1.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (1, 2, 3)])
def test_level_orientation_has_its_gravity_and_no_yaw(gravity: tuple[float, float, float]) -> None:
    quaternion = level_orientation(gravity)
    assert rotation_problem(quaternion) == ""
    np.testing.assert_allclose(projected_gravity(quaternion), gravity / np.linalg.norm(gravity), atol=1e-15)
    x, y, z, w = quaternion
    assert math.isclose(2 * (w * z + x * y), 0.0, abs_tol=1e-15), "x of the body does not point to a side"


def test_no_gravity_gives_no_rotation() -> None:
    assert "norm 0" in rotation_problem(level_orientation((0.0, 0.0, 0.0)))


def test_quaternion_that_is_no_rotation_is_told() -> None:
    assert rotation_problem((0.0, 0.0, 0.0, 0.0)) == "its quaternion has norm 0, not 1"
    assert rotation_problem((0.5, 0.5, 0.5, 0.5005)) == ""
    assert rotation_problem((math.nan, 0.0, 0.0, 1.0)) == "", "NaN shows in the observation"


REMEMBERING = ObservationSpec(
    terms=(
        ObservationTerm(name="gyro", size=6, quantity="angular_velocity", history=2, scale=(1.0, 1.0, 2.0)),
        ObservationTerm(name="angle", size=1, quantity="position", joints=("hinge",)),
        ObservationTerm(name="last", size=3, quantity="previous_action", history=3),
    )
)


def test_a_term_with_a_history_holds_what_was_observed_in_the_ticks_before() -> None:
    assembler = ObservationAssembler(REMEMBERING, 1)
    assert assembler.remembers
    seen = []
    for tick in range(1, 5):
        assembler.vector("angular_velocity", (tick, 10.0 * tick, 100.0 * tick))
        assert assembler.joint_states(["hinge"], [0.1 * tick], [], []) is None
        assembler.complete()
        seen.append(assembler.observation.copy())
        assembler.vector("angular_velocity", (-1.0, -1.0, -1.0))  # has come since, and is not of this tick
        assembler.answered(seen[-1])
        assembler.previous_action(np.array([float(tick)]))
    assert seen[0].tolist() == [1.0, 10.0, 200.0, 1.0, 10.0, 200.0, 0.1, 0.0, 0.0, 0.0]
    assert seen[1].tolist() == [1.0, 10.0, 200.0, 2.0, 20.0, 400.0, 0.2, 0.0, 0.0, 1.0]
    np.testing.assert_allclose(seen[3], [3.0, 30.0, 600.0, 4.0, 40.0, 800.0, 0.4, 1.0, 2.0, 3.0])


def test_a_history_that_begins_anew_has_nothing_of_what_was_before() -> None:
    assembler = ObservationAssembler(REMEMBERING, 1)
    for value in (1.0, 2.0):
        assembler.vector("angular_velocity", (value, value, value))
        assembler.complete()
        assembler.answered(assembler.observation.copy())
    assembler.begin()
    assembler.vector("angular_velocity", (3.0, 3.0, 3.0))
    assembler.complete()
    assert assembler.observation[:6].tolist() == [3.0, 3.0, 6.0, 3.0, 3.0, 6.0]


def test_a_history_that_begins_anew_before_the_newest_is_answered_holds_the_newest_alone() -> None:
    assembler = ObservationAssembler(REMEMBERING, 1)
    for value in (1.0, 2.0):
        assembler.vector("angular_velocity", (value, value, value))
        assembler.complete()
        if value == 1.0:
            assembler.answered(assembler.observation.copy())
    assembler.begin()
    assert assembler.observation[:6].tolist() == [2.0, 2.0, 4.0, 2.0, 2.0, 4.0]
    assembler.answered(assembler.observation.copy())
    assembler.vector("angular_velocity", (3.0, 3.0, 3.0))
    assembler.complete()
    assert assembler.observation[:6].tolist() == [2.0, 2.0, 4.0, 3.0, 3.0, 6.0]


def test_what_nothing_came_of_is_missing_in_its_history_too() -> None:
    assembler = ObservationAssembler(REMEMBERING, 1)
    assembler.complete()
    assert np.isnan(assembler.observation[:7]).all()


def test_inputs_of_the_next_observation_do_not_show_before_it_is_complete() -> None:
    assembler = ObservationAssembler(REMEMBERING, 1)
    assembler.vector("angular_velocity", (1.0, 1.0, 1.0))
    assert assembler.joint_states(["hinge"], [0.1], [], []) is None
    assembler.complete()
    assert assembler.joint_states(["hinge"], [0.2], [], []) is None
    assert assembler.observation[6] == 0.1
    assembler.complete()  # before the action that answers the first one
    assembler.answered(np.array([1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 0.1, 0.0, 0.0, 0.0]))
    assembler.previous_action(np.array([5.0]))
    assert assembler.observation[6:].tolist() == [0.2, 0.0, 0.0, 5.0]
