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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from nncontrol_prune.pruning.coupling import OUTPUT, Cause, Coupling
from nncontrol_prune.pruning.errors import PruningError
from nncontrol_prune.pruning.operations import Operation, operations
from nncontrol_prune.pruning.parts import CHUNKS, taken_of
from nncontrol_prune.pruning.propagation import RULES


def trace(module: nn.Module, run: Callable[[], Any]) -> Coupling:
    """Run a module and return how its entries are coupled.

    Args:
        module: The module.
        run: Runs it on some rows; what it returns holds every output, whose sizes stay.

    Raises:
        PruningError: An operation is not known; the message names it. Or the module cannot be pruned.
    """
    check_traceable(module)
    coupling = Coupling(module, _whole_modules(module))
    for name, tensor in _attributes(module):
        coupling.originate(
            tensor, Cause(f"meet {name}, a tensor that is no buffer", "make it one, with register_buffer")
        )
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    watched = operations(module, linear, partial(_keep_positions, coupling))
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), without_fast_path(), watched, _Functions(coupling), _Propagation(coupling):
            outputs = run()
    finally:
        for submodule, training in modes:  # one that is frozen is in another mode than the rest
            submodule.training = training
    coupling.begin(OUTPUT)
    for output in tree_iter(outputs):
        if isinstance(output, Tensor):
            for row in coupling.labels(output):
                coupling.fix(row)
    return coupling


def check_traceable(module: nn.Module) -> None:
    """Check that none of a module's parts are of a kind that cannot be pruned.

    Raises:
        PruningError: One is recurrent, compiled by TorchScript or torch.compile, or has weights that it computes from
            others.
    """
    for name, submodule in module.named_modules():
        who = f"{name or 'the module'} ({type(submodule).__name__})"
        if isinstance(submodule, (nn.RNNBase, nn.RNNCellBase)):
            raise PruningError(
                f"{name or 'the module'} is recurrent ({type(submodule).__name__}); "
                "recurrent networks cannot be pruned yet"
            )
        if isinstance(submodule, torch.jit.ScriptModule):
            raise PruningError(
                f"{who} is a TorchScript module, which cannot be taken apart; pass the torch.nn.Module it was made from"
            )
        if "_orig_mod" in submodule._modules:
            raise PruningError(
                f"{who} is compiled by torch.compile; pass the module it was made from ({name or 'model'}._orig_mod)"
            )
        if hasattr(vars(submodule).get("forward"), "_torchdynamo_orig_callable"):  # in a copy it runs the original
            raise PruningError(
                f"the forward method of {who} is compiled by torch.compile; pass the module as it was before"
            )
        if remedy := _reparametrized(submodule):
            raise PruningError(
                f"{who} computes its weight from other parameters, which only training needs; "
                f"put it in place first, with {remedy}"
            )


def _reparametrized(module: nn.Module) -> str:
    """Return the call that gives a module plain weights again; empty where it has them."""
    if is_parametrized(module):
        parametrized: Any = module.parametrizations
        return f"torch.nn.utils.parametrize.remove_parametrizations(module, {next(iter(parametrized))!r})"
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            return f"torch.nn.utils.remove_weight_norm(module, {hook.name!r})"
        if isinstance(hook, SpectralNorm):
            return f"torch.nn.utils.remove_spectral_norm(module, {hook.name!r})"
        if isinstance(hook, BasePruningMethod):
            return f"torch.nn.utils.prune.remove(module, {hook._tensor_name!r})"
    return ""


def _whole_modules(module: nn.Module) -> dict[nn.Module, Cause]:
    """Return the modules that nothing may leave, and what to say of each.

    The size of torch's attention is written into it as a number, and its weights lie in one tensor for three uses.
    """
    return {
        submodule: Cause(
            f"meet the embedding of {name or 'the model'} (nn.MultiheadAttention), which stays",
            "to prune it, write the attention with torch.nn.functional.scaled_dot_product_attention",
        )
        for name, submodule in module.named_modules()
        if isinstance(submodule, nn.MultiheadAttention)
    }


def _attributes(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that are attributes of a module or its parts, neither parameters nor buffers, by name."""
    for name, submodule in module.named_modules():
        for key, value in vars(submodule).items():
            if isinstance(value, Tensor):
                yield f"{name}.{key}".lstrip("."), value


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Within the block, torch's attention and transformer layers run what they are made of, and not one operation."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _keep_positions(coupling: Coupling, operation: Operation) -> Tensor:
    """Make stay what a linear layer treats alike, as a mixer's does with channels: it is fitted to all of them."""
    coupling.begin(Cause(f"are positions to the layer {operation.name}, which is applied to each"))
    for row in coupling.labels(operation.held)[:-1]:
        coupling.fix(row)
    return operation.run()


class _Functions(TorchFunctionMode):
    """Sees what is taken apart before it gets to the operations.

    An attention makes the channels of queries and keys stay, as scores are scaled by how many there are; a `chunk` asks
    for a number of parts, of which the operation knows only the size.
    """

    def __init__(self, coupling: Coupling) -> None:
        super().__init__()
        self._coupling = coupling

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CHUNKS:
            self._coupling.parts = taken_of(args, kwargs or {})[1]
            try:
                return func(*args, **(kwargs or {}))
            finally:
                self._coupling.parts = 0
        if func is torch.nn.functional.scaled_dot_product_attention:
            self._coupling.begin(Cause("are what an attention's scores are scaled by"))
            named = kwargs or {}
            for tensor in (*args[:2], *(named[name] for name in ("query", "key") if name in named)):
                self._coupling.fix(self._coupling.labels(tensor)[-1])
        return func(*args, **(kwargs or {}))


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
        made = not tensors or name == "lift_fresh" or name.startswith("new_")
        origins = [_made_by(name)] if made else [coupling.origin(tensor) for tensor in tensors]
        _originate(coupling, next(filter(None, origins), None), result)
        return
    if torch.is_inference_mode_enabled():
        raise PruningError(
            "trace or the forward pass runs the network's layers under torch.inference_mode, so the outputs have no "
            "gradient with respect to them; leave that out"
        )
    coupling.begin(_described(name, func), tensors)
    rule = RULES.get(name.rstrip("_") if not name.startswith("_") else name)
    if rule is None:
        raise PruningError(
            f"the forward pass uses the operation {func}, which pruning does not know; "
            "write it with other operations, or keep what it works on out of the traced pass"
        )
    rule(coupling, args, kwargs, result)
    if all(coupling.is_weight(tensor) for tensor in tensors):
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                coupling.weigh(tensor)
    if name.startswith("new_"):
        _originate(coupling, _made_by(name), result)


def _originate(coupling: Coupling, origin: Cause | None, result: Any) -> None:
    if origin is not None:
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                coupling.originate(tensor, origin)


def _made_by(name: str) -> Cause:
    function = "torch.tensor" if name == "lift_fresh" else f"aten.{name}"
    return Cause(
        f"meet a tensor that is made in the forward pass ({function})",
        "make it a buffer, or like another tensor (torch.zeros_like)",
    )


def _described(name: str, func: Any) -> Cause:
    if name == "copy_":
        return Cause(
            "are written into a part of a tensor",
            "join the parts with torch.cat or torch.stack instead of writing them",
        )
    return Cause(f"are kept by the operation {func}, which needs all of them or joins them with what has to stay")
