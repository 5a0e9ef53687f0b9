"""VecNormalize statistics of Stable-Baselines3, read from their pickle into inert records; nothing in it can run."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncontrol_prune.controllers.errors import ImportFailedError, refusing

MAX_VECNORMALIZE_BYTES = 16 * 1024 * 1024
"""VecNormalize statistics are a few kilobytes, and hold the last observations of every environment."""

_VECNORMALIZE = "stable_baselines3.common.vec_env.vec_normalize.VecNormalize"
_RUNNING_MEAN_STD = "stable_baselines3.common.running_mean_std.RunningMeanStd"
# NumPy 1 and 2; _frombuffer is what pickle protocol 5, Python 3.14's default, uses.
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


@dataclass(frozen=True)
class Statistics:
    """What VecNormalize does to an observation: `clip((o - mean) * inverse_std, ±clip)`."""

    mean: NDArray[np.float64]
    inverse_std: NDArray[np.float64]
    clip: float | None

    @classmethod
    def none(cls, size: int) -> Statistics:
        """Return those of an observation of this length that is left as it is."""
        return cls(np.zeros(size), np.ones(size), None)


def read_vecnormalize(path: Path, size: int) -> Statistics:
    """Read what `VecNormalize.save()` wrote, for observations of length `size`."""
    with refusing("it is not what VecNormalize.save() writes"):
        state = _state(_load_records(path), _VECNORMALIZE)
        if not state["norm_obs"]:
            return Statistics.none(size)
        if isinstance(state["obs_rms"], dict):
            raise ImportFailedError("it normalizes dictionary observations, supported are vectors")
        moments = _state(state["obs_rms"], _RUNNING_MEAN_STD)
        mean, variance = _array(moments["mean"]), _array(moments["var"])
        epsilon, clip = float(_array(state["epsilon"])), float(_array(state["clip_obs"]))
    if not mean.shape == variance.shape == (size,):
        raise ImportFailedError(
            f"it normalizes observations of shape {mean.shape}, the environment's have {(size,)}; "
            "give the file saved beside the model"
        )
    with np.errstate(all="ignore"):
        inverse_std = 1 / np.sqrt(variance + epsilon)
        single = np.array([mean, inverse_std], dtype=np.float32)  # what the network computes in
    if not np.isfinite(single).all() or not clip > 0:  # a NaN clip compares false
        raise ImportFailedError("its mean, variance, epsilon or clip_obs is not finite or not positive; save it again")
    return Statistics(mean, inverse_std, clip if math.isfinite(clip) else None)


class _Record:
    """What a pickle says about an object: its class or function, the arguments, and the state. It does nothing."""

    name: str
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> _Record:
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


def _load_records(path: Path) -> Any:
    with path.open("rb") as file:
        data = file.read(MAX_VECNORMALIZE_BYTES + 1)
    if len(data) > MAX_VECNORMALIZE_BYTES:
        raise ImportFailedError(f"it has over {MAX_VECNORMALIZE_BYTES} bytes; give what VecNormalize.save() wrote")
    # Ten bytes may ask the unpickler for gigabytes: of contents, which genops finds missing, or of memo slots.
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name.endswith("PUT") and int(argument or 0) > len(data):
            raise ImportFailedError(f"it asks for {argument} memo slots; give what VecNormalize.save() wrote")
    return _RecordUnpickler(io.BytesIO(data)).load()


def _state(record: Any, name: str) -> dict[str, Any]:
    if not (isinstance(record, _Record) and record.name == name and isinstance(record.state, dict)):
        raise ImportFailedError(f"it holds no {name}; give what VecNormalize.save() wrote")
    return record.state


def _array(value: Any) -> NDArray[np.float64]:
    """Return the recorded array or scalar, or the plain number, in float64."""
    shape: Any = ()
    order: Any = "C"
    if not isinstance(value, _Record):
        return np.array(float(value))
    if value.name in _ARRAYS:
        _, shape, dtype, fortran, data = value.state
        order = "F" if fortran else "C"
    elif value.name in _BUFFERS:
        data, dtype, shape, order = value.args[:4]
    elif value.name in _SCALARS:
        dtype, data = value.args
    else:
        raise ImportFailedError(f"it holds a {value.name} where a number or an array belongs")
    kind, byte_order = dtype.args[0], dtype.state[1]
    if kind not in ("f2", "f4", "f8") or byte_order not in ("<", ">"):
        raise ImportFailedError(f"its statistics have type {byte_order}{kind}, allowed are f2, f4 and f8")
    return np.array(np.frombuffer(data, np.dtype(byte_order + kind)).reshape(shape, order=order), dtype=np.float64)
