"""Importer for the `.zip` files of Stable-Baselines3. Nothing in a file is executed.

The weights come from `policy.pth` by torch's `weights_only` loading; the architecture from their names and shapes and
the readable part of the `data` member, whose pickled part is never decoded; VecNormalize statistics from a pickle read
into inert records. Stable-Baselines3 itself is neither imported nor needed.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nncontrol_prune.controllers.actors import Layers, check_sizes, mlp_of
from nncontrol_prune.controllers.checkpoints import check_declared_size, check_tensor, load_tensors, naming
from nncontrol_prune.controllers.errors import ImportFailedError, refusing
from nncontrol_prune.controllers.mlp import ACTIVATIONS, Mlp
from nncontrol_prune.controllers.specs import ActionSpec, Activation, Squash
from nncontrol_prune.controllers.vecnormalize import Statistics, read_vecnormalize

SUPPORTED = "supported are MlpPolicy actors of PPO, SAC and TD3"
FLATTEN_EXTRACTOR = "<class 'stable_baselines3.common.torch_layers.FlattenExtractor'>"
BOX_SPACES = ("<class 'gymnasium.spaces.box.Box'>", "<class 'gym.spaces.box.Box'>")


@dataclass(frozen=True)
class _Layout:
    """Where an algorithm's policy keeps its actor, as prefixes of tensor names."""

    algorithm: str
    body: str
    """A sequence of linear layers, each followed by an activation."""
    head: str
    """The output layer; empty where it is the last of the body."""
    ignored: tuple[str, ...]
    """What is not the actor's mean: critics, targets, exploration noise."""
    default_activation: Activation


_LAYOUTS = {
    "stable_baselines3.common.policies": _Layout(
        "PPO", "mlp_extractor.policy_net.", "action_net.", ("log_std", "mlp_extractor.value_net.", "value_net."), "tanh"
    ),
    "stable_baselines3.sac.policies": _Layout(
        "SAC", "actor.latent_pi.", "actor.mu.", ("actor.log_std", "critic.", "critic_target."), "relu"
    ),
    "stable_baselines3.td3.policies": _Layout(
        "TD3", "actor.mu.", "", ("actor_target.", "critic.", "critic_target."), "relu"
    ),
}
"""By the module that defines the policy's class."""


def import_sb3(
    path: Path,
    observation_size: int,
    action: ActionSpec,
    *,
    vecnormalize: Path | None = None,
    activation: Activation | None = None,
) -> Mlp:
    """Read the actor of a model saved by Stable-Baselines3's `model.save()`.

    Args:
        path: The `.zip` file, of PPO, SAC or TD3 with an `MlpPolicy`.
        observation_size: Length of the environment's observation vector.
        action: The environment's action vector; the actor's output is scaled to its limits.
        vecnormalize: What `VecNormalize.save()` wrote, if the model was trained behind one.
        activation: Activation of the hidden layers, for files that do not tell it.

    Returns:
        The deterministic actor, with VecNormalize statistics, squashing and scaling included.

    Raises:
        ImportFailedError: A file is damaged, unsafe or not supported, or does not fit the environment; the message
            names the file, the reason, and what is allowed or what to do next.
    """
    with naming(path):
        data, weights = _read_archive(path)
        layout = _layout(data)
        _check_spaces(data, action)
        kwargs = _policy_kwargs(data)
        activation = _activation(kwargs, layout, activation)
        squash = _squash(data, kwargs, layout)
        layers = _linear_layers(load_tensors(weights, "policy.pth"), layout)
        check_sizes(layers, observation_size, action)
    statistics = Statistics.none(observation_size)
    if vecnormalize is not None:
        with naming(vecnormalize):
            statistics = read_vecnormalize(vecnormalize, observation_size)
    with naming(path):
        return mlp_of(layers, statistics, action, activation=activation, squash=squash)


def _read_archive(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the metadata in `data`, its pickled parts undecoded, and the contents of `policy.pth`."""
    with refusing("it is not a file that Stable-Baselines3's model.save() wrote"):
        with zipfile.ZipFile(path) as archive:
            check_declared_size(archive)
            members = [archive.read(name) for name in ("data", "policy.pth")]
        data = json.loads(members[0])
        if not isinstance(data, dict):
            raise TypeError("its member 'data' is not a JSON object")
    return data, members[1]


def _readable(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return what an object says of itself in plain JSON; empty if it says nothing."""
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _layout(data: Mapping[str, Any]) -> _Layout:
    module = _readable(data, "policy_class").get("__module__")
    layout = _LAYOUTS.get(str(module))
    if layout is None:
        raise ImportFailedError(f"its policy class is defined in {module or 'an unknown module'}; {SUPPORTED}")
    # A2C and others share PPO's policy class; only PPO has a clip range.
    if layout.algorithm == "PPO" and "clip_range" not in data:
        raise ImportFailedError(f"it has PPO's policy class but no clip_range, as A2C's models do; {SUPPORTED}")
    return layout


def _check_spaces(data: Mapping[str, Any], action: ActionSpec) -> None:
    """Check the kinds of the spaces, and the action limits against the environment's where they are readable."""
    for key in ("observation_space", "action_space"):
        space = _readable(data, key)
        kind, shape = space.get(":type:", "unknown"), space.get("_shape")
        if kind not in BOX_SPACES:
            raise ImportFailedError(f"its {key} is {kind}, supported is {BOX_SPACES[0]}")
        if isinstance(shape, list) and len(shape) != 1:
            raise ImportFailedError(f"its {key} has shape {tuple(shape)}, supported are vectors and no images")
    for key, expected in (("low", action.lower), ("high", action.upper)):
        found = _parse_vector(_readable(data, "action_space").get(key))
        # NumPy prints eight digits. Another length is left to the check of the output layer.
        if found is not None and len(found) == len(expected) and not np.allclose(found, expected, rtol=1e-4, atol=1e-7):
            raise ImportFailedError(
                f"its {key} action limits are {found.tolist()}, the environment's are {list(expected)}; "
                "name the environment it was trained in"
            )


def _parse_vector(text: object) -> NDArray[np.float64] | None:
    """Parse a vector as NumPy prints it; None if it is no such text, or abridged."""
    try:
        return np.array([float(word) for word in str(text).strip("[] ").split()])
    except ValueError:
        return None


def _policy_kwargs(data: Mapping[str, Any]) -> dict[str, Any] | None:
    kwargs = data.get("policy_kwargs")
    if not isinstance(kwargs, dict):
        return None
    extractor = kwargs.get("features_extractor_class", FLATTEN_EXTRACTOR)
    if extractor != FLATTEN_EXTRACTOR:
        raise ImportFailedError(f"its features_extractor_class is {extractor}, supported is {FLATTEN_EXTRACTOR}")
    return kwargs


def _activation(kwargs: Mapping[str, Any] | None, layout: _Layout, asked: Activation | None) -> Activation:
    """Return the activation that the file tells, or the one asked for where it tells none."""
    known: dict[str, Activation] = {str(kind): name for name, kind in ACTIVATIONS.items()}
    written = None if kwargs is None else kwargs.get("activation_fn", str(ACTIVATIONS[layout.default_activation]))
    told = known.get(str(written))
    if told is not None and asked not in (None, told):
        raise ImportFailedError(f"its activation is {told}, not {asked}; leave --activation out")
    if told is None and asked is None:
        reason = f"its activation {written} is not known here" if written else "it does not tell its activation"
        raise ImportFailedError(f"{reason}; name the one that equals it with --activation: {', '.join(ACTIVATIONS)}")
    return told or cast(Activation, asked)


def _squash(data: Mapping[str, Any], kwargs: Mapping[str, Any] | None, layout: _Layout) -> Squash:
    if layout.algorithm != "PPO":
        return "tanh"
    # PPO squashes only with state-dependent exploration (use_sde), and then only if told to.
    if kwargs is None and data.get("use_sde") is not False:
        raise ImportFailedError("it does not tell whether it squashes its output; save it again with its policy_kwargs")
    return "tanh" if kwargs is not None and kwargs.get("squash_output") is True else "clip"


def _linear_layers(tensors: Mapping[str, Tensor], layout: _Layout) -> Layers:
    """Return every layer, and refuse what an MLP does not have."""
    names: list[str] = []
    while f"{layout.body}{2 * len(names)}.weight" in tensors:  # the odd numbers are the activations
        names.append(f"{layout.body}{2 * len(names)}.")
    if layout.head:
        names.append(layout.head)
    if layout.algorithm == "SAC" and "actor.mu.0.weight" in tensors:
        raise ImportFailedError(
            "with use_sde it clips the mean before the tanh, which an mlp controller cannot; "
            "train without use_sde or with policy_kwargs=dict(clip_mean=0.0)"
        )
    needed = [name + kind for name in names or [f"{layout.body}0."] for kind in ("weight", "bias")]
    for name in tensors:
        if name not in needed and not str(name).startswith(layout.ignored):
            raise ImportFailedError(f"policy.pth: {name} belongs to no MLP of {layout.algorithm}; {SUPPORTED}")
    for name in needed:
        if name not in tensors:
            raise ImportFailedError(f"policy.pth has no {name}; {SUPPORTED}")
        check_tensor(tensors[name], f"policy.pth: {name}")
    layers = [(tensors[name + "weight"], tensors[name + "bias"]) for name in names]
    inputs = layers[0][0].shape[-1:]
    for name, (weight, bias) in zip(names, layers, strict=True):
        if weight.ndim != 2 or weight.shape[1:] != inputs or bias.shape != weight.shape[:1]:
            shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
            raise ImportFailedError(f"policy.pth: weight and bias of {name} have shapes {shapes}, which fit no MLP")
        inputs = weight.shape[:1]
    return layers
