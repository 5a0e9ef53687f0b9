"""Calls: what layers and operations take in when a network is run, and which calls tell enough to fit a layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

Note = Callable[[str, nn.Module, int, Tensor, Tensor], None]
"""Takes a layer's name, the layer, the number of the call from 0, what it took in, and what it gave out."""


def taken_in(arguments: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
    """Return what a layer takes in: the first tensor that it is called with, by position or by keyword."""
    return next(value for value in (*arguments, *named.values()) if isinstance(value, Tensor))


@contextmanager
def telling_calls(module: nn.Module, names: Sequence[str], rows: int, note: Note) -> Iterator[None]:
    """Within the block, note each layer's first call, and the first in which it takes in other values in other rows.

    Mostly that is the same one. The state of a recurrent network often starts at zero, and of that nothing is learned.
    """
    calls = Counter[str]()
    varied: set[str] = set()

    def hook(name: str, layer: nn.Module, arguments: Any, named: Any, output: Tensor) -> None:
        held, call = taken_in(arguments, named), calls[name]
        calls[name] += 1
        if name in varied:
            return
        by_row = held.reshape(rows, -1)
        varies = bool((by_row != by_row[:1]).any())
        if varies:
            varied.add(name)
        if varies or call == 0:
            note(name, layer, call, held, output)

    hooks = [
        module.get_submodule(name).register_forward_hook(
            lambda layer, arguments, named, output, name=name: hook(name, layer, arguments, named, output),
            with_kwargs=True,
        )
        for name in names
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


class TakenTensors(TorchDispatchMode):
    """Collects the identities of the tensors that operations take in; those of tensors that are gone mean nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ids.update(id(value) for value in tree_iter((args, kwargs)) if isinstance(value, Tensor))
        return func(*args, **(kwargs or {}))
