"""Importance of channels within their group. Every metric returns one score a channel; the least leave first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nncontrol_prune.pruning.groups import Group
from nncontrol_prune.pruning.hooks import capture

Importance = Callable[[nn.Module, Sequence[Group], Tensor, Tensor], list[Tensor]]
"""Takes the module, its groups, observations (rows, n) and their weights (rows,); returns scores by group."""

GRADIENT_ROWS = 2048
"""Rows that Taylor scores are averaged over; one minibatch of a few hundred is mostly noise."""


def magnitude(module: nn.Module, groups: Sequence[Group], observation: Tensor, weights: Tensor) -> list[Tensor]:
    """Norm of everything that leaves with channel j: `sqrt(sum_members ||W_member[j]||²)` (Li et al. 2017)."""
    scores = []
    for group in groups:
        total = torch.zeros(group.channels)
        for name in group.producers:
            layer = _linear(module, name)
            total += layer.weight.detach().square().sum(dim=1)
            if layer.bias is not None:
                total += layer.bias.detach().square()
        for name in group.consumers:
            total += _linear(module, name).weight.detach().square().sum(dim=0)
        scores.append(total.sqrt())
    return scores


def taylor(module: nn.Module, groups: Sequence[Group], observation: Tensor, weights: Tensor) -> list[Tensor]:
    """First-order change of the actions when a channel is replaced by its mean.

    `score_j = E_x[ sum_k ( (h_j(x) - mean h_j) ∂a_k/∂h_j(x) )² ]`, after Molchanov et al. 2017. What is
    differentiated is the action itself: the gradient of a distillation loss vanishes at the dense controller. The
    mean stays since reconstruction puts it into the next layer's bias.
    """
    rows = torch.linspace(0, len(observation) - 1, min(GRADIENT_ROWS, len(observation))).long()
    observation, weights = observation[rows], weights[rows] / weights[rows].mean()
    inputs = {group.name: group.consumers[0] for group in groups}
    with torch.enable_grad(), capture(module, inputs.values(), "input") as captured:
        # A leaf at the input, so that every hidden activation has a gradient even if the weights are frozen.
        actions = module(observation.clone().requires_grad_(True))
        hidden = [captured[consumer] for consumer in inputs.values()]
        scores = [torch.zeros(group.channels) for group in groups]
        for index in range(actions.shape[1]):
            gradients = torch.autograd.grad(actions[:, index].sum(), hidden, retain_graph=True)
            for group, (activation, gradient) in enumerate(zip(hidden, gradients, strict=True)):
                mean = (weights[:, None] * activation).mean(dim=0)
                effect = (activation - mean).detach() * gradient
                scores[group] += (weights[:, None] * effect.square()).mean(dim=0)
    return scores


IMPORTANCES: dict[str, Importance] = {"taylor": taylor, "l2": magnitude}
"""Metrics by the name users give."""


def _linear(module: nn.Module, name: str) -> nn.Linear:
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer
