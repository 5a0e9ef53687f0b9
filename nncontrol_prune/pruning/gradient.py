"""Pruning coefficients by gradient descent on soft masks, with reconstruction inside the objective.

Channel j of group g, of importance rank r_j (0 leaves first), is kept with probability

    m_j = σ((r_j + ½ - α_g n_g) / τ)

and τ is annealed, so that the masks become hard. A mask that only scales activations would be undone by the
next layer's least squares; so the layer is fitted to *random* masks b_j ~ Bernoulli(m_j) in expectation, which is
again least squares, with u = W·m and the Gram matrix G of the centred activations:

    E‖W (b ∘ h) - z‖²  is least for  (G + diag((1 - m_j) / m_j · G_jj)) u = H^T Z

(the expected Gram matrix is M G M + diag(m (1 - m) G_jj); compare dropout as adaptive regularization, Wager et al.
2013). The solution is exact for m_j = 1, drops channels as m_j → 0, and is differentiable in α throughout. The
budget is met by an augmented Lagrangian.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nncontrol_prune.progress import Progress
from nncontrol_prune.pruning.coefficients import CoefficientProblem, uniform
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.groups import Group
from nncontrol_prune.pruning.hooks import capture
from nncontrol_prune.pruning.reconstruction import consumers_of, weighted_ridge
from nncontrol_prune.pruning.surgery import Module

STEPS = 80
LEARNING_RATE = 0.15
FIT_ROWS, HELD_OUT_ROWS = 1200, 400
TEMPERATURES = (0.10, 0.01)
"""First and last τ, as a share of the group's channels."""
SMALLEST_MASK = 1e-4


def gradient(problem: CoefficientProblem[Module], progress: Progress) -> list[int]:
    """Descend on the soft objective from uniform coefficients; return the better of start and end, by the true one."""
    start = uniform(problem, progress)
    descended = _descend(problem, problem.coefficients_of(start), progress)
    try:
        found = problem.land(descended)
    except PruningError:  # near these coefficients no whole number of channels meets the budget
        return start
    return min((start, found), key=lambda kept: problem.objective(problem.build(kept)))


def _descend(problem: CoefficientProblem[Module], start: Sequence[float], progress: Progress) -> list[float]:
    data = problem.calibration
    fit = _thin(len(data.fit), FIT_ROWS)
    held_out = _thin(len(data.held_out), HELD_OUT_ROWS)
    observation = torch.cat([data.fit[fit], data.held_out[held_out]])
    fit_weights, judge_weights = data.fit_weights[fit], data.held_out_weights[held_out]
    names = consumers_of(problem.groups)
    with torch.no_grad(), capture(problem.module, names, "output") as targets:
        actions = problem.module(observation)
    ranks = [torch.argsort(torch.argsort(score, stable=True)) for score in problem.scores]
    logits = torch.logit(torch.tensor(start).clamp(0.02, 0.98)).requires_grad_(True)
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE)
    multiplier, stiffness = 0.0, 100.0
    for step in range(STEPS):
        progress("coefficients", step / STEPS)
        share = step / (STEPS - 1)
        temperature = TEMPERATURES[0] ** (1 - share) * TEMPERATURES[1] ** share
        coefficients = torch.sigmoid(logits)
        masks = [
            torch.sigmoid((rank / len(rank) + 0.5 / len(rank) - coefficient) / temperature).clamp_min(SMALLEST_MASK)
            for rank, coefficient in zip(ranks, coefficients, strict=True)
        ]
        with _soft_masks(problem.module, problem.groups, masks, targets, fit_weights):
            error = (problem.module(observation) - actions)[len(fit) :] / problem.action_range
        objective = (judge_weights * error.square().sum(dim=1)).mean()
        removed = 1.0 - problem.count(1.0 - coefficients) / problem.count.dense
        assert isinstance(removed, Tensor)
        excess = removed - problem.sparsity
        # The logarithm makes a step independent of the error's scale, which spans orders of magnitude.
        loss = torch.log(objective + 1e-10) + multiplier * excess + 0.5 * stiffness * excess**2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        multiplier += stiffness * float(excess.detach()) * 0.1
    return torch.sigmoid(logits).tolist()


@contextmanager
def _soft_masks(
    module: nn.Module,
    groups: Sequence[Group],
    masks: Sequence[Tensor],
    targets: dict[str, Tensor],
    fit_weights: Tensor,
) -> Iterator[None]:
    """Within the block, each consumer gives out its reconstruction from softly masked inputs.

    The first `len(fit_weights)` rows of the batch fit it; it is applied to all.
    """
    rows = len(fit_weights)

    def fitted(inputs: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        hidden = inputs.double()
        penalty = (1.0 - mask.double()) / mask.double()
        weight, bias = weighted_ridge(hidden[:rows], target[:rows].double(), fit_weights.double(), penalty)
        return (hidden @ weight + bias).to(inputs.dtype)

    hooks = [
        module.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, mask=mask, name=name: fitted(inputs[0], mask, targets[name])
        )
        for group, mask in zip(groups, masks, strict=True)
        for name in group.consumers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _thin(rows: int, limit: int) -> Tensor:
    """Return at most `limit` row numbers, evenly spread."""
    return torch.arange(0, rows, max(1, math.ceil(rows / limit)))
