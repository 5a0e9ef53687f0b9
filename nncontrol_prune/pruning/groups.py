"""Groups: the channels that can only leave together, and what they belong to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nncontrol_prune.pruning.calls import hooked, taken_in
from nncontrol_prune.pruning.coupling import OUTPUT, PARTS, Cause, Entry
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.operations import Operation, operations
from nncontrol_prune.pruning.tracing import trace

Components = Mapping[str, Sequence[str]]
"""Names of the modules that each component holds."""

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CHANNEL_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
"""Norms of each channel by itself."""

NOT_TAKEN_IN = Cause("are taken in by no matrix, which could make up for one that leaves")


class NothingToPrune(PruningError):
    """A network has no channels that could leave."""


@dataclass(frozen=True, eq=False)
class Member:
    """Where the channels of a group lie in one dimension of one tensor.

    Attributes:
        tensor: Name of the parameter or buffer; in a norm that has no parameters, of the weight that it could have.
        dim: The dimension.
        positions: Entries (channels, width) along it: channel j takes the entries `positions[j]`.
    """

    tensor: str
    dim: int
    positions: Tensor = field(repr=False)

    @property
    def width(self) -> int:
        """Entries that one channel takes: a simplex of a latent, say, or the pixels of a flattened image."""
        return self.positions.shape[1]

    @property
    def module(self) -> str:
        """Name of the module that holds the tensor."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True, eq=False)
class Group:
    """Coupled channels: removing channel j means removing it from every member.

    Attributes:
        name: Name of the module whose outputs the channels are; of a second group of its outputs with `#2` after it.
        components: The components the members belong to.
        channels: How many channels there are.
        members: Where they lie.
        producers: Names of the modules that lose outputs, in the order they are run.
        consumers: Names of the layers that lose inputs, in the order in which they, or their operations, are run.
        opaque: Names of layers that take it in, and of the norms that it passes through, whose weight and bias no
            operation takes as they are: their `forward` makes something else of them first, and they cannot be fitted.
            Of those that are no consumers it is not even seen what they take in.
        multiplied: Names of other parameters that products sum over it with, such as an ensemble's in one tensor.
        fewest: How many channels have to stay: one, or as many as a norm over them needs to tell inputs apart.
    """

    name: str
    components: tuple[str, ...]
    channels: int
    members: tuple[Member, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    opaque: tuple[str, ...] = ()
    multiplied: tuple[str, ...] = ()
    fewest: int = 1

    @property
    def kind(self) -> Literal["intra-component", "inter-component"]:
        """Whether the group couples components."""
        return "intra-component" if len(self.components) == 1 else "inter-component"

    @property
    def places(self) -> frozenset[tuple[str, int, int]]:
        """The tensors, dimensions and widths it lies in: no other group's, and the same after channels have left."""
        return frozenset((member.tensor, member.dim, member.width) for member in self.members)

    def counts(self, multiple: int) -> list[int]:
        """Return how many channels may stay, in ascending order: all, or such that all widths are multiples."""
        step = math.lcm(*(multiple // math.gcd(multiple, member.width) for member in self.members))
        return [*range(step * math.ceil(self.fewest / step), self.channels, step), self.channels]

    def parameters_per_channel(self, module: nn.Module) -> int:
        """Count the parameters that leave with one channel while all others stay."""
        tensors = dict(module.named_parameters())
        taken: dict[str, list[tuple[int, int]]] = {}
        for member in self.members:
            if member.tensor in tensors:
                taken.setdefault(member.tensor, []).append((member.dim, member.width))
        total = 0
        for name, dims in taken.items():
            left = list(tensors[name].shape)
            for dim, width in dims:
                left[dim] -= width
            total += tensors[name].numel() - torch.Size(left).numel()
        return total


def find_groups(module: nn.Module, components: Components, run: Callable[[nn.Module], Any]) -> list[Group]:
    """Find the groups of a module whose channels may be removed; inputs and outputs are never among them.

    Args:
        module: The network.
        components: Names of the modules of each component.
        run: Runs the network on some rows and returns every output. A network that is applied to its own output,
            such as a model of dynamics, has to be unrolled over two steps at least.

    Returns:
        The groups, in the order in which the forward pass meets them.

    Raises:
        PruningError: There is nothing to prune, the forward pass cannot be traced, or the components do not
            fit the module.
    """
    check_components(module, components)
    with weighted_norms(module):
        return _find_groups(module, components, run)


def kept_channels(module: nn.Module, run: Callable[[nn.Module], Any], *, needlessly: bool) -> list[str]:
    """Return which channels of hidden layers stay and why, a sentence each.

    Args:
        module: The network.
        run: See `find_groups`.
        needlessly: Whether to tell only of what could be written in another way.
    """
    with weighted_norms(module):
        staying = _Trace(module, run).staying()
    return [
        f"the {count} channels of {names} {cause}"
        for (names, cause), count in staying.items()
        if cause != OUTPUT and (cause.remedy or not needlessly)
    ]


class _Trace:
    """A traced module: how it is coupled, in which order its parts are run, and whose weights operations use."""

    def __init__(self, module: nn.Module, run: Callable[[nn.Module], Any]) -> None:
        order: list[str] = []
        every = dict(module.named_modules())
        self.operated: set[str] = set()
        self._held: dict[str, list[Tensor | None]] = {}

        def note_module(name: str, part: nn.Module, call: int, arguments: Any, named: Any) -> None:
            order.append(name)
            self._held.setdefault(name, []).append(taken_in(arguments, named))

        def note(operation: Operation) -> Tensor:
            order.append(operation.name)  # a layer's weights may be used without running it
            self.operated.add(operation.name)
            return operation.run()

        with hooked(module, every, note_module, before=True), operations(module, every, note):
            self.coupling = trace(module, lambda: run(module))
        self._module = module
        self.position = {name: index for index, name in enumerate(dict.fromkeys(order))}
        self._shapes = {name: tensor.shape for name, tensor in (*module.named_parameters(), *module.named_buffers())}

    def channels(self) -> list[dict[tuple[str, int], list[int]]]:
        """Return the indices that each channel takes, by tensor and dimension."""
        return self._leaving()[0]

    def _leaving(self) -> tuple[list[dict[tuple[str, int], list[int]]], Counter[str]]:
        """Return the channels, and by layer how many outputs might leave and are none, as nothing takes them in."""
        channels: list[dict[tuple[str, int], list[int]]] = []
        others = Counter[str]()
        contracted = self.coupling.contracted()
        for entries in self.coupling.classes():
            places = _places(entries)
            # A matrix may take in what it gives out, as that of an autoencoder whose decoder is its encoder transposed.
            if self._is_channel(places) or (self._matrices(places) and self.coupling.root(entries[0]) in contracted):
                channels.append(places)
            else:
                others.update(self._makers(places)[:1])
        return channels, others

    def fewest(self, places: Mapping[tuple[str, int], Sequence[int]]) -> int:
        """Return how many channels the operations need of those that are like one."""
        (tensor, dim), indices = next(iter(places.items()))
        return self.coupling.fewest((tensor, dim, indices[0]))

    def sees(self, member: Member) -> bool:
        """Return whether it is seen what a layer takes in where a member lies among its inputs.

        That is what its operation takes in, or else the first tensor that its module does, if the channels lie there as
        the layer has them: a `forward` of its own may take in something else first, or rearrange it.
        """
        if member.module in self.operated:
            return True
        entries = member.positions.flatten().tolist()
        roots = [self.coupling.root((member.tensor, member.dim, entry)) for entry in entries]
        channel = -1 if isinstance(self._module.get_submodule(member.module), nn.Linear) else 1
        for held in self._held[member.module]:
            if held is None or held.dim() < 2 or held.shape[channel] != self._shapes[member.tensor][member.dim]:
                return False
            row = self.coupling.labels(held)[channel]
            if row is None or [self.coupling.find(int(row[entry])) for entry in entries] != roots:
                return False
        return True

    def staying(self) -> Counter[tuple[str, Cause]]:
        """Count the outputs of hidden layers that stay, by the names of the layers and what makes them stay."""
        layers = [
            name for name in self.position if isinstance(self._module.get_submodule(name), (*LINEAR, *TRANSPOSED))
        ]
        counts = Counter[tuple[str, Cause]]()
        for entries, cause in self.coupling.staying():
            places = _places(entries)
            makers = self._makers(places)
            # What is divided and taken in by no matrix is on its way to the outputs.
            hidden = cause not in (OUTPUT, PARTS) and any(name != layers[-1] for name in makers)
            if hidden or self._is_channel(places):
                counts[", ".join(makers or [tensor for tensor, _ in places]), cause] += 1
        for name, count in self._leaving()[1].items():
            counts[name, NOT_TAKEN_IN] += count
        return counts

    def _makers(self, places: Iterable[tuple[str, int]]) -> list[str]:
        """Return the names of the layers that give entries out, in the order in which they are run."""
        members = [Member(tensor, dim, torch.empty(0, 1)) for tensor, dim in places]
        makers = {m.module for m in members if m.module in self.position and produces(self._module, m)}
        return sorted(makers, key=self.position.__getitem__)

    def _is_channel(self, places: Iterable[tuple[str, int]]) -> bool:
        """A channel that nothing makes, or that nothing takes in, is not one: the trace did not use the tensor."""
        return self._matrices(places) >= 2

    def _matrices(self, places: Iterable[tuple[str, int]]) -> int:
        return sum(len(self._shapes[tensor]) > 1 for tensor, _ in places)


def _places(entries: Sequence[Entry]) -> dict[tuple[str, int], list[int]]:
    places: dict[tuple[str, int], list[int]] = {}
    for tensor, dim, index in entries:
        places.setdefault((tensor, dim), []).append(index)
    return places


def _find_groups(module: nn.Module, components: Components, run: Callable[[nn.Module], Any]) -> list[Group]:
    traced = _Trace(module, run)
    position = traced.position
    # Channels that lie in the same tensors in the same way are one group.
    found: dict[tuple[tuple[str, int, int], ...], list[dict[tuple[str, int], list[int]]]] = {}
    for places in traced.channels():
        signature = tuple(sorted((*place, len(indices)) for place, indices in places.items()))
        found.setdefault(signature, []).append(places)
    groups = [_group(module, components, channels, traced) for channels in found.values()]
    if not groups:
        listed = "; ".join(f"the {n} channels of {names} {cause}" for (names, cause), n in traced.staying().items())
        raise NothingToPrune(
            f"there is nothing to prune: {listed}"
            if listed
            else "the network has no hidden layer, so there is nothing to prune"
        )
    groups.sort(key=lambda group: position.get(group.name, len(position)))
    seen = Counter[str]()
    for number, group in enumerate(groups):
        seen[group.name] += 1
        if seen[group.name] > 1:
            groups[number] = replace(group, name=f"{group.name}#{seen[group.name]}")
    return groups


@contextmanager
def weighted_norms(module: nn.Module) -> Iterator[None]:
    """Within the block, norms without parameters have a weight of ones: it tells how many channels they norm."""
    norms: list[Any] = [norm for norm in module.modules() if _size_of_norm(norm)]
    bare = [norm for norm in norms if norm.weight is None]
    like = next(module.parameters(), torch.ones(()))
    for norm in bare:
        norm.weight = nn.Parameter(like.new_ones(_size_of_norm(norm)), requires_grad=False)
    try:
        yield
    finally:
        for norm in bare:
            norm.weight = None


def _size_of_norm(module: nn.Module) -> tuple[int, ...]:
    """Return the shape of the weight that a norm has or could have; empty for other modules."""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return tuple(module.normalized_shape)
    if isinstance(module, CHANNEL_NORMS):
        return (module.num_features,)
    return (module.num_channels,) if isinstance(module, nn.GroupNorm) else ()


def check_components(module: nn.Module, components: Components) -> None:
    """Check that components are parts of the module and do not overlap.

    Raises:
        PruningError: They are not, or they do.
    """
    names = dict(module.named_modules())
    owner: dict[str, str] = {}
    for component, prefixes in components.items():
        for prefix in prefixes:
            if prefix not in names:
                raise PruningError(f"component {component} names {prefix!r}, and the network has no such module")
            for name in names:
                if _within(name, prefix) and owner.setdefault(name, component) != component:
                    raise PruningError(f"the components {owner[name]} and {component} overlap: both hold {name}")


def component_of(name: str, components: Components) -> str:
    """Return the component that a module belongs to.

    Raises:
        PruningError: It belongs to none.
    """
    for component, prefixes in components.items():
        if any(_within(name, prefix) for prefix in prefixes):
            return component
    if not name:
        raise PruningError(
            f"the model itself holds parameters and belongs to none of the components {', '.join(components)}; "
            'components={"all": [""]} makes all of it one'
        )
    raise PruningError(f"module {name} belongs to none of the components {', '.join(components)}")


def leaving_entries(groups: Sequence[Group], keep: Sequence[Tensor]) -> dict[tuple[str, int], Tensor]:
    """Return the indices of the entries that leave, by (tensor, dimension)."""
    leaving: dict[tuple[str, int], list[Tensor]] = {}
    for group, indices in zip(groups, keep, strict=True):
        gone = torch.ones(group.channels, dtype=torch.bool)
        gone[indices] = False
        for member in group.members:
            leaving.setdefault((member.tensor, member.dim), []).append(member.positions[gone].flatten())
    return {place: torch.cat(entries) for place, entries in leaving.items()}


def _within(name: str, prefix: str) -> bool:
    return prefix == "" or name == prefix or name.startswith(f"{prefix}.")


def _group(
    module: nn.Module,
    components: Components,
    channels: list[dict[tuple[str, int], list[int]]],
    traced: _Trace,
) -> Group:
    position = traced.position
    members = [
        Member(tensor, dim, torch.tensor([places[tensor, dim] for places in channels]))
        for tensor, dim in sorted(channels[0])
    ]
    modules = sorted({member.module for member in members}, key=lambda name: position.get(name, len(position)))
    producers = [name for name in modules if any(produces(module, m) for m in members if m.module == name)]
    # Of one that neither is run nor has its weights used as they are, nobody sees what it takes in.
    taking = [member for member in members if member.module in position and _takes(module, member)]
    takers = [name for name in modules if any(member.module == name for member in taking)]
    consumers = [name for name in takers if all(traced.sees(member) for member in taking if member.module == name)]
    opaque = [
        name
        for name in modules
        if name not in traced.operated and (name in takers or _size_of_norm(module.get_submodule(name)))
    ]
    multiplied = {
        tensor
        for tensor, dim in channels[0]
        if traced.coupling.multiplies((tensor, dim, channels[0][tensor, dim][0]))
        and not any((member.tensor, member.dim) == (tensor, dim) for member in taking)
    }
    # Tensors that no known layer holds, such as those of an ensemble in one tensor, go by their own name.
    shapes = {name: tensor.shape for name, tensor in module.named_parameters()}
    name = (
        producers[0] if producers else max((m.tensor for m in members), key=lambda tensor: len(shapes.get(tensor, ())))
    )
    return Group(
        name=name,
        components=tuple(dict.fromkeys(component_of(name, components) for name in modules)),
        channels=len(channels),
        members=tuple(members),
        producers=tuple(producers),
        consumers=tuple(consumers),
        opaque=tuple(opaque),
        multiplied=tuple(name for name, _ in module.named_parameters() if name in multiplied),
        fewest=min(len(channels), traced.fewest(channels[0])),
    )


def produces(module: nn.Module, member: Member) -> bool:
    """Return whether a member is the outputs of a layer."""
    owner: Any = module.get_submodule(member.module)
    if not member.tensor.endswith("weight"):
        return False
    if isinstance(owner, TRANSPOSED):
        return member.dim == (1 if owner.groups == 1 else 0)  # depthwise: a kernel of each channel's own
    return (isinstance(owner, LINEAR) and member.dim == 0) or (isinstance(owner, nn.Embedding) and member.dim == 1)


def _takes(module: nn.Module, member: Member) -> bool:
    owner: Any = module.get_submodule(member.module)
    if not member.tensor.endswith("weight"):
        return False
    if isinstance(owner, TRANSPOSED):
        return member.dim == 0 and owner.groups == 1
    return isinstance(owner, LINEAR) and member.dim == 1


def describe(groups: Sequence[Group], module: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield a table of groups, a row each."""
    for group in groups:
        yield {
            "name": group.name,
            "components": group.components,
            "kind": group.kind,
            "channels": group.channels,
            "parameters_per_channel": group.parameters_per_channel(module),
        }
