"""Layers as linear regressions: what a linear layer or a convolution (of one group) sees, gives out, and is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nncontrol_prune.pruning.groups import CHANNEL_NORMS, LINEAR, TRANSPOSED, Group

NORMS = (nn.LayerNorm, nn.RMSNorm, *CHANNEL_NORMS, nn.GroupNorm)
CONVOLVE: Any = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
CONVOLVE_TRANSPOSED: Any = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}

PLAIN = 1e-4
"""By how much, as a share of what is summed up for it, an output may be off by rounding."""


def taps(layer: nn.Module) -> int:
    """Return how many regressors belong to one input channel: the size of the kernel."""
    return 1 if isinstance(layer, nn.Linear) else torch.Size(_conv(layer).kernel_size).numel()


def regressors(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return what each output is a linear function of: (rows · positions, input channels · taps)."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, layer.in_features)
    conv = _conv(layer)
    transposed = isinstance(conv, TRANSPOSED)
    windows = _spread(conv, inputs) if transposed else _padded(conv, inputs)
    for dim, (size, dilation, stride) in enumerate(zip(conv.kernel_size, conv.dilation, conv.stride, strict=True)):
        windows = windows.unfold(dim + 2, dilation * (size - 1) + 1, 1 if transposed else stride)[..., ::dilation]
    # (rows, channels, positions ..., taps ...)
    return windows.movedim(1, 1 + len(conv.kernel_size)).reshape(-1, inputs.shape[1] * taps(conv))


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


def run_solution(layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what a layer would give out with a regression's solution as its weights; differentiable in both."""
    kernel = weight_from(layer, weight)
    if isinstance(layer, nn.Linear):
        return functional.linear(inputs, kernel, bias)
    conv, dimensions = _conv(layer), inputs.dim() - 2
    found: Tensor
    if isinstance(conv, TRANSPOSED):
        edges = conv.padding, conv.output_padding
        found = CONVOLVE_TRANSPOSED[dimensions](inputs, kernel, bias, conv.stride, *edges, dilation=conv.dilation)
    else:
        found = CONVOLVE[dimensions](_padded(conv, inputs), kernel, bias, conv.stride, dilation=conv.dilation)
    return found


@torch.no_grad()
def is_plain(layer: nn.Module, held: Tensor, output: Tensor) -> bool:
    """Return whether a layer gives out what its weight and bias say, with no part in it of a `forward` of its own.

    Args:
        layer: A layer that can be fitted.
        held: What it took in.
        output: What it gave out for that.
    """
    try:
        said, reach = _said(layer, held)
    except (RuntimeError, TypeError, ValueError):  # it makes something else of what it takes in before all that
        return False
    if output.shape != said.shape:
        return False
    difference = (output - said).abs()
    within = difference <= max(PLAIN, 8 * torch.finfo(said.dtype).eps) * reach
    return bool((within | ~torch.isfinite(difference)).all())


def _said(layer: Any, held: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a layer's weight and bias make of inputs, and how large what is summed up for that is."""
    if isinstance(layer, NORMS):
        kind: Any = next(kind for kind in NORMS if isinstance(layer, kind))
        said: Tensor = kind.forward(layer, held)
        return said, said.abs().nan_to_num(0.0, 0.0).max()
    weight, bias = solution_of(layer), layer.bias
    sizes = run_solution(layer, held.abs(), weight.abs(), None if bias is None else bias.abs())
    return run_solution(layer, held, weight, bias), sizes


def channel_dimension(layer: nn.Module, values: Tensor) -> int:
    """Return the dimension of a layer's inputs or outputs that holds its channels."""
    return values.dim() - 1 if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.RMSNorm)) else 1


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


def _spread(conv: Any, inputs: Tensor) -> Tensor:
    """Return what a transposed convolution's turned kernel runs over, as a plain one: zeros between inputs and around.

    Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning", chapter 4.
    """
    sizes = [(size - 1) * stride + 1 for size, stride in zip(inputs.shape[2:], conv.stride, strict=True)]
    spread = inputs.new_zeros((*inputs.shape[:2], *sizes))
    places = (slice(None), slice(None), *(slice(None, None, stride) for stride in conv.stride))
    spread[places] = inputs
    edges: list[int] = []
    for size, dilation, padding, more in zip(
        conv.kernel_size, conv.dilation, conv.padding, conv.output_padding, strict=True
    ):
        edge = dilation * (size - 1) - padding
        edges = [edge, edge + more, *edges]
    return functional.pad(spread, edges)


def _padded(conv: Any, inputs: Tensor) -> Tensor:
    """Return a convolution's inputs with what it puts around them."""
    if conv.padding == "same":  # where the sum is odd, the larger half comes last
        sums = [dilation * (size - 1) for dilation, size in zip(conv.dilation, conv.kernel_size, strict=True)]
        edges = [(total // 2, total - total // 2) for total in sums]
    else:
        widths = (0,) if conv.padding == "valid" else conv.padding
        edges = [(width, width) for width in widths]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return functional.pad(inputs, [width for edge in reversed(edges) for width in edge], mode=mode)


def _conv(layer: nn.Module) -> Any:
    assert isinstance(layer, (*LINEAR, *TRANSPOSED))
    return layer
