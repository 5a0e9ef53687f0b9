from __future__ import annotations

import torch
from torch import Tensor, nn

from nncontrol_prune.pruning.calls import taken_in, telling_calls


def test_a_layer_takes_in_the_first_tensor_wherever_it_stands() -> None:
    first, second = torch.zeros(1), torch.ones(1)
    assert taken_in((first, second), {}) is first
    assert taken_in((), {"output_size": [1], "input": second}) is second


def test_the_first_call_is_noted_and_the_first_whose_rows_differ() -> None:
    module = nn.ModuleDict({"state": nn.Linear(2, 2), "always": nn.Linear(2, 2), "never": nn.Linear(2, 2)})
    noted: list[tuple[str, int]] = []

    def note(name: str, layer: nn.Module, call: int, held: Tensor, output: Tensor) -> None:
        assert torch.equal(nn.functional.linear(held, layer.weight, layer.bias), output)
        noted.append((name, call))

    rows = torch.randn(3, 2)
    with telling_calls(module, list(module), len(rows), note):
        for held in (torch.zeros(3, 2), rows, 2 * rows):
            module["state"](input=held)
            module["always"](rows)
            module["never"](torch.ones(3, 2))
    assert noted == [("state", 0), ("always", 0), ("never", 0), ("state", 1)]
    assert not module["state"]._forward_hooks


def test_what_differs_only_within_a_row_tells_no_rows_apart() -> None:
    module = nn.ModuleDict({"frame": nn.Linear(2, 2)})
    calls: list[int] = []
    numbered = torch.arange(4.0)[:, None].expand(-1, 2).repeat(3, 1)
    with telling_calls(module, list(module), 3, lambda name, layer, call, held, output: calls.append(call)):
        for held in (numbered, numbered + torch.arange(3.0).repeat_interleave(4)[:, None]):
            module["frame"](held)
    assert calls == [0, 1]
