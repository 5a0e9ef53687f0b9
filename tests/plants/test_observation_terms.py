from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.observations import ObservationSpec, ObservationTerm
from nncontrol_prune.plants.environments import PlantError, check_controller, environment_specs
from tests.legged_robot import EXAMPLE, LEGGED, LeggedEnv

TERMS: tuple[dict[str, Any], ...] = EXAMPLE["MyRobotEnv"].observation_terms
LAST = TERMS[5]


def test_terms_of_the_documentation_are_what_the_environment_observes() -> None:
    terms = environment_specs(LEGGED).observation.terms
    assert [(term.name, term.size, term.quantity) for term in terms] == [
        ("base_ang_vel", 3, "angular_velocity"),
        ("projected_gravity", 3, "projected_gravity"),
        ("command", 3, "velocity_command"),
        ("joint_pos", 2, "position"),
        ("joint_vel", 6, "velocity"),
        ("last_action", 2, "previous_action"),
        ("height", 1, "other"),
    ]
    assert (terms[3].joints, terms[3].offset, terms[3].scale) == (("hip", "knee"), (0.4, -0.8), 1.0)


def test_commands_of_the_documentation_are_what_the_environment_makes_of_actions() -> None:
    action = environment_specs(LEGGED).action
    assert (action.joints, action.lower, action.upper) == (("hip", "knee"), (-4.0, -4.0), (4.0, 4.0))
    assert action.conversion == "commands are 0.25 · action + (0.4, -0.8) rad"


def test_terms_may_be_of_the_package_and_another_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = environment_specs(LEGGED).observation.terms
    monkeypatch.setattr(LeggedEnv, "observation_terms", list(map(ObservationTerm.model_validate, TERMS)))
    assert environment_specs(LEGGED).observation.terms == expected


def test_environment_that_says_none_has_one_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeggedEnv, "observation_terms", None)
    assert environment_specs(LEGGED).observation == ObservationSpec(
        terms=(ObservationTerm(name="observation", size=20),)
    )


class Reversed(gymnasium.ObservationWrapper):
    def observation(self, observation: Any) -> Any:
        return observation[::-1]


def test_terms_are_not_taken_behind_a_wrapper_that_may_change_what_is_observed() -> None:
    gymnasium.register("Reversed-v0", lambda **options: Reversed(LeggedEnv(**options)))
    try:
        assert [term.name for term in environment_specs("Reversed-v0").observation.terms] == ["observation"]
        assert environment_specs("Reversed-v0").action.is_commanded
    finally:
        del gymnasium.registry["Reversed-v0"]


@pytest.mark.parametrize(
    ("term", "problem"),
    [
        (0.25, "of {} is 0.25; it needs to be a mapping of scale, offset, unit"),
        ({"scale": 0.25, "clip": 1.0}, "of {} is {{'scale': 0.25, 'clip': 1.0}}; it needs to be a mapping of scale, "),
        ({"scale": [0.25]}, "of {}: scale = [0.25]: allowed are finite numbers, one for each of the 2 entries, or one"),
        ({"scale": [0.25, 0.0]}, "of {}: the action of 'knee' has the scale 0, by which nothing is commanded"),
        ({"offset": [0.4, float("nan")]}, "of {}: offset = [0.4, nan]: allowed are finite numbers, one for each of"),
        ({"unit": 1}, "of {}: unit = 1: input should be a valid string"),
    ],
)
def test_what_actions_cannot_stand_for_is_refused(monkeypatch: pytest.MonkeyPatch, term: Any, problem: str) -> None:
    monkeypatch.setattr(LeggedEnv, "action_term", term)
    with pytest.raises(PlantError, match=f"^action_term {re.escape(problem.format(LEGGED))}"):
        environment_specs(LEGGED)


def test_controller_fits_where_its_actions_stand_for_the_same() -> None:
    specs = environment_specs(LEGGED)
    other = replace(specs, action=specs.action.model_copy(update={"scale": 0.5}))
    manifest = SimpleNamespace(name="x", observation=specs.observation, action=specs.action, rate=specs.rate)
    check_controller(manifest, specs)
    with pytest.raises(
        PlantError,
        match=re.escape("its commands are 0.25 · action + (0.4, -0.8) rad, the environment's commands are 0.5"),
    ):
        check_controller(manifest, other)


@pytest.mark.parametrize(
    ("terms", "problem"),
    [
        (5, "allowed is a sequence of terms, which int is not"),
        ({"name": "all", "size": 20}, "allowed is a sequence of terms, which dict is not"),
        ((), "their sizes (no terms) add up to 0, and the observation has 20 entries"),
        (
            TERMS[:2],
            "their sizes (base_ang_vel 3 + projected_gravity 3) add up to 6, and the observation has 20 entries",
        ),
        ((*TERMS, {"name": "more", "size": 1}), "+ more 1) add up to 21, and the observation has 20 entries"),
        (
            ({"name": "gyro", "size": 3, "quantity": "rate"},),
            "term 1 ('gyro'): quantity = 'rate': input should be 'pos",
        ),
        ((TERMS[0], 7), "term 2: input should be a valid dictionary or instance of ObservationTerm"),
        (({**TERMS[3], "offset": [1.0]},), "term 1 ('joint_pos'): offset = [1.0]: allowed are finite numbers, one for"),
        (
            ({**TERMS[3], "joints": ["hip", "ankle"]},),
            "term 'joint_pos' names 'ankle'; the model's hinges and slides with a name are hip, knee",
        ),
        (({**TERMS[3], "joints": ["hip", "root"]},), "term 'joint_pos' names 'root'; the model's hinges and slides"),
        (({**LAST, "size": 3, "offset": []},), "term 'last_action' has 3 values a tick, and the action before has 2"),
        (({**TERMS[4], "history": 4},), "term 'joint_vel' has size 6, which is no multiple of 4 ticks"),
        (({**TERMS[4], "history": 2},), "term 'joint_vel' has size 6 in 2 ticks but names 2 joints"),
        (({**TERMS[0], "history": 3},), "term 'base_ang_vel' has size 3 in 3 ticks, and angular_velocity has 3"),
        (({**TERMS[4], "scale": [1.0] * 6},), "allowed are finite numbers, one for each of the 2 entries, or one for"),
        (({**TERMS[4], "history": 0},), "history = 0: input should be greater than or equal to 1"),
        ((TERMS[0], TERMS[0]), "term 2 is called 'base_ang_vel', which is taken; allowed is any other name"),
        (({"name": "stamp", "size": 20},), "term 1 is called 'stamp', which is taken; allowed is any other name"),
    ],
)
def test_what_the_environment_cannot_observe_is_refused(
    monkeypatch: pytest.MonkeyPatch, terms: object, problem: str
) -> None:
    monkeypatch.setattr(LeggedEnv, "observation_terms", terms)
    with pytest.raises(PlantError, match=rf"^observation_terms of {re.escape(LEGGED)}: .*{re.escape(problem)}"):
        environment_specs(LEGGED)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"scale": 0.5}, "its observation term 'x' has scale 0.5, not 1.0"),
        ({"offset": (0.5,)}, "its observation term 'x' has offset (0.5,), not ()"),
        ({"unit": "mm"}, None),
    ],
)
def test_controller_fits_where_its_terms_are_scaled_alike(
    small_bundle: Bundle, change: dict[str, object], problem: str | None
) -> None:
    specs = environment_specs("nncontrol_prune/CartPoleSwingUp-v0")
    first, *others = small_bundle.manifest.observation.terms
    changed = ObservationSpec(terms=(first.model_copy(update=change), *others))
    manifest = small_bundle.manifest.model_copy(update={"observation": changed})
    if problem is None:
        check_controller(manifest, specs)
    else:
        with pytest.raises(PlantError, match=re.escape(problem)):
            check_controller(manifest, specs)


def test_controller_fits_where_its_terms_are_of_as_many_ticks() -> None:
    specs = environment_specs(LEGGED)
    plain, stacked = (
        ObservationSpec(terms=(ObservationTerm(name="scan", size=6, history=history),)) for history in (1, 3)
    )
    manifest: Any = SimpleNamespace(name="x", observation=stacked, action=specs.action, rate=specs.rate)
    check_controller(manifest, replace(specs, observation=stacked))
    with pytest.raises(PlantError, match="its observation term 'scan' has history 3, not 1"):
        check_controller(manifest, replace(specs, observation=plain))


@pytest.mark.parametrize("name", ["observation_terms", "action_term"])
def test_what_raises_when_it_is_asked_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(LeggedEnv, name, property(lambda env: 1 / 0))
    with pytest.raises(PlantError, match=f"^{name} of {re.escape(LEGGED)} raised ZeroDivisionError: division by zero$"):
        environment_specs(LEGGED)
