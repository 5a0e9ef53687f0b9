from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nncontrol_prune.pruning.groups import find_groups


class Between(nn.Module):
    """Two layers with something done to what lies between them, (batch, positions, channels)."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.zeroth, self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.between = between

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.between(torch.relu(self.first(torch.relu(self.zeroth(inputs))))))


def groups_with(between: Callable[[Tensor], Tensor]) -> list[str]:
    return [group.name for group in find_groups(Between(between), {"all": [""]}, lambda m: m(torch.randn(2, 5, 4)))]


@pytest.mark.parametrize(
    "between",
    [
        lambda hidden: hidden.sort()[0],
        lambda hidden: hidden.sort(descending=True)[0],
        lambda hidden: hidden.sort(dim=2, stable=True)[0],
        lambda hidden: hidden.topk(6)[0],
        lambda hidden: hidden.topk(6, dim=2)[0],
        lambda hidden: hidden + hidden.argsort(),
        lambda hidden: hidden + hidden.argmax(),
        lambda hidden: hidden + hidden.argmin(dim=-1, keepdim=True),
        lambda hidden: hidden + hidden.argmax(dim=2)[..., None],
        lambda hidden: hidden + hidden.max(dim=2, keepdim=True)[1],
        lambda hidden: hidden + hidden.min(2)[0][..., None],
        lambda hidden: hidden.flip(-1),
        lambda hidden: hidden.roll(1, 2),
        lambda hidden: hidden.roll(1),
        lambda hidden: torch.nn.functional.glu(hidden).repeat(1, 1, 2),
    ],
)
def test_channels_that_are_put_in_order_stay(between: Callable[[Tensor], Tensor]) -> None:
    assert groups_with(between) == ["zeroth"]


@pytest.mark.parametrize(
    "between",
    [
        lambda hidden: hidden.sort(dim=1)[0],
        lambda hidden: hidden.sort(dim=1, stable=True)[0],
        lambda hidden: hidden.topk(3, dim=1)[0],
        lambda hidden: hidden + hidden.argsort(dim=1),
        lambda hidden: hidden + hidden.argmax(1, keepdim=True),
        lambda hidden: hidden.mean(dim=1) + hidden.argmin(1),
        lambda hidden: hidden.max(dim=1)[0] + hidden.max() + torch.max(hidden, -hidden).min(1)[0],
        lambda hidden: hidden.flip(1) + hidden.roll(1, 1),
        lambda hidden: torch.nn.functional.glu(hidden[:, :4], dim=1),
        lambda hidden: hidden.repeat(1, 2, 1).repeat(2, 1, 1, 1),
        lambda hidden: torch.nn.functional.normalize(hidden, dim=-1),
        lambda hidden: hidden - hidden.mean(-1, keepdim=True).expand_as(hidden),
    ],
)
def test_channels_may_leave_where_positions_are_put_in_order(between: Callable[[Tensor], Tensor]) -> None:
    assert groups_with(between) == ["zeroth", "first"]
