"""Pruning coefficients by gradient descent on soft masks, with reconstruction inside the objective.

Channel j of group g, of importance rank r_j (0 leaves first), is kept with probability

    m_j = σ((r_j + ½ - α_g n_g) / (τ n_g))

and τ is annealed, so that the masks become hard. A mask that only scales activations would be undone by the
next layer's least squares; so the layer is fitted to *random* masks b_j ~ Bernoulli(m_j) in expectation, which is
again least squares, with u = W·m and the Gram matrix G of the centred activations:

    E‖W (b ∘ h) - z‖²  is least for  (G + S ∘ ((1 - m) / m) ∘ G) u = H^T Z

where S is one for entries of the same channel, which stay or leave as one (compare dropout as adaptive
regularization, Wager et al. 2013), and to which the ridge of reconstruction.py is added; where rows are scarce that
draws u to W_0·m. The solution is exact for m_j = 1, drops channels as m_j → 0, and is differentiable in α throughout.
Norms over channels take statistics weighted by m, as over the channels that are kept. Budget and constraints are met by
an augmented Lagrangian (Nocedal and Wright 2006, ch. 17).

Close to the best choice the soft objective does not tell any more which of two is the better one. So Newton's method
goes on from there with hard masks, on a draft of the problem: few of the rows, and without the second fit of the last
layers. It takes a tenth of the time and ranks choices nearly as the true objective does. Whole channels have no
derivative; slope s_g and curvature c_g of log E by each coefficient are those of the parabola through three choices,
and the step δ is the least of the separable model within a trust region, at the same cost to first order:

    minimize Σ_g s_g δ_g + ½ c_g δ_g²    subject to  Σ_g δ_g ∂C/∂α_g = 0,  |δ_g| ≤ Δ
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import bisect
from torch import Tensor, nn

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calls import with_others_taken_in
from nncontrol_prune.pruning.coefficients import CoefficientProblem, uniform
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.groups import Group, weighted_norms
from nncontrol_prune.pruning.layers import (
    NORMS,
    channel_dimension,
    input_dimension,
    norms_over_channels,
    places_in,
    responses,
    run_solution,
    solution_of,
    taps,
)
from nncontrol_prune.pruning.network import Network, rows_of, spread_rows, take
from nncontrol_prune.pruning.operations import Operation, operations, weight_of
from nncontrol_prune.pruning.reconstruction import (
    Target,
    affine_fit,
    dense_targets,
    least_squares,
    regression,
)
from nncontrol_prune.pruning.ridge import Masks
from nncontrol_prune.pruning.surgery import Module
from nncontrol_prune.pruning.terms import weighted_sum

STEPS = 10
LANDED_EVERY = 5
DESCENT_SHARE = 0.2
"""Of the time that the search takes, roughly."""
LEARNING_RATES = (0.2, 0.1)
"""First and last, of Adam on the logits of α."""
FIT_ROWS, HELD_OUT_ROWS = 1600, 500
FIT_POSITIONS = 4000
"""Rows times positions that a convolution is fitted on in every step."""
TEMPERATURES = (0.03, 0.015)
"""First and last τ, as a share of the group's channels, and never less than one channel: a mask that is hard between
two of a few channels has no gradient. Masks that stay soft over many promise what whole channels do not keep: a world
model starting at 0.08 found nothing better than uniform coefficients."""
SMALLEST_MASK = 1e-4
DRAFTS = 160
"""Choices judged by the draft, after which no further step is taken."""
DIFFERENCE, TRUST = 0.1, 0.15
"""What a coefficient is changed by to see what follows, and Δ, at first, where neither is less than from one count of
channels to the next; both are halved when a step leads to nothing better, down to SMALLEST of themselves."""
SMALLEST = 1 / 8
LENGTHS = (1.0, 0.5, 1.5, 0.25)
"""Of each step, of which the best is taken."""
FLATTEST = 1e-3
"""The least curvature."""
CHEAPEST = 1e-6
"""The least slope of the cost: measured latency may be flat."""
JUDGED = 4
"""Of the choices that the drafts led to, so many, the best, are judged by the true objective."""

Judge = Callable[[tuple[int, ...]], float]
"""Returns the logarithm of the objective of a choice."""


def gradient(problem: CoefficientProblem[Module], progress: Progress) -> list[int]:
    """Descend from uniform coefficients, softly and then on drafts; return the best point, by the true objective."""
    draft = problem.draft()

    @functools.cache
    def judge(kept: tuple[int, ...]) -> float:
        spent = min(1.0, judge.cache_info().misses / max(1, DRAFTS))
        progress("coefficients", DESCENT_SHARE + (1.0 - DESCENT_SHARE) * spent)
        return math.log(min(max(draft.score(kept), 1e-10), 1e10))

    start = tuple(uniform(problem, progress))
    every = problem.on_budget
    if every is not None and len(every) <= DRAFTS:  # as of a small network, or in multiples
        return _best_of(problem, start, [tuple(choice) for choice in every.tolist()], judge)
    reached = [start]
    for coefficients in _descend(problem, problem.coefficients_of(start), progress):
        with contextlib.suppress(PruningError):  # near some points no whole number of channels meets the budget
            reached.append(tuple(problem.land(coefficients)))
    path = [min(reached, key=judge)]
    share = 1.0
    while judge.cache_info().misses < DRAFTS and share >= SMALLEST:
        ahead = [path[-1]]
        step = _newton_step(draft, judge, path[-1], share)
        for length in LENGTHS:
            with contextlib.suppress(PruningError):
                coefficients = (np.array(draft.coefficients_of(path[-1])) + length * step).tolist()
                ahead.append(tuple(draft.land(coefficients)))
        best = min(ahead, key=judge)
        if best == path[-1]:
            share /= 2
        else:
            path.append(best)
    return _best_of(problem, start, path, judge)


def _best_of(
    problem: CoefficientProblem[Module], start: tuple[int, ...], found: Sequence[tuple[int, ...]], judge: Judge
) -> list[int]:
    """Return the best by the true objective, of the start and of the choices that are best by the drafts."""
    judged: dict[tuple[int, ...], float] = {}
    for choice in (start, *sorted(found, key=judge)[:JUDGED]):
        if choice not in judged:
            judged[choice] = problem.score(choice)
    best, _ = min(judged.items(), key=lambda item: item[1])
    return list(best)


def _newton_step(
    draft: CoefficientProblem[Module], judge: Judge, kept: tuple[int, ...], share: float
) -> NDArray[np.float64]:
    """Return the step δ from a choice, with `share` of the first differences and of the first trust region."""
    slopes, curvatures, prices = np.array(
        [_parabola(draft, judge, kept, variable, share * DIFFERENCE) for variable in range(len(kept))]
    ).T
    prices, trust = prices.clip(CHEAPEST), share * np.maximum(TRUST, draft.gaps)
    # Where it curves little or the wrong way, a step of twice the trust region is what it would ask for.
    curvatures = np.maximum(curvatures, np.abs(slopes) / (2 * trust)).clip(FLATTEST)
    now, most = np.array(draft.coefficients_of(kept)), np.array(draft.coefficients_of(draft.fewest))
    lowest, highest = np.maximum(-now, -trust), np.minimum(most - now, trust)

    def step_at(multiplier: float) -> NDArray[np.float64]:
        return np.clip(-(slopes + multiplier * prices) / curvatures, lowest, highest)

    # Beyond, all coefficients go as far as they may, in one direction.
    largest = (np.abs(slopes) + curvatures * trust).max() / prices.min()
    return step_at(bisect(lambda multiplier: prices @ step_at(multiplier), -largest, largest))


def _parabola(
    draft: CoefficientProblem[Module], judge: Judge, kept: tuple[int, ...], variable: int, difference: float
) -> tuple[float, float, float]:
    """Return slope and curvature of log E, and the slope of the cost that is saved, by a coefficient."""
    channels, count = draft.channels[variable], kept[variable]
    slopes, prices, moves = list[float](), list[float](), list[float]()
    for other in draft.around(variable, count, max(1, round(difference * channels))):
        choice = (*kept[:variable], other, *kept[variable + 1 :])
        moves.append((count - other) / channels)
        slopes.append((judge(choice) - judge(kept)) / moves[-1])
        prices.append((draft.sparsity_of(choice) - draft.sparsity_of(kept)) / moves[-1])
    if len(moves) < 2:  # at a bound, or at both
        return sum(slopes), 0.0, sum(prices)
    (less, more), (before, after) = moves, slopes
    return (more * before - less * after) / (more - less), 2 * (after - before) / (more - less), sum(prices) / 2


@torch.enable_grad()
def _descend(problem: CoefficientProblem[Module], start: Sequence[float], progress: Progress) -> Iterator[list[float]]:
    """Yield the coefficients reached, every few steps."""
    network, groups, data = problem.network, list(problem.groups), problem.calibration
    share = 2 if network.contrasts else 1  # such rows are run with two alternatives
    rows = spread_rows(rows_of(data.fit), FIT_ROWS // share)
    held_out = spread_rows(rows_of(data.held_out), HELD_OUT_ROWS // share)
    fit, judge = network.once(take(data.fit, rows)), take(data.held_out, held_out)
    judge_weights = data.held_out_weights[held_out]
    targets = dense_targets(network, groups, fit)
    teacher = problem.teacher or network
    with torch.no_grad():
        dense = teacher.run(teacher.module, judge)
    ranks = [torch.argsort(torch.argsort(score, stable=True)) for score in problem.scores]
    logits = torch.logit(torch.tensor(start).clamp(0.02, 0.98)).requires_grad_(True)
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATES[0])
    multiplier, stiffness = 0.0, 100.0
    limited = [term for term in problem.terms if term.limit is not None]
    pressures = {term.label: 0.0 for term in limited}
    layers = _SoftLayers(network, groups, targets, data.fit_weights[rows])
    for step in range(STEPS):
        progress("coefficients", DESCENT_SHARE * step / STEPS)
        temperature = _annealed(TEMPERATURES, step)
        optimizer.param_groups[0]["lr"] = _annealed(LEARNING_RATES, step)
        variables = torch.sigmoid(logits)
        coefficients = problem.by_group(variables.unbind())
        masks = [
            _mask_of(rank, coefficient, temperature) for rank, coefficient in zip(ranks, coefficients, strict=True)
        ]
        with layers.masked(masks):
            network.run(network.module, fit)
            found = network.run(network.module, judge)
        objective, means = weighted_sum(problem.terms, found, dense, judge, judge_weights)
        excess = problem.cost.removed([1.0 - coefficient for coefficient in coefficients]) - problem.sparsity
        # The logarithm makes a step independent of the error's scale, which spans orders of magnitude.
        loss = torch.log(objective + 1e-10) + multiplier * excess + 0.5 * stiffness * excess**2
        for term in limited:
            violation = torch.log(means[term.label] + 1e-12) - torch.log(torch.tensor(term.limit))
            pressed = torch.relu(violation + pressures[term.label])
            loss = loss + 0.5 * pressed**2
            pressures[term.label] = float(pressed.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        multiplier += stiffness * float(excess.detach()) * 0.1
        if (step + 1) % LANDED_EVERY == 0:
            yield torch.sigmoid(logits).tolist()


def _annealed(ends: tuple[float, float], step: int) -> float:
    """Return what is between two ends, evenly in logarithms, at a step."""
    share = step / (STEPS - 1)
    return float(ends[0] ** (1 - share) * ends[1] ** share)


def _mask_of(rank: Tensor, coefficient: Tensor, temperature: float) -> Tensor:
    """Return the soft mask of a group's channels, by their ranks."""
    channels = len(rank)
    softness = max(temperature, 1.0 / channels)
    return torch.sigmoid(((rank + 0.5) / channels - coefficient) / softness).clamp_min(SMALLEST_MASK)


class _SoftLayers:
    """Layers that give out their reconstruction from softly masked inputs, or, where they are not fitted, what they do.

    Args:
        network: The dense network.
        groups: Its groups.
        targets: What each layer is fitted to.
        fit_weights: Weights of the rows that the layers are fitted on.
    """

    def __init__(
        self, network: Network[Any], groups: list[Group], targets: Mapping[str, Target], fit_weights: Tensor
    ) -> None:
        self._module = module = network.module
        self._contrasts = network.contrasts
        self._targets = targets
        self._weights = fit_weights
        self._places: dict[str, tuple[Tensor, Tensor]] = {}
        self._opaque: dict[str, tuple[Tensor, Tensor]] = {}
        self._bare: set[str] = set()
        for name, target in targets.items():
            layer = module.get_submodule(name)
            if isinstance(layer, NORMS):  # it gives out as many channels as it takes in
                size = responses(layer, target.output).shape[1]
                self._places[name] = places_in(groups, weight_of(name), 0, size)
                if layer.weight is None:
                    self._bare.add(name)
            else:
                group, channel = self._inputs(groups, name, layer)
                self._places[name] = group.repeat_interleave(taps(layer)), channel.repeat_interleave(taps(layer))
        for name in dict.fromkeys(name for group in groups for name in group.consumers if name in group.opaque):
            self._opaque[name] = self._inputs(groups, name, module.get_submodule(name))

    @staticmethod
    def _inputs(groups: list[Group], name: str, layer: nn.Module) -> tuple[Tensor, Tensor]:
        weight: Any = layer.weight
        dim = input_dimension(layer)
        return places_in(groups, weight_of(name), dim, weight.shape[dim])

    @contextlib.contextmanager
    def masked(self, masks: Sequence[Tensor]) -> Iterator[None]:
        """Within the block the module computes what the masks, one for each group, leave of it.

        Layers are fitted as they are run first, which has to be on the rows to fit.
        """
        fitted: dict[str, tuple[Tensor, Tensor]] = {}

        def leave(operation: Operation) -> Tensor:
            name = operation.name
            if operation.call < self._targets[name].call:
                return operation.run()  # what is the same in all rows
            mask = self._mask(*self._places[name], masks)
            if isinstance(operation.layer, NORMS):
                return self._norm(operation, mask, fitted)
            return self._regression(operation, mask, fitted)

        def scale(name: str, layer: nn.Module, held: Tensor) -> Tensor:
            mask = self._mask(*self._opaque[name], masks)
            shape = [-1 if dim == channel_dimension(layer, held) else 1 for dim in range(held.dim())]
            return held * mask.to(held.dtype).view(shape)

        module = self._module
        with (
            weighted_norms(module),  # those without weight are masked, too
            operations(module, self._places, leave),
            with_others_taken_in(module, self._opaque, scale),
        ):
            yield

    @staticmethod
    def _mask(group: Tensor, channel: Tensor, masks: Sequence[Tensor]) -> Tensor:
        mask = torch.ones(len(group))
        for number in group.unique().tolist():
            if number >= 0:
                mask = torch.where(group == number, masks[number][channel * (group == number)], mask)
        return mask

    def _regression(self, operation: Operation, mask: Tensor, fitted: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        name, inputs = operation.name, operation.held
        if name not in fitted:
            held, wanted, weights = regression(
                operation, self._targets[name].output, self._weights, contrasts=self._contrasts, limit=FIT_POSITIONS
            )
            group, channel = self._places[name]
            numbers = torch.where(group >= 0, group * (channel.max() + 1) + channel, -1 - torch.arange(len(group)))
            probability = mask.double()
            masks = Masks(numbers, (1.0 - probability) / probability)
            left = probability[:, None] * solution_of(operation.layer).double()
            fitted[name] = least_squares(operation.layer, held, wanted, weights, left, masks)
        weight, bias = fitted[name]
        return run_solution(operation, inputs, weight.to(inputs.dtype), bias.to(inputs.dtype))

    def _norm(self, operation: Operation, mask: Tensor, fitted: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        name, layer = operation.name, operation.layer
        output = _normed_over(operation, mask) if norms_over_channels(layer) else operation.run()
        if name in self._bare:
            return output
        if name not in fitted:
            fitted[name] = affine_fit(
                responses(layer, output),
                responses(layer, self._targets[name].output),
                self._weights,
                intercept=getattr(layer, "bias", None) is not None,
            )
        scale, offset = fitted[name]
        shape = [-1 if dim == channel_dimension(layer, output) else 1 for dim in range(output.dim())]
        return output * scale.view(shape) + offset.view(shape)


def _normed_over(operation: Operation, mask: Tensor) -> Tensor:
    """Return what a norm over channels gives out with statistics over what a mask leaves of them."""
    layer, inputs, given = operation.layer, operation.held, operation.arguments
    weight, bias = given["weight"], given.get("bias")
    share = (mask / mask.sum()).to(inputs.dtype)
    channel = channel_dimension(layer, inputs)
    positions = range(1, inputs.dim() - 1) if isinstance(layer, nn.GroupNorm) else ()

    def mean(values: Tensor) -> Tensor:
        return (values @ share)[..., None].mean((*positions, -1), keepdim=True)

    held = inputs.movedim(channel, -1)
    centred = held if isinstance(layer, nn.RMSNorm) else held - mean(held)
    eps = given.get("eps", None if isinstance(layer, nn.RMSNorm) else 1e-5)  # torch's defaults
    eps = torch.finfo(inputs.dtype).eps if eps is None else eps
    output = centred * torch.rsqrt(mean(centred.square()) + eps) * weight
    return (output if bias is None else output + bias).movedim(-1, channel)
