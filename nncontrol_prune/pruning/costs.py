"""Costs: parameters, multiplications or latency as smooth functions of how much of each group is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from nncontrol_prune.pruning.calls import hooked, taken_in
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.groups import LINEAR, TRANSPOSED, Group
from nncontrol_prune.pruning.operations import Operation, operations, weight_of

Number = TypeVar("Number", float, Tensor)


class Cost:
    """A sum over tensors of weight times size, as a function of the channels that each group keeps.

    A tensor's size is the product of its dimensions, and a dimension loses `width` entries with every channel of a
    group that lies in it. So the cost is exact at whole channels and smooth between them.

    Args:
        module: The dense network.
        groups: Its groups.
        weights: What an entry of each parameter costs, by name; others cost nothing.
    """

    def __init__(self, module: nn.Module, groups: Sequence[Group], weights: Mapping[str, float]) -> None:
        places: dict[str, dict[int, list[tuple[int, int]]]] = {}
        for index, group in enumerate(groups):
            for member in group.members:
                places.setdefault(member.tensor, {}).setdefault(member.dim, []).append(
                    (index, group.channels * member.width)
                )
        self._constant = 0.0
        self._terms: list[tuple[float, list[tuple[int, list[tuple[int, int]]]]]] = []
        for name, parameter in module.named_parameters():
            if not weights.get(name):
                continue
            dims = places.get(name, {})
            alone = weights[name]
            for dim, size in enumerate(parameter.shape):
                alone *= 1 if dim in dims else size
            if not dims:
                self._constant += alone
                continue
            factors = [(parameter.shape[dim] - sum(n for _, n in shared), shared) for dim, shared in dims.items()]
            self._terms.append((alone, factors))
        self.dense = float(self([1.0] * len(groups)))

    def __call__(self, shares: Sequence[Number]) -> Number | float:
        """Return the cost when group g keeps `shares[g]` of its channels."""
        total: Any = self._constant
        for weight, factors in self._terms:
            term: Any = weight
            for fixed, shared in factors:
                size: Any = fixed
                for index, entries in shared:
                    size = size + entries * shares[index]
                term = term * size
            total = total + term
        return total

    def removed(self, shares: Sequence[Number]) -> Number | float:
        """Return the share of the dense network's cost that is gone."""
        return 1.0 - self(shares) / self.dense


def parameter_cost(module: nn.Module, groups: Sequence[Group]) -> Cost:
    """Every parameter costs one."""
    return Cost(module, groups, {name: 1.0 for name, _ in module.named_parameters()})


def multiplication_cost(module: nn.Module, groups: Sequence[Group], run: Callable[[nn.Module], Any]) -> Cost:
    """A weight of a linear layer or a convolution costs one for every time that it is multiplied in a run."""
    weights: dict[str, float] = {}
    operated: set[str] = set()

    def count(name: str, layer: nn.Module, held: Tensor | None, output: Tensor) -> None:
        if isinstance(layer, nn.Linear):
            positions = output.numel() / layer.out_features
        elif isinstance(layer, TRANSPOSED):
            assert held is not None, f"{name} takes in no tensor"
            positions = held.numel() / held.shape[1]
        else:
            positions = output.numel() / output.shape[1]
        weights[weight_of(name)] = weights.get(weight_of(name), 0.0) + positions

    def count_operation(operation: Operation) -> Tensor:
        output = operation.run()
        operated.add(operation.name)
        count(operation.name, operation.layer, operation.held, output)
        return output

    def count_module(name: str, layer: nn.Module, call: int, arguments: Any, named: Any, output: Any) -> None:
        if name not in operated:  # it makes something else of its weight first, as a standardized convolution does
            held, given = taken_in(arguments, named), taken_in((output,), {})
            assert given is not None, f"{name} gives out no tensor"
            count(name, layer, held, given)

    layers = [name for name, layer in module.named_modules() if isinstance(layer, (*LINEAR, *TRANSPOSED))]
    with torch.no_grad(), operations(module, layers, count_operation), hooked(module, layers, count_module):
        run(module)
    return Cost(module, groups, weights)


class LatencyCost:
    """Measured latency, interpolated between measurements at some numbers of multiplications.

    A network's time is a floor plus what its arithmetic takes, and the floor is the runtime's; so what was measured
    on networks pruned evenly tells it for others of the same arithmetic.

    Args:
        multiplications: The arithmetic.
        measured: Pairs of multiplications and seconds, of networks from nearly empty to dense.

    Raises:
        PruningError: All were of the same arithmetic.
    """

    def __init__(self, multiplications: Cost, measured: Sequence[tuple[float, float]]) -> None:
        points = dict(sorted(measured, reverse=True))  # of as much arithmetic, the quickest counts
        if len(points) < 2:
            raise PruningError("the network is too small for a latency budget: it has as few channels as may be left")
        self._work = np.array(list(points))[::-1]
        # Less work never takes more time, and a neighbour's load only ever adds to what is measured.
        self._seconds = np.minimum.accumulate(np.array(list(points.values())))[::-1]
        self._multiplications = multiplications
        self.dense = float(self._seconds[-1])

    def __call__(self, shares: Sequence[Number]) -> Number | float:
        """Return the seconds when group g keeps `shares[g]` of its channels."""
        work: Any = self._multiplications(shares)
        if not isinstance(work, Tensor):
            return np.interp(work, self._work, self._seconds)
        right = int(np.clip(np.searchsorted(self._work, float(work.detach())), 1, len(self._work) - 1))
        slope = (self._seconds[right] - self._seconds[right - 1]) / (self._work[right] - self._work[right - 1])
        return self._seconds[right - 1] + slope * (work - self._work[right - 1])

    def removed(self, shares: Sequence[Number]) -> Number | float:
        """Return the share of the dense network's latency that is gone."""
        return 1.0 - self(shares) / self.dense
