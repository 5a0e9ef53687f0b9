"""Layers as linear regressions: what a linear layer or a convolution sees, gives out, and is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nncontrol_prune.pruning.groups import Group

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


def is_regression(layer: nn.Module) -> bool:
    """Return whether a layer is one of those that the functions of this file know."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)):
        return layer.groups == 1 and (not isinstance(layer, nn.ConvTranspose2d) or set(layer.dilation) == {1})
    return isinstance(layer, nn.Linear)


def taps(layer: nn.Module) -> int:
    """Return how many regressors belong to one input channel: the size of the kernel."""
    return 1 if isinstance(layer, nn.Linear) else int(torch.Size(_conv(layer).kernel_size).numel())


def regressors(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return what each output is a linear function of: (rows · positions, input channels · taps)."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, layer.in_features)
    conv = _conv(layer)
    if isinstance(conv, nn.Conv1d):
        columns = functional.unfold(
            _padded(conv, inputs)[:, :, None],
            (1, *conv.kernel_size),
            dilation=(1, *conv.dilation),
            stride=(1, *conv.stride),
        )
    elif isinstance(conv, nn.ConvTranspose2d):
        # A transposed convolution is a plain one over the inputs with zeros put between them, its kernel turned around.
        (height, width), (down, right) = inputs.shape[2:], conv.stride
        wide = inputs.new_zeros((*inputs.shape[:2], (height - 1) * down + 1, (width - 1) * right + 1))
        wide[:, :, ::down, ::right] = inputs
        padding: Any = conv.padding
        (high, broad), (top, left), (below, after) = conv.kernel_size, padding, conv.output_padding
        edges = (broad - 1 - left, broad - 1 - left + after, high - 1 - top, high - 1 - top + below)
        columns = functional.unfold(functional.pad(wide, edges), conv.kernel_size)
    else:
        columns = functional.unfold(_padded(conv, inputs), conv.kernel_size, conv.dilation, stride=conv.stride)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


def responses(layer: nn.Module, outputs: Tensor) -> Tensor:
    """Return a layer's outputs as (rows · positions, output channels)."""
    if channel_dimension(layer, outputs) == outputs.dim() - 1:
        return outputs.reshape(-1, outputs.shape[-1])
    return outputs.flatten(2).transpose(1, 2).reshape(-1, outputs.shape[1])


def solution_of(layer: nn.Module) -> Tensor:
    """Return a layer's weights as those of the regression: (input channels · taps, output channels)."""
    parameter: Any = layer.weight
    weight: Tensor = parameter.detach()
    if isinstance(layer, nn.ConvTranspose2d):
        weight = weight.flip(-1, -2).transpose(0, 1)
    return weight.flatten(1).T


def weight_from(layer: nn.Module, solution: Tensor) -> Tensor:
    """Undo `solution_of`: give a regression's solution the shape of a layer's weights."""
    if isinstance(layer, nn.ConvTranspose2d):
        return solution.T.unflatten(1, (-1, *layer.kernel_size)).transpose(0, 1).flip(-1, -2)
    if isinstance(layer, nn.Linear):
        return solution.T
    return solution.T.unflatten(1, (-1, *_conv(layer).kernel_size))


@torch.no_grad()
def load_solution(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Write a regression's solution, of the shape of `solution_of`, and its bias into a layer."""
    target: Any = layer.weight
    target.copy_(weight_from(layer, weight))
    offset: Any = layer.bias
    if offset is not None:
        offset.copy_(bias)


def run_solution(layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return what a layer would give out with a regression's solution as its weights; differentiable in both."""
    kernel = weight_from(layer, weight)
    if isinstance(layer, nn.Linear):
        return functional.linear(inputs, kernel, bias)
    conv = _conv(layer)
    if isinstance(conv, nn.ConvTranspose2d):
        padding: Any = conv.padding
        output_padding: Any = conv.output_padding
        return functional.conv_transpose2d(inputs, kernel, bias, conv.stride, padding, output_padding)
    convolve: Any = functional.conv1d if isinstance(conv, nn.Conv1d) else functional.conv2d
    found: Tensor = convolve(_padded(conv, inputs), kernel, bias, conv.stride, dilation=conv.dilation)
    return found


def channel_dimension(layer: nn.Module, values: Tensor) -> int:
    """Return the dimension of a layer's inputs or outputs that holds its channels."""
    return values.dim() - 1 if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.RMSNorm)) else 1


def by_channel(layer: nn.Module, values: Tensor) -> Tensor:
    """Return a layer's inputs or outputs as (rows, channels, positions)."""
    if channel_dimension(layer, values) == 1:
        return values.reshape(*values.shape[:2], -1)
    return values.reshape(values.shape[0], -1, values.shape[-1]).transpose(1, 2)


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


@contextmanager
def capture(module: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Collect what submodules give out the first time they are run within the block, by name."""
    captured: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        captured.setdefault(name, output)

    hooks = [
        module.get_submodule(name).register_forward_hook(lambda _, inputs, output, name=name: keep(name, output))
        for name in names
    ]
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()


def _padded(conv: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """Return a convolution's inputs with what it puts around them."""
    if conv.padding == "same":  # where the sum is odd, the larger half comes last
        sums = [dilation * (size - 1) for dilation, size in zip(conv.dilation, conv.kernel_size, strict=True)]
        edges = [(total // 2, total - total // 2) for total in sums]
    else:
        widths: Any = (0,) if conv.padding == "valid" else conv.padding
        edges = [(width, width) for width in widths]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return functional.pad(inputs, [width for edge in reversed(edges) for width in edge], mode=mode)


def _conv(layer: nn.Module) -> nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d:
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d))
    return layer
