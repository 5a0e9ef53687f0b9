"""Copies of modules, also of those that remember what they computed."""

from __future__ import annotations

import copy
import gc
import types
import weakref
from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

COPIED_AS_THEY_ARE = (
    *(type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.CodeType),
    *(weakref.ReferenceType, str, bytes, int, float, complex, type(None)),
)
"""Kinds of objects that a copy shares with what it is of, so that nothing is looked for in them."""


def copied(module: Module) -> Module:
    """Return a deep copy of a module, with tensors of its own in the place of those that it remembers.

    Torch does not copy tensors that gradients lead through, such as an activation or a distribution that `forward`
    keeps as an attribute; what a copy has in their place holds the same values, and leads nowhere.
    """
    return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in _remembered(module)})


def _remembered(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that a module computed, and holds itself or in any of what it holds."""
    left: list[object] = [module]
    seen: dict[int, object] = {}  # an identity is only an object's as long as it lives
    while left:
        found = left.pop()
        if id(found) in seen or isinstance(found, COPIED_AS_THEY_ARE):
            continue
        seen[id(found)] = found
        if isinstance(found, Tensor) and not found.is_leaf:
            yield found
        else:
            left += gc.get_referents(found)
