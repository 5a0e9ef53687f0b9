from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nncontrol_prune.pruning.layers import (
    is_plain,
    load_solution,
    regressors,
    responses,
    run_solution,
    solution_of,
)

LAYERS = [
    (nn.Linear(5, 3), (4, 5)),
    (nn.Linear(5, 3, bias=False), (4, 2, 5)),
    (nn.Conv1d(2, 3, 3, stride=2, padding=1), (4, 2, 9)),
    (nn.Conv2d(2, 3, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2)), (4, 2, 9, 8)),
    (nn.Conv1d(2, 3, 4, padding="same", dilation=3), (4, 2, 9)),
    (nn.Conv2d(2, 3, (4, 3), padding="same", padding_mode="replicate"), (4, 2, 9, 8)),
    (nn.Conv2d(2, 3, (3, 2), stride=2, padding="valid"), (4, 2, 9, 8)),
    (nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"), (4, 2, 9, 8)),
    (nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (4, 2, 9)),
    (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), (4, 2, 5, 4)),
    (nn.ConvTranspose2d(2, 3, (3, 4), stride=(1, 3), padding=(0, 1), bias=False), (4, 2, 5, 4)),
    (nn.ConvTranspose2d(2, 3, (3, 2), stride=2, padding=3, dilation=(1, 2)), (4, 2, 5, 4)),
    (nn.ConvTranspose1d(2, 3, 4, stride=3, padding=1, output_padding=2, dilation=2), (4, 2, 5)),
    (nn.Conv3d(2, 3, (3, 2, 1), stride=(1, 2, 1), padding=(1, 0, 0)), (4, 2, 5, 4, 3)),
    (nn.ConvTranspose3d(2, 3, (3, 2, 1), stride=(1, 2, 3), padding=(1, 0, 0)), (4, 2, 3, 4, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
def test_a_layer_is_a_linear_regression(layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape)
    offset = getattr(layer, "bias", None)
    bias = torch.zeros(3) if offset is None else offset
    found = regressors(layer, inputs) @ solution_of(layer) + bias
    torch.testing.assert_close(found, responses(layer, layer(inputs)))


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
def test_a_solution_does_the_same_before_and_after_it_is_loaded(layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape)
    solution = torch.randn_like(solution_of(layer), requires_grad=True)
    bias = torch.zeros(3) if getattr(layer, "bias", None) is None else torch.randn(3)
    found = run_solution(layer, inputs, solution, bias)
    found.square().sum().backward()
    assert solution.grad is not None
    load_solution(layer, solution, bias)
    torch.testing.assert_close(found, layer(inputs))
    torch.testing.assert_close(solution_of(layer), solution)


NORMED = [
    (nn.LayerNorm(6), (9, 6)),
    (nn.LayerNorm((4, 6)), (9, 4, 6)),
    (nn.RMSNorm(6), (9, 5, 6)),
    (nn.LayerNorm(6, elementwise_affine=False), (9, 6)),
    (nn.BatchNorm1d(6), (9, 6)),
    (nn.BatchNorm2d(6), (9, 6, 4, 4)),
    (nn.InstanceNorm2d(6, affine=True), (9, 6, 4, 4)),
    (nn.GroupNorm(3, 6), (9, 6, 4)),
]


@pytest.mark.parametrize(("offset", "dtype"), [(0.0, torch.float32), (1e4, torch.float32), (1.0, torch.bfloat16)])
@pytest.mark.parametrize(("layer", "shape"), [*LAYERS, *NORMED], ids=[str(layer) for layer, _ in [*LAYERS, *NORMED]])
@torch.no_grad()
def test_a_layer_of_torchs_own_gives_out_what_its_weight_and_bias_say(
    layer: nn.Module, shape: tuple[int, ...], offset: float, dtype: torch.dtype
) -> None:
    layer = copy.deepcopy(layer).to(dtype).eval()
    inputs = torch.randn(100, *shape[1:], dtype=dtype) + offset
    inputs[0], inputs[1] = torch.nan, torch.inf
    output = layer(inputs)
    assert is_plain(layer, inputs[:9], output[:9])
    assert not is_plain(layer, inputs[:9], 1.1 * output[:9])
    assert not is_plain(layer, inputs[:9], output[:9, ..., :1])


def test_a_layer_that_tells_nothing_is_plain() -> None:
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    assert is_plain(layer, torch.zeros(5, 3), layer(torch.zeros(5, 3)))
