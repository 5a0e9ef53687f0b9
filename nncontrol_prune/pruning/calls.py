"""Calls: what layers and operations take in when a network is run, and which calls tell enough to fit a layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
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
def hooked(
    module: nn.Module, names: Iterable[str], function: Callable[..., Any], *, before: bool = False
) -> Iterator[None]:
    """Within the block, call a function whenever one of some parts of a module has been run, or is to be.

    Args:
        module: The module.
        names: Of the parts.
        function: Takes a part's name, the part, the number of the call from 0, the arguments by position, those by
            keyword and, after it, the output. What it returns, unless that is None, takes the place of the output, or
            before it of both kinds of arguments.
        before: Whether it is called before the part is run.
    """
    calls = Counter[str]()

    def hook(name: str, part: nn.Module, *passed: Any) -> Any:
        calls[name] += 1
        return function(name, part, calls[name] - 1, *passed)

    with ExitStack() as stack:
        for name in names:
            part = module.get_submodule(name)
            register = part.register_forward_pre_hook if before else part.register_forward_hook
            stack.callback(register(partial(hook, name), with_kwargs=True).remove)
        yield


def telling_calls(module: nn.Module, names: Iterable[str], rows: int, note: Note) -> AbstractContextManager[None]:
    """Within the block, note each layer's first call, and the first in which it takes in other values in other rows.

    Mostly that is the same one. The state of a recurrent network often starts at zero, and of that nothing is learned.
    """
    varied: set[str] = set()

    def tell(name: str, layer: nn.Module, call: int, arguments: Any, named: Any, output: Tensor) -> None:
        if name in varied:
            return
        held = taken_in(arguments, named)
        by_row = held.reshape(rows, -1)
        varies = bool((by_row != by_row[:1]).any())
        if varies:
            varied.add(name)
        if varies or call == 0:
            note(name, layer, call, held, output)

    return hooked(module, names, tell)


class TakenTensors(TorchDispatchMode):
    """Collects the identities of the tensors that operations take in; those of tensors that are gone mean nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ids.update(id(value) for value in tree_iter((args, kwargs)) if isinstance(value, Tensor))
        return func(*args, **(kwargs or {}))
