from __future__ import annotations

import numpy as np
import pytest

from nncontrol_prune.plants import CARTPOLE
from nncontrol_prune.plants.conditions import Conditions, change_model, pushed
from nncontrol_prune.plants.environments import make_environment


@pytest.fixture
def base():
    env = make_environment(CARTPOLE)
    env.reset(seed=0)
    yield env.unwrapped
    env.close()


def test_masses_and_friction_are_changed_by_their_factors(base) -> None:
    mass, inertia, damping = (
        values.copy() for values in (base.model.body_mass, base.model.body_inertia, base.model.dof_damping)
    )
    change_model(base.model, base.data, Conditions(mass=1.2, friction=0.5))
    np.testing.assert_allclose(base.model.body_mass, 1.2 * mass)
    np.testing.assert_allclose(base.model.body_inertia, 1.2 * inertia)
    np.testing.assert_allclose(base.model.dof_damping, 0.5 * damping)
    assert base.model.body_subtreemass[0] == pytest.approx(1.2 * mass.sum()), "what follows from masses does too"


def test_push_gives_the_momentum_it_says(base) -> None:
    """The cart-pole hanging at rest: whatever body is hit, the momentum along the rail is the impulse's."""
    model, data = base.model, base.data
    base.set_state(np.array([0.0, np.pi]), np.zeros(2))
    seen = set()
    for seed in range(8):
        rng, again = np.random.default_rng(seed), np.random.default_rng(seed)
        velocities = pushed(model, data, 0.5, rng)
        body = int(again.choice(model.nbody, p=model.body_mass / model.body_mass.sum()))
        along = 0.5 * model.body_mass.sum() * np.cos(again.uniform(0, 2 * np.pi))
        # Hanging, the pole's centre moves by ẋ - l θ̇.
        length = model.body("pole").ipos[2]
        momentum = model.body_mass.sum() * velocities[0] - model.body("pole").mass[0] * length * velocities[1]
        assert momentum == pytest.approx(along)
        seen.add(body)
    assert len(seen) == 2, "cart and pole"


def test_starts_spread_evenly_over_the_box() -> None:
    conditions = Conditions(starts=((-1.0, 1.0), (0.0, 4.0)))
    starts = np.array([conditions.start(seed) for seed in range(64)])
    # A Sobol sequence has as many points in every quarter.
    quarters, counts = np.unique((starts > [0.0, 2.0]) @ [1, 2], return_counts=True)
    assert (quarters.tolist(), counts.tolist()) == ([0, 1, 2, 3], [16, 16, 16, 16])
    assert Conditions().start(3) is None
