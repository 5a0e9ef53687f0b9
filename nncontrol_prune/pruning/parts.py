"""Parts of a dimension that `chunk` and `glu` take by their number: as many channels can leave each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

CHUNKS = (torch.chunk, torch.Tensor.chunk)


def taken_of(args: Sequence[Any], named: Mapping[str, Any]) -> tuple[Tensor, int, int]:
    """Return what a call of `chunk` is given: the tensor, the number of parts and the dimension."""
    given = {**dict(zip(("input", "chunks", "dim"), args, strict=False)), **named}
    return given["input"], given["chunks"], given.get("dim", 0)


class Undivided(TorchFunctionMode):
    """Takes such parts by their index instead, so that a trace keeps all that is divided."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func in CHUNKS:
            tensor, number, dim = taken_of(args, named)
            if tensor.shape[dim] % number == 0:  # else it is kept anyway
                return _parts(tensor, number, dim)
        if func is functional.glu:
            passed, gate = _parts(args[0], 2, args[1] if len(args) > 1 else named.get("dim", -1))
            return passed * gate.sigmoid()
        return func(*args, **named)


def _parts(tensor: Tensor, number: int, dim: int) -> tuple[Tensor, ...]:
    dim %= tensor.dim()
    return tensor.unflatten(dim, (number, -1)).unbind(dim)
