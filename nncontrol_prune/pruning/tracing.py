"""Tracing: which entries of a module's tensors can only leave together, found by watching a forward pass.

Every entry along every dimension of every parameter and buffer has a label. `trace` runs the module and carries the
labels along with the values, one operation of the ATen level at a time: a matrix product contracts a dimension of
one tensor with one of another, so their labels are joined; an addition joins the labels of its operands; a reshape
says how labels lie in the new shape. What is joined at the end leaves together or not at all. Entries that are joined
with something whose size nobody may change (inputs, outputs, a dimension indexed by a fixed number) stay for good.

The idea of a dependency graph is Fang et al. 2023 (DepGraph); this works on entries in place of layers, so residuals,
concatenations, flattened images, simplices and recurrence need no cases of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from nncontrol_prune.pruning.coupling import Coupling
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.propagation import RULES


def trace(module: nn.Module, run: Callable[[], Any]) -> Coupling:
    """Run a module and return how its entries are coupled.

    Args:
        module: The module.
        run: Runs it on some rows; what it returns holds every output, whose sizes stay.

    Raises:
        PruningError: An operation is not known; the message names it. Or the module is recurrent.
    """
    refuse_recurrence(module)
    coupling = Coupling(module)
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), _Propagation(coupling):
            outputs = run()
    finally:
        module.train(training)
    for output in tree_iter(outputs):
        if isinstance(output, Tensor):
            for row in coupling.labels(output):
                coupling.fix(row)
    return coupling


def refuse_recurrence(module: nn.Module) -> None:
    """Refuse recurrent layers.

    Raises:
        PruningError: There is one.
    """
    for name, submodule in module.named_modules():
        if isinstance(submodule, (nn.RNNBase, nn.RNNCellBase)):
            raise PruningError(
                f"{name or 'the module'} is recurrent ({type(submodule).__name__}); "
                "recurrent networks cannot be pruned yet"
            )


class _Propagation(TorchDispatchMode):
    def __init__(self, coupling: Coupling) -> None:
        super().__init__()
        self._coupling = coupling

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        _propagate(self._coupling, func, args, kwargs or {}, result)
        return result


def _propagate(coupling: Coupling, func: Any, args: Any, kwargs: Any, result: Any) -> None:
    name = str(func.overloadpacket).removeprefix("aten.")
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    if not any(coupling.knows(tensor) for tensor in tensors):
        return
    rule = RULES.get(name.rstrip("_") if not name.startswith("_") else name)
    if rule is None:
        raise PruningError(
            f"the forward pass uses the operation {func}, which pruning does not know; "
            "write it with other operations, or keep what it works on out of the traced pass"
        )
    rule(coupling, args, kwargs, result)
