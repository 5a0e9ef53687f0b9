"""Layers as linear regressions: what a linear layer or a convolution (of one group) sees, gives out, and is made of.

How a convolution runs over what it takes in is what its operation is called with: a `forward` may pad in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nncontrol_prune.pruning.groups import CHANNEL_NORMS, LINEAR, TRANSPOSED, Group
from nncontrol_prune.pruning.operations import Operation

NORMS = (nn.LayerNorm, nn.RMSNorm, *CHANNEL_NORMS, nn.GroupNorm)


def taps(layer: nn.Module) -> int:
    """Return how many regressors belong to one input channel: the size of the kernel."""
    return 1 if isinstance(layer, nn.Linear) else torch.Size(_conv(layer).kernel_size).numel()


def regressors(operation: Operation, inputs: Tensor) -> Tensor:
    """Return what each output is a linear function of: (rows · positions, input channels · taps)."""
    layer = operation.layer
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, inputs.shape[-1])
    sizes = _conv(layer).kernel_size
    transposed = isinstance(layer, TRANSPOSED)
    windows = _spread(operation, inputs) if transposed else _padded(operation, inputs)
    dilations = _by_dimension(operation, "dilation", 1)
    strides = [1] * len(sizes) if transposed else _by_dimension(operation, "stride", 1)
    for dim, (size, dilation, stride) in enumerate(zip(sizes, dilations, strides, strict=True)):
        windows = windows.unfold(dim + 2, dilation * (size - 1) + 1, stride)[..., ::dilation]
    # (rows, channels, positions ..., taps ...)
    return windows.movedim(1, 1 + len(sizes)).reshape(-1, inputs.shape[1] * taps(layer))


def responses(layer: nn.Module, outputs: Tensor) -> Tensor:
    """Return a layer's outputs as (rows · positions, output channels)."""
    if channel_dimension(layer, outputs) == outputs.dim() - 1:
        return outputs.reshape(-1, outputs.shape[-1])
    return outputs.flatten(2).transpose(1, 2).reshape(-1, outputs.shape[1])


def solution_of(layer: nn.Module) -> Tensor:
    """Return a layer's weights as those of the regression: (input channels · taps, output channels)."""
    parameter: Any = layer.weight
    weight: Tensor = parameter.detach()
    if isinstance(layer, TRANSPOSED):
        weight = _turned(weight)
    return weight.flatten(1).T


def weight_from(layer: nn.Module, solution: Tensor) -> Tensor:
    """Undo `solution_of`: give a regression's solution the shape of a layer's weights."""
    if isinstance(layer, nn.Linear):
        return solution.T
    weight = solution.T.unflatten(1, (-1, *_conv(layer).kernel_size))
    return _turned(weight) if isinstance(layer, TRANSPOSED) else weight


@torch.no_grad()
def load_solution(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Write a regression's solution, of the shape of `solution_of`, and its bias into a layer."""
    target: Any = layer.weight
    target.copy_(weight_from(layer, weight))
    offset: Any = layer.bias
    if offset is not None:
        offset.copy_(bias)


def run_solution(operation: Operation, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what a layer would give out with a regression's solution as its weights; differentiable in both."""
    return operation.run(input=inputs, weight=weight_from(operation.layer, weight), bias=bias)


def channel_dimension(layer: nn.Module, values: Tensor) -> int:
    """Return the dimension of a layer's inputs or outputs that holds its channels."""
    return values.dim() - 1 if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.RMSNorm)) else 1


def input_dimension(layer: nn.Module) -> int:
    """Return the dimension of a layer's weight that its inputs lie in."""
    return 0 if isinstance(layer, TRANSPOSED) else 1


def norms_over_channels(layer: nn.Module) -> bool:
    """Return whether a norm's statistics are over all channels, and so over those that are kept."""
    return isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) or getattr(layer, "num_groups", None) == 1


def by_channel(layer: nn.Module, values: Tensor, rows: int) -> Tensor:
    """Return a layer's inputs or outputs as (rows, channels, positions), of so many rows of data."""
    channel = channel_dimension(layer, values)
    items = values.reshape(rows, -1, *values.shape[1:])
    return items.movedim(channel + 1, 1).flatten(2)


def places_in(groups: Sequence[Group], tensor: str, dim: int, size: int) -> tuple[Tensor, Tensor]:
    """Return, for each entry along a dimension, its group (-1 for none) and its channel there."""
    group = torch.full((size,), -1)
    channel = torch.zeros(size, dtype=torch.long)
    for number, candidate in enumerate(groups):
        for member in candidate.members:
            if (member.tensor, member.dim) == (tensor, dim):
                group[member.positions] = number
                channel[member.positions] = torch.arange(candidate.channels)[:, None].expand_as(member.positions)
    return group, channel


def _turned(kernel: Tensor) -> Tensor:
    """Turn a kernel around, and exchange its inputs and outputs: what is transposed becomes plain, and back."""
    return kernel.transpose(0, 1).flip(list(range(2, kernel.dim())))


def _spread(operation: Operation, inputs: Tensor) -> Tensor:
    """Return what a transposed convolution's turned kernel runs over, as a plain one: zeros between inputs and around.

    Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning", chapter 4.
    """
    strides = _by_dimension(operation, "stride", 1)
    sizes = [(size - 1) * stride + 1 for size, stride in zip(inputs.shape[2:], strides, strict=True)]
    spread = inputs.new_zeros((*inputs.shape[:2], *sizes))
    places = (slice(None), slice(None), *(slice(None, None, stride) for stride in strides))
    spread[places] = inputs
    edges: list[int] = []
    for size, dilation, padding, more in zip(
        _conv(operation.layer).kernel_size,
        _by_dimension(operation, "dilation", 1),
        _by_dimension(operation, "padding", 0),
        _by_dimension(operation, "output_padding", 0),
        strict=True,
    ):
        edge = dilation * (size - 1) - padding
        edges = [edge, edge + more, *edges]
    return functional.pad(spread, edges)


def _padded(operation: Operation, inputs: Tensor) -> Tensor:
    """Return a convolution's inputs with the zeros that it puts around them."""
    padding = operation.arguments.get("padding", 0)
    if padding == "same":  # where the sum is odd, the larger half comes last
        sizes, dilations = _conv(operation.layer).kernel_size, _by_dimension(operation, "dilation", 1)
        sums = [dilation * (size - 1) for dilation, size in zip(dilations, sizes, strict=True)]
        edges = [(total // 2, total - total // 2) for total in sums]
    else:
        widths = [0] if padding == "valid" else _by_dimension(operation, "padding", 0)
        edges = [(width, width) for width in widths]
    return functional.pad(inputs, [width for edge in reversed(edges) for width in edge])


def _by_dimension(operation: Operation, name: str, default: int) -> list[int]:
    """Return an argument of a convolution that may be one number for all dimensions, by dimension."""
    value = operation.arguments.get(name, default)
    values = [value] if isinstance(value, int) else list(value)
    dimensions = len(_conv(operation.layer).kernel_size)
    return values * dimensions if len(values) == 1 else values


def _conv(layer: nn.Module) -> Any:
    assert isinstance(layer, (*LINEAR, *TRANSPOSED))
    return layer
