"""A test of a mean that may be looked at after every value.

To test that the mean of values x in [low, ∞), given those before, is at most μ, one bets against it: the wealth

    K_t = Σ_j w_j Π_{i≤t} (1 + λ_j (x_i - μ)),    0 ≤ λ_j < 1 / (μ - low),    Σ_j w_j = 1

is never negative and, if the mean is at most μ, does not grow in expectation. So the probability that it ever reaches
1 / α is at most α (Ville 1939), however often one looks and whenever one stops. It grows if the mean is above μ, as
fast as the best of the λ_j makes it, but for a factor w_j. (Waudby-Smith and Ramdas, Estimating means of bounded
random variables by betting, J. R. Stat. Soc. B 86, 2024; for the mixture: their section 4, and Cover 1991.)
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import numpy as np

ERROR_RATE = 0.05
"""α."""
FRACTIONS = np.array([0.99, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05])
"""The λ_j, as shares of the largest there may be: large for values that vary little, small for those that vary much."""
WEIGHTS = np.array([0.4, *[0.6 / 7] * 7])
"""The w_j. Most is on the largest, since nearly all of a good controller's values are the same."""
MOST_VALUES = 2.0**62
"""No range is longer than the largest size, which is no floating-point number."""


class MeanTest:
    """Bets that a mean is above a bound.

    Args:
        bound: μ.
        low: The least that a value can be, below the bound.
    """

    def __init__(self, bound: float, low: float) -> None:
        self._bound, self._low = bound, low
        self._stakes = FRACTIONS / (bound - low)
        self._log_wealth = np.zeros(len(FRACTIONS))
        self.values = 0
        """How many there were."""
        self.log_evidence = 0.0
        """The largest logarithm of K_t so far: exp(-this) is a p-value at any time."""

    def add(self, values: Sequence[float]) -> None:
        """Take in values, in their order.

        Raises:
            ValueError: One is below the least there can be, or no number.
        """
        for value in values:
            if not value >= self._low:
                raise ValueError(f"{value} is below {self._low}, the least that a value can be")
            self._log_wealth += np.log1p(self._stakes * (value - self._bound))
            self.values += 1
            self.log_evidence = max(self.log_evidence, float(np.logaddexp.reduce(np.log(WEIGHTS) + self._log_wealth)))

    @property
    def shown(self) -> bool:
        """Whether it is shown that the mean is above the bound, with an error rate of 5 %."""
        return self.log_evidence >= math.log(1.0 / ERROR_RATE)

    @property
    def share(self) -> float:
        """How far the evidence is on the way to what is needed, 0..1."""
        return min(1.0, max(0.0, self.log_evidence / math.log(1.0 / ERROR_RATE)))

    def more_needed(self) -> float:
        """Return how many more values it would likely take, if they go on as they did; infinity if no number would."""
        if self.shown:
            return 0.0
        growth = self._log_wealth / max(1, self.values)
        missing = math.log(1.0 / ERROR_RATE) - np.log(WEIGHTS) - self._log_wealth
        with np.errstate(divide="ignore"):
            return float(np.min(np.where(growth > 0, missing / growth, math.inf)))


def values_needed(allowed: float) -> int:
    """Return how many values, all of them 0 and none below -1, it takes to show that their mean is above -`allowed`."""
    growth = np.log1p(FRACTIONS * allowed / (1.0 - allowed))

    def shown(values: int) -> bool:
        return float(np.logaddexp.reduce(np.log(WEIGHTS) + values * growth)) >= math.log(1.0 / ERROR_RATE)

    # The largest stake alone does it with this many, which is infinite where next to nothing is allowed.
    enough = math.log(1.0 / (ERROR_RATE * WEIGHTS[0])) / float(growth[0])
    return bisect.bisect_left(range(math.ceil(min(enough, MOST_VALUES))), True, key=shown)
