from __future__ import annotations

import torch
from torch import Tensor, nn

from nncontrol_prune.pruning.calls import taken_in, with_others_taken_in


def test_a_module_takes_in_the_first_tensor_wherever_it_stands() -> None:
    first, second = torch.zeros(1), torch.ones(1)
    assert taken_in((first, second), {}) is first
    assert taken_in((), {"output_size": [1], "input": second}) is second
    assert taken_in(([first, second],), {}) is first


def test_another_tensor_is_taken_in_wherever_the_first_stands() -> None:
    class Sum(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return pair[0] + pair[1]

    module = nn.ModuleDict({"sum": Sum()})
    pair = (torch.ones(2), torch.ones(2))
    with with_others_taken_in(module, ["sum"], lambda name, part, held: 10 * held):
        assert torch.equal(module["sum"](pair), torch.full((2,), 11.0))
    assert torch.equal(module["sum"](pair=pair), torch.full((2,), 2.0))
