"""Weighted ridge regression: by a matrix (inputs, inputs), or (rows, rows) where there are fewer rows than inputs.

    (W, b) = argmin Σ_i ω_i ‖W^T h_i + b - z_i‖² / Σ_i ω_i + λ ‖W - W_0‖² + Σ_c d_c ‖A_c W_c‖²

A holds the inputs, about their weighted mean where there is a b, a row times the root of its share of the weight; λ is
`ridge` times the mean diagonal of the Gram matrix A^T A. The last sum is what random masks of the inputs come to in
expectation (gradient.py, where this W is called u): c are channels, whose inputs stay or leave as one, and d_c the odds
that it leaves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RIDGE = 1e-6
"""Keeps the problem well posed where inputs are dependent, without changing a solution that is."""
SMALLEST_DAMPING = torch.finfo(torch.float64).tiny ** 0.25
"""Where inputs never change; its square can still be divided by."""


class Masks(NamedTuple):
    """Random masks of inputs.

    Attributes:
        channel: (k,); inputs of one channel have one number.
        odds: (k,); the probability that an input leaves over that it stays, the same within a channel.
    """

    channel: Tensor
    odds: Tensor


def moments(
    inputs: Tensor, targets: Tensor, weights: Tensor, *, intercept: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the Gram matrix (k, k), the cross moments (k, m), and the means of inputs and targets.

    With an intercept the moments are about the means; without, the means are zero.
    """
    share, input_mean, target_mean = _means(inputs, targets, weights, intercept=intercept)
    centred = inputs - input_mean
    return centred.T @ (share * centred), centred.T @ (share * (targets - target_mean)), input_mean, target_mean


def weighted_ridge(
    inputs: Tensor,
    targets: Tensor,
    weights: Tensor,
    masks: Masks | None = None,
    *,
    ridge: float = RIDGE,
    towards: Tensor | None = None,
    intercept: bool = True,
) -> tuple[Tensor, Tensor]:
    """Solve the weighted ridge regression above; differentiable.

    Args:
        inputs: h, (rows, k).
        targets: z, (rows, m).
        weights: ω, (rows,).
        masks: Of the inputs; None where all of them stay.
        ridge: λ, as a share of the mean diagonal of the Gram matrix.
        towards: W_0, (k, m); None for zero.
        intercept: Whether there is a b.

    Returns:
        The weight, (k, m), and the bias, (m,).
    """
    if len(inputs) < inputs.shape[1]:
        return _ridge_by_rows(inputs, targets, weights, masks, ridge=ridge, towards=towards, intercept=intercept)
    gram, cross, input_mean, target_mean = moments(inputs, targets, weights, intercept=intercept)
    damping = ridge * gram.diagonal().mean() + SMALLEST_DAMPING
    damped = gram + damping * torch.eye(len(gram), dtype=gram.dtype)
    if masks is not None:
        damped = damped + (masks.channel[:, None] == masks.channel) * masks.odds[:, None] * gram
    weight = torch.linalg.solve(damped, cross if towards is None else cross + damping * towards)
    return weight, target_mean - input_mean @ weight


def _ridge_by_rows(
    inputs: Tensor,
    targets: Tensor,
    weights: Tensor,
    masks: Masks | None,
    *,
    ridge: float,
    towards: Tensor | None,
    intercept: bool,
) -> tuple[Tensor, Tensor]:
    """Solve the same, which is (A^T A + λ B) W = A^T Z + λ W_0, by a matrix (rows, rows).

        W = B^-1 W_0 + S (A S + λ)^-1 (Z - A B^-1 W_0),    S = B^-1 A^T

    B is one but for masks. Behind a flattened image there may be ten thousands of inputs, and fewer rows.
    """
    share, input_mean, target_mean = _means(inputs, targets, weights, intercept=intercept)
    root = share.sqrt()
    scaled, wanted = root * (inputs - input_mean), root * (targets - target_mean)
    damping = ridge * scaled.square().sum() / inputs.shape[1] + SMALLEST_DAMPING
    damping = damping + torch.finfo(inputs.dtype).eps * inputs.square().mean()  # what is left of a constant's mean
    start = torch.zeros(inputs.shape[1], targets.shape[1], dtype=inputs.dtype) if towards is None else towards
    spread, start = (scaled.T, start) if masks is None else _through_blocks(scaled, start, masks, damping)
    damped = scaled @ spread + damping * torch.eye(len(scaled), dtype=scaled.dtype)
    weight = start + spread @ torch.linalg.solve(damped, wanted - scaled @ start)
    return weight, target_mean - input_mean @ weight


def _through_blocks(scaled: Tensor, towards: Tensor, masks: Masks, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Return B^-1 A^T (k, rows) and B^-1 W_0 (k, m).

    B has a block B_c = 1 + d_c / λ A_c^T A_c for each channel c and is zero elsewhere. A block is inverted by whichever
    is the smaller matrix: with F_c = 1 + d_c / λ A_c A_c^T, it is B_c^-1 A_c^T = A_c^T F_c^-1, and B_c^-1 = 1 -
    d_c / λ A_c^T F_c^-1 A_c.
    """
    _, counts = masks.channel.unique(return_counts=True)
    channels = torch.argsort(masks.channel, stable=True).split(counts.tolist())
    spread, start, order = list[Tensor](), list[Tensor](), list[Tensor]()
    for width in counts.unique().tolist():
        places = torch.stack([inputs for inputs in channels if len(inputs) == width])
        block, before = scaled[:, places].movedim(1, 0), towards[places]  # (channels, rows, width), (..., width, m)
        factor = (masks.odds[places[:, 0]] / damping)[:, None, None]
        if width <= len(scaled):
            both = torch.cat([block.mT, before], dim=2)
            part, after = torch.linalg.solve(_one_and(factor * (block.mT @ block)), both).split(
                [len(scaled), towards.shape[1]], dim=2
            )
        else:
            part = torch.linalg.solve(_one_and(factor * (block @ block.mT)), block).mT
            after = before - factor * (part @ (block @ before))
        spread.append(part.flatten(0, 1))
        start.append(after.flatten(0, 1))
        order.append(places.flatten())
    ordered = torch.argsort(torch.cat(order))
    return torch.cat(spread)[ordered], torch.cat(start)[ordered]


def _one_and(matrices: Tensor) -> Tensor:
    return torch.eye(matrices.shape[-1], dtype=matrices.dtype) + matrices


def _means(inputs: Tensor, targets: Tensor, weights: Tensor, *, intercept: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows' shares of the weight (rows, 1), and the means of inputs and targets, zero with no intercept."""
    share = (weights / weights.sum())[:, None]
    input_mean, target_mean = (share * inputs).sum(0), (share * targets).sum(0)
    if not intercept:
        input_mean, target_mean = torch.zeros_like(input_mean), torch.zeros_like(target_mean)
    return share, input_mean, target_mean
