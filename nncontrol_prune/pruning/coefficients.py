"""The coefficient problem: which share of each group's channels to remove.

    minimize over α    E(α) = Σ_t w_t mean_i ω_i e_t(i; α)        on held-out rollouts, after reconstruction
    subject to         | 1 - C(α) / C(0) - ρ | ≤ ε                C: parameters, multiplications or latency
                       mean_i ω_i e_t(i; α) ≤ limit_t             for each term t that has a limit
                       0 ≤ α_g < 1,  α_g = α_h where g and h are tied
                       (1 - α_g) n_g                              a count of channels that may stay: see Group.counts

α_g is the pruning coefficient of group g, ρ the target sparsity and ε its tolerance (arXiv 2507.14882); e_t(i) is the
error of term t on row i, ω_i the row's weight. docs/pruning.md explains it at length.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.errors import NoChoice, Unreachable, failing, in_multiples
from nncontrol_prune.pruning.groups import Group
from nncontrol_prune.pruning.network import Network, Outputs, rows_of, take
from nncontrol_prune.pruning.reconstruction import Target, dense_targets, last_layer_sensitivity, reconstruct
from nncontrol_prune.pruning.surgery import Module, most_important, remove_channels
from nncontrol_prune.pruning.terms import Term, weighted_sum

Value = TypeVar("Value", int, float, Tensor)

DRAFT_SHARES = (1 / 12, 1 / 4)
"""Of the rows to fit and of those held out that a draft has."""
FEWEST_DRAFT_ROWS = 200
"""Of either, where there are as many."""
MOST_CHOICES = 300_000
"""Choices of channels that are looked at one and all, to find those that meet the budget."""
LARGE = 1e6
"""Weight of a violated limit in the objective: any choice that violates less is better."""


class CostModel(Protocol):
    """What the budget is about: parameters, multiplications or latency; see costs.py."""

    dense: float

    def removed(self, shares: Sequence[Any]) -> Any:
        """Return the share of the dense network's cost that is gone when group g keeps `shares[g]`."""
        ...


@dataclass(frozen=True)
class CoefficientProblem(Generic[Module]):
    """One network to be pruned to one sparsity.

    Attributes:
        network: The dense network.
        groups: Its groups.
        scores: Importance of the channels, by group.
        calibration: The data of the objective.
        terms: What matters.
        cost: What the budget is about.
        sparsity: ρ.
        tolerance: ε.
        channel_multiple: Groups keep a multiple of so many channels, or all of theirs.
        seed: Of the optimizers that draw.
        reconstructed: Whether the layers are refitted after surgery; only comparisons turn it off.
        twice_fitted: Whether the last layers are then fitted once more, to what matters of them (reconstruction.py).
        teacher: Whose outputs to keep, where that is not the network itself, as in a later round.
        warnings: What the user should know of the rounds before, as sentences.
    """

    network: Network[Module]
    groups: Sequence[Group]
    scores: Sequence[Tensor]
    calibration: Calibration
    terms: Sequence[Term]
    cost: CostModel
    sparsity: float
    tolerance: float
    channel_multiple: int = 1
    seed: int = 0
    reconstructed: bool = True
    twice_fitted: bool = True
    teacher: Network[Module] | None = None
    warnings: tuple[str, ...] = ()

    @cached_property
    def ties(self) -> list[list[int]]:
        """The groups, by index, that share a coefficient; the problem has as many variables."""
        return self.network.tied(self.groups)

    @cached_property
    def targets(self) -> dict[str, Target]:
        """What the layers are refitted to."""
        return dense_targets(self.network, self.groups, self.calibration.fit)

    @cached_property
    def sensitivity(self) -> dict[str, Tensor]:
        """How much the outputs that matter change, row by row, with what the last layers give out."""
        return last_layer_sensitivity(self.network, self.groups, self.calibration.fit, self.terms)

    @cached_property
    def dense_held_out(self) -> Outputs:
        """The outputs to keep, on the held-out part."""
        teacher = self.teacher or self.network
        with torch.no_grad():
            return teacher.run(teacher.module, self.calibration.held_out)

    @property
    def channels(self) -> list[int]:
        """Channels of each variable's groups."""
        return [self.groups[members[0]].channels for members in self.ties]

    @cached_property
    def counts(self) -> list[list[int]]:
        """How many channels of each variable's groups may stay, in ascending order."""
        counts = [set(group.counts(self.channel_multiple)) for group in self.groups]
        return [sorted(set.intersection(*(counts[member] for member in members))) for members in self.ties]

    @property
    def fewest(self) -> list[int]:
        """Channels that have to stay of each variable's groups."""
        return [counts[0] for counts in self.counts]

    @cached_property
    def gaps(self) -> list[float]:
        """How far apart the counts of each variable are at the most, as a share of its channels."""
        return [
            max((more - less for less, more in itertools.pairwise(counts)), default=0) / counts[-1]
            for counts in self.counts
        ]

    @property
    def largest_sparsity(self) -> float:
        """The sparsity with as few channels in every group as may be left."""
        return self.sparsity_of(self.fewest)

    def by_group(self, values: Sequence[Value]) -> list[Value]:
        """Return a value for each group from one for each variable."""
        spread = list(values[:1]) * len(self.groups)
        for value, members in zip(values, self.ties, strict=True):
            for member in members:
                spread[member] = value
        return spread

    def sparsity_of(self, kept: Sequence[int]) -> float:
        """Return the sparsity with this many channels kept in the groups of each variable."""
        shares = [count / channels for count, channels in zip(kept, self.channels, strict=True)]
        return float(self.cost.removed(self.by_group(shares)))

    def coefficients_of(self, kept: Sequence[int]) -> list[float]:
        """Return each variable's coefficient with this many channels kept."""
        return [1.0 - count / channels for count, channels in zip(kept, self.channels, strict=True)]

    def check_reachable(self) -> None:
        """Check that some choice of channels is sparse enough.

        Raises:
            Unreachable: None is; the message names the reachable range.
        """
        if self.sparsity > self.largest_sparsity + self.tolerance:
            raise Unreachable(
                f"sparsity {self.sparsity:g} cannot be reached: with as few channels"
                f"{in_multiples(self.channel_multiple)} as may be left in every group it is "
                f"{self.largest_sparsity:.4g}, which is the largest there is; the smallest is 0",
                self.largest_sparsity,
            )

    def land(self, coefficients: Sequence[float]) -> list[int]:
        """Return whole numbers of channels to keep, within the tolerance of the target, near some coefficients.

        All coefficients are shifted by the same amount until the budget holds; then some channels are added or
        removed where that brings the sparsity closer. Where that leads to nothing, and in multiples, which are far
        apart, it is the choice on the budget that is nearest to the shifted coefficients.

        Raises:
            NoChoice: No choice of channels is within the tolerance.
        """
        self.check_reachable()
        low, high = -1.0, 1.0
        for _ in range(40):
            shift = (low + high) / 2
            if self.sparsity_of(self._round(coefficients, shift)) < self.sparsity:
                low = shift
            else:
                high = shift
        shifted = [min(max(coefficient + high, 0.0), 1.0) for coefficient in coefficients]
        best = self._closest(shifted) if self.channel_multiple > 1 else None
        if best is None:
            best = self._refined(self._round(shifted, 0.0))
            if self._distance(best) > self.tolerance:
                best = self._closest(shifted) or best
        if self._distance(best) > self.tolerance:
            found = " found" if self.on_budget is None else ""
            raise NoChoice(
                f"no whole number of channels{in_multiples(self.channel_multiple)} comes within {self.tolerance:g} of "
                f"sparsity {self.sparsity:g}; the nearest{found} is {self.sparsity_of(best):.4g}; ask for that, or "
                "allow a larger tolerance",
                self.sparsity_of(best),
            )
        return best

    @cached_property
    def on_budget(self) -> NDArray[np.int64] | None:
        """All choices (choices, variables) that meet the budget, or else the nearest; None where there are too many."""
        if math.prod(len(counts) for counts in self.counts) > MOST_CHOICES:
            return None
        every = np.stack(np.meshgrid(*self.counts, indexing="ij"), axis=-1).reshape(-1, len(self.counts))
        shares: list[Any] = [every[:, variable] / channels for variable, channels in enumerate(self.channels)]
        removed = np.broadcast_to(self.cost.removed(self.by_group(shares)), len(every))  # groups may cost nothing
        distances = np.abs(removed - self.sparsity)
        return every[distances <= max(self.tolerance, distances.min())]

    def near(self, kept: Sequence[int], deviation: float, rng: np.random.Generator) -> list[int]:
        """Return a choice near another: with Gaussian noise, of one count at least, on its coefficients.

        Raises:
            NoChoice: No choice of channels near there is within the tolerance.
        """
        deviations = np.maximum(deviation, self.gaps)
        noise = deviations * rng.normal(size=len(kept))
        return self.land((self.coefficients_of(kept) + noise).tolist())

    def around(self, variable: int, count: int, change: int) -> list[int]:
        """Return counts of a variable that are about `change` more and less than one, where there are more and less."""
        counts = self.counts[variable]
        more, less = counts[bisect.bisect_right(counts, count) :], counts[: bisect.bisect_left(counts, count)]
        return [nearest(side, count + step) for side, step in ((more, change), (less, -change)) if side]

    def draft(self) -> CoefficientProblem[Module]:
        """Return the problem on few rows and without the second fit: choices cost a tenth to judge."""
        parts = rows_of(self.calibration.fit), rows_of(self.calibration.held_out)
        few = [max(FEWEST_DRAFT_ROWS, round(share * rows)) for share, rows in zip(DRAFT_SHARES, parts, strict=True)]
        return replace(self, calibration=self.calibration.spread(*few), twice_fitted=False)

    def build(self, kept: Sequence[int]) -> Module:
        """Return the network that `built` returns."""
        return self.built(kept)[0]

    def built(self, kept: Sequence[int]) -> tuple[Module, tuple[str, ...]]:
        """Return the pruned and reconstructed network that keeps this many channels of each variable's groups.

        Returns:
            The network, and what the user should know of it and of the rounds before, as sentences.

        Raises:
            PruningError: It does not run.
        """
        keep = most_important(self.scores, self.by_group(kept))
        data = self.calibration
        pruned = remove_channels(self.network.module, self.groups, keep)
        try:
            with torch.no_grad():
                self.network.run(pruned, take(data.fit, torch.arange(2)))
        except Exception as error:
            raise failing("the pruned network", error) from error
        if not self.reconstructed:
            return pruned, self.warnings
        warnings = reconstruct(
            pruned,
            self.network,
            self.groups,
            keep,
            data.fit,
            data.fit_weights,
            terms=self.terms if self.twice_fitted else (),
            targets=self.targets,
            sensitivity=self.sensitivity if self.twice_fitted else None,
        )
        return pruned, _with_earlier(self.warnings, warnings)

    @torch.no_grad()
    def errors(self, pruned: Module) -> tuple[float, dict[str, float]]:
        """Return E on the held-out part, and each term's mean error by name."""
        data = self.calibration
        found = self.network.run(pruned, data.held_out)
        total, means = weighted_sum(self.terms, found, self.dense_held_out, data.held_out, data.held_out_weights)
        return float(total), {name: float(mean) for name, mean in means.items()}

    def objective(self, pruned: Module) -> float:
        """Return E, with what exceeds a limit added so heavily that less of it is always better."""
        total, means = self.errors(pruned)
        for term in self.terms:
            if term.limit is not None:
                total += LARGE * max(0.0, means[term.label] / term.limit - 1.0)
        return total if math.isfinite(total) else math.inf

    def score(self, kept: Sequence[int]) -> float:
        """Return the objective of what `build` makes of a choice."""
        return self.objective(self.build(kept))

    def violated(self, errors: Mapping[str, float]) -> list[str]:
        """Return the names of the terms whose limit is exceeded by these errors, of `errors`."""
        return [t.label for t in self.terms if t.limit is not None and errors[t.label] > t.limit]

    def _closest(self, coefficients: Sequence[float]) -> list[int] | None:
        """Return the choice on the budget that is nearest to some coefficients; None where there are too many."""
        if self.on_budget is None:
            return None
        off = np.square(1.0 - self.on_budget / np.array(self.channels) - coefficients).sum(axis=1)
        closest: list[int] = self.on_budget[off.argmin()].tolist()
        return closest

    def _refined(self, kept: list[int]) -> list[int]:
        """Return a choice nearer to the budget; as little as needed is changed, so that it stays near this one."""
        best = min([kept, *self._changed(kept, 1, 1)], key=self._distance)
        if self._distance(best) > self.tolerance:
            near = (choice for size in (1, 2) for choice in self._changed(kept, size, 4))
            best = next((choice for choice in near if self._distance(choice) <= self.tolerance), best)
        return best

    def _distance(self, kept: Sequence[int]) -> float:
        return abs(self.sparsity_of(kept) - self.sparsity)

    def _changed(self, kept: Sequence[int], variables: int, largest: int) -> Iterator[list[int]]:
        """Yield choices with so many variables up to `largest` counts away, small changes first."""
        counts = self.counts
        places = [bisect.bisect_left(allowed, count) for allowed, count in zip(counts, kept, strict=True)]
        steps = [step for size in range(1, largest + 1) for step in (size, -size)]
        for chosen in itertools.combinations(range(len(kept)), variables):
            for changes in itertools.product(steps, repeat=variables):
                moved = [(variable, places[variable] + step) for variable, step in zip(chosen, changes, strict=True)]
                if all(0 <= place < len(counts[variable]) for variable, place in moved):
                    choice = list(kept)
                    for variable, place in moved:
                        choice[variable] = counts[variable][place]
                    yield choice

    def _round(self, coefficients: Sequence[float], shift: float) -> list[int]:
        return [
            nearest(counts, channels * (1.0 - min(max(coefficient + shift, 0.0), 1.0)))
            for coefficient, channels, counts in zip(coefficients, self.channels, self.counts, strict=True)
        ]


def nearest(counts: Sequence[int], wanted: float) -> int:
    """Return which of some numbers in ascending order is nearest; of two as near, the even one, as `round` does."""
    place = bisect.bisect_left(counts, wanted)
    return min(counts[max(0, place - 1) : place + 1], key=lambda count: (abs(count - wanted), count % 2))


def _with_earlier(earlier: Sequence[str], warnings: Sequence[str]) -> tuple[str, ...]:
    """Return earlier and later warnings; of those that differ in numbers alone, as of a layer's inputs, the last."""
    return tuple({re.sub(r" \d+ ", " # ", warning): warning for warning in (*earlier, *warnings)}.values())


Optimizer = Callable[[CoefficientProblem[Module], Progress], list[int]]
"""Takes the problem and returns how many channels of each variable's groups to keep, within the budget."""


def uniform(problem: CoefficientProblem[Module], progress: Progress) -> list[int]:
    """The same coefficient for every group: the baseline, and what generic tools do."""
    progress("coefficients", 0.0)
    return problem.land([problem.sparsity] * len(problem.ties))
