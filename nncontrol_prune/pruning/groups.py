"""Groups: the channels that can only leave together, found from a dependency graph.

The graph is torch-pruning's; what is ours is which component each group belongs to, and what a channel costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch_pruning
from torch import Tensor, nn

from nncontrol_prune.pruning.errors import PruningError


@dataclass(frozen=True)
class Group:
    """Coupled channels: removing channel j means removing it from every member.

    Attributes:
        name: Name of the module whose outputs the channels are.
        components: The components the members belong to.
        channels: How many channels there are.
        producers: Names of the modules that lose output channels.
        consumers: Names of the modules that lose input channels, in the order they are run.
    """

    name: str
    components: tuple[str, ...]
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]

    @property
    def kind(self) -> Literal["intra-component", "inter-component"]:
        """Whether the group couples components."""
        return "intra-component" if len(self.components) == 1 else "inter-component"

    def parameters_per_channel(self, module: nn.Module) -> int:
        """Count the parameters that leave with one channel while all others stay."""
        modules = dict(module.named_modules())
        produced = sum(_out_parameters(modules[name]) for name in self.producers)
        consumed = sum(_weight(modules[name]).shape[0] for name in self.consumers)
        return produced + consumed


def find_groups(module: nn.Module, components: Mapping[str, Sequence[str]], observation: Tensor) -> list[Group]:
    """Find the groups of a module whose channels may be removed; inputs and actions are never among them.

    Args:
        module: The network.
        components: Names of the modules of each component.
        observation: Observations (batch, n) for the forward pass that is traced.

    Returns:
        The groups, in the order in which the forward pass meets them.

    Raises:
        PruningError: There is nothing to prune, or a member belongs to no component.
    """
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=observation)
    names = {id(submodule): name for name, submodule in module.named_modules()}
    order = {name: position for position, name in enumerate(_execution_order(module, observation))}
    groups = []
    for coupled in graph.get_all_groups(ignored_layers=_output_layers(module, order), root_module_types=[nn.Linear]):
        producers: list[str] = []
        consumers: list[str] = []
        for dependency, _ in coupled:
            name = names.get(id(dependency.target.module))
            if name is None or not isinstance(dependency.target.module, nn.Linear):
                continue  # activations and the like hold no parameters
            side = producers if graph.is_out_channel_pruning_fn(dependency.handler) else consumers
            side.append(name)
        producers.sort(key=order.__getitem__)
        consumers.sort(key=order.__getitem__)
        members = (*producers, *consumers)
        groups.append(
            Group(
                name=producers[0],
                components=tuple(
                    dict.fromkeys(component_of(name, components) for name in sorted(members, key=order.__getitem__))
                ),
                channels=len(coupled[0].idxs),
                producers=tuple(producers),
                consumers=tuple(consumers),
            )
        )
    if not groups:
        raise PruningError("the controller has no hidden layer, so there is nothing to prune")
    return sorted(groups, key=lambda group: order[group.name])


def component_of(name: str, components: Mapping[str, Sequence[str]]) -> str:
    """Return the component that a module belongs to.

    Raises:
        PruningError: It belongs to none.
    """
    for component, prefixes in components.items():
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
            return component
    raise PruningError(f"module {name} belongs to none of the components {', '.join(components)}")


class ParameterCount:
    """Counts parameters from the share of channels that each group keeps, without touching the module.

    A linear layer's weights shrink with its input's group and with its output's; so the count is a sum of
    products, `sum_t numel_t * prod_{g in t} share_g`, exact at whole channels and smooth between.

    Args:
        module: The dense network.
        groups: Its groups.
    """

    def __init__(self, module: nn.Module, groups: Sequence[Group]) -> None:
        self.dense = sum(parameter.numel() for parameter in module.parameters())
        produced_by = {name: index for index, group in enumerate(groups) for name in group.producers}
        consumed_by = {name: index for index, group in enumerate(groups) for name in group.consumers}
        self._terms: list[tuple[int, tuple[int, ...]]] = []
        for name, submodule in module.named_modules():
            for key, parameter in submodule.named_parameters(recurse=False):
                of_input = consumed_by.get(name) if key == "weight" else None
                tied = tuple(index for index in (produced_by.get(name), of_input) if index is not None)
                self._terms.append((parameter.numel(), tied))

    def __call__(self, shares: Sequence[float] | Tensor) -> float | Tensor:
        """Return the parameters left when group g keeps `shares[g]` of its channels."""
        total: float | Tensor = 0.0
        for size, tied in self._terms:
            term: float | Tensor = float(size)
            for index in tied:
                term = term * shares[index]
            total = total + term
        return total

    def sparsity(self, shares: Sequence[float]) -> float:
        """Return the share of the dense network's parameters that is gone."""
        return 1.0 - float(self(shares)) / self.dense


def _execution_order(module: nn.Module, observation: Tensor) -> list[str]:
    """Return the names of the linear layers in the order the forward pass runs them."""
    order: list[str] = []
    hooks = [
        submodule.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, submodule in module.named_modules()
        if isinstance(submodule, nn.Linear)
    ]
    try:
        module(observation)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(order))


def _output_layers(module: nn.Module, order: Mapping[str, int]) -> list[nn.Module]:
    """The layer run last computes the action, whose size the plant dictates."""
    last = max(order, key=order.__getitem__)
    return [module.get_submodule(last)]


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _out_parameters(module: nn.Module) -> int:
    return _weight(module).shape[1] + (0 if getattr(module, "bias", None) is None else 1)
