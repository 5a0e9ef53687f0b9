"""Operations: those of torch's in which layers use their weights, seen and replaced while a network is run.

What a layer takes in and gives out is what this one operation does, and not what its module does, whose `forward` may
do anything before and after: TD-MPC2's NormedLinear puts a norm and an activation behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")

SIGNATURES: Mapping[Callable[..., Any], tuple[Any, tuple[str, ...]]] = {
    functional.linear: (nn.Linear, ("input", "weight", "bias")),
    functional.conv1d: (nn.Conv1d, _CONVOLUTION),
    functional.conv2d: (nn.Conv2d, _CONVOLUTION),
    functional.conv3d: (nn.Conv3d, _CONVOLUTION),
    functional.conv_transpose1d: (nn.ConvTranspose1d, _TRANSPOSED),
    functional.conv_transpose2d: (nn.ConvTranspose2d, _TRANSPOSED),
    functional.conv_transpose3d: (nn.ConvTranspose3d, _TRANSPOSED),
    functional.layer_norm: (nn.LayerNorm, ("input", "normalized_shape", "weight", "bias", "eps")),
    functional.rms_norm: (nn.RMSNorm, ("input", "normalized_shape", "weight", "eps")),
    functional.batch_norm: (
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
    functional.instance_norm: (
        (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    ),
    functional.group_norm: (nn.GroupNorm, ("input", "num_groups", "weight", "bias", "eps")),
}
"""By operation, the layers whose own it is, and the names of its arguments in their order."""


@dataclass(frozen=True)
class Operation:
    """A call of a layer's operation, with the layer's weight and bias as they are.

    Attributes:
        name: Of the layer.
        layer: The layer.
        call: The number of the call, from 0.
        function: The operation.
        arguments: What it is called with, by name.
    """

    name: str
    layer: nn.Module
    call: int
    function: Callable[..., Tensor]
    arguments: Mapping[str, Any]

    @property
    def held(self) -> Tensor:
        """What the layer takes in."""
        tensor: Tensor = self.arguments["input"]
        return tensor

    def run(self, **others: Any) -> Tensor:
        """Return what the layer gives out, with others of its arguments where they are named."""
        return self.function(**{**self.arguments, **others})


def weight_of(layer: str) -> str:
    """Return the name of a layer's weight, by the layer's, which is empty for the model itself."""
    return f"{layer}.weight".lstrip(".")


Step = Callable[[Operation], Tensor]
"""Does something about a call, and returns what is given out in its place."""


def operations(module: nn.Module, names: Iterable[str], step: Step) -> AbstractContextManager[Any]:
    """Within the block, take a step in place of each call of an operation that uses a layer's weight and bias.

    Weight and bias have to be the layer's own tensors: where they are scaled or transposed first, or are another's, as
    under `torch.func.functional_call`, that is no call of the layer's.

    Args:
        module: The module that is run.
        names: Of the layers; of modules of other kinds, and of norms without weight, no call is seen.
        step: What to do; what it calls itself is not seen.
    """
    return _Operations({name: module.get_submodule(name) for name in names}, step)


class _Operations(TorchFunctionMode):
    def __init__(self, layers: Mapping[str, nn.Module], step: Step) -> None:
        super().__init__()
        self._step = step
        self._calls = Counter[str]()
        self._owners: dict[tuple[int, int], tuple[str, nn.Module]] = {}
        self._alive: list[Any] = []  # an identity is only a tensor's as long as it lives
        kinds = tuple(kind for kind, _ in SIGNATURES.values())
        for name, layer in layers.items():
            if isinstance(layer, kinds):
                weight, bias = (getattr(layer, key, None) for key in ("weight", "bias"))
                if weight is not None:
                    self._owners.setdefault((id(weight), id(bias)), (name, layer))
                    self._alive += [weight, bias]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func not in SIGNATURES:
            return func(*args, **named)
        kind, order = SIGNATURES[func]
        arguments = {**dict(zip(order, args, strict=False)), **named}
        name, layer = self._owners.get((id(arguments.get("weight")), id(arguments.get("bias"))), ("", None))
        if not isinstance(layer, kind):
            return func(*args, **named)
        self._calls[name] += 1
        return self._step(Operation(name, layer, self._calls[name] - 1, func, arguments))


def telling_calls(
    module: nn.Module, names: Iterable[str], rows: int, note: Callable[[Operation, Tensor], None]
) -> AbstractContextManager[Any]:
    """Within the block, note each layer's first call, and the first in which it takes in other values in other rows.

    Mostly that is the same one. The state of a recurrent network often starts at zero, and of that nothing is learned.

    Args:
        module: The module that is run.
        names: Of the layers.
        rows: How many rows of data it is run on.
        note: Takes the call and what was given out.
    """
    varied: set[str] = set()

    def tell(operation: Operation) -> Tensor:
        output = operation.run()
        held = operation.held
        if operation.name not in varied and held.numel() and held.numel() % rows == 0:  # not what has no rows at all
            by_row = held.reshape(rows, -1)
            varies = bool((by_row != by_row[:1]).any())
            if varies:
                varied.add(operation.name)
            if varies or operation.call == 0:
                note(operation, output)
        return output

    return operations(module, names, tell)
