"""Calls: what a layer takes in when it is run, and the calls that tell enough of it to fit it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

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
