from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from nncontrol_prune.pruning.layers import load_solution, regressors, responses, run_solution, solution_of
from nncontrol_prune.pruning.operations import Operation, operations

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


def call_of(layer: nn.Module, inputs: torch.Tensor, **named: Any) -> tuple[Operation, torch.Tensor]:
    """Return the one call of a layer's operation, and what the layer gives out."""
    calls: list[Operation] = []

    def note(operation: Operation) -> torch.Tensor:
        calls.append(operation)
        return operation.run()

    with operations(layer, [""], note):
        output = layer(inputs, **named)
    (operation,) = calls
    return operation, output


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
def test_a_layer_is_a_linear_regression(layer: nn.Module, shape: tuple[int, ...]) -> None:
    operation, output = call_of(layer, torch.randn(shape))
    offset = getattr(layer, "bias", None)
    bias = torch.zeros(3) if offset is None else offset
    found = regressors(operation, operation.held) @ solution_of(layer) + bias
    torch.testing.assert_close(found, responses(layer, output))


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
def test_a_solution_does_the_same_before_and_after_it_is_loaded(layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape)
    operation, _ = call_of(layer, inputs)
    solution = torch.randn_like(solution_of(layer), requires_grad=True)
    bias = torch.zeros(3) if getattr(layer, "bias", None) is None else torch.randn(3)
    found = run_solution(operation, operation.held, solution, bias)
    found.square().sum().backward()
    assert solution.grad is not None
    load_solution(layer, solution, bias)
    torch.testing.assert_close(found, layer(inputs))
    torch.testing.assert_close(solution_of(layer), solution)


class _Strided(nn.Conv2d):
    """Runs over its inputs in another way than its own numbers say."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(inputs, self.weight, bias=self.bias, stride=[2], padding=[1, 2], dilation=2)


@pytest.mark.parametrize(
    ("layer", "inputs", "named"),
    [
        (_Strided(2, 3, 3), torch.randn(4, 2, 9, 8), {}),
        (nn.ConvTranspose2d(2, 3, 3, stride=3), torch.randn(4, 2, 5, 4), {"output_size": (17, 13)}),
    ],
    ids=["forward", "output size"],
)
def test_how_a_layer_runs_over_its_inputs_is_what_its_operation_is_told(
    layer: nn.Module, inputs: torch.Tensor, named: dict[str, Any]
) -> None:
    operation, output = call_of(layer, inputs, **named)
    found = regressors(operation, inputs) @ solution_of(layer) + layer.bias
    torch.testing.assert_close(found, responses(layer, output))
    torch.testing.assert_close(run_solution(operation, inputs, solution_of(layer), layer.bias), output)
