from __future__ import annotations

import collections
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from nncontrol_prune.pruning.copying import copied
from nncontrol_prune.pruning.prune import prune


class _Remembering(nn.Module):
    """Keeps an activation in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 32), nn.Linear(32, 2)
        self.kept: Any = None

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.first(inputs))
        self.kept = self.keep(hidden)
        return self.last(hidden)

    def keep(self, hidden: Tensor) -> Any:
        return hidden


class _Distributing(_Remembering):
    """Keeps a distribution, as an actor of Stable-Baselines3 does."""

    def keep(self, hidden: Tensor) -> Any:
        return Independent(Normal(hidden, hidden.exp()), 1)


class _Collecting(_Remembering):
    """Keeps activations in containers, an object with slots, and a function's arguments."""

    def keep(self, hidden: Tensor) -> Any:
        bound = _Slotted(hidden + 1).get
        return collections.deque([{"of": (hidden, [hidden])}, functools.partial(torch.add, hidden), bound])


class _Slotted:
    __slots__ = ("held",)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def get(self) -> Tensor:
        return self.held


@pytest.mark.parametrize("kind", [_Remembering, _Distributing, _Collecting])
@pytest.mark.parametrize("run_before", [False, True])
@pytest.mark.parametrize("distill_steps", [0, 60])
def test_a_module_that_remembers_what_it_computed_is_pruned(kind: Any, run_before: bool, distill_steps: int) -> None:
    torch.manual_seed(0)
    model = kind()
    if run_before:
        model(torch.randn(5, 3))
    kept = model.kept
    result = prune(model, data=torch.randn(300, 3), budget=0.4, components={"all": [""]}, distill_steps=distill_steps)
    assert model.kept is kept
    assert result.warnings == ()
    assert result.chosen.module.first.out_features < 32
    copied(result.chosen.module)


def test_a_copy_remembers_the_same_values_in_tensors_of_its_own() -> None:
    module = _Collecting()
    module(torch.randn(5, 3))
    other = copied(module)
    (ours, _, bound), (theirs, _, other_bound) = module.kept, other.kept
    assert torch.equal(theirs["of"][0], ours["of"][0])
    assert theirs["of"][0] is theirs["of"][1][0]  # what is shared stays shared
    assert theirs["of"][0] is not ours["of"][0]
    assert theirs["of"][0].is_leaf
    assert torch.equal(other_bound(), bound())
    assert ours["of"][0].grad_fn is not None


def test_a_buffer_that_gradients_lead_through_is_copied() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(3))
    module.register_buffer("average", torch.zeros(3))
    module.average = 0.9 * module.average + 0.1 * module.weight
    assert torch.equal(copied(module).average, torch.full((3,), 0.1))
