"""Closed-form least-squares reconstruction: the layer after a removal takes over what the channels did.

For each layer that lost inputs, in the order they run, with h the activations it still gets in the *pruned*
network and z what it gave out in the *dense* one, both over the rollouts with row weights ω:

    (W, b) = argmin Σ_i ω_i ‖W h_i + b - z_i‖² + λ ‖W‖²,    λ = ridge · mean diagonal of the Gram matrix

This is the least-squares step of He et al. 2017 (channel pruning), for every layer of a controller.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nncontrol_prune.pruning.groups import Group
from nncontrol_prune.pruning.hooks import capture

RIDGE = 1e-6
"""Keeps the problem well posed where activations are dependent, without changing a solution that is."""


def consumers_of(groups: Sequence[Group]) -> list[str]:
    """Return the layers that lose inputs with the groups, in the order they run."""
    return list(dict.fromkeys(name for group in groups for name in group.consumers))


@torch.no_grad()
def reconstruct(
    pruned: nn.Module,
    dense: nn.Module,
    groups: Sequence[Group],
    keep: Sequence[Tensor],
    observation: Tensor,
    weights: Tensor,
) -> None:
    """Refit, in place, every layer of `pruned` that lost inputs.

    Args:
        pruned: The network after surgery.
        dense: The network before.
        groups: The groups that lost channels.
        keep: Indices of the channels that stayed, by group.
        observation: Observations (rows, n) of the rollouts.
        weights: Their weights (rows,).
    """
    names = consumers_of(groups)
    kept_outputs = {name: indices for group, indices in zip(groups, keep, strict=True) for name in group.producers}
    with capture(dense, names, "output") as targets:
        dense(observation)
    for name in names:
        with capture(pruned, [name], "input") as inputs:
            pruned(observation)
        target = targets[name]
        if name in kept_outputs:
            target = target[:, kept_outputs[name]]
        weight, bias = weighted_ridge(inputs[name].double(), target.double(), weights.double())
        layer = pruned.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.weight.copy_(weight.T)
        layer.bias.copy_(bias)


def weighted_ridge(
    inputs: Tensor, targets: Tensor, weights: Tensor, penalty: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Solve the weighted ridge regression above; differentiable.

    Args:
        inputs: h, (rows, k).
        targets: z, (rows, m).
        weights: ω, (rows,).
        penalty: A further penalty on each input's weights, (k,), in units of that input's own Gram entry.

    Returns:
        The weight, (k, m), and the bias, (m,).
    """
    share = (weights / weights.sum())[:, None]
    input_mean, target_mean = (share * inputs).sum(0), (share * targets).sum(0)
    centred = inputs - input_mean
    gram = centred.T @ (share * centred)
    cross = centred.T @ (share * (targets - target_mean))
    diagonal = gram.diagonal()
    ridge = RIDGE * diagonal.mean() + torch.finfo(gram.dtype).tiny ** 0.5
    damping = ridge + (0.0 if penalty is None else penalty * diagonal)
    weight = torch.linalg.solve(gram + torch.diag(damping.expand_as(diagonal)), cross)
    return weight, target_mean - input_mean @ weight
