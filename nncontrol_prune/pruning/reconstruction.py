"""Closed-form least-squares reconstruction: the layers after a removal take over what the channels did.

One pass over the rollouts, layer by layer in the order they run, so that each layer is fitted to what the layers
before it, already fitted, now give it. With h_i what a layer takes in in the *pruned* network, z_i what it gave out in
the *dense* one and ω_i the weight of row i,

    (W, b) = argmin Σ_i ω_i ‖W h_i + b - z_i‖² / Σ_i ω_i + λ ‖W‖²,    λ = ridge · mean diagonal of the Gram matrix

(He et al. 2017, channel pruning). Where rows are scarce it is λ ‖W - W_0‖², with the weights W_0 that the layer has
left and a larger λ: what the rows do not tell stays as it was. A convolution is fitted on its patches. A norm that lost
channels has other statistics now; its affine part is fitted channel by channel, (γ, β) → (aγ, aβ + b) with (a, b) =
argmin Σ_i ω_i (a n_i + b - m_i)² for what it gives out, n, and gave out, m. A layer that runs several times, as when
dynamics are unrolled, is fitted the first time, where its inputs are logged states and not yet its own predictions; or,
where these are the same in all rows, as a state that starts at zero is, the first time that they are not. h and z
are those of the operation that uses a layer's weight (operations.py), and its module may do more; but a layer whose
`forward` makes something else of its weight first is no such regression and is left as it is.

What the last layers give out matters more in some rows than in others: not at all where a squashed action is at its
limit or a softmax has settled. So they are fitted once more, output k with the row weights ω_i (½ + ½ s_k(i)), where
s_k(i) is the squared gradient of what matters by z_k in row i (sensitivity.py), in units of its mean, and the mean of
the dense network's and the pruned one's: the average over the way between them, so that a saturated row still counts
where the pruned network has left saturation.

A planner compares plans from one state, and these differ by far less than states do. Where a row holds alternatives
(`Network.contrasts`), their deviations from the row's mean are blown up, in h and z alike, until they vary as much as
rows: W and b that were exact stay so, and the fit attends to both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nncontrol_prune.pruning.groups import TRANSPOSED, Group, leaving_entries, weighted_norms
from nncontrol_prune.pruning.layers import (
    NORMS,
    channel_dimension,
    load_solution,
    regressors,
    responses,
    solution_of,
)
from nncontrol_prune.pruning.network import Batch, Network, rows_of, spread_rows, take
from nncontrol_prune.pruning.operations import Operation, operations, telling_calls, weight_of
from nncontrol_prune.pruning.ridge import RIDGE, Masks, weighted_ridge
from nncontrol_prune.pruning.sensitivity import squared_gradients
from nncontrol_prune.pruning.terms import Term

SCARCE_RIDGE = 1e-1
"""The ridge where a layer has fewer than two rows for each of its inputs."""
LARGEST_CONTRAST_FACTOR = 30.0
"""Beyond that, what differs within a row is rather noise than preference."""
LAST_LAYER_ROWS = 4096
"""Rows that the last layers are fitted on where they count; each output is a regression of its own."""
REGRESSION_ROWS = 20_000
"""Of what a layer is fitted on, at the most."""


class Target(NamedTuple):
    """What a layer is fitted to.

    Attributes:
        call: In which of its calls, from 0.
        output: What it gave out in that call in the dense network.
    """

    call: int
    output: Tensor


def fitted_layers(module: nn.Module, groups: Sequence[Group]) -> list[str]:
    """Return the names of the layers to fit: those that take a group in, and norms that a group passes through."""
    names = [name for group in groups for name in group.consumers]
    for group in groups:
        names += [m.module for m in group.members if isinstance(module.get_submodule(m.module), NORMS)]
    opaque = {name for group in groups for name in group.opaque}
    return [name for name in dict.fromkeys(names) if name not in opaque]


@torch.no_grad()
def dense_targets(network: Network[Any], groups: Sequence[Group], batch: Batch) -> dict[str, Target]:
    """Return what each layer is fitted to, by name.

    That of a norm without weight, of which nothing is fitted, is what it gives out, too.
    """
    targets: dict[str, Target] = {}

    def note(operation: Operation, output: Tensor) -> None:
        # What comes after may work in place, and a forward pass may have turned gradients on.
        targets[operation.name] = Target(operation.call, output.detach().clone())

    names = fitted_layers(network.module, groups)
    with weighted_norms(network.module), telling_calls(network.module, names, rows_of(batch), note):
        network.run(network.module, network.once(batch))
    return targets


@torch.no_grad()
def reconstruct(
    pruned: nn.Module,
    network: Network[Any],
    groups: Sequence[Group],
    keep: Sequence[Tensor],
    batch: Batch,
    weights: Tensor,
    *,
    terms: Sequence[Term] = (),
    targets: Mapping[str, Target] | None = None,
    sensitivity: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """Refit, in place, every layer of `pruned` that lost inputs, and every norm that lost channels.

    Args:
        pruned: The network after surgery.
        network: The dense network and how it is run.
        groups: The groups that lost channels.
        keep: Indices of the channels that stayed, by group.
        batch: Rows of the rollouts.
        weights: Their weights (rows,).
        terms: What matters of the outputs, with their scales; without, the last layers are fitted like all others.
        targets: What `dense_targets` returned for them; None to find out.
        sensitivity: What `last_layer_sensitivity` returned for the dense network; None to find out.

    Returns:
        Warnings, as sentences.
    """
    targets = dense_targets(network, groups, batch) if targets is None else targets
    leaving = leaving_entries(groups, keep)
    warnings = _not_refitted(pruned, groups)

    def refit(operation: Operation) -> None:
        name, layer = operation.name, operation.layer
        target = targets[name].output
        gone = leaving.get((weight_of(name), 1 if isinstance(layer, TRANSPOSED) else 0))
        if gone is not None:
            channel = channel_dimension(layer, target)
            stays = torch.ones(target.shape[channel], dtype=torch.bool)
            stays[gone] = False
            target = target.index_select(channel, torch.nonzero(stays)[:, 0])
        if isinstance(layer, NORMS):
            _refit_norm(layer, operation.run(), target, weights)
            return
        inputs, wanted, by_item = regression(operation, target, weights, contrasts=network.contrasts)
        if _are_scarce(inputs, by_item):
            warnings.append(
                f"{name} has {inputs.shape[1]} inputs and is fitted on {_rows(by_item)} rows only, so it is "
                "regularized strongly; record more rollouts"
            )
        weight, bias = least_squares(layer, inputs, wanted, by_item, solution_of(layer).double())
        load_solution(layer, weight, bias)

    with _before_calls(pruned, targets, refit):
        network.run(pruned, network.once(batch))
    if terms and last_layers(network.module, groups):
        if sensitivity is None:
            sensitivity = last_layer_sensitivity(network, groups, batch, terms)
        _refit_last_layers(pruned, network, batch, weights, terms, targets, sensitivity)
    return warnings


def _not_refitted(module: nn.Module, groups: Sequence[Group]) -> list[str]:
    """Return warnings that name what takes a group in, or norms it, and cannot be fitted.

    Such are parameters that no layer's operation uses, as an ensemble's whose members are in one tensor, and layers
    whose `forward` makes something else of weight and bias before.
    """
    made_up = "distillation can make up for what they lose"
    warnings = list[str]()
    if left := dict.fromkeys(name for group in groups for name in group.multiplied):
        warnings.append(f"reconstruction cannot refit {', '.join(left)}; {made_up}")
    opaque = dict.fromkeys(name for group in groups for name in group.opaque)
    if others := [name for name in opaque if module.get_submodule(name).weight is not None]:
        warnings.append(
            f"reconstruction cannot refit {', '.join(others)}: weight and bias are not used there as they are, in one "
            "operation of torch's for such a layer, since a forward method of its own changes one of them first, as "
            f"by a factor or .data, uses them one after the other, or has operations of its own; {made_up}"
        )
    return warnings


def last_layers(module: nn.Module, groups: Sequence[Group]) -> list[str]:
    """Return the names of the linear layers to fit all of whose outputs stay."""
    producers = {name for group in groups for name in group.producers}
    names = fitted_layers(module, groups)
    return [name for name in names if name not in producers and isinstance(module.get_submodule(name), nn.Linear)]


def last_layer_sensitivity(
    network: Network[Any], groups: Sequence[Group], batch: Batch, terms: Sequence[Term]
) -> dict[str, Tensor]:
    """Return `squared_gradients` of the last layers, for the rows that they are fitted on."""
    rows = spread_rows(rows_of(batch), LAST_LAYER_ROWS)
    return squared_gradients(network, last_layers(network.module, groups), take(batch, rows), terms)


def _refit_last_layers(
    pruned: nn.Module,
    network: Network[Any],
    batch: Batch,
    weights: Tensor,
    terms: Sequence[Term],
    targets: Mapping[str, Target],
    dense: Mapping[str, Tensor],
) -> None:
    count = len(weights)
    rows = spread_rows(count, LAST_LAYER_ROWS)
    batch, weights = take(batch, rows), weights[rows]
    found = squared_gradients(replace(network, module=pruned), list(dense), batch, terms)

    def refit(operation: Operation) -> None:
        name, layer = operation.name, operation.layer
        target = targets[name].output.unflatten(0, (count, -1))[rows].flatten(0, 1)
        mattering = (dense[name] + found[name]).double()
        mean = (weights[:, None] * mattering).sum(0) / weights.sum()
        share = 0.5 + 0.5 * mattering / mean.clamp_min(torch.finfo(torch.float32).tiny)
        inputs, wanted, by_output = regression(operation, target, weights[:, None] * share, contrasts=network.contrasts)
        left = solution_of(layer).double()
        solutions = [
            least_squares(layer, inputs, wanted[:, [k]], by_output[:, k], left[:, [k]]) for k in range(wanted.shape[1])
        ]
        load_solution(layer, torch.cat([w for w, _ in solutions], dim=1), torch.cat([b for _, b in solutions]))

    with _before_calls(pruned, {name: targets[name] for name in found}, refit):
        network.run(pruned, network.once(batch))


def least_squares(
    layer: nn.Module, inputs: Tensor, wanted: Tensor, weights: Tensor, left: Tensor, masks: Masks | None = None
) -> tuple[Tensor, Tensor]:
    """Return the `weighted_ridge` of a layer, where rows are scarce near the weights that it has left; differentiable.

    Args:
        layer: The layer.
        inputs: What `regression` returned of regressors, (n, k).
        wanted: Responses, (n, m).
        weights: Of the rows, (n,).
        left: The weights that it has left, (k, m).
        masks: Random masks of the inputs; None where all of them stay.

    Returns:
        The weight, (k, m), and the bias, (m,).
    """
    scarce = _are_scarce(inputs, weights)
    return weighted_ridge(
        inputs,
        wanted,
        weights,
        masks,
        ridge=SCARCE_RIDGE if scarce else RIDGE,
        towards=left if scarce else None,
        intercept=getattr(layer, "bias", None) is not None,
    )


def _are_scarce(inputs: Tensor, weights: Tensor) -> bool:
    """Return whether there are fewer than two rows for each of a layer's inputs (rows, k)."""
    return _rows(weights) < 2 * inputs.shape[1]


def _rows(weights: Tensor) -> int:
    """Return how many rows count at all."""
    return int((weights > 0).sum())


def _before_calls(
    module: nn.Module, targets: Mapping[str, Target], refit: Callable[[Operation], None]
) -> AbstractContextManager[Any]:
    """Within the block, refit each layer when its operation is to run as its target tells."""

    def refit_there(operation: Operation) -> Tensor:
        if operation.call == targets[operation.name].call:
            refit(operation)
        return operation.run()

    return operations(module, targets, refit_there)


def regression(
    operation: Operation, output: Tensor, weights: Tensor, *, contrasts: bool, limit: int = REGRESSION_ROWS
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a layer is fitted on, in double precision.

    Args:
        operation: What takes in an item for each row of data, or as many for each, one row's behind the other's.
        output: What the layer is to give out for that.
        weights: Of the rows of data, (rows,) or (rows, m).
        contrasts: Whether deviations from a row's mean are blown up.
        limit: Items times positions at the most; the patches of images are many and alike.

    Returns:
        Regressors (n, k), responses (n, m), and their weights, (n,) or (n, m).
    """
    layer, held = operation.layer, operation.held
    positions = len(regressors(operation, held[:1]))
    items = spread_rows(len(held), max(1, limit // positions))
    weights = weights.repeat_interleave(len(held) // len(weights), dim=0)[items]
    held, output = held[items], output[items]
    if contrasts:
        factor = contrast_factor(layer, output)
        held, output = blown_up(held, factor), blown_up(output, factor)
    weights = weights.double().repeat_interleave(positions, dim=0)
    return regressors(operation, held).double(), responses(layer, output).double(), weights


def contrast_factor(layer: nn.Module, outputs: Tensor) -> float:
    """Return by how much a layer's outputs differ more between rows than within them; 1 where rows hold one each."""
    if not isinstance(layer, nn.Linear) or outputs.dim() != 3 or outputs.shape[1] == 1:
        return 1.0
    means = outputs.mean(dim=1, keepdim=True)
    within, between = (outputs - means).square().mean(), (means - means.mean(dim=0)).square().mean()
    return float((between / within.clamp_min(1e-12)).sqrt().clamp(1.0, LARGEST_CONTRAST_FACTOR))


def blown_up(values: Tensor, factor: float) -> Tensor:
    """Multiply deviations from the row's mean, in values (rows, positions, channels)."""
    if factor == 1.0:
        return values
    means = values.mean(dim=1, keepdim=True)
    return means + factor * (values - means)


def _refit_norm(layer: nn.Module, output: Tensor, target: Tensor, weights: Tensor) -> None:
    found, wanted = responses(layer, output), responses(layer, target)
    scale, offset = affine_fit(found, wanted, weights, intercept=getattr(layer, "bias", None) is not None)
    gain: Any = layer.weight
    shift: Any = getattr(layer, "bias", None)
    gain.mul_(scale)
    if shift is not None:
        shift.mul_(scale).add_(offset)


def affine_fit(found: Tensor, wanted: Tensor, weights: Tensor, *, intercept: bool) -> tuple[Tensor, Tensor]:
    """Fit `a · found + b` to what is wanted, channel by channel; differentiable.

    Args:
        found: What there is, (rows · positions, channels).
        wanted: What it is to be, of the same shape.
        weights: Of the rows.
        intercept: Whether there is a b.

    Returns:
        a and b, (channels,).
    """
    share = (weights / weights.sum()).to(found.dtype)
    share = share.repeat_interleave(len(found) // len(weights)) * (len(weights) / len(found))
    mean, wanted_mean = float(intercept) * (share @ found), float(intercept) * (share @ wanted)
    centred = found - mean
    variance, covariance = share @ centred.square(), share @ (centred * (wanted - wanted_mean))
    # A channel that never changes keeps its scale, and only its offset is fitted.
    constant = variance <= 1e-12
    scale = torch.where(constant, torch.ones_like(variance), covariance / variance.clamp_min(1e-12))
    return scale, wanted_mean - scale * mean
