"""Importance of channels. Every metric gives one score a channel; within a group, the least leave first.

Scores of `taylor`, `fisher` and `obs` are in units of the objective, so they compare between groups as they are;
`normalized` makes those of any metric comparable, and weights them by component.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.calls import with_others_taken_in
from nncontrol_prune.pruning.copying import copied
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.groups import Group
from nncontrol_prune.pruning.layers import by_channel, input_dimension, solution_of, taps
from nncontrol_prune.pruning.network import Batch, Network, Outputs, rows_of, spread_rows, take
from nncontrol_prune.pruning.operations import Operation, operations, telling_calls
from nncontrol_prune.pruning.reconstruction import regression
from nncontrol_prune.pruning.ridge import RIDGE, SMALLEST_DAMPING, moments
from nncontrol_prune.pruning.sensitivity import MINIBATCH, directions, squared_gradients
from nncontrol_prune.pruning.terms import Term

GRADIENT_ROWS = 2048
"""Rows that gradient scores are averaged over; one minibatch of a few hundred is mostly noise."""
OBS_INPUTS = 16_384
"""Of a layer, times its kernel's size, at the most for `obs`: matrices of inputs by inputs take 2 GiB each then."""


@dataclass(frozen=True)
class Evidence:
    """What importance is judged from.

    Attributes:
        network: The dense network.
        groups: Its groups.
        batch: Rows of data.
        weights: Their weights (rows,).
        terms: What matters of the outputs; a score differentiates the outputs that have a weight, in their scales.
        seed: Of the random directions and of `random`.
        progress: Told how far the stage `importance` is, and asked whether to stop.
    """

    network: Network[Any]
    groups: Sequence[Group]
    batch: Batch
    weights: Tensor
    terms: Sequence[Term]
    seed: int = 0
    progress: Progress = field(default_factory=Progress)


Importance = Callable[[Evidence], Sequence[Tensor]]
"""Takes the evidence and returns scores (channels,) by group, each finite and 0 or more."""


def checked(importance: Importance) -> Importance:
    """Return an importance that does as another one does, on copies of the evidence, and whose scores are checked.

    When called, it raises `PruningError` where there is not a score for each channel, or one is not a finite number of
    0 or more; the message names the group, what is wrong, and what is allowed.

    Raises:
        PruningError: It is no function.
    """
    if not callable(importance):
        raise PruningError(
            f"importance is of type {type(importance).__name__}; it needs to be a name, such as 'taylor', or a function"
        )

    def scored(evidence: Evidence) -> list[Tensor]:
        network = replace(evidence.network, module=copied(evidence.network.module))
        batch = {name: values.clone() for name, values in evidence.batch.items()}
        with torch.enable_grad():
            found: Any = importance(replace(evidence, network=network, batch=batch, weights=evidence.weights.clone()))
        groups = evidence.groups
        if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != len(groups):
            what = f"a {type(found).__name__}" + (f" of {len(found)}" if isinstance(found, (list, tuple)) else "")
            raise PruningError(
                f"importance returned {what}; it has to return a list of {len(groups)} tensors, one for each group: "
                f"{', '.join(group.name for group in groups)}"
            )
        for group, score in zip(groups, found, strict=True):
            if wrong := _wrong_score(score, group.channels):
                raise PruningError(
                    f"importance returned {wrong} for the group {group.name}; allowed is a tensor of shape "
                    f"({group.channels},), a score for each channel that is finite and 0 or more; the least leave first"
                )
        return [score if score.dtype == torch.float64 else score.float() for score in found]

    return scored


def _wrong_score(score: Any, channels: int) -> str | None:
    """Return what is wrong with the scores of a group of so many channels; None if nothing is."""
    if not isinstance(score, Tensor):
        return f"a {type(score).__name__}"
    if score.shape != (channels,):
        return f"a tensor of shape {tuple(score.shape)}"
    if score.is_complex() or score.is_meta or score.layout != torch.strided:
        return f"a tensor of the type {score.type()}"
    score = score.float()  # of eight bits, nothing can be asked
    if not torch.isfinite(score).all():
        return "NaN or infinity"
    return "negative scores" if (score < 0).any() else None


def magnitude(evidence: Evidence) -> list[Tensor]:
    """Norm of everything that leaves with channel j: `sqrt(Σ_members ‖W_member[j]‖²)` (Li et al. 2017)."""
    tensors = dict(evidence.network.module.named_parameters())
    scores = []
    for group in evidence.groups:
        total = torch.zeros(group.channels)
        for member in group.members:
            if member.tensor in tensors:
                squares = tensors[member.tensor].detach().square()
                others = [dim for dim in range(squares.dim()) if dim != member.dim]
                total += (squares.sum(others) if others else squares)[member.positions].sum(dim=1)
        scores.append(total.sqrt())
    return scores


def random(evidence: Evidence) -> list[Tensor]:
    """Chance: what any metric has to beat."""
    generator = torch.Generator().manual_seed(evidence.seed)
    return [torch.rand(group.channels, generator=generator) for group in evidence.groups]


def taylor(evidence: Evidence) -> list[Tensor]:
    """First-order change of the outputs when a channel is replaced by its mean.

    `score_j = E_x Σ_k ( Σ_c (h_c(x) - mean h_c) ∂y_k/∂h_c(x) )²`, after Molchanov et al. 2017, with y the outputs in
    the terms' scales and c all entries in which channel j is taken in. What is differentiated is the output itself:
    the gradient of a distillation loss vanishes at the dense network. The mean stays since reconstruction puts it
    into the bias of the layer after.
    """
    return _gate_scores(evidence, centred=True)


def fisher(evidence: Evidence) -> list[Tensor]:
    """Fisher information of a gate on the channel, for outputs with Gaussian noise of one scale.

    `score_j = E_x Σ_k ( Σ_c h_c(x) ∂y_k/∂h_c(x) )²`: the loss is `½ ‖y - y_dense - noise‖²`, and the expectation over
    the noise is taken exactly (Theis et al. 2018, for the squared error). Channels that are constant count here.
    """
    return _gate_scores(evidence, centred=False)


def _gate_scores(evidence: Evidence, *, centred: bool) -> list[Tensor]:
    groups, module = evidence.groups, evidence.network.module
    if not any(group.consumers for group in groups):
        return magnitude(evidence)
    rows = spread_rows(rows_of(evidence.batch), GRADIENT_ROWS)
    means: dict[str, list[Tensor]] = {}
    if centred:
        share = evidence.weights[rows] / evidence.weights[rows].sum()
        with torch.no_grad(), inputs_of(module, groups) as inputs:
            evidence.network.run(module, take(evidence.batch, rows))
        for name, calls in inputs.items():
            layer = module.get_submodule(name)
            means[name] = [
                torch.einsum("r,rcp->cp", share.to(call.dtype), by_channel(layer, call, len(rows))) for call in calls
            ]
    scores = [torch.zeros(group.channels) for group in groups]
    differentiated: set[str] = set()
    generator = torch.Generator().manual_seed(evidence.seed)
    minibatches = rows.split(MINIBATCH)
    for done, part in enumerate(minibatches):
        evidence.progress("importance", done / len(minibatches))
        batch, weights = take(evidence.batch, part), evidence.weights[part]
        with torch.enable_grad(), inputs_of(module, groups) as inputs:
            outputs = evidence.network.run(module, batch)
            # Where a forward pass turns gradients off, as within a torch.autograd.Function, there are none.
            taken = [
                (name, number, call)
                for name, calls in inputs.items()
                for number, call in enumerate(calls)
                if call.requires_grad
            ]
            differentiated.update(name for name, _, _ in taken)
            for direction in directions(outputs, evidence.terms, generator):
                gradients = torch.autograd.grad(
                    direction, [call for _, _, call in taken], retain_graph=True, allow_unused=True
                )
                effects = [torch.zeros(len(part), group.channels) for group in groups]
                for (name, call_number, call), gradient in zip(taken, gradients, strict=True):
                    if gradient is None:
                        continue
                    layer = module.get_submodule(name)
                    held = by_channel(layer, call.detach(), len(part))
                    if centred:
                        held = held - means[name][call_number]
                    effect = (held * by_channel(layer, gradient, len(part))).sum(dim=2)
                    for number, group in enumerate(groups):
                        for member in group.members if name in group.consumers else ():
                            if (member.module, member.dim) == (name, input_dimension(layer)):
                                effects[number] += effect[:, member.positions].sum(dim=2)
                for number, effect in enumerate(effects):
                    scores[number] += (weights[:, None] * effect.square()).sum(dim=0)
    total = evidence.weights[rows].sum()
    return _with_fallback(
        evidence,
        [
            None if differentiated.isdisjoint(group.consumers) else score / total
            for score, group in zip(scores, groups, strict=True)
        ],
    )


def obs(evidence: Evidence) -> list[Tensor]:
    """The error left after reconstruction, by greedy removal (optimal brain surgeon on channels).

    Of the layers c that take the group in, with centred regressors of Gram matrix G_c, weights W_c and sensitivity
    s_c (mean squared gradient of the scaled outputs with respect to each output of the layer), removing the entries B
    of a channel and refitting the rest costs

        Σ_c tr( (G_c⁻¹[B, B])⁻¹ · W_c[B] diag(s_c) W_c[B]ᵀ )

    (Hassibi and Stork 1993; for whole columns Frantar and Alistarh 2022). The cheapest channel leaves, W and G⁻¹
    are updated, and so on; a channel's score is the total error at the time it leaves. A group that a layer takes in
    which cannot be refitted has the scores of `taylor`.

    Raises:
        PruningError: A layer to be refitted has more than `OBS_INPUTS` inputs, times its kernel's size.
    """
    groups, module = evidence.groups, evidence.network.module
    if not any(group.consumers for group in groups):
        return magnitude(evidence)
    begun = evidence.progress.part("importance", 0.0, 0.0)
    opaque = any(_taken_in_opaquely(group) for group in groups)
    without_refit = taylor(replace(evidence, progress=begun)) if opaque else ()
    sensitivity = _output_sensitivity(evidence)
    for name in sensitivity:
        if (inputs := len(solution_of(module.get_submodule(name)))) > OBS_INPUTS:
            raise PruningError(
                f"importance 'obs' inverts a matrix of {inputs:,} by {inputs:,} for {name}, its inputs times its "
                f"kernel's size; up to {OBS_INPUTS:,} are allowed, and 'taylor' needs no such matrix"
            )
    grams = _gram_matrices(evidence, list(sensitivity))
    scores: list[Tensor | None] = []
    done, every = 0, sum(group.channels for group in groups)
    for number, group in enumerate(groups):
        part = evidence.progress.part("importance", done / every, (done + group.channels) / every)
        part("importance", 0.0)  # before a layer's Gram matrix is inverted
        done += group.channels
        if _taken_in_opaquely(group):
            scores.append(without_refit[number])
            continue
        problems = [
            _regression(module, group, name, grams[name], sensitivity[name])
            for name in group.consumers
            if name in grams  # of others, nothing that matters depends on what they give out
        ]
        scores.append(_greedy_removal(problems, group.channels, part) if problems else None)
    return _with_fallback(evidence, scores)


def _taken_in_opaquely(group: Group) -> bool:
    """Return whether a layer that cannot be refitted takes a group in."""
    return not set(group.consumers).isdisjoint(group.opaque)


def _greedy_removal(problems: list[tuple[Tensor, Tensor, Tensor]], channels: int, progress: Progress) -> Tensor:
    """Return the total error when each channel leaves; problems are (G⁻¹, W, positions (channels, width))."""
    total, score = 0.0, torch.zeros(channels)
    left = torch.ones(channels, dtype=torch.bool)
    for order in range(channels):
        progress("importance", order / channels)
        costs = torch.zeros(channels, dtype=torch.float64)
        for inverse, weight, places in problems:
            if places.shape[1] == 1:
                at = places[:, 0]
                costs += weight[at].square().sum(dim=1) / inverse.diagonal()[at].clamp_min(1e-300)
            else:
                blocks = inverse[places[:, :, None], places[:, None, :]]
                blocks = torch.where(left[:, None, None], blocks, torch.eye(blocks.shape[1], dtype=blocks.dtype))
                block = weight[places]
                costs += (block * torch.linalg.solve(blocks, block)).sum(dim=(1, 2))
        costs[~left] = math.inf
        leaving = int(costs.argmin())
        total += max(0.0, float(costs[leaving]))
        # The order decides where the error does not, as between channels that are never active.
        score[leaving] = total * (1.0 + 1e-6 * order) + 1e-30 * order
        left[leaving] = False
        for inverse, weight, places in problems:
            at = places[leaving]
            correction = torch.linalg.solve(inverse[at][:, at], torch.cat([inverse[at], weight[at]], dim=1))
            size = inverse.shape[0]
            column = inverse[:, at].clone()
            weight.sub_(column @ correction[:, size:])
            inverse.sub_(column @ correction[:, :size])
            inverse[at, at] += 1.0  # keeps the entries that have left out of harm's way
    return score


def _gram_matrices(evidence: Evidence, names: Sequence[str]) -> dict[str, Tensor]:
    """Return, by name, the Gram matrix of what layers take in, in the call that they are fitted in."""
    module = evidence.network.module
    grams: dict[str, Tensor] = {}

    def note(operation: Operation, output: Tensor) -> None:
        evidence.progress("importance", 0.0)
        inputs, _, weights = regression(operation, output, evidence.weights, contrasts=evidence.network.contrasts)
        intercept = getattr(operation.layer, "bias", None) is not None
        grams[operation.name] = moments(inputs, inputs[:, :1], weights, intercept=intercept)[0].detach()

    with torch.no_grad(), telling_calls(module, names, rows_of(evidence.batch), note):
        evidence.network.run(module, evidence.network.once(evidence.batch))
    return grams


def _regression(
    module: nn.Module, group: Group, name: str, gram: Tensor, sensitivity: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a layer's inverse Gram matrix, its weights times sensitivity, and where a group's channels lie in both."""
    layer = module.get_submodule(name)
    damping = RIDGE * gram.diagonal().mean() + SMALLEST_DAMPING
    inverse = torch.linalg.inv(gram + damping * torch.eye(len(gram), dtype=torch.float64))
    member = next(
        m for m in group.members if m.module == name and m.dim == input_dimension(layer) and m.tensor.endswith("weight")
    )
    kernel = taps(layer)
    places = (member.positions[:, :, None] * kernel + torch.arange(kernel)).flatten(1)
    return inverse, solution_of(layer).double() * sensitivity.sqrt(), places


def _output_sensitivity(evidence: Evidence) -> dict[str, Tensor]:
    """Return, for each consumer, the mean over rows of how much the outputs change with each of its own."""
    rows = spread_rows(rows_of(evidence.batch), GRADIENT_ROWS)
    share = (evidence.weights[rows] / evidence.weights[rows].sum()).double()
    names = list(dict.fromkeys(n for group in evidence.groups for n in group.consumers if n not in group.opaque))

    def run(module: Any, batch: Batch) -> Outputs:  # a minibatch at a time
        evidence.progress("importance", 0.0)
        return evidence.network.run(module, batch)

    squares = squared_gradients(
        replace(evidence.network, run=run), names, take(evidence.batch, rows), evidence.terms, evidence.seed
    )
    return {name: share @ values.double() for name, values in squares.items()}


@contextmanager
def inputs_of(module: nn.Module, groups: Sequence[Group]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what each consumer takes in, call by call; each a tensor of its own that only this consumer uses.

    Of one whose operation is not seen it is what its module takes in.
    """
    inputs: dict[str, list[Tensor]] = {}

    def note(name: str, layer: nn.Module, given: Tensor) -> Tensor:
        held = given.clone()  # others may work in place on what this one takes in
        if torch.is_grad_enabled() and not held.requires_grad:
            held = held.detach().requires_grad_(True)
        inputs.setdefault(name, []).append(held)
        return held

    def note_operation(operation: Operation) -> Tensor:
        return operation.run(input=note(operation.name, operation.layer, operation.held))

    consumers = dict.fromkeys((name, name in group.opaque) for group in groups for name in group.consumers)
    seen, opaque = ([name for name, hidden in consumers if hidden == kind] for kind in (False, True))
    with operations(module, seen, note_operation), with_others_taken_in(module, opaque, note):
        yield inputs


def _with_fallback(evidence: Evidence, scores: Sequence[Tensor | None]) -> list[Tensor]:
    """Rank by magnitude where no layer takes a group in, as in an ensemble in one tensor, or none that matters."""
    return [norm if score is None else score for score, norm in zip(scores, magnitude(evidence), strict=True)]


IMPORTANCES: dict[str, Importance] = {
    "taylor": taylor,
    "fisher": fisher,
    "obs": obs,
    "l2": magnitude,
    "random": random,
}
"""Metrics by the name users give."""


def normalized(
    groups: Sequence[Group], scores: Sequence[Tensor], component_weights: Mapping[str, float]
) -> list[Tensor]:
    """Return scores in units of their group's mean, times the mean weight of the group's components.

    Raises:
        PruningError: A weight is for a component that there is not.
    """
    known = {component for group in groups for component in group.components}
    for component, weight in component_weights.items():
        if component not in known:
            raise PruningError(f"there is a weight for component {component!r}; there are {', '.join(sorted(known))}")
        if weight <= 0:
            raise PruningError(f"the weight of component {component!r} is {weight:g}; it has to be above 0")
    weighted = []
    for group, score in zip(groups, scores, strict=True):
        weight = sum(component_weights.get(component, 1.0) for component in group.components) / len(group.components)
        mean = float(score.mean())
        weighted.append(weight * (score / mean if mean > 0 else torch.ones_like(score)))
    return weighted
