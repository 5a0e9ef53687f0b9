"""Calibration data: what of the rollouts pruning looks at, split into a part to fit and a part held out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.network import Batch, finite_rows, joined, rows_of, spread_rows, take
from nncontrol_prune.rollouts.reader import Rollouts

HELD_OUT_SHARE = 0.25
MIN_ROWS = 64
FEW_EPISODES = 4
"""With fewer episodes than this, none is held out whole, and their starts count like any other time."""
START_SHARE = 0.25
"""Share of all weight that goes by the time since an episode's start, and not by speed."""
START_STEPS = 5
"""Steps that belong to the start itself; after it, weights fall like one over the time."""
PERTURBED_WEIGHT = 0.1
"""Weight of a perturbed row, relative to the logged row it comes from."""
ON_POLICY_ROWS = 3000
"""Rows that a pruned network met which count in each round, at the most."""
LARGEST = 1e18
"""Squares of larger numbers are infinite in single precision, and no sensor gives any."""


@dataclass(frozen=True)
class Calibration:
    """Rows of data with weights that sum to their number.

    Attributes:
        fit: The rows that layers are fitted on.
        fit_weights: Their weights (rows,).
        held_out: Rows of other episodes, for judging.
        held_out_weights: Their weights.
        warnings: What the user should know of the data.
    """

    fit: Batch
    fit_weights: Tensor
    held_out: Batch
    held_out_weights: Tensor
    warnings: tuple[str, ...] = ()

    def with_more(self, batch: Batch) -> Calibration:
        """Return the same with further rows to fit, of weight 1: of the finite ones ON_POLICY_ROWS at the most."""
        usable = finite_rows(batch)
        batch = take(batch, usable[spread_rows(len(usable), ON_POLICY_ROWS)])
        weights = torch.cat([self.fit_weights, torch.ones(rows_of(batch))])
        return replace(self, fit=joined(self.fit, batch), fit_weights=weights / weights.mean())

    def spread(self, fit_rows: int, held_out_rows: int) -> Calibration:
        """Return the same with no more than so many rows of each part, evenly spread."""
        fit = spread_rows(rows_of(self.fit), fit_rows)
        held_out = spread_rows(rows_of(self.held_out), held_out_rows)
        return replace(
            self,
            fit=take(self.fit, fit),
            fit_weights=self.fit_weights[fit],
            held_out=take(self.held_out, held_out),
            held_out_weights=self.held_out_weights[held_out],
        )


def calibration_from(
    rollouts: Rollouts,
    *,
    horizon: int = 0,
    directions: bool = False,
    rewards: bool = False,
    max_rows: int = 8192,
    perturbation: float = 1.0,
    seed: int = 0,
) -> Calibration:
    """Make calibration data from rollouts.

    Most of the weight goes by how fast the observation changes: a balancing controller spends most of its time at
    rest, and those states would otherwise drown the transients. The rest goes by the time since the episode's start,
    each doubling of which counts for as much: every episode comes through its first states, of which there are few,
    and a controller that errs there never sees the others.

    Every row also comes a second time, lightly weighted, with Gaussian noise: the dense controller can be asked about
    any observation, and a pruned one that agrees with it only on the few states that were logged leaves them and
    falls. docs/pruning-evidence.md has what that is worth.

    A batch holds `observation` (rows, n); with a horizon also `action` (rows, horizon, m), `alternative` of the same
    shape, which is the actions with noise, `reward` (rows, horizon), `next_observation` (rows, horizon, n) and `logged`
    (rows,), 1 where observation and actions are as they were logged and 0 where noise was added to both; with
    directions also `direction` (rows, n).

    Args:
        rollouts: What the loop logged.
        horizon: Steps that follow each observation within its episode, for models of the dynamics.
        directions: Whether to draw random directions of one standard deviation, for the policy's Jacobian.
        rewards: Whether only steps whose reward was logged are of use.
        max_rows: More logged rows than this are thinned out at random.
        perturbation: Standard deviation of the noise, in each observation's (and action's) own; 0 for none.
        seed: Of the thinning, the noise and the directions.

    Raises:
        PruningError: Too few transitions, most of them hold NaN, or there are no rewards where they are needed.
    """
    finite, warnings = _usable(rollouts, actions=horizon > 0, rewards=rewards)
    usable = np.flatnonzero(finite)
    rows = usable if not horizon else _followed(finite, rollouts.successors, horizon)
    if len(rows) < MIN_ROWS:
        followed = f" with {horizon} more after them in their episode" if horizon else ""
        raise PruningError(
            f"the rollouts hold {len(rows)} usable transitions{followed}; at least {MIN_ROWS} are needed"
        )
    weights = np.zeros(len(finite))
    weights[usable] = _row_weights(rollouts.observation[usable], rollouts.episode[usable], rollouts.step[usable])
    held_out = _held_out(rollouts.episode[rows])
    rng = np.random.default_rng(seed)
    spread, action_spread = rollouts.observation[usable].std(axis=0), rollouts.action[usable].std(axis=0)
    parts: list[tuple[Batch, Tensor]] = []
    for part, share in ((rows[~held_out], 1 - HELD_OUT_SHARE), (rows[held_out], HELD_OUT_SHARE)):
        limit = max(MIN_ROWS // 2, round(max_rows * share))
        chosen = part if len(part) <= limit else np.sort(rng.choice(part, limit, replace=False))
        batch, weight = _batch(rollouts, chosen, horizon), weights[chosen]
        if perturbation > 0:
            batch = _with_noisy_copies(batch, perturbation * spread, perturbation * action_spread, rng)
            weight = np.append(weight, PERTURBED_WEIGHT * weight)
        if horizon:
            # A planner asks its model about actions that were never taken.
            batch["alternative"] = _with_noise(batch["action"], action_spread, rng)
        if directions:
            batch["direction"] = spread * rng.normal(size=batch["observation"].shape)
        weight = weight / weight.mean()
        tensors = {name: torch.from_numpy(values.astype(np.float32)) for name, values in batch.items()}
        parts.append((tensors, torch.from_numpy(weight.astype(np.float32))))
    (fit, fit_weights), (judge, judge_weights) = parts
    return Calibration(fit, fit_weights, judge, judge_weights, warnings)


def _usable(rollouts: Rollouts, *, actions: bool, rewards: bool) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Return which transitions (rows,) hold numbers where they are needed, and what to say of the others."""
    if rewards and not rollouts.has_rewards:
        raise PruningError(
            "a term compares rewards with those logged, and the rollouts hold none (a robot logs none); record "
            "them in a simulator, or use the term reward, which compares with what the dense model expects"
        )
    needed = [rollouts.observation]
    needed += [rollouts.action] if actions else []
    needed += [rollouts.reward[:, None]] if rewards else []
    values = np.concatenate(needed, axis=1)
    finite: NDArray[np.bool_] = np.all(np.isfinite(values), axis=1)
    usable: NDArray[np.bool_] = finite & np.all(np.abs(values) <= LARGEST, axis=1)
    skipped = int((~usable).sum())
    kind = "NaN or infinity" if usable.sum() == finite.sum() else f"NaN, infinity or numbers beyond {LARGEST:g}"
    if skipped > len(usable) / 2:
        raise PruningError(f"{skipped} of {len(usable)} transitions hold {kind}; record new rollouts")
    return usable, (f"skipped {skipped} transitions that hold {kind}",) if skipped else ()


def _with_noise(
    values: NDArray[np.float64], spread: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    return values + spread * rng.normal(size=values.shape)


def _with_noisy_copies(
    batch: dict[str, NDArray[np.float64]],
    spread: NDArray[np.float64],
    action_spread: NDArray[np.float64],
    rng: np.random.Generator,
) -> dict[str, NDArray[np.float64]]:
    """Return a batch with every row a second time, with noise on its observation and, if it has some, its actions."""
    noisy = dict(batch)
    noisy["observation"] = _with_noise(batch["observation"], spread, rng)
    if "action" in batch:
        noisy["action"] = _with_noise(batch["action"], action_spread, rng)
        noisy["logged"] = np.zeros_like(batch["logged"])
    return {name: np.concatenate([values, noisy[name]]) for name, values in batch.items()}


def _batch(rollouts: Rollouts, rows: NDArray[np.intp], horizon: int) -> dict[str, NDArray[np.float64]]:
    batch = {"observation": rollouts.observation[rows]}
    if horizon:
        steps = rows[:, None] + np.arange(horizon)
        batch["action"] = rollouts.action[steps]
        batch["next_observation"] = rollouts.observation[steps + 1]
        batch["reward"] = np.nan_to_num(rollouts.reward[steps])
        batch["logged"] = np.ones(len(rows))
    return batch


def _followed(finite: NDArray[np.bool_], successors: NDArray[np.intp], horizon: int) -> NDArray[np.intp]:
    """Return the rows that have `horizon` further finite ones after them in their episode, with nothing missing."""
    follows = np.zeros(len(finite), dtype=bool)
    follows[successors] = True
    fits = finite.copy()
    for step in range(horizon):
        fits[: len(fits) - step - 1] &= follows[step : len(fits) - 1] & finite[step + 1 :]
        fits[len(fits) - step - 1 :] = False
    return np.flatnonzero(fits)


def _row_weights(
    observation: NDArray[np.float64], episode: NDArray[np.int64], step: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Weight each row by its speed in standardized units, and by the time since its episode's start."""
    standardized = observation / np.maximum(observation.std(axis=0), 1e-9)
    speed = np.linalg.norm(np.diff(standardized, axis=0, prepend=standardized[:1]), axis=1)
    first = np.diff(episode, prepend=episode[0] - 1) != 0
    speed[first] = 0.0
    starts_known = np.count_nonzero(first) >= FEW_EPISODES and step.min() >= 0  # -1 where a robot logged none
    share = START_SHARE if starts_known else 0.0
    return (1 - share) * _clipped(speed) + share * _clipped(1.0 / (step + START_STEPS))


def _clipped(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring weights within a factor of ten of their mean, so that no few rows decide, and the mean to 1."""
    mean = weights.mean()
    clipped = np.clip(weights / mean, 0.1, 10.0) if mean > 0 else np.ones(len(weights))
    return clipped / clipped.mean()


def _held_out(episode: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Hold out whole episodes; blocks in turn where there are too few of them, or one is longer than all others."""
    episodes = np.unique(episode)
    if len(episodes) >= FEW_EPISODES:
        whole = np.isin(episode, episodes[:: round(1 / HELD_OUT_SHARE)])
        if HELD_OUT_SHARE / 2 <= whole.mean() <= HELD_OUT_SHARE * 2:
            return whole
    # Blocks in turn, so that both parts see the transients of the few episodes there are.
    block = max(1, len(episode) // 40)
    return (np.arange(len(episode)) // block) % 4 == 3
