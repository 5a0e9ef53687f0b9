from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nncontrol_prune.pruning.groups import find_groups
from nncontrol_prune.pruning.parts import Undivided


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
        lambda hidden: hidden + torch.ops.aten._safe_softmax(hidden, -1),
        lambda hidden: hidden[..., [1, 0, 2, 3, 4, 5]],
        lambda hidden: hidden.index_select(-1, torch.arange(6)),
        lambda hidden: hidden[hidden.detach().isfinite()].view_as(hidden),
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
        lambda hidden: hidden * torch.ops.aten._safe_softmax(hidden, 1),
        lambda hidden: hidden[:, [0, 2]],
        lambda hidden: hidden[[1, 0], [0, 2]],
        lambda hidden: hidden[:, None][torch.arange(2), :, torch.tensor([1, 3])],
        lambda hidden: hidden[:, torch.arange(5) > 1],
        lambda hidden: hidden.index_select(1, torch.tensor([0, 2])),
        lambda hidden: torch.nn.functional.pad(hidden, (0, 0, 1, 2)),
        lambda hidden: torch.nn.functional.avg_pool1d(hidden.transpose(1, 2), 2).transpose(1, 2),
    ],
)
def test_channels_may_leave_where_positions_are_put_in_order(between: Callable[[Tensor], Tensor]) -> None:
    assert groups_with(between) == ["zeroth", "first"]


@pytest.mark.parametrize(
    "between",
    [
        lambda hidden: torch.nn.functional.glu(hidden).repeat(1, 1, 2),
        lambda hidden: torch.cat([hidden.chunk(2, -1)[0].sin(), hidden.chunk(2, dim=-1)[1]], -1),
        lambda hidden: torch.cat(torch.chunk(hidden, chunks=2, dim=2)[::-1], -1),
        lambda hidden: torch.cat(hidden.sigmoid().chunk(3, -1), -1),
        lambda hidden: torch.cat(hidden.chunk(5, 1)[::-1], 1),
    ],
)
def test_as_many_channels_leave_each_part_that_is_taken_by_its_number(between: Callable[[Tensor], Tensor]) -> None:
    assert groups_with(between) == ["zeroth", "first"]


def test_the_channels_of_a_part_leave_with_those_of_the_others() -> None:
    def thirds(hidden: Tensor) -> Tensor:
        return torch.cat(hidden.chunk(3, -1), -1)

    group = find_groups(Between(thirds), {"all": [""]}, lambda m: m(torch.randn(2, 5, 4)))[1]
    assert [m.tensor for m in group.members] == ["first.bias", "first.weight", "second.weight"]
    assert all(m.positions.tolist() == [[0, 2, 4], [1, 3, 5]] for m in group.members)


@pytest.mark.parametrize(
    "between",
    [
        lambda hidden: torch.cat(hidden.split(3, -1), -1),
        lambda hidden: torch.cat(hidden.split([2, 4], dim=-1), -1),
        lambda hidden: torch.cat(torch.cat(hidden.chunk(2, -1), -1).split(3, -1), -1),
        lambda hidden: torch.cat(hidden.chunk(4, -1), -1),  # which are three
        lambda hidden: torch.cat(hidden.chunk(6, -1), -1),  # of one channel each
        lambda hidden: torch.cat([hidden[..., :3], hidden[..., 3:]], -1),
        lambda hidden: torch.cat([hidden[..., ::2], hidden.narrow(-1, 3, 3)], -1),
    ],
)
def test_channels_stay_in_parts_that_are_taken_by_their_size(between: Callable[[Tensor], Tensor]) -> None:
    assert groups_with(between) == ["zeroth"]


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("number", [2, 3, 4])
def test_parts_that_are_kept_whole_are_the_same(dim: int, number: int) -> None:
    tensor = torch.randn(6, 4, 6)
    wanted, gated = tensor.chunk(number, dim), torch.nn.functional.glu(tensor, dim)
    with Undivided():
        for parts in (tensor.chunk(number, dim), torch.chunk(tensor, chunks=number, dim=dim)):
            assert len(parts) == len(wanted)
            assert all(torch.equal(part, other) for part, other in zip(parts, wanted, strict=True))
        torch.testing.assert_close(torch.nn.functional.glu(tensor, dim), gated)
        torch.testing.assert_close(nn.GLU(dim)(tensor), gated)


@pytest.mark.parametrize(
    "between",
    [
        lambda hidden: torch.cat(hidden.chunk(2, -1), -1),
        lambda hidden: torch.nn.functional.glu(hidden).repeat(1, 1, 2),
    ],
    ids=["chunk", "glu"],
)
def test_all_channels_of_parts_that_are_kept_whole_stay(between: Callable[[Tensor], Tensor]) -> None:
    def undivided(hidden: Tensor) -> Tensor:
        with Undivided():
            return between(hidden)

    assert (groups_with(between), groups_with(undivided)) == (["zeroth", "first"], ["zeroth"])


@pytest.mark.parametrize(
    "over_channels",
    [
        nn.Conv1d(1, 3, 3, padding=1),
        nn.ConvTranspose1d(1, 3, 3, padding=1),
        lambda hidden: torch.nn.functional.conv1d(hidden.view(-1, 1, 1), torch.ones(1, 1, 1)).view(2, 1, -1),
        lambda hidden: torch.nn.functional.avg_pool1d(hidden, 3, 1, 1),
        lambda hidden: torch.nn.functional.max_pool1d(hidden, 3, 1, 1),
        lambda hidden: torch.nn.functional.pad(hidden, (1, -1)),
    ],
    ids=["convolution", "transposed", "kernel of one", "average", "largest", "padding"],
)
def test_channels_that_are_positions_of_a_window_stay(over_channels: Callable[[Tensor], Tensor]) -> None:
    module = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)])
    if isinstance(over_channels, nn.Module):
        module.append(over_channels)

    def run(m: nn.Module) -> Tensor:
        hidden = torch.relu(module[1](torch.relu(module[0](torch.randn(2, 4)))))
        return module[2](hidden) + over_channels(hidden[:, None]).mean(-1)

    assert [group.name for group in find_groups(module, {"all": [""]}, run)] == ["0"]


@pytest.mark.parametrize("positions", [3, 5, 9])
@pytest.mark.parametrize("learned", ["added", "in front"])
def test_channels_leave_with_what_is_learned_for_each_position_however_many_these_are(
    positions: int, learned: str
) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5 * positions, 2)
            self.learned = nn.Parameter(torch.randn(1, positions if learned == "added" else 1, 5))

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.first(inputs)
            if learned == "in front":
                hidden = torch.cat([self.learned.expand(len(inputs), -1, -1), hidden[:, 1:]], dim=1)
            else:
                hidden = hidden + self.learned
            return self.last(torch.relu(hidden).flatten(1))

    (group,) = find_groups(Tokens(), {"all": [""]}, lambda m: m(torch.randn(2, positions, 4)))
    assert (group.channels, {(m.tensor, m.width) for m in group.members}) == (
        5,
        {("first.weight", 1), ("first.bias", 1), ("learned", 1), ("last.weight", positions)},
    )


def test_images_whose_channels_come_last_in_memory_are_pooled() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    images = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    assert [group.name for group in find_groups(module, {"all": [""]}, lambda m: m(images))] == ["0"]


def test_a_bound_that_is_learned_for_every_channel_leaves_with_it() -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.least = nn.Linear(4, 6), nn.Linear(6, 2), nn.Parameter(torch.zeros(6))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.last(self.first(inputs).clamp_min(self.least))

    (group,) = find_groups(Bounded(), {"all": [""]}, lambda m: m(torch.randn(2, 4)))
    assert ("least", 0) in {(member.tensor, member.dim) for member in group.members}
