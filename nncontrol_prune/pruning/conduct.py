"""Conduct: what a network does that one forward pass on a few rows does not show.

A trace sees the path that a few rows take, and channels are ranked by gradients. So before anything takes long it is
looked at whether other rows take the same path, whether gradients get through, and whether a second run gives the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from nncontrol_prune.pruning.calls import TakenTensors, hooked, taken_in
from nncontrol_prune.pruning.copying import copied
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.groups import Group
from nncontrol_prune.pruning.network import TRACED_ROWS, Batch, Network, Outputs, rows_of, spread_rows, take
from nncontrol_prune.pruning.operations import Operation, operations, weight_of
from nncontrol_prune.pruning.surgery import Module
from nncontrol_prune.pruning.terms import Term

RECOMPUTED = (
    "the forward pass keeps what its gradient needs in a way of its own (torch.utils.checkpoint or "
    "saved_tensors_hooks), which only training needs; leave that out, as with `if self.training`"
)
LOOKED_AT_ROWS = 32
"""Rows that are run one by one, and together a second time."""
LOOKED_AT_DECISIONS = 16
"""Decisions of a forward pass of which the other way is tried, at the most."""


def check_conduct(network: Network[Any], groups: Sequence[Group], batch: Batch, terms: Sequence[Term]) -> list[str]:
    """Check that all rows take the path that is traced, and that what matters has gradients.

    Args:
        network: The dense network.
        groups: Its groups.
        batch: Rows of data.
        terms: What matters of the outputs; without, all of them do.

    Returns:
        What the user should know, as sentences: outputs without gradients where others have some, outputs that are
        others in a second run, and numbers that are taken out of the data.

    Raises:
        PruningError: Rows run other parts than others do, or no output that matters has a gradient.
    """
    warnings = _check_gradients(network, groups, take(batch, spread_rows(rows_of(batch), TRACED_ROWS)), terms)
    warnings += _check_parts(network, groups, batch)
    warnings += _varying(network, take(batch, spread_rows(rows_of(batch), LOOKED_AT_ROWS)), terms)
    return warnings + _deciding(network, take(batch, torch.arange(min(TRACED_ROWS, rows_of(batch)))))


def _check_gradients(network: Network[Any], groups: Sequence[Group], few: Batch, terms: Sequence[Term]) -> list[str]:
    module = copied(network.module)
    tensors = dict(module.named_parameters())
    members = [tensors[m.tensor] for m in (m for group in groups for m in group.members) if m.tensor in tensors]
    for parameter in members:
        parameter.requires_grad_(True)  # in a frozen one, too
    blind: dict[str, None] = {}
    held: list[Tensor] = []

    def note(operation: Operation) -> Tensor:
        if not torch.is_grad_enabled():
            blind[operation.name] = None
        elif operation.held.requires_grad:
            held.append(operation.held)
        return operation.run()

    consumers = dict.fromkeys(name for group in groups for name in group.consumers)
    try:
        with (
            torch.enable_grad(),
            torch.autograd.graph.disable_saved_tensors_hooks(RECOMPUTED),
            operations(module, consumers, note),
        ):
            outputs = network.run(module, few)
            weighed = dict.fromkeys(term.output for term in terms if term.weight > 0 and term.output in outputs)
            ends = [outputs[name].sum() for name in weighed or outputs if outputs[name].requires_grad]
            if ends and held:  # as the importance of channels asks for
                torch.autograd.grad(ends, held, allow_unused=True)
    except Exception as error:
        if RECOMPUTED in str(error):
            raise PruningError(RECOMPUTED) from error
        raise PruningError(
            f"the network fails where gradients are taken, with {type(error).__name__}: {error}; trace and the "
            "forward pass have to be differentiable"
        ) from error
    without = [name for name in weighed or outputs if not _leads_to(outputs[name], members)]
    notes = []
    if blind:
        notes.append(
            f"gradients are off where the operation of {', '.join(blind)} runs, as under torch.no_grad, in a "
            "torch.autograd.Function or in a reentrant checkpoint, so what is taken in there is not ranked by them"
        )
    if not without:
        return notes
    if len(without) == len(weighed or outputs):
        raise PruningError(
            "the outputs have no gradient with respect to the network's layers: trace or the forward pass runs them "
            "under torch.no_grad(), detaches, or gives out integers alone; leave that out"
        )
    changed = _changed_outputs(network, module, members, few)
    return notes + [
        f"the output {name!r} has no gradient with respect to the network's layers, so it counts for the objective, "
        "and neither for the importance of channels nor where layers are fitted"
        for name in without
        if not _same(outputs[name], changed[name])  # a constant, or what no channel has a part in, needs none
    ]


def _leads_to(output: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Return whether gradients of an output reach one of some parameters."""
    wanted = {id(tensor) for tensor in tensors}
    seen: set[Any] = set()
    left: list[Any] = [output.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if id(getattr(node, "variable", None)) in wanted:
            return True
        seen.add(node)
        left += [following for following, _ in node.next_functions]
    return False


@torch.no_grad()
def _changed_outputs(network: Network[Any], module: Any, members: Sequence[Tensor], few: Batch) -> Outputs:
    """Return what a network gives out with other values in some parameters, which are lost."""
    generator = torch.Generator().manual_seed(0)
    for parameter in members:
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network.run(module, few)


def _same(first: Tensor, second: Tensor) -> bool:
    if not first.is_floating_point():
        return torch.equal(first, second)
    return torch.allclose(first, second, rtol=1e-4, atol=1e-6, equal_nan=True)


def _check_parts(network: Network[Any], groups: Sequence[Group], batch: Batch) -> list[str]:
    """Check that all rows together, and each of some, run what the traced ones run."""
    rows, few = rows_of(batch), min(TRACED_ROWS, rows_of(batch))
    traced, whole = (_parts_run(network, part) for part in (take(batch, torch.arange(few)), batch))
    others = {f"all {rows} rows": whole}
    for row in spread_rows(rows, LOOKED_AT_ROWS).tolist():
        if (alone := _parts_run_by_one(network, batch, row)) is not None:
            others[f"row {row} alone"] = alone
    first = f"the first {few} rows"
    for which, parts in others.items():
        ours, theirs = _outermost(parts.keys() - traced.keys()), _outermost(traced.keys() - parts.keys())
        if ours or theirs:
            where = [f"{who} for {whom}" for who, whom in ((ours, which), (theirs, first)) if who]
            missing = f", and not for {first if ours else which}" if len(where) == 1 else ""
            raise PruningError(
                f"the forward pass runs other parts for other rows ({', '.join(where)}{missing}): a network has to be "
                "the same for all rows and any number of them; compute both paths and choose with torch.where"
            )
    consumers = dict.fromkeys((name, name in group.opaque) for group in groups for name in group.consumers)
    for name, opaque in consumers:
        calls, before = ((parts[name] if opaque else parts[weight_of(name)]) for parts in (whole, traced))
        if len(calls) != len(before) and any(items * few != before[0] * rows for items in calls):
            raise PruningError(
                f"the layer {name} takes in {calls[0]} items at once for {rows} rows of data, and {before[0]} for "
                f"{few}; all rows have to go through it together, so leave minibatches out of the forward pass"
            )
    return [
        f"the forward pass runs {name} {len(parts[name])} times for {which} and {len(calls)} times for {first}; how "
        "often it does for others is not known"
        for which, parts in others.items()
        for name, calls in traced.items()
        if len(parts[name]) != len(calls)
    ][:1]


def _parts_run_by_one(network: Network[Any], batch: Batch, row: int) -> dict[str, list[int]] | None:
    """Return what is run for a row, or for two like it where a network needs more than one; None where it fails."""
    for count in (1, 2):
        with suppress(Exception):  # that it runs for any number of rows is nowhere asked for
            return _parts_run(network, take(batch, torch.tensor([row] * count)))
    return None


@torch.no_grad()
def _parts_run(network: Network[Any], batch: Batch) -> dict[str, list[int]]:
    """Return the names of the modules that are run, and of the parameters that are used, in a forward pass.

    With each module comes how many items it took in by call, 0 where that is no tensor; with the weight of a layer,
    how many its operation did; and with other parameters, nothing.
    """
    calls: dict[str, list[int]] = {}

    def note(name: str, part: nn.Module, call: int, arguments: Any, named: Any) -> None:
        held = taken_in(arguments, named)
        calls.setdefault(name, []).append(0 if held is None or held.dim() == 0 else len(held))

    def note_operation(operation: Operation) -> Tensor:
        calls.setdefault(weight_of(operation.name), []).append(len(operation.held))
        return operation.run()

    module, every = network.module, dict(network.module.named_modules())
    with hooked(module, every, note, before=True), operations(module, every, note_operation), TakenTensors() as taken:
        network.run(module, batch)
    for name, parameter in module.named_parameters():
        if id(parameter) in taken.ids:
            calls.setdefault(name, [])
    return calls


def _outermost(names: Collection[str]) -> str:
    """Return names, without those that lie in others of them."""
    return ", ".join(
        sorted(name for name in names if not any(name.startswith(f"{other}.") for other in names if other))
    )


@torch.no_grad()
def _varying(network: Network[Any], rows: Batch, terms: Sequence[Term]) -> list[str]:
    """Run the network twice, and return a warning that names the outputs that are others the second time."""
    first, second = (network.run(network.module, rows) for _ in range(2))
    looked_at = {term.output for term in terms} & first.keys() if terms else first.keys()
    varying = [name for name in first if name in looked_at and not _same(first[name], second[name])]
    if not varying:
        return []
    return [
        f"a second run on the same rows gives other values of {', '.join(varying)}: what is drawn by lot, or kept from "
        "one run to the next, is taken for what the network does; leave it out of the traced pass"
    ]


def _deciding(network: Network[Any], few: Batch) -> list[str]:
    """Return a warning where the forward pass takes a number out of its data and does something with it."""
    seen = _watched(network, network.module, few)
    decisions = [number for number, value in enumerate(seen.taken) if isinstance(value, bool)]
    numbers = len(decisions) < len(seen.taken)
    if not numbers and not any(_matters(network, few, seen, number) for number in decisions[:LOOKED_AT_DECISIONS]):
        return []
    return [
        "the forward pass takes a number out of its data (with if, while or .item()), and what it does for other "
        "values than those of the traced rows is not known; torch.where chooses between two paths"
    ]


def _matters(network: Network[Any], few: Batch, seen: _Decisions, number: int) -> bool:
    """Return whether the forward pass goes on in another way where a decision is the other one."""
    try:
        other = _watched(network, copied(network.module), few, turned=number)
    except Exception:  # an assertion, which goes no other way
        return False
    return other.operations != seen.operations


@torch.no_grad()
def _watched(network: Network[Any], module: Any, few: Batch, *, turned: int | None = None) -> _Decisions:
    with _Decisions(module, few, turned) as seen:
        network.run(module, few)
    return seen


class _Decisions(TorchDispatchMode):
    """Watches what is taken out of tensors that are computed from data, as numbers or booleans of Python.

    Args:
        module: The module that is run.
        data: The data.
        turned: Which of what is taken is turned into its opposite; None for none.

    Attributes:
        taken: The numbers and booleans.
        operations: All operations, and what each takes in: of tensors the name, or which result it is.
    """

    def __init__(self, module: nn.Module, data: Batch, turned: int | None) -> None:
        super().__init__()
        self.taken: list[bool | float] = []
        self.operations: list[tuple[str, ...]] = []
        self._turned = turned
        self._named: dict[int, str] = {}
        self._alive: list[Tensor] = []  # an identity is only a tensor's as long as it lives
        for name, tensor in (*module.named_parameters(), *module.named_buffers(), *data.items()):
            self._name(tensor, name)
        self._computed = {id(tensor) for tensor in data.values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = list(tree_iter((args, kwargs)))
        self.operations.append(
            (str(func), *(self._named.get(id(v), "") if isinstance(v, Tensor) else str(v) for v in given))
        )
        tensors = [value for value in tree_iter(result) if isinstance(value, Tensor)]
        for tensor in tensors:
            self._name(tensor, f"result {len(self._alive)}")
        if any(id(value) in self._computed for value in given):
            if isinstance(result, (bool, int, float)):
                result = not result if len(self.taken) == self._turned else result
                self.taken.append(result)
            self._computed.update(id(tensor) for tensor in tensors)
        return result

    def _name(self, tensor: Tensor, name: str) -> None:
        self._named[id(tensor)] = name
        self._alive.append(tensor)


def steady(network: Network[Module], model: Module) -> Network[Module]:
    """Return a network that has the buffers of a model, and keeps them however often it is run.

    Args:
        network: A copy of the model that has been run.
        model: The model, which has not.
    """
    before, after = dict(model.named_buffers()), dict(network.module.named_buffers())
    if before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before):
        return network
    run = network.run

    def run_with_copies(module: Any, batch: Batch) -> Outputs:
        with _copied_buffers(module):
            return run(module, batch)

    return replace(network, module=copied(model).eval(), run=run_with_copies)


@contextmanager
def _copied_buffers(module: nn.Module) -> Iterator[None]:
    """Within the block a module has copies in the place of its buffers, and it may do with them what it likes."""
    kept = [(submodule, dict(submodule._buffers)) for submodule in module.modules()]
    copies: dict[int, Tensor] = {}  # what two modules share stays shared
    for submodule, buffers in kept:
        for name, buffer in buffers.items():
            if buffer is not None:
                submodule._buffers[name] = copies.setdefault(id(buffer), buffer.clone())
    try:
        yield
    finally:
        for submodule, buffers in kept:
            submodule._buffers.clear()
            submodule._buffers.update(buffers)
