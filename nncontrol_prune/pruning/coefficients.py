"""The coefficient problem: which share of each group's channels to remove.

    minimize over α    E(α) = Σ_i ω_i ‖(π_α(o_i) - π(o_i)) / a_range‖²   on held-out rollouts, after reconstruction
    subject to         | 1 - parameters(α) / parameters(0) - ρ | ≤ ε,    0 ≤ α_g ≤ α_max

α_g is the pruning coefficient of group g, ρ the target sparsity and ε its tolerance (arXiv 2507.14882).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic

import numpy as np
import torch
from torch import Tensor

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.groups import Group, ParameterCount
from nncontrol_prune.pruning.reconstruction import reconstruct
from nncontrol_prune.pruning.surgery import Module, most_important, remove_channels

TRACE_ROWS = 8
GRID_LEVELS = (0.7, 0.85, 1.0, 1.15, 1.3)
GRID_POINTS = 50
"""A grid over many groups is thinned to about this many points."""


@dataclass(frozen=True)
class CoefficientProblem(Generic[Module]):
    """One network to be pruned to one sparsity.

    Attributes:
        module: The dense network.
        groups: Its groups.
        scores: Importance of the channels, by group.
        calibration: The data of the objective.
        action_range: Width (m,) of each action's limits.
        sparsity: ρ.
        tolerance: ε.
    """

    module: Module
    groups: Sequence[Group]
    scores: Sequence[Tensor]
    calibration: Calibration
    action_range: Tensor
    sparsity: float
    tolerance: float

    @cached_property
    def count(self) -> ParameterCount:
        """Parameters as a function of the shares kept."""
        return ParameterCount(self.module, self.groups)

    @cached_property
    def dense_held_out(self) -> Tensor:
        """The dense network's actions on the held-out observations."""
        with torch.no_grad():
            return self.module(self.calibration.held_out)

    @property
    def largest_sparsity(self) -> float:
        """The sparsity with one channel left in every group."""
        return self.sparsity_of([1] * len(self.groups))

    def sparsity_of(self, kept: Sequence[int]) -> float:
        """Return the sparsity with this many channels kept in each group."""
        return self.count.sparsity([k / group.channels for k, group in zip(kept, self.groups, strict=True)])

    def coefficients_of(self, kept: Sequence[int]) -> list[float]:
        """Return the coefficients with this many channels kept in each group."""
        return [1.0 - k / group.channels for k, group in zip(kept, self.groups, strict=True)]

    def land(self, coefficients: Sequence[float]) -> list[int]:
        """Return whole numbers of channels to keep, within the tolerance of the target, near some coefficients.

        All coefficients are shifted by the same amount until the budget holds; then some channels are added or
        removed where that brings the sparsity closer.

        Raises:
            PruningError: No choice of channels is within the tolerance.
        """
        if self.sparsity > self.largest_sparsity + self.tolerance:
            raise PruningError(
                f"sparsity {self.sparsity:g} cannot be reached: with one channel left in every group "
                f"it is {self.largest_sparsity:.4g}, which is the largest for this controller"
            )
        low, high = -1.0, 1.0
        for _ in range(40):
            shift = (low + high) / 2
            if self.sparsity_of(self._round(coefficients, shift)) < self.sparsity:
                low = shift
            else:
                high = shift
        kept = self._round(coefficients, high)
        # As little as needed is changed, so that the result stays near the coefficients asked for.
        choices = sorted(self._neighbours(kept), key=lambda choice: _changes(choice, kept))
        near = [choice for choice in choices if _changes(choice, kept) <= 1]
        best = min(near, key=self._distance)
        if self._distance(best) > self.tolerance:
            best = next((choice for choice in choices if self._distance(choice) <= self.tolerance), best)
        kept, distance = best, self._distance(best)
        if distance > self.tolerance:
            raise PruningError(
                f"no whole number of channels comes within {self.tolerance:g} of sparsity {self.sparsity:g}; "
                f"the nearest found is {self.sparsity_of(kept):.4g}; ask for that, or allow a larger tolerance"
            )
        return kept

    def build(self, kept: Sequence[int]) -> Module:
        """Return the pruned and reconstructed network that keeps this many channels of each group."""
        keep = most_important(self.scores, kept)
        data = self.calibration
        pruned = remove_channels(self.module, self.groups, keep, data.fit[:TRACE_ROWS])
        reconstruct(pruned, self.module, self.groups, keep, data.fit, data.fit_weights)
        return pruned

    @torch.no_grad()
    def objective(self, pruned: Module) -> float:
        """Return E, the weighted mean squared action error on the held-out part, in squared action ranges."""
        error = (pruned(self.calibration.held_out) - self.dense_held_out) / self.action_range
        return float((self.calibration.held_out_weights * error.square().sum(dim=1)).mean())

    def _distance(self, kept: Sequence[int]) -> float:
        return abs(self.sparsity_of(kept) - self.sparsity)

    def _neighbours(self, kept: Sequence[int]) -> Iterator[list[int]]:
        """Yield the choices that differ by a few channels in one group or in two."""
        indices = range(len(kept))
        for first, second in itertools.product(indices, indices):
            for change, other in itertools.product(range(-4, 5), range(-4, 5) if first < second else (0,)):
                choice = list(kept)
                choice[first] += change
                choice[second] += other
                if first <= second and all(1 <= k <= g.channels for k, g in zip(choice, self.groups, strict=True)):
                    yield choice

    def _round(self, coefficients: Sequence[float], shift: float) -> list[int]:
        return [
            max(1, round(group.channels * (1.0 - min(max(coefficient + shift, 0.0), 1.0))))
            for coefficient, group in zip(coefficients, self.groups, strict=True)
        ]


def _changes(choice: Sequence[int], kept: Sequence[int]) -> int:
    return sum(abs(ours - theirs) for ours, theirs in zip(choice, kept, strict=True))


Optimizer = Callable[[CoefficientProblem[Module], Progress], list[int]]
"""Takes the problem; returns how many channels of each group to keep."""


def uniform(problem: CoefficientProblem[Module], progress: Progress) -> list[int]:
    """The same coefficient for every group: the baseline, and what generic tools do."""
    progress("coefficients", 0.0)
    return problem.land([problem.sparsity] * len(problem.groups))


def grid(problem: CoefficientProblem[Module], progress: Progress) -> list[int]:
    """Try a grid of ratios between the groups' kept shares, each landed on the budget, on the true objective."""
    ratios = list(itertools.product(GRID_LEVELS, repeat=min(len(problem.groups), 6)))
    candidates = [uniform(problem, progress)]
    base = np.asarray(problem.coefficients_of(candidates[0]))
    for ratio in ratios[:: max(1, len(ratios) // GRID_POINTS)]:
        scale = np.resize(np.asarray(ratio), len(problem.groups))
        with contextlib.suppress(PruningError):  # some ratios meet the budget at no whole number of channels
            kept = problem.land(list(np.clip(1.0 - (1.0 - base) * scale, 0.0, 1.0)))
            if kept not in candidates:
                candidates.append(kept)
    errors = []
    for index, kept in enumerate(candidates):
        progress("coefficients", index / len(candidates))
        errors.append(problem.objective(problem.build(kept)))
    return candidates[int(np.argmin(errors))]
