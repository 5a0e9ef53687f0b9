"""Calls: what modules and operations take in when a network is run; of layers, see operations.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map


def taken_in(arguments: Sequence[Any], named: Mapping[str, Any]) -> Tensor | None:
    """Return what a module takes in: the first tensor that it is called with, by position or by keyword, if any."""
    return next((value for value in tree_iter((arguments, named)) if isinstance(value, Tensor)), None)


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


def with_others_taken_in(
    module: nn.Module, names: Iterable[str], other: Callable[[str, nn.Module, Tensor], Tensor]
) -> AbstractContextManager[None]:
    """Within the block, parts of a module take in another tensor in the place of the first, of which there is one.

    Args:
        module: The module.
        names: Of the parts.
        other: Takes a part's name, the part and the tensor, and returns the one to take in.
    """

    def exchange(name: str, part: nn.Module, call: int, arguments: Any, named: Any) -> Any:
        held = taken_in(arguments, named)
        assert held is not None, f"{name} takes in no tensor"
        found = other(name, part, held)
        return tree_map(lambda value: found if value is held else value, (arguments, named))

    return hooked(module, names, exchange, before=True)


class TakenTensors(TorchDispatchMode):
    """Collects the identities of the tensors that operations take in; those of tensors that are gone mean nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ids.update(id(value) for value in tree_iter((args, kwargs)) if isinstance(value, Tensor))
        return func(*args, **(kwargs or {}))
