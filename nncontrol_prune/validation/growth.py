"""How fast small perturbations grow in closed loop, where nothing comes to rest: the largest Lyapunov exponent.

Two loops start 1e-6 apart and run side by side; after every tick the distance is noted and set back to 1e-6 along its
own direction. The mean of its logarithm's change per second is the exponent (Benettin et al., Meccanica 15, 1980).
Below 0 perturbations die away and the gait is stable; above 0 episodes from the same start part after a while (chaos).
A walker's may be well above 0 though it never falls, so it is the difference to the dense controller's that tells.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.limits import ActionLimits
from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.plants.state_space import StateSpacePlant
from nncontrol_prune.validation.stability import SmoothPolicy

Array = NDArray[np.float64]

DISTANCE = 1e-6
"""Of the two loops: the norm of the difference of their states, in m, rad, m/s and rad/s."""
STARTS = 4
SECONDS = 4.0
SETTLING = 1.0
"""Seconds at first that are not counted: the perturbation turns to where it grows fastest."""


class Growth(Spec):
    """The growth rate of small perturbations."""

    rate: float
    """Per second; -0.7 means that they halve in a second, 0.7 that they double."""
    interval: tuple[float, float]
    """95 % interval of its mean over starts (Student's t)."""


def perturbation_growth(bundle: Bundle, environment: str) -> Growth | None:
    """Return how fast small perturbations grow; None for a planner, whose plan is a state of its own.

    Raises:
        PlantError: There is no such environment, or its observation cannot be had from its state.
    """
    if bundle.manifest.plans:
        return None
    plant, policy, limits = StateSpacePlant(environment), SmoothPolicy(bundle), ActionLimits(bundle.manifest.action)
    try:
        rates = np.array([_rate(plant, policy, limits, seed) for seed in range(STARTS)])
    finally:
        plant.close()
    half = float(stats.t.ppf(0.975, STARTS - 1) * rates.std(ddof=1) / math.sqrt(STARTS))
    return Growth(rate=float(rates.mean()), interval=(float(rates.mean()) - half, float(rates.mean()) + half))


def _rate(plant: StateSpacePlant, policy: SmoothPolicy, limits: ActionLimits, seed: int) -> float:
    def following(state: Array) -> Array:
        action = policy.act(plant.observe(state))
        limits.apply(action)
        return plant.step(state, action)

    state = plant.start(seed)
    way = np.random.default_rng(seed).normal(size=len(plant.difference(state, state)))
    way *= DISTANCE / np.linalg.norm(way)
    logarithms = []
    for _ in range(round((SETTLING + SECONDS) / plant.period)):
        beside = following(plant.moved(state, way))
        state = following(state)
        way = plant.difference(beside, state)
        # Two loops that have become one to the last bit stay that: as near as floating point lets them be.
        distance = max(float(np.linalg.norm(way)), np.finfo(float).tiny)
        logarithms.append(math.log(distance / DISTANCE))
        way *= DISTANCE / distance
    counted = logarithms[round(SETTLING / plant.period) :]
    return float(np.mean(counted)) / plant.period
