"""How much the outputs that matter change with what a layer gives out, row by row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nncontrol_prune.pruning.layers import by_channel
from nncontrol_prune.pruning.network import Batch, Network, rows_of, take
from nncontrol_prune.pruning.operations import Operation, operations
from nncontrol_prune.pruning.terms import Term

MINIBATCH = 256
EXACT_OUTPUTS = 8
"""Outputs with more entries than this are differentiated along as many random directions instead."""


def squared_gradients(
    network: Network[Any], names: Sequence[str], batch: Batch, terms: Sequence[Term], seed: int = 0
) -> dict[str, Tensor]:
    """Return `Σ_k (∂y_k/∂z)²` for each output z of layers, by row.

    y are the outputs that the terms look at, as they measure them, by the root of their weights. Positions of a layer,
    and calls where it runs several times, add up; a layer that no such output depends on is left out.

    Args:
        network: The network.
        names: Of the layers.
        batch: Rows of data.
        terms: What matters, with their scales.
        seed: Of random directions.

    Returns:
        The sums (rows, outputs) by layer.
    """
    if not names:
        return {}
    generator = torch.Generator().manual_seed(seed)
    minibatches = torch.arange(rows_of(batch)).split(MINIBATCH)
    parts = [_of_minibatch(network, names, take(batch, rows), terms, generator) for rows in minibatches]
    return {name: torch.cat([part[name] for part in parts]) for name in names if name in parts[0]}


def _of_minibatch(
    network: Network[Any], names: Sequence[str], batch: Batch, terms: Sequence[Term], generator: torch.Generator
) -> dict[str, Tensor]:
    calls: list[tuple[str, nn.Module, Tensor]] = []

    def note(operation: Operation) -> Tensor:
        output = operation.run()
        leaf = output if output.requires_grad else output.detach().requires_grad_(True)
        calls.append((operation.name, operation.layer, leaf))
        return leaf + 0.0  # what comes after may work in place

    found: dict[str, Tensor] = {}
    with torch.enable_grad(), operations(network.module, names, note):
        outputs = network.run(network.module, batch)
        for direction in directions(outputs, terms, generator):
            leaves = [leaf for _, _, leaf in calls]
            gradients = torch.autograd.grad(direction, leaves, retain_graph=True, allow_unused=True)
            for (name, layer, _), gradient in zip(calls, gradients, strict=True):
                if gradient is not None:
                    squares = by_channel(layer, gradient, rows_of(batch)).square().sum(dim=2)
                    found[name] = found[name] + squares if name in found else squares
    return found


def directions(outputs: Mapping[str, Tensor], terms: Sequence[Term], generator: torch.Generator) -> Iterator[Tensor]:
    """Yield scalars whose gradients are, row by row, those of the outputs as measured: each entry, or random signs."""
    for term in terms:
        output = outputs[term.output]
        if term.weight <= 0 or not output.requires_grad:
            continue
        scaled = term.measured(output).flatten(1) * math.sqrt(term.weight)
        if scaled.shape[1] <= EXACT_OUTPUTS:
            for entry in range(scaled.shape[1]):
                yield scaled[:, entry].sum()
        else:
            for _ in range(EXACT_OUTPUTS):
                signs = torch.randint(0, 2, scaled.shape, generator=generator) * 2.0 - 1.0
                yield (scaled * signs).sum() / math.sqrt(EXACT_OUTPUTS)
