from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.mujoco import inverted_pendulum_v5

from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.environments import PlantError, make_environment
from nncontrol_prune.plants.state_space import StateSpacePlant


@pytest.mark.parametrize("environment", [CARTPOLE, "InvertedDoublePendulum-v5", "Hopper-v5"])
def test_stepping_and_observing_states_is_what_the_environment_does(environment: str) -> None:
    plant, env = StateSpacePlant(environment), make_environment(environment)
    observation, _ = env.reset(seed=4)
    state = plant.start(4)
    rng = np.random.default_rng(0)
    for _ in range(10):
        np.testing.assert_allclose(plant.observe(state), observation, atol=1e-9)
        action = rng.uniform(-0.2, 0.2, env.action_space.shape)
        state = plant.step(state, action)
        observation, *_ = env.step(action)
    plant.close()


def test_plant_whose_actuators_have_a_state_is_refused(tmp_path: Path) -> None:
    model = Path(inverted_pendulum_v5.__file__).parent / "assets" / "inverted_pendulum.xml"
    slow = model.read_text().replace("<motor ", '<general dyntype="filter" dynprm="0.2" ')
    assert slow != model.read_text()
    (tmp_path / "slow.xml").write_text(slow)
    gymnasium.register(
        "Slow-v0",
        lambda **options: inverted_pendulum_v5.InvertedPendulumEnv(xml_file=str(tmp_path / "slow.xml"), **options),
        max_episode_steps=10,
    )
    try:
        with pytest.raises(
            PlantError, match="the actuators of Slow-v0 have a state beside its positions and velocities"
        ):
            StateSpacePlant("Slow-v0")
    finally:
        del gymnasium.registry["Slow-v0"]


def test_way_between_states_goes_the_short_way_around_a_hinge() -> None:
    plant = StateSpacePlant(CARTPOLE)
    origin, state = np.array([0.1, np.pi - 0.1, 1.0, 2.0]), np.array([0.3, -np.pi + 0.1, 1.5, 2.0])
    way = plant.difference(state, origin)
    np.testing.assert_allclose(way, [0.2, 0.2, 0.5, 0.0])
    np.testing.assert_allclose(plant.difference(plant.moved(origin, way), state), 0.0, atol=1e-12)
    plant.close()


def test_linearization_is_that_of_the_hanging_pole() -> None:
    """Near the rest, hanging, the model's own equations over one period, by matrix exponential."""
    import scipy.linalg

    plant = StateSpacePlant(CARTPOLE)
    state = np.array([0.0, np.pi, 0.0, 0.0])
    found = plant.linearize(state, np.zeros(1))
    base = make_environment(CARTPOLE).unwrapped
    inertia, length, mass = _pole(base.model)
    gravity = 9.81
    total = mass + base.model.body("cart").mass[0]
    # θ = π + φ: [total, -m l; -m l, J] [ẍ, φ̈] = [F - d ẋ, -m g l φ - e φ̇]
    matrix = np.linalg.inv([[total, -mass * length], [-mass * length, inertia]])
    damping = base.model.dof_damping
    a = np.zeros((4, 4))
    a[:2, 2:] = np.eye(2)
    a[2:, 1] = matrix @ [0.0, -mass * gravity * length]
    a[2:, 2:] = -matrix @ np.diag(damping)
    b = np.zeros((4, 1))
    b[2:, 0] = matrix @ [1.0, 0.0]
    both = scipy.linalg.expm(0.01 * np.block([[a, b], [np.zeros((1, 5))]]))
    # The integrator takes steps of 2.5 ms, of first order.
    np.testing.assert_allclose(found.a, both[:4, :4], atol=2e-3)
    np.testing.assert_allclose(found.b, both[:4, 4:], atol=2e-4)
    # x, cos θ, sin θ, ẋ, θ̇
    np.testing.assert_allclose(
        found.c, [[1, 0, 0, 0], [0, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-6
    )
    plant.close()


def _pole(model) -> tuple[float, float, float]:
    """Return the pole's moment of inertia about the hinge, its centre's distance from there, and its mass."""
    pole = model.body("pole")
    length, mass = float(pole.ipos[2]), float(pole.mass[0])
    return float(pole.inertia[1]) + mass * length**2, abs(length), mass
