"""Importer for the `.zip` files of Stable-Baselines3. Nothing in a file is executed.

The weights come from `policy.pth` by torch's `weights_only` loading; the architecture from their names and shapes and
the readable part of the `data` member, whose pickled part is never decoded; VecNormalize statistics from a pickle read
into inert records. Stable-Baselines3 itself is neither imported nor needed.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from nncontrol_prune.controllers.errors import ImportFailedError
from nncontrol_prune.controllers.mlp import ACTIVATIONS, Mlp
from nncontrol_prune.controllers.specs import Activation, ActionSpec, MlpArchitecture

MAX_ARCHIVE_BYTES = 512 * 1024 * 1024
"""The members of an archive may not declare more than this together."""
MAX_VECNORMALIZE_BYTES = 64 * 1024 * 1024
"""VecNormalize statistics are a few kilobytes, and hold the last observations of every environment."""

ALLOWED = "allowed are MlpPolicy actors of PPO, SAC and TD3"
FLATTEN_EXTRACTOR = "<class 'stable_baselines3.common.torch_layers.FlattenExtractor'>"
BOXES = ("<class 'gymnasium.spaces.box.Box'>", "<class 'gym.spaces.box.Box'>")


@dataclass(frozen=True)
class ImportedActor:
    """The deterministic actor of a Stable-Baselines3 model.

    Attributes:
        module: Observation (batch, n) in the environment's units to action (batch, m) in the environment's units, within
            its limits; VecNormalize statistics, squashing and scaling included.
        algorithm: What trained it: `PPO`, `SAC` or `TD3` (DDPG, which is TD3 with other settings, counts as TD3).
        activation: Activation of its hidden layers.
    """

    module: Mlp
    algorithm: str
    activation: Activation


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
        "PPO",
        "mlp_extractor.policy_net.",
        "action_net.",
        ("log_std", "mlp_extractor.value_net.", "value_net."),
        "tanh",
    ),
    "stable_baselines3.sac.policies": _Layout(
        "SAC", "actor.latent_pi.", "actor.mu.", ("actor.log_std", "critic.", "critic_target."), "relu"
    ),
    "stable_baselines3.td3.policies": _Layout(
        "TD3", "actor.mu.", "", ("actor_target.", "critic.", "critic_target."), "relu"
    ),
}
"""By the module that defines the policy's class."""


@dataclass(frozen=True)
class _Statistics:
    """What VecNormalize does to an observation: `clip((o - mean) * inverse_std, ±clip)`."""

    mean: NDArray[np.float64]
    inverse_std: NDArray[np.float64]
    clip: float | None


def import_sb3(
    path: Path,
    observation_size: int,
    action: ActionSpec,
    *,
    vecnormalize: Path | None = None,
    activation: Activation | None = None,
) -> ImportedActor:
    """Read the actor of a model saved by Stable-Baselines3's `model.save()`.

    Args:
        path: The `.zip` file, of PPO, SAC or TD3 with an `MlpPolicy`.
        observation_size: Length of the environment's observation vector.
        action: The environment's action vector; the actor's output is scaled to its limits.
        vecnormalize: What `VecNormalize.save()` wrote, if the model was trained behind one.
        activation: Activation of the hidden layers, for files that do not tell it.

    Raises:
        ImportFailedError: A file is damaged, unsafe or not supported, or does not fit the environment; the message names
            the file, the reason, and what is allowed or what to do next.
    """
    with _errors_name(path):
        data, weights = _read_archive(path)
        layout = _layout(data)
        _check_spaces(data, action)
        kwargs = _policy_kwargs(data)
        activation = _activation(kwargs, layout, activation)
        squash = _squash(data, kwargs, layout)
        layers = _linear_layers(_read_tensors(weights), layout)
        _check_sizes(layers, observation_size, action)
    statistics = _Statistics(np.zeros(observation_size), np.ones(observation_size), None)
    if vecnormalize is not None:
        with _errors_name(vecnormalize):
            statistics = _read_vecnormalize(vecnormalize, observation_size)
    with _errors_name(path):
        module = _build(layers, statistics, action, activation, squash)
    return ImportedActor(module, layout.algorithm, activation)


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    try:
        yield
    except ImportFailedError as error:
        raise ImportFailedError(f"{path}: {error}") from error


def _read_archive(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the metadata in `data`, pickled parts undecoded, and the contents of `policy.pth`."""
    if not path.is_file():
        raise ImportFailedError("there is no such file; give the .zip that Stable-Baselines3's model.save() wrote")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_declared_size(archive)
            members = {name: archive.read(name) for name in ("data", "policy.pth")}
    except KeyError as error:
        raise ImportFailedError(f"{error.args[0]}; give the .zip that Stable-Baselines3's model.save() wrote") from error
    except Exception as error:  # a damaged archive raises anything from BadZipFile to zlib.error
        if isinstance(error, ImportFailedError):
            raise
        raise ImportFailedError(f"it is not a readable zip file ({error}); give the file that model.save() wrote") from error
    try:
        data = json.loads(members["data"])
    except (ValueError, RecursionError) as error:
        raise ImportFailedError(f"its member 'data' is not JSON ({error}); save the model again") from error
    if not isinstance(data, dict):
        raise ImportFailedError("its member 'data' is not a JSON object; save the model again")
    return data, members["policy.pth"]


def _check_declared_size(archive: zipfile.ZipFile) -> None:
    # Before a byte is unpacked: a small archive may claim to hold gigabytes.
    declared = sum(info.file_size for info in archive.infolist())
    if declared > MAX_ARCHIVE_BYTES:
        raise ImportFailedError(f"its members declare {declared} bytes, allowed are {MAX_ARCHIVE_BYTES}")


def _readable(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return what an object says of itself in plain JSON; empty if it says nothing."""
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _layout(data: Mapping[str, Any]) -> _Layout:
    defined_in = _readable(data, "policy_class").get("__module__")
    layout = _LAYOUTS.get(defined_in) if isinstance(defined_in, str) else None
    if layout is None:
        raise ImportFailedError(f"its policy class is defined in {defined_in or 'an unknown module'}; {ALLOWED}")
    # A2C and others share PPO's policy class; only PPO has a clip range.
    if layout.algorithm == "PPO" and "clip_range" not in data:
        raise ImportFailedError(f"it has PPO's policy class but no clip_range, as A2C's models do; {ALLOWED}")
    return layout


def _check_spaces(data: Mapping[str, Any], action: ActionSpec) -> None:
    """Check the kinds of the spaces, and the action space against the environment's where it is readable."""
    for key in ("observation_space", "action_space"):
        space = _readable(data, key)
        kind = space.get(":type:", "missing")
        if kind not in BOXES:
            raise ImportFailedError(f"its {key} is {kind}, allowed is {BOXES[0]}")
        shape = space.get("_shape")
        if isinstance(shape, list) and len(shape) != 1:
            raise ImportFailedError(f"its {key} has shape {tuple(shape)}, allowed are vectors: state, no images")
    for key, expected in (("low", action.lower), ("high", action.upper)):
        found = _parse_vector(_readable(data, "action_space").get(key))
        # NumPy prints eight digits.
        if found is not None and (len(found) != len(expected) or not np.allclose(found, expected, rtol=1e-4, atol=1e-7)):
            raise ImportFailedError(
                f"it was trained with {key} action limits {found.tolist()}, the environment has {list(expected)}; "
                "name the environment it was trained in"
            )


def _parse_vector(text: object) -> NDArray[np.float64] | None:
    """Parse a vector as NumPy prints it; None if it is no such text, or abridged."""
    if not isinstance(text, str):
        return None
    try:
        return np.array([float(word) for word in text.strip("[] ").split()])
    except ValueError:
        return None


def _policy_kwargs(data: Mapping[str, Any]) -> dict[str, Any] | None:
    kwargs = data.get("policy_kwargs")
    if not isinstance(kwargs, dict):
        return None
    extractor = kwargs.get("features_extractor_class", FLATTEN_EXTRACTOR)
    if extractor != FLATTEN_EXTRACTOR:
        raise ImportFailedError(f"its features_extractor_class is {extractor}, allowed is {FLATTEN_EXTRACTOR}")
    return kwargs


def _activation(kwargs: dict[str, Any] | None, layout: _Layout, asked: Activation | None) -> Activation:
    """Return the activation that the file tells, or the one asked for where it tells none."""
    known: dict[str, Activation] = {str(kind): name for name, kind in ACTIVATIONS.items()}
    written = None if kwargs is None else kwargs.get("activation_fn", str(ACTIVATIONS[layout.default_activation]))
    told = known.get(written) if isinstance(written, str) else None
    if told is None and asked is None:
        reason = "it does not tell its activation" if written is None else f"its activation {written} is not known here"
        raise ImportFailedError(f"{reason}; name the one that equals it with --activation, of {', '.join(ACTIVATIONS)}")
    if told is not None and asked is not None and told != asked:
        raise ImportFailedError(f"its activation is {told}, not {asked}; leave --activation out")
    return told or asked  # type: ignore[return-value]  # one of them is there


def _squash(data: Mapping[str, Any], kwargs: dict[str, Any] | None, layout: _Layout) -> Literal["tanh", "clip"]:
    if layout.algorithm != "PPO":
        return "tanh"
    # PPO squashes only with state-dependent exploration, and only if told to.
    if data.get("use_sde") is False:
        return "clip"
    squashes = False if kwargs is None else kwargs.get("squash_output", False)
    if kwargs is None or not isinstance(squashes, bool):
        raise ImportFailedError("it does not tell whether it squashes its output; save it again with policy_kwargs")
    return "tanh" if squashes else "clip"


def _read_tensors(weights: bytes) -> dict[str, Tensor]:
    try:
        if zipfile.is_zipfile(io.BytesIO(weights)):
            with zipfile.ZipFile(io.BytesIO(weights)) as archive:
                _check_declared_size(archive)
        state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
        return {name: tensor for name, tensor in state.items() if _is_plain(name, tensor, len(weights))}
    except Exception as error:  # torch raises a different class for every way a file can be wrong
        if isinstance(error, ImportFailedError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImportFailedError(f"policy.pth does not hold tensors alone ({reason}); save the model again") from error


def _is_plain(name: str, tensor: Tensor, limit: int) -> bool:
    """Return True for a finite floating-point tensor that fits into a file of `limit` bytes; others are an error."""
    plain = isinstance(name, str) and type(tensor) is Tensor and tensor.device.type == "cpu"
    # A view may declare any shape over a small storage.
    if not (plain and tensor.is_floating_point() and tensor.numel() * tensor.element_size() <= limit):
        raise ImportFailedError(f"policy.pth: {name} is not a floating-point tensor of its file's size; save the model again")
    if not torch.isfinite(tensor.to(torch.float32)).all():
        raise ImportFailedError(f"policy.pth: {name} holds NaN or infinite values; choose an earlier checkpoint")
    return True


def _linear_layers(tensors: dict[str, Tensor], layout: _Layout) -> list[tuple[Tensor, Tensor]]:
    """Return weight (outputs, inputs) and bias (outputs,) of every layer, and refuse what no MLP has."""
    names = []
    while f"{layout.body}{2 * len(names)}.weight" in tensors:  # an activation stands between two layers
        names.append(f"{layout.body}{2 * len(names)}.")
    if layout.head:
        names.append(layout.head)
    needed = {name + kind for name in names for kind in ("weight", "bias")}
    if layout.algorithm == "SAC" and "actor.mu.0.weight" in tensors:
        raise ImportFailedError(
            "its use_sde clips the mean before the tanh, which an mlp controller cannot; "
            "train without use_sde or with policy_kwargs=dict(clip_mean=0.0)"
        )
    for name in tensors:
        if name not in needed and not name.startswith(layout.ignored):
            raise ImportFailedError(f"policy.pth: {name} belongs to no MLP of {layout.algorithm}; {ALLOWED}")
    missing = sorted(needed - tensors.keys()) if names else [f"{layout.body}0.weight"]
    if missing:
        raise ImportFailedError(f"policy.pth has no {missing[0]}; {ALLOWED}, with biases")
    layers = [(tensors[name + "weight"], tensors[name + "bias"]) for name in names]
    inputs = None
    for name, (weight, bias) in zip(names, layers, strict=True):
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or inputs not in (None, weight.shape[1]):
            shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
            raise ImportFailedError(f"policy.pth: shapes {shapes} of {name}weight and bias fit no MLP; save the model again")
        inputs = weight.shape[0]
    return layers


def _check_sizes(layers: list[tuple[Tensor, Tensor]], observation_size: int, action: ActionSpec) -> None:
    for what, found, expected in (
        ("observes", layers[0][0].shape[1], observation_size),
        ("commands", layers[-1][0].shape[0], action.size),
    ):
        if found != expected:
            raise ImportFailedError(
                f"it {what} {found} numbers, the environment has {expected}; name the environment it was trained in"
            )


def _build(
    layers: list[tuple[Tensor, Tensor]],
    statistics: _Statistics,
    action: ActionSpec,
    activation: Activation,
    squash: Literal["tanh", "clip"],
) -> Mlp:
    try:
        architecture = MlpArchitecture(
            hidden=tuple(int(weight.shape[0]) for weight, _ in layers[:-1]),
            activation=activation,
            squash=squash,
            observation_clip=statistics.clip,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise ImportFailedError(f"its layers make no mlp controller: {problem['loc'][0]}: {problem['msg']}") from error
    module = Mlp.for_action(architecture, len(statistics.mean), action)
    with torch.no_grad():
        module.normalizer.mean.copy_(torch.from_numpy(statistics.mean))
        module.normalizer.inverse_std.copy_(torch.from_numpy(statistics.inverse_std))
        for layer, (weight, bias) in zip(module.layers, layers, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        if squash == "clip":
            # PPO's mean is in the action's units and clipped there; ours is clipped to ±1 and then scaled.
            weight, bias = (tensor.to(torch.float64) for tensor in layers[-1])
            lower, upper = torch.tensor([action.lower, action.upper], dtype=torch.float64)
            center, half_range = (upper + lower) / 2, (upper - lower) / 2
            module.layers[-1].weight.copy_(weight / half_range[:, None])
            module.layers[-1].bias.copy_((bias - center) / half_range)
    return module.eval()


_VECNORMALIZE = "stable_baselines3.common.vec_env.vec_normalize.VecNormalize"
_RUNNING_MEAN_STD = "stable_baselines3.common.running_mean_std.RunningMeanStd"
_ARRAYS = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
_BUFFERS = {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}
_SCALARS = {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")}
_ADMITTED = frozenset(
    {_VECNORMALIZE, _RUNNING_MEAN_STD, "numpy.ndarray", "numpy.dtype", *_ARRAYS, *_BUFFERS, *_SCALARS}
    | {"gymnasium.spaces.box.Box", "gym.spaces.box.Box"}
    # A space that was sampled from keeps its random generator.
    | {f"numpy.random._pickle.{name}_ctor" for name in ("__generator", "__bit_generator", "__randomstate")}
    | {"numpy.random._pcg64.PCG64", "numpy.random._mt19937.MT19937"}
    | {f"numpy.random.bit_generator.{name}" for name in ("SeedSequence", "__pyx_unpickle_SeedSequence")}
    | {f"gym.utils.seeding.RandomNumberGenerator{name}" for name in ("", "._generator_ctor")}
)
"""Every name that a VecNormalize file may mention."""


class _Record:
    """What a pickle says about an object: its class or function, the arguments, and the state. It does nothing."""

    name: str
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> _Record:
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _RecordUnpickler(pickle.Unpickler):
    """Reads a pickle into records. Nothing that the pickle names is imported, so nothing of it can run."""

    def find_class(self, module: str, name: str) -> type[_Record]:
        path = f"{module}.{name}"
        if path not in _ADMITTED:
            raise ImportFailedError(f"it mentions {path}, allowed are VecNormalize, its NumPy arrays and Box spaces")
        return type("_Record", (_Record,), {"name": path})


def _read_vecnormalize(path: Path, size: int) -> _Statistics:
    """Read what `VecNormalize.save()` wrote, for observations of length `size`."""
    if not path.is_file():
        raise ImportFailedError("there is no such file; give the one that VecNormalize.save() wrote")
    if path.stat().st_size > MAX_VECNORMALIZE_BYTES:
        raise ImportFailedError(f"it has {path.stat().st_size} bytes, allowed are {MAX_VECNORMALIZE_BYTES}")
    try:
        with path.open("rb") as file:
            state = _state(_RecordUnpickler(file).load(), _VECNORMALIZE)
        if not state["norm_obs"]:
            return _Statistics(np.zeros(size), np.ones(size), None)
        if isinstance(state["obs_rms"], dict):
            raise ImportFailedError("it normalizes dictionary observations, allowed are vectors")
        moments = _state(state["obs_rms"], _RUNNING_MEAN_STD)
        mean, variance = _array(moments["mean"]), _array(moments["var"])
        epsilon, clip = float(_array(state["epsilon"])), float(_array(state["clip_obs"]))
    except Exception as error:  # a damaged pickle raises anything
        if isinstance(error, ImportFailedError):
            raise
        raise ImportFailedError(f"it is not what VecNormalize.save() writes ({error or type(error).__name__})") from error
    if mean.shape != (size,) or variance.shape != (size,):
        raise ImportFailedError(
            f"it normalizes observations of shape {mean.shape}, the environment's is {(size,)}; "
            "give the file saved beside the model"
        )
    inverse_std = 1 / np.sqrt(np.where(variance >= 0, variance + epsilon, np.nan))
    # The network computes in float32; NaN compares false.
    if not np.isfinite(np.float32([mean, inverse_std])).all() or not clip > 0:
        raise ImportFailedError("its mean, variance, epsilon or clip_obs is not finite or not positive; save it again")
    return _Statistics(mean, inverse_std, clip if math.isfinite(clip) else None)


def _state(record: Any, name: str) -> dict[str, Any]:
    if not (isinstance(record, _Record) and record.name == name and isinstance(record.state, dict)):
        raise ImportFailedError(f"it holds no {name}; give the file that VecNormalize.save() wrote")
    return record.state


def _array(value: Any) -> NDArray[np.float64]:
    """Return the recorded array or scalar, or the plain number, in float64."""
    if not isinstance(value, _Record):
        return np.array(float(value))
    shape: Any = ()
    order: Any = "C"
    if value.name in _ARRAYS:
        _, shape, dtype, fortran, data = value.state
        order = "F" if fortran else "C"
    elif value.name in _BUFFERS:
        data, dtype, shape, order = value.args[:4]
    elif value.name in _SCALARS:
        dtype, data = value.args
    else:
        raise ImportFailedError(f"it holds a {value.name} where a number or array belongs")
    code, byte_order = dtype.args[0], dtype.state[1]
    if code not in ("f2", "f4", "f8"):
        raise ImportFailedError(f"its statistics have type {code}, allowed are f2, f4 and f8")
    return np.frombuffer(data, np.dtype(byte_order + code)).reshape(shape, order=order).astype(np.float64)
