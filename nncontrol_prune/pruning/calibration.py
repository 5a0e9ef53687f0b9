"""Calibration data: what of the rollouts pruning looks at, split into a part to fit and a part held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.rollouts.reader import Rollouts

HELD_OUT_SHARE = 0.25
MIN_ROWS = 64
PERTURBED_WEIGHT = 0.1
"""Weight of a perturbed row, relative to the logged row it comes from."""


@dataclass(frozen=True)
class Calibration:
    """Observations with weights that sum to their number.

    Attributes:
        fit: Observations (rows, n) that layers are fitted on.
        fit_weights: Their weights (rows,).
        held_out: Observations of other episodes, for judging.
        held_out_weights: Their weights.
        warnings: What the user should know of the data.
    """

    fit: Tensor
    fit_weights: Tensor
    held_out: Tensor
    held_out_weights: Tensor
    warnings: tuple[str, ...] = ()


def calibration_from(
    rollouts: Rollouts, *, max_rows: int = 8192, perturbation: float = 1.0, seed: int = 0
) -> Calibration:
    """Make calibration data from rollouts.

    Rows are weighted by how fast the observation changes: a balancing controller spends most of its time at rest,
    and those states would otherwise drown the transients.

    Every row also comes a second time, lightly weighted, with Gaussian noise: the dense controller can be asked about
    any observation, and a pruned one that agrees with it only on the few states that were logged leaves them and
    falls. docs/pruning.md has what that is worth.

    Args:
        rollouts: What the loop logged.
        max_rows: More logged rows than this are thinned out at random.
        perturbation: Standard deviation of the noise, in each observation's own; 0 for none.
        seed: Of the thinning and the noise.

    Raises:
        PruningError: Too few transitions, or most of them hold NaN.
    """
    finite: NDArray[np.bool_] = np.all(np.isfinite(rollouts.observation), axis=1)
    warnings = []
    if not finite.all():
        skipped = int((~finite).sum())
        if skipped > len(finite) / 2:
            raise PruningError(f"{skipped} of {len(finite)} transitions hold NaN or infinity; record new rollouts")
        warnings.append(f"skipped {skipped} transitions that hold NaN or infinity")
    rows = np.flatnonzero(finite)
    if len(rows) < MIN_ROWS:
        raise PruningError(f"the rollouts hold {len(rows)} usable transitions; at least {MIN_ROWS} are needed")
    weights = np.zeros(len(finite))
    weights[rows] = _transient_weights(rollouts.observation[rows], rollouts.episode[rows])
    held_out = _held_out(rollouts.episode[rows])
    rng = np.random.default_rng(seed)
    spread = perturbation * rollouts.observation[rows].std(axis=0)
    parts: list[tuple[Tensor, Tensor]] = []
    for part, share in ((rows[~held_out], 1 - HELD_OUT_SHARE), (rows[held_out], HELD_OUT_SHARE)):
        limit = max(MIN_ROWS // 2, round(max_rows * share))
        chosen = part if len(part) <= limit else np.sort(rng.choice(part, limit, replace=False))
        observation, weight = rollouts.observation[chosen], weights[chosen]
        if perturbation > 0:
            noisy = observation + spread * rng.normal(size=observation.shape)
            observation, weight = np.concatenate([observation, noisy]), np.append(weight, PERTURBED_WEIGHT * weight)
        weight = weight / weight.mean()
        parts.append((torch.from_numpy(observation.astype(np.float32)), torch.from_numpy(weight.astype(np.float32))))
    (fit, fit_weights), (judge, judge_weights) = parts
    return Calibration(fit, fit_weights, judge, judge_weights, tuple(warnings))


def _transient_weights(observation: NDArray[np.float64], episode: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weight each row by its speed in standardized units, within a factor of ten of the mean."""
    standardized = observation / np.maximum(observation.std(axis=0), 1e-9)
    speed = np.linalg.norm(np.diff(standardized, axis=0, prepend=standardized[:1]), axis=1)
    starts = np.diff(episode, prepend=episode[0] - 1) != 0
    speed[starts] = 0.0
    mean = speed.mean()
    return np.clip(speed / mean, 0.1, 10.0) if mean > 0 else np.ones(len(speed))


def _held_out(episode: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Hold out whole episodes; blocks in turn where there are too few of them."""
    episodes = np.unique(episode)
    if len(episodes) >= 4:
        return np.isin(episode, episodes[:: round(1 / HELD_OUT_SHARE)])
    # Blocks in turn, so that both parts see the transients of the few episodes there are.
    block = max(1, len(episode) // 40)
    return (np.arange(len(episode)) // block) % 4 == 3
