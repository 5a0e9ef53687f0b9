"""What ours is compared with: Torch-Pruning, set up as its authors do, and a small network from scratch.

Torch-Pruning (Fang et al. 2023) selects the channels with its own graph, importance and ranking in one step:
`GroupMagnitudeImportance` or `GroupTaylorImportance` with their defaults, `pruning_ratio` the same for all layers
(local) or one ranking over all layers (global). Its ratio counts channels; it is bisected until the share of
*parameters* removed is the one asked for. The selection is then carried out by our surgery, so that reconstruction and
distillation can follow for both alike; that Torch-Pruning's own surgery gives the same network is asserted each time
(but for its LayerNorm, see `_check_same`; ours is in its favour).

Taylor needs a loss. That of distillation has no gradient at the dense network, its own minimum, and an actor has no
labels. Differentiated is `E_i ω_i Σ_k (y_k(i) / scale_k)²`, the mean square of the outputs that have a term, in the
terms' scales, over all rows that ours are given too: its gradient does not average out over minibatches as that of a
random projection would. Gradients add up over minibatches, signed, as Torch-Pruning has it.

Left alone are layers whose outputs cannot leave and those that make a latent of simplices: Torch-Pruning takes single
entries out of them. Groups that are tied (the members of an ensemble) keep the mean of what
Torch-Pruning would leave of each, by its own ranking.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch_pruning

from nncontrol_prune.pruning.calibration import Calibration
from nncontrol_prune.pruning.costs import parameter_cost
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.groups import LINEAR, TRANSPOSED, Group
from nncontrol_prune.pruning.network import Network, rows_of, take
from nncontrol_prune.pruning.surgery import remove_channels
from nncontrol_prune.pruning.terms import Term, weighted_sum

MINIBATCH = 256
BISECTIONS = 14
CHECKED_ROWS = 64
SAME = 1e-4
"""How far Torch-Pruning's surgery and ours may differ, relative to the largest output: float32 in another order."""

Importance = Literal["magnitude", "taylor"]
Removed = dict[tuple[str, int], set[int]]
"""Indices of the entries that leave, by (tensor, dimension)."""


def torch_pruning_selection(
    network: Network[Any],
    groups: Sequence[Group],
    calibration: Calibration,
    terms: Sequence[Term],
    importance: Importance,
    *,
    everywhere: bool,
    sparsity: float,
    tolerance: float,
) -> list[Tensor]:
    """Return the channels that Torch-Pruning keeps, by our groups.

    Args:
        network: The dense network.
        groups: Our groups.
        calibration: The data.
        terms: What matters of the outputs.
        importance: Torch-Pruning's importance.
        everywhere: Whether all layers are ranked together.
        sparsity: Share of the parameters to remove.
        tolerance: How far it may be off.

    Raises:
        PruningError: No ratio of channels comes within the tolerance.
    """
    module = copy.deepcopy(network.module)
    if importance == "taylor":
        _accumulate_gradients(network, module, calibration, terms)
    cost = parameter_cost(network.module, groups)
    low, high = 0.0, 1.0
    best, least = None, float("inf")
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        pruned, theirs, ranked = _prune(network, module, groups, calibration, importance, everywhere, ratio)
        keep = equalized(network.tied(groups), theirs, ranked)
        removed = float(cost.removed([len(k) / group.channels for k, group in zip(keep, groups, strict=True)]))
        if abs(removed - sparsity) < least:
            best, least = (pruned, theirs, keep), abs(removed - sparsity)
        low, high = (ratio, high) if removed < sparsity else (low, ratio)
    if best is None or least > tolerance:
        raise PruningError(f"no ratio of channels comes within {tolerance:g} of sparsity {sparsity:g}")
    pruned, theirs, keep = best
    ours = remove_channels(network.module, groups, theirs)
    _check_same(network, pruned, ours, take(calibration.fit, torch.arange(CHECKED_ROWS)))
    return keep


def from_scratch(module: nn.Module, seed: int) -> nn.Module:
    """Return a copy of a module whose layers start anew, as they do in training."""
    fresh = copy.deepcopy(module)
    torch.manual_seed(seed)
    for layer in fresh.modules():
        reset = getattr(layer, "reset_parameters", None)
        if reset is not None:
            reset()
    return fresh


def equalized(ties: Sequence[Sequence[int]], keep: Sequence[Tensor], ranked: Sequence[Tensor]) -> list[Tensor]:
    """Return the channels to keep with as many in each of the groups that are tied.

    Args:
        ties: Groups, by index, that are tied together.
        keep: Channels to keep, by group.
        ranked: All channels, the most important first, by group.
    """
    result = list(keep)
    for members in ties:
        if len({len(keep[member]) for member in members}) > 1:
            count = max(1, round(sum(len(keep[member]) for member in members) / len(members)))
            for member in members:
                result[member] = torch.sort(ranked[member][:count]).values
    return result


def kept_channels(groups: Sequence[Group], removed: Removed) -> list[Tensor]:
    """Return the channels of our groups that are left when entries of tensors leave.

    Raises:
        ValueError: A part of a channel leaves, or not in all of its members.
    """
    keep = []
    for group in groups:
        gone = torch.zeros(group.channels, dtype=torch.bool)
        first = True
        for member in group.members:
            place = (member.tensor, member.dim)
            if place not in removed and not member.tensor.endswith("weight"):
                continue  # biases and buffers follow their layer
            entries = torch.tensor([[e in removed.get(place, ()) for e in row] for row in member.positions.tolist()])
            if bool((entries.any(1) != entries.all(1)).any()) or (not first and bool((entries.all(1) != gone).any())):
                raise ValueError(f"channels of {group.name} leave {member.tensor} in part")
            gone, first = entries.all(1), False
        keep.append(torch.nonzero(~gone)[:, 0])
    return keep


def _prune(
    network: Network[Any],
    module: nn.Module,
    groups: Sequence[Group],
    calibration: Calibration,
    importance: Importance,
    everywhere: bool,
    ratio: float,
) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """Return what Torch-Pruning makes at a ratio of channels, the channels it keeps, and all channels by rank."""
    pruned = copy.deepcopy(module)
    for parameter, dense in zip(pruned.parameters(), module.parameters(), strict=True):
        parameter.grad = None if dense.grad is None else dense.grad.clone()
    names = {submodule: name for name, submodule in pruned.named_modules()}
    few = take(calibration.fit, torch.arange(4))
    judge = _Remembered(importance, names)
    pruner = torch_pruning.pruner.BasePruner(
        pruned,
        few,
        importance=judge,
        global_pruning=everywhere,
        pruning_ratio=ratio,
        ignored_layers=[pruned.get_submodule(name) for name in _untouched(module, groups)],
        root_module_types=[*LINEAR, *TRANSPOSED],
        forward_fn=network.run,
    )
    removed: Removed = {}
    for found in pruner.step(interactive=True):
        for dependency, indices in found:
            place = _place(names, dependency)
            if place is not None:
                removed.setdefault(place, set()).update(indices)
        found.prune()
    return pruned, kept_channels(groups, removed), [judge.ranked(group) for group in groups]


class _Remembered:
    """An importance of Torch-Pruning's that remembers the scores it gave."""

    def __init__(self, importance: Importance, names: dict[nn.Module, str]) -> None:
        kinds = torch_pruning.importance
        self._judge = kinds.GroupTaylorImportance() if importance == "taylor" else kinds.GroupMagnitudeImportance()
        self._names = names
        self._scores: dict[str, Tensor] = {}

    def __call__(self, group: Any) -> Any:
        scores = self._judge(group)
        if scores is not None:
            self._scores[self._names[group[0].dep.target.module]] = scores
        return scores

    def ranked(self, group: Group) -> Tensor:
        """Return the channels of one of our groups, the most important first."""
        for name in group.producers:
            if name in self._scores:
                return torch.argsort(self._scores[name], descending=True)
        return torch.arange(group.channels)


def _place(names: dict[nn.Module, str], dependency: Any) -> tuple[str, int] | None:
    """Return the weight and the dimension that a step of Torch-Pruning's takes entries out of, if it does."""
    layer = dependency.target.module
    if not isinstance(layer, (*LINEAR, *TRANSPOSED)):
        return (f"{names[layer]}.weight", 0) if getattr(layer, "weight", None) is not None else None
    outputs = dependency.handler in (
        torch_pruning.prune_linear_out_channels,
        torch_pruning.prune_conv_out_channels,
    )
    return f"{names[layer]}.weight", int(outputs == isinstance(layer, TRANSPOSED))


def _untouched(module: nn.Module, groups: Sequence[Group]) -> list[str]:
    """Return the names of the layers whose outputs Torch-Pruning must leave alone."""
    simplices = (group for group in groups if all(member.width > 1 for member in group.members))
    left_alone = {name for group in simplices for name in group.producers}
    allowed = {name for group in groups for name in group.producers} - left_alone
    layers = (name for name, layer in module.named_modules() if isinstance(layer, (*LINEAR, *TRANSPOSED)))
    return [name for name in layers if name not in allowed]


def _accumulate_gradients(
    network: Network[Any], module: nn.Module, calibration: Calibration, terms: Sequence[Term]
) -> None:
    rows = rows_of(calibration.fit)
    for part in torch.arange(rows).split(MINIBATCH):
        batch, weights = take(calibration.fit, part), calibration.fit_weights[part]
        outputs = network.run(module, batch)
        loss, _ = weighted_sum([replace(term, target="zero") for term in terms], outputs, outputs, batch, weights)
        (loss * len(part) / rows).backward()
    for parameter in module.parameters():
        if parameter.grad is None:  # no output that matters depends on it
            parameter.grad = torch.zeros_like(parameter)


@torch.no_grad()
def _check_same(network: Network[Any], theirs: nn.Module, ours: nn.Module, batch: dict[str, Tensor]) -> None:
    for name, layer in theirs.named_modules():
        if isinstance(layer, nn.LayerNorm):
            # Torch-Pruning 1.6.1 sorts the indices to keep into a tensor that it then drops, so that a LayerNorm of
            # few channels has its gains and offsets in another order. Ours has them where they belong.
            layer.load_state_dict(ours.get_submodule(name).state_dict())
    found, wanted = network.run(theirs, batch), network.run(ours, batch)
    for name, output in wanted.items():
        error = float((found[name] - output).abs().max()) / max(1.0, float(output.abs().max()))
        assert error <= SAME, f"Torch-Pruning's surgery and ours differ in {name} by {error:.2g}"
