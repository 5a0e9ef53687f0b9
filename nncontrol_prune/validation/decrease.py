"""Lyapunov decrease along rollouts: how often a function that should fall from tick to tick does not.

Two functions serve, whichever there is:

- xᵀ P x around the place where the controller's own loop comes to rest (stability.py), with P from that loop's
  linearization. Near there it falls by xᵀ x each tick; how far out it goes on falling is what this looks at.
- The negative of a planner's value of a state (TD-MPC's Q at the policy's action), by the dense controller's networks
  for both: a controller that makes its way to better states makes it fall (arXiv 2508.08144).

States in a small ball around the end are left out, where noise decides. Neither function is a proof of anything: a
share well above the dense controller's says that the candidate wanders where that one goes straight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.limits import ActionLimits
from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.plants.state_space import StateSpacePlant
from nncontrol_prune.validation.closed_loop import Trajectory
from nncontrol_prune.validation.stability import LocalStability, SmoothPolicy, states_along

Array = NDArray[np.float64]

BALL = 0.01
"""A function's value below which a state is in the ball, as a share of its mean at the starts (a tenth of the way)."""
EPISODES = 8
SECONDS = 10.0


class Share(Spec):
    """A share of states, over episodes."""

    share: float
    interval: tuple[float, float]
    """95 % interval of its mean over episodes (Student's t)."""
    states: int
    """How many there were outside of the ball."""


class Decrease(Spec):
    """How often the function does not fall, outside of the ball."""

    function: str
    """What it is, in words."""
    dense: Share
    pruned: Share


def quadratic_decrease(
    candidate: tuple[Bundle, LocalStability], dense: tuple[Bundle, LocalStability], environment: str, *, delay: int = 0
) -> Decrease | None:
    """Look at each controller's own xᵀ P x along its rollouts; None if one of the loops has none.

    Args:
        candidate: The controller and its loop near rest.
        dense: The dense controller's.
        environment: A gymnasium id.
        delay: Ticks that a command takes to the plant.
    """
    if candidate[1].lyapunov is None or dense[1].lyapunov is None:
        return None
    shares = [_quadratic_share(bundle, local, environment, delay) for bundle, local in (dense, candidate)]
    return Decrease(function="xᵀ P x around each controller's own rest", dense=shares[0], pruned=shares[1])


def _quadratic_share(bundle: Bundle, local: LocalStability, environment: str, delay: int) -> Share:
    plant, policy, limits = StateSpacePlant(environment), SmoothPolicy(bundle), ActionLimits(bundle.manifest.action)
    weights, rest = np.array(local.lyapunov), np.array(local.equilibrium)
    ticks = round(SECONDS / plant.period)

    def values(seed: int) -> Array:
        states = states_along(plant, policy, limits, seed, ticks, delay)
        ways = np.array([plant.difference(state, rest) for state in states])
        return np.asarray(np.einsum("ti,ij,tj->t", ways, weights, ways))

    try:
        return share_not_falling([values(seed) for seed in range(EPISODES)])
    finally:
        plant.close()


def value_decrease(dense: Bundle, trajectories: tuple[Sequence[Trajectory], Sequence[Trajectory]]) -> Decrease | None:
    """Look at the negative value, by the dense controller's networks; None if it has no value function.

    Args:
        dense: The dense controller.
        trajectories: The candidate's episodes and the dense controller's.
    """
    value = _value_of(dense)
    if value is None:
        return None
    costs = [[-value(trajectory.observations) for trajectory in some] for some in trajectories]
    # A value has no zero of its own: the best that the dense controller reaches is taken for it.
    best = min(float(cost.min()) for cost in costs[1])
    ours, theirs = (share_not_falling([cost - best for cost in some]) for some in costs)
    return Decrease(function="the negative of the dense controller's value", dense=theirs, pruned=ours)


def _value_of(bundle: Bundle) -> Callable[[Array], Array] | None:
    if not bundle.manifest.plans:
        return None
    import torch

    module: Any = bundle.module().eval()

    def value(observations: Array) -> Array:
        with torch.no_grad():
            latent = module.encode(torch.from_numpy(observations).float())
            members = module.decode(module.value_logits(latent, module.act(latent)))
        return np.asarray(members.mean(dim=0).double())

    return value


def share_not_falling(functions: Iterable[Array]) -> Share:
    """Return the share of states, outside of the ball, after which a function does not fall.

    Args:
        functions: Its values along each episode, (steps + 1,); zero at the best.
    """
    functions = list(functions)
    ball = BALL * float(np.mean([values[0] for values in functions]))
    outside = [values[:-1] > ball for values in functions]
    stays = [(np.diff(values) >= 0.0)[out] for values, out in zip(functions, outside, strict=True) if out.any()]
    if not stays:
        return Share(share=0.0, interval=(0.0, 0.0), states=0)
    shares = np.array([each.mean() for each in stays])
    half = math.inf
    if len(shares) > 1:
        half = float(stats.t.ppf(0.975, len(shares) - 1) * shares.std(ddof=1) / math.sqrt(len(shares)))
    mean = float(shares.mean())
    return Share(share=mean, interval=(max(0.0, mean - half), min(1.0, mean + half)), states=sum(map(len, stays)))
