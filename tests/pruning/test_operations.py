from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from nncontrol_prune.pruning.operations import Operation, operations, telling_calls, weight_of

LAYERS = [
    (nn.Linear(6, 3), (9, 6)),
    (nn.Conv1d(6, 3, 3, padding=1), (9, 6, 4)),
    (nn.Conv2d(6, 3, 3), (9, 6, 4, 4)),
    (nn.Conv3d(6, 3, 2, bias=False), (9, 6, 3, 3, 3)),
    (nn.ConvTranspose1d(6, 3, 3, stride=2), (9, 6, 4)),
    (nn.ConvTranspose2d(6, 3, 3, output_padding=1, stride=2), (9, 6, 4, 4)),
    (nn.ConvTranspose3d(6, 3, 2), (9, 6, 3, 3, 3)),
    (nn.LayerNorm(6), (9, 5, 6)),
    (nn.LayerNorm(6, bias=False), (9, 6)),
    (nn.RMSNorm(6), (9, 6)),
    (nn.RMSNorm(6, eps=1e-3), (9, 6)),
    (nn.BatchNorm1d(6), (9, 6)),
    (nn.BatchNorm2d(6), (9, 6, 4, 4)),
    (nn.BatchNorm3d(6, track_running_stats=False), (9, 6, 3, 3, 3)),
    (nn.InstanceNorm1d(6, affine=True), (9, 6, 4)),
    (nn.InstanceNorm2d(6, affine=True), (9, 6, 4, 4)),
    (nn.InstanceNorm3d(6, affine=True), (9, 6, 3, 3, 3)),
    (nn.GroupNorm(3, 6), (9, 6, 4)),
]


def seen(module: nn.Module, run: Callable[[], Any], names: list[str] | None = None) -> list[Operation]:
    """Return the calls that are seen in a run; of all parts unless some are named."""
    calls: list[Operation] = []

    def note(operation: Operation) -> Tensor:
        calls.append(operation)
        return operation.run()

    with operations(module, dict(module.named_modules()) if names is None else names, note):
        run()
    return calls


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
@torch.no_grad()
def test_the_operation_of_every_layer_is_seen_with_what_it_takes_in(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer, inputs = layer.eval(), torch.randn(shape)
    (operation,) = seen(layer, lambda: layer(inputs))
    assert (operation.name, operation.call) == ("", 0)
    assert operation.layer is layer
    assert operation.held is inputs
    assert torch.equal(operation.run(), layer(inputs))
    assert torch.equal(operation.run(input=2 * inputs), layer(2 * inputs))


class Own(nn.Linear):
    """A layer that uses its weight as it is told to."""

    def __init__(self, use: Callable[[Any, Any], Any]) -> None:
        super().__init__(4, 4)
        self.use = use

    def forward(self, inputs: Any) -> Any:
        return self.use(self, inputs)


@pytest.mark.parametrize(
    ("use", "times"),
    [
        (lambda layer, x: torch.relu(functional.linear(2 * x, layer.weight, layer.bias)), 1),
        (lambda layer, x: functional.linear(input=x, weight=layer.weight, bias=layer.bias), 1),
        (lambda layer, x: (functional.linear(x, layer.weight, layer.bias), x), 1),
        (lambda layer, x: [functional.linear(held, layer.weight, layer.bias) for held in (x, 2 * x)], 2),
        (lambda layer, x: functional.linear(x.float(), layer.weight.float(), layer.bias), 1),
        (lambda layer, x: functional.linear(x, 0.5 * layer.weight, layer.bias), 0),
        (lambda layer, x: functional.linear(x, layer.weight, 0.5 * layer.bias), 0),
        (lambda layer, x: functional.linear(x, layer.weight) + layer.bias, 0),
        (lambda layer, x: functional.linear(x, layer.weight.t(), layer.bias), 0),
        (lambda layer, x: x @ layer.weight.T + layer.bias, 0),
        (lambda layer, x: functional_call(nn.Linear(4, 4), {"weight": layer.weight, "bias": layer.bias}, x), 1),
        (lambda layer, x: vmap(lambda w: functional.linear(x, w, layer.bias))(layer.weight[None]), 0),
        (lambda layer, x: vmap(lambda row: functional.linear(row, layer.weight, layer.bias))(x), 1),
    ],
)  # fmt: skip
def test_a_call_is_a_layers_where_weight_and_bias_are_its_own(use: Any, times: int) -> None:
    layer = Own(use)
    calls = seen(layer, lambda: layer(torch.randn(3, 4)))
    assert [operation.call for operation in calls] == list(range(times))


def test_layers_that_share_a_weight_are_told_apart_by_their_bias() -> None:
    module = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    module[1].weight = module[2].weight = module[0].weight
    module[2].bias = module[0].bias  # all that it has is the first one's
    calls = seen(module, lambda: [layer(torch.randn(3, 4)) for layer in module])
    assert [(operation.name, operation.call) for operation in calls] == [("0", 0), ("1", 0), ("0", 1)]


class Other(nn.BatchNorm1d):
    """A norm that norms as another kind does."""

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.layer_norm(inputs, inputs.shape[-1:], self.weight, self.bias)


def test_a_layer_that_has_lost_its_weight_is_no_obstacle() -> None:
    layer = Own(lambda layer, inputs: functional.linear(inputs, layer.spread * torch.ones(4, 4)))
    layer.spread = layer.weight
    del layer.weight
    assert seen(layer, lambda: layer(torch.randn(3, 4))) == []


@pytest.mark.parametrize(
    "norm", [Other(4), nn.LayerNorm(4, elementwise_affine=False), nn.BatchNorm1d(4, affine=False)], ids=str
)
def test_a_norm_is_seen_in_an_operation_of_its_kind_and_with_a_weight(norm: nn.Module) -> None:
    assert seen(norm, lambda: norm(torch.randn(5, 4))) == []


def test_only_named_layers_are_seen_and_only_within_the_block() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    calls = seen(module, lambda: module(torch.randn(3, 4)), ["1", "2"])
    module(torch.randn(3, 4))
    assert [operation.name for operation in calls] == ["2"]


def test_a_step_stands_in_for_the_operation_and_what_it_calls_is_not_seen() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def step(operation: Operation) -> Tensor:
        assert operation.layer(operation.held).shape == (3, 4)
        return torch.full((3, 4), -1.0)

    with operations(module, ["0"], step), operations(module, ["0"], lambda operation: 2 * operation.run()):
        assert torch.equal(module(torch.randn(3, 4)), torch.zeros(3, 4))


def test_hooks_of_users_do_not_belong_to_the_operation() -> None:
    layer, inputs = nn.Linear(4, 4), torch.randn(3, 4)
    layer.register_forward_pre_hook(lambda layer, args: (2 * args[0],))
    layer.register_forward_hook(lambda layer, args, output: torch.tanh(output))
    (operation,) = seen(layer, lambda: layer(inputs))
    assert torch.equal(operation.held, 2 * inputs)
    assert torch.equal(operation.run(), functional.linear(2 * inputs, layer.weight, layer.bias))


def test_a_weight_goes_by_the_name_of_its_layer() -> None:
    assert [weight_of(name) for name in ("", "0", "a.b")] == ["weight", "0.weight", "a.b.weight"]


def test_the_first_call_is_noted_and_the_first_whose_rows_differ() -> None:
    module = nn.ModuleDict({"state": nn.Linear(2, 2), "always": nn.Linear(2, 2), "never": nn.Linear(2, 2)})
    noted: list[tuple[str, int]] = []

    def note(operation: Operation, output: Tensor) -> None:
        layer = operation.layer
        assert torch.equal(functional.linear(operation.held, layer.weight, layer.bias), output)
        noted.append((operation.name, operation.call))

    rows = torch.randn(3, 2)
    with telling_calls(module, list(module), len(rows), note):
        for held in (torch.zeros(3, 2), rows, 2 * rows):
            module["state"](input=held)
            module["always"](rows)
            module["never"](torch.ones(3, 2))
    assert noted == [("state", 0), ("always", 0), ("never", 0), ("state", 1)]
    module["state"](rows)
    assert len(noted) == 4


def test_what_differs_only_within_a_row_tells_no_rows_apart() -> None:
    module = nn.ModuleDict({"frame": nn.Linear(2, 2)})
    calls: list[int] = []
    numbered = torch.arange(4.0)[:, None].expand(-1, 2).repeat(3, 1)
    with telling_calls(module, list(module), 3, lambda operation, _: calls.append(operation.call)):
        for held in (numbered, numbered + torch.arange(3.0).repeat_interleave(4)[:, None]):
            module["frame"](held)
    assert calls == [0, 1]


def test_a_call_on_what_has_no_rows_tells_nothing() -> None:
    module = nn.ModuleDict({"norm": nn.LayerNorm(8)})
    calls: list[int] = []
    with telling_calls(module, ["norm"], 3, lambda operation, _: calls.append(operation.call)):
        module["norm"](torch.randn(8))  # of a parameter, say
        module["norm"](torch.randn(0, 8))
        module["norm"](torch.randn(3, 8))
    assert calls == [2]
