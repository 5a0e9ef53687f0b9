"""Importer for the weights of an MLP as torch's `state_dict()` has them. Nothing in a file is executed.

A file is what `torch.save()` or safetensors wrote: the state dict, or a checkpoint that has it somewhere inside, as
rsl_rl's and CleanRL's do. Names are joined by dots. The actor is a row of linear layers; a state dict does not tell the
activation between them, nor what becomes of the output.
"""

from __future__ import annotations

import itertools
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from nncontrol_prune.controllers.actors import Layers, check_sizes, mlp_of
from nncontrol_prune.controllers.checkpoints import check_tensor, load_tensors, naming
from nncontrol_prune.controllers.errors import ImportFailedError, refusing
from nncontrol_prune.controllers.mlp import Mlp
from nncontrol_prune.controllers.specs import ActionSpec, Activation, Squash
from nncontrol_prune.controllers.vecnormalize import Statistics

EPSILON = 1e-2
"""What rsl_rl's `EmpiricalNormalization` adds to the standard deviation."""
OTHERS = ("critic", "privileged", "value", "teacher")
"""In the names of what is not the actor's."""


def import_state_dict(
    path: Path,
    observation_size: int,
    action: ActionSpec,
    *,
    activation: Activation,
    squash: Squash = "clip",
    layers: Sequence[str] = (),
    normalizer: str | None = None,
) -> Mlp:
    """Read the actor out of a state dict.

    Args:
        path: What `torch.save()` or, by its suffix, safetensors wrote.
        observation_size: Length of the environment's observation vector.
        action: The environment's action vector.
        activation: Of the hidden layers.
        squash: See `mlp_of`.
        layers: Names of the linear layers in the order they are run, or the one name before their numbers; by default
            the only row of numbered ones that fits the environment and is not a critic's. What comes before a name, as
            of the dictionary that the state dict is in, may be left out where one name alone ends so.
        normalizer: Name of rsl_rl's normalization of the observations; by default the only one that fits, if any.

    Raises:
        ImportFailedError: The file is damaged or unsafe, or does not fit the environment, or several of its parts do;
            the message names the file, the reason, and what is allowed or what to do next.
    """
    with naming(path):
        tensors = _read(path)
        found = _layers(tensors, layers or _row_that_fits(tensors, observation_size, action))
        check_sizes(found, observation_size, action)
        return mlp_of(
            found,
            _statistics(tensors, normalizer, observation_size),
            action,
            activation=activation,
            squash=squash,
        )


def _read(path: Path) -> dict[str, Tensor]:
    with refusing("it cannot be read"):
        content = path.read_bytes()
    if path.suffix == ".safetensors":
        with refusing("it is not a safetensors file"):
            return safetensors.torch.load(content)
    if zipfile.is_zipfile(path):
        with refusing("it is damaged"), zipfile.ZipFile(path) as archive:
            program = any("/code/" in name for name in archive.namelist())
        if program:
            raise ImportFailedError("it is a TorchScript program; give the checkpoint that it was exported from")
    return dict(_flat(load_tensors(content, "it"), ""))


def _flat(part: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested dictionaries with their names, joined by dots."""
    for key, value in part.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")


def _numbered(tensors: Mapping[str, Tensor], row: str) -> list[str]:
    """Return the names of the linear layers in a row, which is what comes before their numbers, in that order."""
    found = {
        int(match[1]): name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if (match := re.fullmatch(rf"{re.escape(row)}(\d+)\.weight", name)) and tensor.dim() == 2
    }
    return [found[number] for number in sorted(found)]


def _row_that_fits(tensors: Mapping[str, Tensor], observation_size: int, action: ActionSpec) -> list[str]:
    """Return the names of the layers of the only row from the observation to the action."""
    rows = {match[1] for name in tensors if (match := re.fullmatch(r"(|.*\.)\d+\.weight", name))}
    fitting = []
    for row in sorted(rows):
        shapes = [tensors[f"{name}.weight"].shape for name in _numbered(tensors, row)]
        ends = shapes and (shapes[0][1], shapes[-1][0]) == (observation_size, action.size)
        if ends and not any(word in row for word in OTHERS):
            fitting.append(row)
    if len(fitting) == 1:
        return _row(tensors, fitting[0])
    if fitting:
        names = ", ".join(row.removesuffix(".") for row in fitting)
        raise ImportFailedError(f"{names} all fit the environment; name the actor's with --layer")
    raise ImportFailedError(
        f"no row of numbered layers takes {observation_size} observations and gives out {action.size} actions; name "
        f"the actor's layers, or the environment it was trained in; --layer may name {_linear(tensors)}"
    )


def _row(tensors: Mapping[str, Tensor], row: str) -> list[str]:
    """Return the names of the layers in a row, after a look at what else is in it."""
    names = _numbered(tensors, row)
    for name in tensors:
        if re.match(rf"{re.escape(row)}\d+\.", name) and name.rpartition(".")[0] not in names:
            raise ImportFailedError(f"{name} lies between the layers, and belongs to no MLP: a norm, say")
    return names


def _whole_name(tensors: Mapping[str, Tensor], name: str) -> str:
    """Return the whole name of a part of the network that is named by its end; the name as it is if there is none."""
    name = name.rstrip(".")
    parts = (key.split(".") for key in tensors)
    known = {".".join(part[:count]) for part in parts for count in range(1, len(part))}
    fitting = sorted(other for other in known if f".{other}".endswith(f".{name}"))
    if name in known or not fitting:
        return name
    if len(fitting) > 1:
        raise ImportFailedError(f"{name} may be any of {', '.join(fitting)}; give the whole name")
    return fitting[0]


def _linear(tensors: Mapping[str, Tensor]) -> str:
    found = [f"{n.removesuffix('.weight')} {tuple(t.shape)}" for n, t in tensors.items() if t.dim() == 2]
    return ", ".join(found) or "none"


def _layers(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Layers:
    names = [_whole_name(tensors, name) for name in names]
    if len(names) == 1 and f"{names[0]}.weight" not in tensors:
        names = _row(tensors, f"{names[0]}.") or names
    found = []
    for name in names:
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" not in tensors:
                raise ImportFailedError(f"there is no {name}.{kind}; linear layers are {_linear(tensors)}")
            check_tensor(tensors[f"{name}.{kind}"], f"{name}.{kind}")
        found.append((tensors[f"{name}.weight"], tensors[f"{name}.bias"]))
    for name, (weight, bias) in zip(names, found, strict=True):
        if weight.dim() != 2 or bias.shape != weight.shape[:1]:
            shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
            raise ImportFailedError(f"weight and bias of {name} have shapes {shapes}, which are no linear layer's")
    for (name, (before, _)), (following, (after, _)) in itertools.pairwise(zip(names, found, strict=True)):
        if after.shape[1] != before.shape[0]:
            raise ImportFailedError(
                f"{name} gives out {before.shape[0]} numbers and {following} takes {after.shape[1]}; "
                "name the layers with --layer, in the order they are run"
            )
    return found


def _statistics(tensors: Mapping[str, Tensor], normalizer: str | None, size: int) -> Statistics:
    """Return what rsl_rl's normalization does, or none."""
    if normalizer is None:
        names = [name.removesuffix("._mean") for name in tensors if name.endswith("._mean")]
        fitting = [
            name
            for name in names
            if tensors[f"{name}._mean"].numel() == size and not any(word in name for word in OTHERS)
        ]
        if len(fitting) > 1:
            raise ImportFailedError(f"{', '.join(fitting)} all fit the observation; name the actor's with --normalizer")
        if not fitting:
            return Statistics.none(size)
        normalizer = fitting[0]
    normalizer = _whole_name(tensors, normalizer)
    moments = []
    for kind in ("_mean", "_std"):
        name = f"{normalizer}.{kind}"
        if name not in tensors:
            raise ImportFailedError(f"there is no {name}, which a normalization of rsl_rl has")
        check_tensor(tensors[name], name)
        if tensors[name].numel() != size:
            raise ImportFailedError(f"{name} has {tensors[name].numel()} entries, the observation has {size}")
        moments.append(tensors[name].flatten().to(torch.float64).numpy())
    mean, std = moments
    if (std < 0.0).any():
        raise ImportFailedError(f"{normalizer}._std holds negative values")
    return Statistics(mean, 1.0 / (std + EPSILON), None)
