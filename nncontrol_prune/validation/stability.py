"""Local stability: the closed loop, linearized where it comes to rest.

Near an equilibrium x*, with the action held over a control period and arriving d ticks late,

    x' = A x + B u_{k-d},   u_k = g K C x      so      z' = A_cl z   with   z = (x, u_{k-1}, ..., u_{k-d})

A, B, C are the plant's, over a whole period (plants/state_space.py); K is the policy's Jacobian, in float64; g is 1 but
for the gain margins. The loop is locally stable if all eigenvalues of A_cl are inside the unit circle. That is
necessary and never sufficient: a controller that has lost most of what it could may have a smaller spectral radius
than before. (Åström and Wittenmark, Computer-Controlled Systems, 1997, for delays and margins.)
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
from numpy.typing import NDArray

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.limits import ActionLimits
from nncontrol_prune.controllers.specs import Spec
from nncontrol_prune.controllers.verdict import Criterion
from nncontrol_prune.plants.state_space import Linearization, StateSpacePlant
from nncontrol_prune.validation.settings import GateSettings

Array = NDArray[np.float64]

NAME = "margins"
SETTLING_TIME = 20.0
"""Seconds that the loop is run for to come to rest."""
NEWTON_STEPS = 20
AT_REST = 1e-8
"""Change of each state in a period, below which the loop rests; in the state's units."""
NEAR = 0.5
"""How far Newton's method may go from where the loop came to; in the state's units."""
LARGEST_DELAY = 50
LARGEST_GAIN = 100.0


class NoEquilibriumError(Exception):
    """The local analysis does not apply; the message says why."""


class Pole(Spec):
    """An eigenvalue of the closed loop."""

    real: float
    imaginary: float
    damping: float
    """Damping ratio of the continuous-time pole that it is sampled from."""
    frequency: float
    """Its natural frequency, in Hz."""


class LocalStability(Spec):
    """The loop near its equilibrium."""

    equilibrium: tuple[float, ...]
    """Positions and velocities."""
    action: tuple[float, ...]
    """What holds it there."""
    delay: int
    """Ticks that commands take to the plant."""
    spectral_radius: float
    """Largest magnitude of a pole; below 1 the loop is locally stable."""
    poles: tuple[Pole, ...]
    """All, the slowest to die away first."""
    delay_margin: int
    """How many more ticks of delay the loop would stand; 50 stands for as many or more, -1 for an unstable loop."""
    gain_margins: tuple[float, float] | None
    """Smallest and largest factor on the policy's gain with which the loop is stable; 0.01 and 100 stand for no limit.
    None for an unstable loop."""
    lyapunov: tuple[tuple[float, ...], ...] | None
    """P of xᵀ P x, which decreases by xᵀ x each tick near the equilibrium, without the delay's states; None for an
    unstable loop."""

    @property
    def stable(self) -> bool:
        """Whether all poles are inside the unit circle."""
        return self.spectral_radius < 1.0


class SmoothPolicy:
    """A policy's network in float64, of which derivatives can be taken.

    Args:
        bundle: The controller; no planner.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._module: Any = bundle.module().double().eval()

    def act(self, observation: Array) -> Array:
        """Return the action (m,) for an observation (n,)."""
        import torch

        with torch.no_grad(), _one_thread():
            return np.asarray(self._module(torch.from_numpy(observation)[None])[0])

    def jacobian(self, observation: Array) -> Array:
        """Return the derivative (m, n) of the action."""
        import torch

        rows = torch.from_numpy(observation)[None]
        with _one_thread():
            return np.asarray(torch.autograd.functional.jacobian(lambda given: self._module(given)[0], rows)[:, 0])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch from sharing single rows among threads, which takes up to thirty times as long on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def local_stability(bundle: Bundle, environment: str, *, delay: int = 0) -> LocalStability:
    """Analyse the loop where it comes to rest.

    Args:
        bundle: The controller.
        environment: A gymnasium id.
        delay: Ticks that a command takes to the plant.

    Raises:
        NoEquilibriumError: It does not come to rest, or the controller is a planner, whose plan is a state of its own.
        PlantError: There is no such environment, or its observation cannot be had from its state.
    """
    if bundle.manifest.plans:
        raise NoEquilibriumError("the controller is a planner, whose plan is a state that no derivative is taken of")
    plant, policy = StateSpacePlant(environment), SmoothPolicy(bundle)
    limits = ActionLimits(bundle.manifest.action)
    try:
        ticks = round(SETTLING_TIME / plant.period)
        states = states_along(plant, policy, limits, 0, ticks, delay)
        if len(states) <= ticks:
            raise NoEquilibriumError("the loop does not come to rest")
        state = equilibrium_near(plant, policy, states[-1])
        observation = plant.observe(state)
        action = policy.act(observation)
        linear = plant.linearize(state, action)
        gain = policy.jacobian(observation)
    finally:
        plant.close()
    loop = closed_loop_matrix(linear, gain, delay)
    eigenvalues = np.linalg.eigvals(loop)
    eigenvalues = eigenvalues[np.argsort(-np.abs(eigenvalues), kind="stable")]
    stable = bool(np.abs(eigenvalues[0]) < 1.0)
    return LocalStability(
        equilibrium=tuple(state.tolist()),
        action=tuple(action.tolist()),
        delay=delay,
        spectral_radius=float(np.abs(eigenvalues[0])),
        poles=tuple(_pole(value, plant.period) for value in eigenvalues),
        delay_margin=delay_margin(linear, gain, delay),
        gain_margins=gain_margins(linear, gain, delay) if stable else None,
        lyapunov=_lyapunov(linear, gain) if stable else None,
    )


def equilibrium_near(plant: StateSpacePlant, policy: SmoothPolicy, state: Array) -> Array:
    """Return where the loop rests, by Newton's method from a state near by.

    Raises:
        NoEquilibriumError: There is no such place near by.
    """
    start = state
    for _ in range(NEWTON_STEPS):
        observation = plant.observe(state)
        action = policy.act(observation)
        change = plant.difference(plant.step(state, action), state)
        if np.abs(change).max() < AT_REST:
            return state
        linear = plant.linearize(state, action)
        slope = linear.a + linear.b @ policy.jacobian(observation) @ linear.c - np.eye(len(change))
        way, *_ = np.linalg.lstsq(slope, -change, rcond=None)
        state = plant.moved(state, np.asarray(way, dtype=np.float64))
        if not np.isfinite(state).all() or np.abs(plant.difference(state, start)).max() > NEAR:
            break
    raise NoEquilibriumError("the loop does not come to rest")


def states_along(
    plant: StateSpacePlant, policy: SmoothPolicy, limits: ActionLimits, seed: int, ticks: int, delay: int
) -> Array:
    """Return the states (ticks + 1, nq + nv) of an episode, fewer if they become infinite; it is never terminated.

    Args:
        plant: The plant.
        policy: The policy, whose commands are held for a control period.
        limits: What they are kept within.
        seed: Of the start.
        ticks: Control periods.
        delay: Ticks that a command takes to the plant.
    """
    states = [plant.start(seed)]
    on_the_way = [limits.safe_command] * delay
    for _ in range(ticks):
        action = policy.act(plant.observe(states[-1]))
        limits.apply(action)
        on_the_way.append(action)
        following = plant.step(states[-1], on_the_way.pop(0))
        if not np.isfinite(following).all():
            break
        states.append(following)
    return np.array(states)


def closed_loop_matrix(linear: Linearization, gain: Array, delay: int, factor: float = 1.0) -> Array:
    """Return A_cl, (2 nv + d m, 2 nv + d m).

    Args:
        linear: The plant.
        gain: The policy's Jacobian K, (m, n).
        delay: d.
        factor: g.
    """
    feedback = factor * gain @ linear.c
    if delay == 0:
        return np.asarray(linear.a + linear.b @ feedback)
    states, actions = linear.b.shape
    size = states + delay * actions
    loop = np.zeros((size, size))
    loop[:states, :states] = linear.a
    loop[:states, size - actions :] = linear.b  # the oldest command on the way arrives
    loop[states : states + actions, :states] = feedback
    for older in range(1, delay):
        first = states + older * actions
        loop[first : first + actions, first - actions : first] = np.eye(actions)
    return loop


def spectral_radius(loop: Array) -> float:
    """Return the largest magnitude of an eigenvalue."""
    return float(np.abs(np.linalg.eigvals(loop)).max())


def delay_margin(linear: Linearization, gain: Array, delay: int) -> int:
    """Return how many more ticks of delay leave the loop stable; -1 if it is unstable as it is."""
    for more in range(LARGEST_DELAY + 1):
        if spectral_radius(closed_loop_matrix(linear, gain, delay + more)) >= 1.0:
            return more - 1
    return LARGEST_DELAY


def gain_margins(linear: Linearization, gain: Array, delay: int) -> tuple[float, float]:
    """Return the smallest and the largest factor on the gain up to which a stable loop stays stable all the way."""

    def margin(limit: float) -> float:
        factors = np.geomspace(1.0, limit, 200)
        first = next((index for index, factor in enumerate(factors) if unstable(factor)), None)
        if first is None:
            return limit
        # In logarithms, where factors above and below 1 are alike.
        inner, outer = math.log(factors[max(0, first - 1)]), math.log(factors[first])
        return math.exp(scipy.optimize.bisect(lambda gain: unstable(math.exp(gain)) - 0.5, inner, outer))

    def unstable(factor: float) -> bool:
        return spectral_radius(closed_loop_matrix(linear, gain, delay, factor)) >= 1.0

    return margin(1.0 / LARGEST_GAIN), margin(LARGEST_GAIN)


def _lyapunov(linear: Linearization, gain: Array) -> tuple[tuple[float, ...], ...] | None:
    loop = closed_loop_matrix(linear, gain, 0)
    if spectral_radius(loop) >= 1.0:
        return None
    solution = scipy.linalg.solve_discrete_lyapunov(loop.T, np.eye(len(loop)))
    return tuple(tuple(row) for row in solution.tolist())


def _pole(value: complex, period: float) -> Pole:
    magnitude = abs(value)
    # z = 0 dies away at once; its logarithm is no number.
    rate = cmath.log(value) / period if magnitude > 1e-12 else complex(-math.inf)
    frequency = abs(rate)
    return Pole(
        real=float(np.real(value)),
        imaginary=float(np.imag(value)),
        damping=float(-rate.real / frequency) if 0 < frequency < math.inf else 1.0,
        frequency=float(frequency / (2 * math.pi)) if frequency < math.inf else 0.0,
    )


def margin_criterion(candidate: Bundle, dense: Bundle, environment: str, settings: GateSettings) -> Criterion:
    """Ask that the candidate's loop is stable near rest, and keeps a share of the dense controller's margins.

    Raises:
        NoEquilibriumError: The dense controller's loop has no stable equilibrium.
    """
    theirs = local_stability(dense, environment, delay=settings.delay)
    if theirs.gain_margins is None:
        raise NoEquilibriumError(
            f"since the dense controller's own loop is not asymptotically stable where it comes to rest "
            f"(spectral radius {theirs.spectral_radius:.4f})"
        )
    try:
        ours = local_stability(candidate, environment, delay=settings.delay)
    except NoEquilibriumError as error:
        return Criterion(name=NAME, outcome="failed", reason=f"{NAME}: {error}, while the dense controller's does")
    if ours.gain_margins is None:
        reason = f"{NAME}: unstable, spectral radius {ours.spectral_radius:.4f}, dense {theirs.spectral_radius:.4f}"
        return Criterion(name=NAME, outcome="failed", reason=reason)
    share = settings.margin_share
    least_delay = math.floor(share * theirs.delay_margin)
    low, high = (margin**share for margin in theirs.gain_margins)
    kept = ours.delay_margin >= least_delay and ours.gain_margins[0] <= low and ours.gain_margins[1] >= high
    reason = (
        f"{NAME}: stands {ours.delay_margin} more ticks of delay, dense {theirs.delay_margin}, {least_delay} at the "
        f"least; gain times {ours.gain_margins[0]:.2f} to {ours.gain_margins[1]:.2f}, dense "
        f"{theirs.gain_margins[0]:.2f} to {theirs.gain_margins[1]:.2f}, {low:.2f} to {high:.2f} at the least; spectral "
        f"radius {ours.spectral_radius:.4f}, dense {theirs.spectral_radius:.4f}; necessary, and not sufficient"
    )
    return Criterion(name=NAME, outcome="passed" if kept else "failed", reason=reason)
