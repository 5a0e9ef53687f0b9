"""Weighted ridge regression: by a matrix (inputs, inputs), or (rows, rows) where there are fewer rows than inputs.

    (W, b) = argmin Σ_i ω_i ‖W^T h_i + b - z_i‖² / Σ_i ω_i + δ ‖W‖² + Σ_c d_c ‖A_c W_c‖²

A holds the inputs about their weighted mean, a row times the root of its share of the weight, and δ is `ridge` times
the mean diagonal of the Gram matrix A^T A. The last sum is what random masks of the inputs come to in expectation
(gradient.py): c are channels, whose inputs stay or leave as one, and d_c the odds that it leaves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RIDGE = 1e-6
"""Keeps the problem well posed where inputs are dependent, without changing a solution that is."""
SMALLEST_DAMPING = torch.finfo(torch.float64).tiny ** 0.5
"""Where inputs never change."""


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
        ridge: δ, as a share of the mean diagonal of the Gram matrix.
        towards: W_0, (k, m), with which it is δ ‖W - W_0‖²; None for zero, as it has to be where there are masks.
        intercept: Whether there is a b.

    Returns:
        The weight, (k, m), and the bias, (m,).
    """
    assert masks is None or towards is None
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
    """Solve the same by a matrix (rows, rows): (A^T A + δ B)^-1 A^T = B^-1 A^T (A B^-1 A^T + δ)^-1.

    B is one but for masks. Behind a flattened image there may be ten thousands of inputs, and fewer rows.
    """
    share, input_mean, target_mean = _means(inputs, targets, weights, intercept=intercept)
    root = share.sqrt()
    scaled, wanted = root * (inputs - input_mean), root * (targets - target_mean)
    damping = ridge * scaled.square().sum() / inputs.shape[1] + SMALLEST_DAMPING
    spread = scaled.T if masks is None else _through_blocks(scaled, masks, damping)
    damped = scaled @ spread + damping * torch.eye(len(scaled), dtype=scaled.dtype)
    weight = spread @ torch.linalg.solve(damped, wanted if towards is None else wanted - scaled @ towards)
    weight = weight if towards is None else weight + towards
    return weight, target_mean - input_mean @ weight


def _through_blocks(scaled: Tensor, masks: Masks, damping: Tensor) -> Tensor:
    """Return B^-1 A^T, (k, rows), where B has a block 1 + d_c / δ A_c^T A_c for each channel c and is zero elsewhere.

    A block is inverted by whichever is the smaller matrix: B_c^-1 A_c^T = A_c^T (1 + d_c / δ A_c A_c^T)^-1.
    """
    _, counts = masks.channel.unique(return_counts=True)
    channels = torch.argsort(masks.channel, stable=True).split(counts.tolist())
    parts, order = [], []
    for width in counts.unique().tolist():
        places = torch.stack([inputs for inputs in channels if len(inputs) == width])
        block = scaled[:, places].movedim(1, 0)  # (channels, rows, width)
        factor = (masks.odds[places[:, 0]] / damping)[:, None, None]
        if width <= len(scaled):
            part = torch.linalg.solve(_one_and(factor * (block.mT @ block)), block.mT)
        else:
            part = torch.linalg.solve(_one_and(factor * (block @ block.mT)), block).mT
        parts.append(part.flatten(0, 1))
        order.append(places.flatten())
    return torch.cat(parts)[torch.argsort(torch.cat(order))]


def _one_and(matrices: Tensor) -> Tensor:
    return torch.eye(matrices.shape[-1], dtype=matrices.dtype) + matrices


def _means(inputs: Tensor, targets: Tensor, weights: Tensor, *, intercept: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows' shares of the weight (rows, 1), and the means of inputs and targets, zero with no intercept."""
    share = (weights / weights.sum())[:, None]
    input_mean, target_mean = (share * inputs).sum(0), (share * targets).sum(0)
    if not intercept:
        input_mean, target_mean = torch.zeros_like(input_mean), torch.zeros_like(target_mean)
    return share, input_mean, target_mean
