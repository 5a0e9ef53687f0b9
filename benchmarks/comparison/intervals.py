"""How well a cell is known, and when that is enough.

A cell's episodes come in clusters: one pruned network for each calibration seed, as many episodes for each. So the
mean return has two sources of error, the calibration data and the episodes' chance, and episodes alone cannot average
out the first. With S networks, n episodes each, network means z_s and variance v_s within a network,

    variance of the mean = V_w + V_b,    V_w = mean_s v_s / (S n),    V_b = max(0, variance_s(z_s) / S - V_w)

and the 95 % interval takes Student's t with the degrees of freedom (V_w + V_b)² / (V_b² / (S-1) + V_w² / (S (n-1)))
(Satterthwaite): S-1 where the networks differ by more than chance, those of all episodes where they do not.

The dense controller ran from the same starts, and where starts decide, as on the double pendulum, its returns d tell
how hard those were that a network r met: z = r - β d with β by regression within the networks (a control variate). With
D the mean of all N dense returns, the return kept and its variance are

    ρ = (mean z + β D) / D,    D² variance(ρ) = variance(mean z) + (β - ρ)² variance(d) / N

so that the dense return's own error counts, and cancels as far as both fail from the same starts. Failures that are
rare show in no variance before one is seen: one more episode, in which all that is kept is lost, is allowed for, so a
half-width is 1.96 ρ / (S n) at the least, and the parts add in quadrature. Simulated with the stopping rule, intervals
hold the truth 89 to 100 % of the time.
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
    """The share of the dense return that is kept, and the half-width of its 95 % interval."""

    kept: float
    half_width: float


def estimate_of(returns: NDArray[np.float64], dense: NDArray[np.float64], everything: NDArray[np.float64]) -> Estimate:
    """Return the return kept and its interval.

    Args:
        returns: Returns (networks, episodes), two episodes of each at least.
        dense: The dense controller's from the same starts, (networks, episodes).
        everything: All returns of the dense controller, (episodes,).
    """
    deviations = dense - dense.mean(axis=1, keepdims=True)
    spread = float(np.square(deviations).sum())
    slope = float((deviations * returns).sum()) / spread if spread > 0 else 0.0
    mean, half_width = clustered_mean(returns - slope * dense)
    whole = float(everything.mean())
    kept = mean / whole + slope
    error = normal_quantile() * float(everything.std(ddof=1)) / math.sqrt(len(everything))
    unseen = normal_quantile() * kept / returns.size
    return Estimate(kept, math.hypot(half_width / whole, (slope - kept) * error / whole, unseen))


def clustered_mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean of values (clusters, members), two members each at least, and the half-width of its interval."""
    clusters, members = values.shape
    within = float(values.var(axis=1, ddof=1).mean()) / (clusters * members)
    means = values.mean(axis=1)
    total = float(means.var(ddof=1)) / clusters if clusters > 1 else within
    between = max(0.0, total - within)
    variance = within + between
    if variance == 0.0:
        return float(means.mean()), 0.0
    uncertainty = within**2 / (clusters * (members - 1))
    if clusters > 1:
        uncertainty += between**2 / (clusters - 1)
    quantile = float(stats.t.ppf((1.0 + CONFIDENCE) / 2.0, variance**2 / uncertainty))
    return float(means.mean()), quantile * math.sqrt(variance)


def normal_quantile() -> float:
    """Return how many standard errors the interval of a mean of many is wide, to each side."""
    return float(stats.norm.ppf((1.0 + CONFIDENCE) / 2.0))


def status_of(estimate: Estimate) -> Status:
    """Return whether a cell is known well enough."""
    if estimate.half_width <= PRECISION:
        return "resolved"
    if estimate.kept + estimate.half_width < HOPELESS:
        return "hopeless"
    return "unresolved"


def rounds(networks: int, max_episodes: int) -> list[range]:
    """Return which episodes of each network are run in each round: the number doubles, so that looks are few."""
    last = max(2, max_episodes // networks)
    ends = [min(FIRST_EPISODES, last)]
    while ends[-1] < last:
        ends.append(min(2 * ends[-1], last))
    return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
