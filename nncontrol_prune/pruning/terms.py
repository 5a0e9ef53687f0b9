"""Terms: what the application asks of a pruned network, as data. The objective is their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, positive

from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.network import Batch, Outputs

SMALLEST_SCALE = 1e-6
"""Scale of an output that never changes."""
WINDOW = 11
"""Pixels of each side of the window that structural similarity compares images through."""

Error = Callable[[Tensor, Tensor], Tensor]
"""Takes what the pruned network gives (rows, ...) and what it should give; returns an error a row, (rows,)."""


def squared(found: Tensor, wanted: Tensor) -> Tensor:
    """Sum of squares."""
    return (found - wanted).flatten(1).square().sum(dim=1)


def mean_squared(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean of squares; PSNR is -10 log10 of it where the signal's peak is 1."""
    return (found - wanted).flatten(1).square().mean(dim=1)


def dissimilarity(found: Tensor, wanted: Tensor) -> Tensor:
    """1 - SSIM of images (rows, channels, height, width) in 0..1 (Wang et al. 2004: Gaussian window of 11, σ = 1.5)."""
    return 1.0 - structural_similarity(found, wanted)


def structural_similarity(found: Tensor, wanted: Tensor) -> Tensor:
    """SSIM of images (rows, channels, height, width) in 0..1, by row.

    Raises:
        PruningError: They are no images, or smaller than the window.
    """
    if found.dim() != 4 or min(found.shape[2:]) < WINDOW:
        raise PruningError(
            f"structural similarity compares images (rows, channels, height, width) through a window of {WINDOW} "
            f"pixels, so each side needs at least as many; these are {tuple(found.shape)}"
        )
    # The window is separable; with so few pixels a product with a banded matrix takes a fifth of a convolution's time.
    rows, columns = (_gaussian_bands(size).to(found) for size in found.shape[2:])

    def blurred(image: Tensor) -> Tensor:
        return rows @ image @ columns.T

    mean_found, mean_wanted = blurred(found), blurred(wanted)
    variance_found = blurred(found * found) - mean_found**2
    variance_wanted = blurred(wanted * wanted) - mean_wanted**2
    covariance = blurred(found * wanted) - mean_found * mean_wanted
    small, smaller = 0.03**2, 0.01**2
    similarity = ((2 * mean_found * mean_wanted + smaller) * (2 * covariance + small)) / (
        (mean_found**2 + mean_wanted**2 + smaller) * (variance_found + variance_wanted + small)
    )
    return similarity.flatten(1).mean(dim=1)


def _gaussian_bands(size: int) -> Tensor:
    """Return the matrix (size - 10, size) that averages eleven neighbours, with Gaussian weights."""
    reach = WINDOW // 2
    offsets = torch.arange(size) - torch.arange(reach, size - reach)[:, None]
    weights = torch.exp(-(offsets**2) / (2 * 1.5**2)).where(offsets.abs() <= reach, 0.0)
    return weights / weights.sum(dim=1, keepdim=True)


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB, for a peak of 1."""
    return math.inf if mean_squared_error == 0 else -10.0 * math.log10(mean_squared_error)


@dataclass(frozen=True)
class Term:
    """One thing that matters.

    Attributes:
        output: The output of the run it looks at.
        weight: Of the error in the objective; 0 where it is only a constraint.
        scale: Errors are measured in it: a number, or one for each entry of a row; None for the spread of what the
            dense network gives, so that an error of 1 is that of a constant, before any transform.
        target: `dense` to compare with what the dense network gives, `zero` where the output is an error already, or
            the name of an entry of the batch.
        transform: What is done to both, in units of the scale, before they are compared; `torch.asinh` where an output
            has such heavy tails that a few rows would decide everything.
        error: How the two are compared.
        limit: Largest mean error that is allowed; None for no constraint.
        name: What users call it; by default as the output.
    """

    output: str
    weight: float = 1.0
    scale: float | Tensor | None = 1.0
    target: str = "dense"
    transform: Callable[[Tensor], Tensor] = positive
    error: Error = squared
    limit: float | None = None
    name: str = ""

    @property
    def label(self) -> str:
        """What users call it."""
        return self.name or self.output

    def errors(self, found: Outputs, dense: Outputs, batch: Batch) -> Tensor:
        """Return the error of each row; the scale has to be known, see `scaled_terms`."""
        ours = self.measured(found[self.output])
        if self.target == "zero":
            return self.error(ours, torch.zeros_like(ours))
        return self.error(ours, self.measured(dense[self.output] if self.target == "dense" else batch[self.target]))

    def measured(self, output: Tensor) -> Tensor:
        """Return an output (rows, ...) as it is compared: a column at least, in units of the scale, transformed."""
        assert self.scale is not None
        columns = output if output.dim() > 1 else output[:, None]
        return self.transform(columns / self.scale)


def scaled_terms(terms: Sequence[Term], dense: Outputs, weights: Tensor) -> list[Term]:
    """Return the terms with the scales that are to be found out: the root of an output's variance over the rows.

    Args:
        terms: The terms.
        dense: What the dense network gives on the data.
        weights: Weights (rows,) of the rows, which the variance is taken with: the error of a constant is then 1.
    """
    return [
        term
        if term.scale is not None
        else replace(term, scale=max(_spread(dense[term.output], weights), SMALLEST_SCALE))
        for term in terms
    ]


def _spread(output: Tensor, weights: Tensor) -> float:
    output = output.float() if output.dtype == torch.bool else output.detach()
    rows = output.flatten(1) if output.dim() > 1 else output[:, None]
    share = (weights / weights.sum())[:, None]
    mean = (share * rows).sum(dim=0)
    return float((share * (rows - mean).square()).sum().sqrt())


def check_terms(terms: Sequence[Term], outputs: Outputs, batch: Batch) -> None:
    """Check that the terms look at what there is.

    Raises:
        PruningError: One names an output or an entry of the batch that there is not, or holds a number that is not
            allowed; two go by the same name, or none has a weight.
    """
    labels = [term.label for term in terms]
    for label in labels:
        if labels.count(label) > 1:
            raise PruningError(f"{labels.count(label)} terms go by the name {label!r}; give each a name of its own")
    for term in terms:
        if term.output not in outputs:
            raise PruningError(f"a term looks at the output {term.output!r}; the run gives {', '.join(outputs)}")
        if term.target not in ("dense", "zero") and term.target not in batch:
            raise PruningError(
                f"the term on {term.output!r} is compared with {term.target!r}; allowed are dense, zero and "
                f"what the batch holds: {', '.join(batch)}"
            )
        limit = math.inf if term.limit is None else term.limit
        if not (_is_number(term.weight) and _is_number(limit) and 0 <= term.weight < math.inf and limit > 0):
            raise PruningError(
                f"the term {term.label!r} has weight {term.weight} and limit {term.limit}; it needs a finite weight of "
                "0 or more, and a limit above 0 if any"
            )
        _check_scale(term, outputs[term.output])
    if not any(term.weight > 0 for term in terms):
        raise PruningError("no term has a weight above 0, so there is nothing to keep")


def _check_scale(term: Term, output: Tensor) -> None:
    if term.scale is None:
        return
    row = output.shape[1:] or torch.Size((1,))
    if not _is_number(term.scale) and not isinstance(term.scale, Tensor):
        raise PruningError(
            f"the term {term.label!r} has a scale of type {type(term.scale).__name__}; allowed are a number, a tensor, "
            "and None for the spread of what the dense network gives"
        )
    scale = torch.as_tensor(term.scale)
    if not ((scale > 0) & torch.isfinite(scale)).all():
        raise PruningError(
            f"the term {term.label!r} has scale {term.scale}; allowed are finite numbers above 0, and None for the "
            "spread of what the dense network gives"
        )
    if _broadcast(scale.shape, (1, *row)) != (1, *row):  # also where it was made with keepdim=True
        raise PruningError(
            f"the term {term.label!r} has a scale of shape {tuple(scale.shape)}; allowed are a number, and one for "
            f"each entry of a row of {term.output!r}, {tuple(row)}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)


def _broadcast(first: torch.Size, second: Sequence[int]) -> torch.Size | None:
    try:
        return torch.broadcast_shapes(first, second)
    except RuntimeError:
        return None


def check_errors(terms: Sequence[Term], dense: Outputs, batch: Batch) -> None:
    """Check that each term has an error for each row, by what it makes of the dense network's own outputs.

    Args:
        terms: The terms, with their scales.
        dense: What the dense network gives on the batch.
        batch: The batch.

    Raises:
        PruningError: One fails, or gives out errors of another shape, NaN or infinity.
    """
    for term in terms:
        output = dense[term.output]
        try:
            errors: Any = term.errors(dense, dense, batch)
        except PruningError as error:
            raise PruningError(f"the term {term.label!r} fails: {error}") from error
        except Exception as error:
            wanted = batch[term.target].shape if term.target in batch else output.shape
            raise PruningError(
                f"the term {term.label!r} fails with {type(error).__name__}: {error}; "
                f"it compares {term.output!r}, {tuple(output.shape)}, with {term.target!r}, {tuple(wanted)}"
            ) from error
        rows = (len(output),)
        if not isinstance(errors, Tensor) or errors.shape != rows:
            found = f"shape {tuple(errors.shape)}" if isinstance(errors, Tensor) else f"type {type(errors).__name__}"
            raise PruningError(
                f"the error of the term {term.label!r} has {found}; it has to be a tensor with a number for each row, "
                f"{rows}"
            )
        if not torch.isfinite(errors).all():
            raise PruningError(
                f"the term {term.label!r} gives NaN or infinity for the dense network's own outputs; its transform and "
                "its error have to be finite there"
            )


def weighted_sum(
    terms: Sequence[Term], found: Outputs, dense: Outputs, batch: Batch, weights: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the objective `Σ_t w_t mean_i ω_i e_t(i)` and each term's mean error by name."""
    means: dict[str, Tensor] = {}
    total = torch.zeros(())
    for term in terms:
        mean = (weights * term.errors(found, dense, batch)).mean()
        means[term.label] = mean
        total = total + term.weight * mean
    return total, means


def chosen_terms(terms: Sequence[Term], weights: Mapping[str, float] | None, limits: Mapping[str, float]) -> list[Term]:
    """Return the terms that a user chose, with weights and limits by name.

    Args:
        terms: What there is.
        weights: Weights by name, 0 for terms that are not named; None for those that the terms have.
        limits: Largest mean errors by name.

    Raises:
        PruningError: There is no term of a name.
    """
    known = {term.label: term for term in terms}
    for name in (*(weights or ()), *limits):
        if name not in known:
            raise PruningError(f"there is no term {name!r} for this network; there are {', '.join(known)}")
    chosen = [
        replace(
            term,
            weight=term.weight if weights is None else weights.get(name, 0.0),
            limit=limits.get(name, term.limit),
        )
        for name, term in known.items()
    ]
    return [term for term in chosen if term.weight > 0 or term.limit is not None]
