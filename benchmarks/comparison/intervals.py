"""How well a cell is known, and when that is enough.

A cell's episodes come in clusters: one pruned network for each calibration seed, as many episodes for each. So the
mean return has two sources of error, the calibration data and the episodes' chance, and episodes alone cannot average
out the first. With S networks, n episodes each, network means r_s and variance v_s within a network,

    variance of the mean = V_w + V_b,    V_w = mean_s v_s / (S n),    V_b = max(0, variance_s(r_s) / S - V_w)

and the 95 % interval takes Student's t with the degrees of freedom (V_w + V_b)² / (V_b² / (S-1) + V_w² / (S (n-1)))
(Satterthwaite): S-1 where the networks differ by more than chance, those of all episodes where they do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
PRECISION = 0.025
"""Half-width of the interval, as a share of the dense return, that resolves a cell."""
HOPELESS = 0.5
"""A cell whose interval ends below this share of the dense return is not made any more precise."""
FIRST_EPISODES = 10
"""Episodes of each network in the first round: with fewer, a failure in twenty would often go unseen."""

Status = Literal["resolved", "hopeless", "unresolved"]


@dataclass(frozen=True)
class Estimate:
    """A mean return and the half-width of its 95 % interval."""

    mean: float
    half_width: float


def estimate_of(returns: NDArray[np.float64]) -> Estimate:
    """Return the mean and interval of returns (networks, episodes), at least two episodes each."""
    networks, episodes = returns.shape
    within = float(returns.var(axis=1, ddof=1).mean()) / (networks * episodes)
    means = returns.mean(axis=1)
    total = float(means.var(ddof=1)) / networks if networks > 1 else within
    between = max(0.0, total - within)
    variance = within + between
    if variance == 0.0:
        return Estimate(float(means.mean()), 0.0)
    uncertainty = within**2 / (networks * (episodes - 1))
    if networks > 1:
        uncertainty += between**2 / (networks - 1)
    quantile = float(stats.t.ppf((1.0 + CONFIDENCE) / 2.0, variance**2 / uncertainty))
    return Estimate(float(means.mean()), quantile * math.sqrt(variance))


def status_of(estimate: Estimate, dense: float) -> Status:
    """Return whether a cell is known well enough, given the dense return."""
    if estimate.half_width <= PRECISION * abs(dense):
        return "resolved"
    if estimate.mean + estimate.half_width < HOPELESS * dense:
        return "hopeless"
    return "unresolved"


def rounds(networks: int, max_episodes: int) -> list[range]:
    """Return which episodes of each network are run in each round: the number doubles, so that looks are few."""
    last = max(2, max_episodes // networks)
    ends = [min(FIRST_EPISODES, last)]
    while ends[-1] < last:
        ends.append(min(2 * ends[-1], last))
    return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
