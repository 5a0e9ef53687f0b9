"""Conditions that a plant is run under, where they differ from the environment as it is."""

from __future__ import annotations

from typing import Annotated

import mujoco
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat
from scipy.stats import qmc

from nncontrol_prune.controllers.specs import Spec

PUSH_INTERVAL = 2.0
"""Seconds from one push to the next."""


class Conditions(Spec):
    """What is different."""

    delay: Annotated[int, Field(ge=0)] = 0
    """Ticks that a command takes to the plant, which is sent the safe command before the first arrives."""
    noise: tuple[FiniteFloat, ...] = ()
    """Standard deviations of Gaussian noise on the entries of the observation; none if empty."""
    push: Annotated[FiniteFloat, Field(ge=0.0)] = 0.0
    """Impulse of the pushes, as the change of speed in m/s that it would give to the plant's whole mass."""
    mass: Annotated[FiniteFloat, Field(gt=0.0)] = 1.0
    """Factor on all masses and moments of inertia."""
    friction: Annotated[FiniteFloat, Field(ge=0.0)] = 1.0
    """Factor on friction and damping."""
    starts: tuple[tuple[FiniteFloat, FiniteFloat], ...] = ()
    """Bounds of the box of positions and velocities that episodes start in; the environment's own starts if empty."""

    def start(self, seed: int) -> NDArray[np.float64] | None:
        """Return the positions and velocities that the episode of a seed starts with; None for the environment's own.

        They are the scrambled Sobol sequence's, so that the seeds from one on spread evenly over the box.
        """
        if not self.starts:
            return None
        low, high = np.array(self.starts).T
        sequence = qmc.Sobol(len(low), scramble=True, rng=0)
        if seed:
            sequence.fast_forward(seed)
        point = sequence.random(1)[0]
        return np.asarray(low + (high - low) * point)


def change_model(model: mujoco.MjModel, data: mujoco.MjData, conditions: Conditions) -> None:
    """Change a plant's masses and friction."""
    if conditions.mass != 1.0:
        model.body_mass[:] *= conditions.mass
        model.body_inertia[:] *= conditions.mass
        mujoco.mj_setConst(model, data)
    model.geom_friction[:, 0] *= conditions.friction
    model.dof_damping[:] *= conditions.friction
    model.dof_frictionloss[:] *= conditions.friction


def pushed(model: mujoco.MjModel, data: mujoco.MjData, speed: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the velocities (nv,) after a push: level, at the centre of a body, heavy ones being hit more often.

    Args:
        model: The plant's model.
        data: The plant's state.
        speed: The impulse, as the change of speed in m/s that it would give to the whole mass.
        rng: Draws the body and the direction.
    """
    body = int(rng.choice(model.nbody, p=model.body_mass / model.body_mass.sum()))
    angle = rng.uniform(0.0, 2.0 * np.pi)
    impulse = speed * model.body_mass.sum() * np.array([np.cos(angle), np.sin(angle), 0.0])
    mujoco.mj_forward(model, data)
    jacobian = np.zeros((3, model.nv))
    mujoco.mj_jacBodyCom(model, data, jacobian, None, body)
    change = np.zeros((1, model.nv))
    mujoco.mj_solveM(model, data, change, (jacobian.T @ impulse)[None])
    return np.asarray(data.qvel + change[0])
