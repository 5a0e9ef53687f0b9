"""Random networks of a dozen steps: what is pruned of them computes what the dense one does without the channels."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nncontrol_prune.pruning.groups import find_groups
from nncontrol_prune.pruning.network import Network
from nncontrol_prune.pruning.prune import Budget, prune
from nncontrol_prune.pruning.rehearsal import rehearse
from nncontrol_prune.pruning.surgery import remove_channels
from tests.pruning.networks import masked

WIDTHS = (3, 5, 8, 12)
Step = Callable[[Any, list[Tensor]], Tensor]
"""Takes the network, of which there are copies, and computes a value (rows, positions, channels) from those before."""


class RandomNet(nn.Module):
    """A linear layer, random steps that each take one of the last few values in, and an output from the last ones."""

    def __init__(self, seed: int, steps: int = 12) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.rng = random.Random(seed)
        self.parts, self.tensors, self.steps = nn.ModuleList(), nn.ParameterList(), list[Step]()
        kinds = (self.activation, self.residual, self.norm, self.learned, self.embedded, self.convolution,
                 self.simplices, self.joined, self.gated, self.fewer_positions, self.ensemble,
                 self.divided)  # fmt: skip
        values = [torch.randn(2, 5, 4)]
        for number in range(steps):
            take_in = self.linear if number == 0 or self.rng.random() < 0.3 else self.rng.choice(kinds)
            of = self.rng.randrange(max(min(number, 1), number - 3), number + 1)
            self.steps.append(take_in(values, of))
            values.append(self.steps[-1](self, values))
        self.heads = nn.ModuleList(nn.Linear(value[0].numel(), 2) for value in values[-3:])
        for parameter in self.parameters():  # norms and biases that do nothing would hide mistakes
            if parameter.dim() == 1:
                nn.init.normal_(parameter, 0.5, 0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        values = [inputs]
        for step in self.steps:
            values.append(step(self, values))
        return sum(head(value.flatten(1)) for head, value in zip(self.heads, values[-3:], strict=True))

    def _of_shape(self, values: list[Tensor], of: int, dims: int) -> int:
        """Choose a value whose first dimensions are those of another."""
        alike = [number for number, value in enumerate(values) if value.shape[:dims] == values[of].shape[:dims]]
        return self.rng.choice(alike)

    def _part(self, part: nn.Module) -> int:
        self.parts.append(part)
        return len(self.parts) - 1

    def _tensor(self, *shape: int) -> int:
        self.tensors.append(torch.randn(shape))
        return len(self.tensors) - 1

    def linear(self, values: list[Tensor], of: int) -> Step:
        layer = self._part(nn.Linear(values[of].shape[-1], self.rng.choice(WIDTHS)))
        return lambda net, values: net.parts[layer](input=values[of])

    def activation(self, values: list[Tensor], of: int) -> Step:
        function = self.rng.choice((torch.relu, torch.tanh, functional.mish, lambda value: value.clone().relu_()))
        return lambda net, values: function(values[of])

    def residual(self, values: list[Tensor], of: int) -> Step:
        other = self._of_shape(values, of, 3)
        return lambda net, values: values[of] + values[other]

    def norm(self, values: list[Tensor], of: int) -> Step:
        norm = self._part(self.rng.choice((nn.LayerNorm, nn.RMSNorm))(values[of].shape[-1]))
        return lambda net, values: net.parts[norm](values[of])

    def learned(self, values: list[Tensor], of: int) -> Step:
        position, bound = self._tensor(1, *values[of].shape[1:]), self._tensor(values[of].shape[-1])
        return lambda net, values: torch.clamp_min(values[of] + net.tensors[position], net.tensors[bound])

    def embedded(self, values: list[Tensor], of: int) -> Step:
        table = self._part(nn.Embedding(2, values[of].shape[-1]))
        return lambda net, values: values[of] + net.parts[table]((values[0][:, :1, 0] > 0).long())

    def convolution(self, values: list[Tensor], of: int) -> Step:
        channels, kind = values[of].shape[-1], self.rng.choice((nn.Conv1d, nn.ConvTranspose1d))
        depthwise = self.rng.random() < 0.3
        width, groups = (channels, channels) if depthwise else (self.rng.choice(WIDTHS), 1)
        layer = self._part(kind(channels, width, 3, padding=1, groups=groups))
        return lambda net, values: net.parts[layer](values[of].transpose(1, 2)).transpose(1, 2)

    def simplices(self, values: list[Tensor], of: int) -> Step:
        part = 4 if values[of].shape[-1] % 4 == 0 else 1
        return lambda net, values: values[of].unflatten(-1, (-1, part)).softmax(-1).flatten(2)

    def joined(self, values: list[Tensor], of: int) -> Step:
        other = self._of_shape(values, of, 2)
        return lambda net, values: torch.cat([values[of], values[other]], dim=-1)

    def gated(self, values: list[Tensor], of: int) -> Step:
        layer = self._part(nn.Linear(values[of].shape[-1], values[of].shape[-1]))
        return lambda net, values: values[of] * torch.sigmoid(net.parts[layer](values[of].mean(1, keepdim=True)))

    def divided(self, values: list[Tensor], of: int) -> Step:
        number = self.rng.choice([parts for parts in (2, 3) if values[of].shape[-1] % parts == 0] or [1])
        if number == 2 and self.rng.random() < 0.3:
            return lambda net, values: functional.glu(values[of])
        if self.rng.random() < 0.5:
            return lambda net, values: torch.cat(values[of].chunk(number, -1)[::-1], -1)
        return lambda net, values: math.prod(values[of].chunk(number, -1))  # type: ignore[return-value]

    def fewer_positions(self, values: list[Tensor], of: int) -> Step:
        chosen = [0, values[of].shape[1] // 2]
        return lambda net, values: functional.pad(values[of][:, chosen], (0, 0, 1, 0)).amax(1, keepdim=True)

    def ensemble(self, values: list[Tensor], of: int) -> Step:
        matrices = self._tensor(2, values[of].shape[-1], self.rng.choice(WIDTHS))
        return lambda net, values: torch.einsum("btc,eco->ebto", values[of], net.tensors[matrices]).mean(0)


@pytest.mark.parametrize("seed", range(60))
def test_a_random_network_without_channels_computes_what_the_dense_one_does(seed: int) -> None:
    module = RandomNet(seed).double()
    batch = {"x": torch.randn(6, 5, 4).double()}
    network = Network(module, {"all": [""]}, lambda m, rows: {"y": m(rows["x"])})
    groups = network.groups(batch)
    rehearse(network, batch)
    for part in range(2):
        kept = [module.rng.randint(max(group.fewest, 3 * (part == 0)), group.channels) if group.channels > 3
                else group.channels for group in groups]  # fmt: skip
        keep = [torch.randperm(group.channels)[:count].sort().values for group, count in zip(groups, kept, strict=True)]
        pruned = remove_channels(module, groups, keep)
        with torch.no_grad(), masked(module, groups, keep):
            torch.testing.assert_close(pruned(batch["x"]), module(batch["x"]), rtol=1e-7, atol=1e-8)
        if part == 0:
            left = {group.places for group in network.groups(batch)}
            assert left == {group.places for group in find_groups(pruned, {"all": [""]}, lambda m: m(batch["x"]))}


@pytest.mark.parametrize("seed", range(12))
def test_a_random_network_is_pruned_and_refitted(seed: int) -> None:
    result = prune(RandomNet(seed), data=torch.randn(96, 5, 4), budget=Budget(0.3, tolerance=0.3), method="uniform",
                   importance=("taylor", "obs")[seed % 2], components={"all": [""]})  # fmt: skip
    assert math.isfinite(result.chosen.objective)
