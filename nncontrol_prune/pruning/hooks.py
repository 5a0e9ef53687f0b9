"""Looking into a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn


@contextmanager
def capture(module: nn.Module, names: Iterable[str], side: Literal["input", "output"]) -> Iterator[dict[str, Tensor]]:
    """Collect what submodules take in or give out, by name, for the forward passes within the block."""
    captured: dict[str, Tensor] = {}

    def keep(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        captured[name] = inputs[0] if side == "input" else output

    hooks = [
        module.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: keep(name, inputs, output)
        )
        for name in names
    ]
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()
