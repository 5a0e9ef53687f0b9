"""The off-line check, where there is no simulator: how far a candidate is from the dense controller on logged rollouts.

Three deviations, each relative to what it is a deviation of, on rollouts that the candidate was not pruned from:

    actions     √( E‖u_c − u_d‖² / E‖u_d − ū_d‖² ),   u in half ranges of the actions
    gains       √( E‖J_c − J_d‖² / E‖J_d‖² ),         J = ∂u/∂o in half ranges per standard deviation
    next state  √( E‖B (u_c − u_d)‖² / E‖o' − o‖² ),  o in standard deviations

with B from a linear model o' − o = A o + B u + c, fitted to the rollouts by ridge regression. All say something of
states that were met; none says what the candidate makes of the states that it gets into itself. So an off-line verdict
is no substitute for a closed loop, and the loop refuses it unless it is told otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nncontrol_prune.controllers.bundle import Bundle, short
from nncontrol_prune.controllers.verdict import Criterion, Verdict, decision_of
from nncontrol_prune.progress import Progress
from nncontrol_prune.rollouts.reader import Rollouts
from nncontrol_prune.validation.betting import ERROR_RATE
from nncontrol_prune.validation.gate import check_replaceable
from nncontrol_prune.validation.latency_criterion import latency_criterion
from nncontrol_prune.validation.settings import GateSettings
from nncontrol_prune.validation.stability import SmoothPolicy

Array = NDArray[np.float64]

BLOCKS = 10
"""Stretches of the rollouts that intervals are taken over: what is near in time is alike, what is far is less so."""
LEAST_ROWS = 50 * BLOCKS
MOST_ROWS = 8192
GAIN_ROWS = 512
"""Rows that the policies' Jacobians are taken at."""
PIECES = 20
"""Parts that the rows are run in, with word in between: a planner takes milliseconds for each."""
RIDGE = 1e-3
"""Regularization of the linear model, as a share of the mean square of its inputs."""
NO_CLOSED_LOOP = (
    "no closed loop was run: logged states alone do not tell whether the candidate is stable where it gets to itself"
)


class OfflineError(Exception):
    """The rollouts cannot be used for an off-line check; the message says why."""


def check_unseen(candidate: Bundle, rollouts: Rollouts) -> None:
    """Check that a candidate was not pruned from any of the bags that rollouts are from, not even in part.

    Raises:
        OfflineError: It was.
    """
    provenance = candidate.manifest.provenance
    if provenance is not None and not set(provenance.bags).isdisjoint(rollouts.bags):
        which = "these bags" if set(rollouts.bags) <= set(provenance.bags) else "some of these bags"
        raise OfflineError(
            f"{short(candidate.reference)} was pruned from {which}, which says nothing of others; check it on others"
        )


def check_offline(
    candidate: Bundle, dense: Bundle, rollouts: Rollouts, settings: GateSettings, progress: Progress | None = None
) -> Verdict:
    """Compare a candidate with the dense controller on rollouts alone.

    Args:
        candidate: The controller to be judged.
        dense: The controller it is to replace.
        rollouts: Others than it was pruned from.
        settings: The limits.
        progress: Told of every step, and asked whether to stop.

    Raises:
        GateError: The candidate was pruned from another controller, or has another layout or rate.
        OfflineError: There are too few rollouts.
        Cancelled: `progress` said so.
    """
    check_replaceable(candidate, dense)
    progress = progress or Progress()
    usable = np.flatnonzero(np.isfinite(rollouts.observation).all(axis=1) & np.isfinite(rollouts.action).all(axis=1))
    if len(usable) < LEAST_ROWS:
        raise OfflineError(f"an off-line check needs {LEAST_ROWS} transitions, and the rollouts have {len(usable)}")
    chosen = usable[np.unique(np.linspace(0, len(usable) - 1, min(MOST_ROWS, len(usable))).astype(int))]
    observations = rollouts.observation[chosen]
    ours, theirs = _actions(candidate, dense, observations, progress)
    finite = np.asarray(np.isfinite(ours).all(axis=1))
    criteria = [_health(finite)]
    notes = [NO_CLOSED_LOOP]
    limits = settings.offline
    if finite.all():
        half_ranges = (np.asarray(dense.manifest.action.upper) - np.asarray(dense.manifest.action.lower)) / 2
        spread = rollouts.observation[usable].std(axis=0)
        change = (ours - theirs) / half_ranges
        moved = (theirs - theirs.mean(axis=0)) / half_ranges
        criteria.append(_criterion("actions", change, moved, limits.action_deviation, "of the dense controller's own"))
        if not (candidate.manifest.plans or dense.manifest.plans):
            rows = observations[np.linspace(0, len(observations) - 1, min(GAIN_ROWS, len(observations))).astype(int)]
            gains = [_gains(bundle, rows, half_ranges, spread) for bundle in (candidate, dense)]
            criteria.append(_criterion("gains", gains[0] - gains[1], gains[1], limits.gain_deviation, "of its gains"))
        else:
            notes.append("gains: not looked at, a plan is no function that a derivative is taken of")
        progress("off-line check", 0.8)
        model = fit_linear_model(rollouts, usable, spread)
        if model is None:
            notes.append("next state: not looked at, too few transitions follow each other to fit a linear model")
        else:
            effect, usual = (ours - theirs) @ model.b.T, model.changes
            what = f"of a tick's change, by a linear model that explains {model.explained:.0%} of it"
            criteria.append(_criterion("next state", effect, usual, limits.state_deviation, what))
    criteria.append(latency_criterion(candidate, dense, settings.latency_share))
    return Verdict(
        candidate=candidate.reference,
        against=dense.reference,
        decision=decision_of(criteria),
        criteria=tuple(criteria),
        notes=tuple(notes),
        environment=None,
        thresholds={**limits.model_dump(), "latency_share": settings.latency_share},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _actions(candidate: Bundle, dense: Bundle, observations: Array, progress: Progress) -> tuple[Array, Array]:
    """Return the actions (rows, m) of both, in the plant's units."""
    found = []
    for number, piece in enumerate(np.array_split(observations, PIECES)):
        progress("off-line check", 0.7 * number / PIECES)
        found.append([bundle.policy.batch(piece) for bundle in (candidate, dense)])
    ours, theirs = (np.concatenate(actions).astype(np.float64) for actions in zip(*found, strict=True))
    return ours, theirs


def _health(finite: NDArray[np.bool_]) -> Criterion:
    bad = int((~finite).sum())
    found = f"{bad or 'none'} of {len(finite):,} actions {'hold' if bad > 1 else 'holds'} NaN or infinity"
    return Criterion(name="health", outcome="failed" if bad else "passed", reason=f"health: {found}")


def _criterion(name: str, deviations: Array, usual: Array, limit: float, what: str) -> Criterion:
    """Ask that the root of the mean square of deviations (rows, k) is at most a share of the usual (rows', k)."""
    low, middle, high = relative_deviation(deviations, usual)
    outcome = "passed" if high <= limit else "failed" if low > limit else "undecided"
    known = {
        "passed": f"{1 - ERROR_RATE:.0%} sure that it is kept",
        "failed": f"{1 - ERROR_RATE:.0%} sure that it is missed",
        "undecided": "not decided: more rollouts would tell",
    }
    reason = f"{name}: off by {middle:.1%} {what}, up to {high:.1%} allowing for chance; {limit:.0%} are allowed"
    return Criterion.model_validate({"name": name, "outcome": outcome, "reason": f"{reason}; {known[outcome]}"})


def relative_deviation(deviations: Array, usual: Array) -> tuple[float, float, float]:
    """Return the relative deviation with its lower and upper 95 % bounds (each one-sided), in the middle.

    The bounds are Student's t over stretches of the rows.

    Args:
        deviations: In the order of time, (rows, k).
        usual: What they are relative to, (rows', k).
    """
    scale = float(np.square(usual).sum(axis=1).mean())
    squares = np.square(deviations).sum(axis=1)
    means = np.array([block.mean() for block in np.array_split(squares, BLOCKS)])
    half = float(stats.t.ppf(1.0 - ERROR_RATE, BLOCKS - 1) * means.std(ddof=1) / math.sqrt(BLOCKS))
    low, middle, high = (
        math.sqrt(max(0.0, value) / scale) if scale > 0.0 else (0.0 if value <= 0.0 else math.inf)
        for value in (means.mean() - half, means.mean(), means.mean() + half)
    )
    return low, middle, high


def _gains(bundle: Bundle, observations: Array, half_ranges: Array, spread: Array) -> Array:
    policy = SmoothPolicy(bundle)
    scaled = [policy.jacobian(observation) * spread / half_ranges[:, None] for observation in observations]
    return np.asarray(scaled).reshape(len(observations), -1)


@dataclass(frozen=True)
class LinearModel:
    """How a tick changes the observation, by linear regression; observations in standard deviations.

    Attributes:
        b: Effect of the action, (n, m).
        changes: The changes that it was fitted to, (rows, n).
        explained: Share of their mean square that it explains, 0..1.
    """

    b: Array
    changes: Array
    explained: float


def fit_linear_model(rollouts: Rollouts, usable: NDArray[np.intp], spread: Array) -> LinearModel | None:
    """Fit o' − o = A o + B u + c to transitions that follow each other; None if they are too few.

    Args:
        rollouts: The rollouts.
        usable: Rows that are finite.
        spread: Standard deviation of each entry of the observation.
    """
    rows = np.intersect1d(rollouts.successors, usable)
    rows = rows[np.isin(rows + 1, usable)]
    sizes = rollouts.observation.shape[1], rollouts.action.shape[1]
    if len(rows) < 10 * sum(sizes):
        return None
    scaled = rollouts.observation / np.where(spread > 0.0, spread, 1.0)
    changes = scaled[rows + 1] - scaled[rows]
    inputs = np.hstack([scaled[rows], rollouts.action[rows]])
    inputs, targets = inputs - inputs.mean(axis=0), changes - changes.mean(axis=0)
    squares = inputs.T @ inputs
    ridge = RIDGE * np.diag(np.diag(squares)) + np.finfo(float).eps * np.eye(len(squares))
    slopes = np.linalg.solve(squares + ridge, inputs.T @ targets)
    left = float(np.square(targets - inputs @ slopes).sum() / max(np.square(targets).sum(), np.finfo(float).tiny))
    return LinearModel(b=slopes[sizes[0] :].T, changes=changes, explained=max(0.0, 1.0 - left))
