"""Importer for policies that are ONNX files, whoever exported them. Nothing in a file is executed.

The graph is read from the observation to the action (onnx_graphs.py): linear layers, and between them functions of one
entry each. Those become normalization, activations and squashing by what they do; what is affine becomes part of the
layers. Then the file, in ONNX Runtime, and the network made of it have to give the same actions.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from nncontrol_prune.controllers.actors import check_sizes, mlp_of
from nncontrol_prune.controllers.checkpoints import naming
from nncontrol_prune.controllers.errors import ImportFailedError, refusing
from nncontrol_prune.controllers.mlp import ACTIVATIONS, Mlp
from nncontrol_prune.controllers.onnx_graphs import (
    RECURRENT,
    action_output,
    evaluated,
    inputs_of,
    needed_nodes,
    observation_shape,
    opset_of,
    read_model,
)
from nncontrol_prune.controllers.onnx_metadata import note_on_commands
from nncontrol_prune.controllers.onnx_values import Array, Point, Signal, check_size
from nncontrol_prune.controllers.specs import ActionSpec, Activation, Squash
from nncontrol_prune.controllers.vecnormalize import Statistics

TOLERANCE = 1e-4
"""How far an action of the file and one of the imported network may be apart, as a share of the action's range."""
SPREADS = (0.1, 1.0, 10.0)
"""Of the random observations that the two are compared on, `ROWS` each, about 0 and about the normalization's mean."""
ROWS = 100
LIMIT_TOLERANCE = 1e-5
"""How far the ends of an output may be off the action's limits, as a share of their range: they were float32."""
FIT_TOLERANCE = 1e-6
"""How far a function may be off the activation that it is taken for: its constants were float32."""
CANDIDATES = 16
"""Values that an activation may be a function of, the nearest first."""
STATES = re.compile(
    r"(^|[^a-z])([hc](x|n|_?in|_?0)?|hidden|cell|rnn|lstm|gru|memory|states?_in)([^a-z]|$)", re.IGNORECASE
)
"""Names of inputs that carry a recurrent network's state."""

_MODERATE = np.linspace(-6.0, 6.0, 121)
_FAR = np.geomspace(6.0, 1e4, 20)
_GRID = np.concatenate([-_FAR, _MODERATE, _FAR])
"""Where functions are compared with activations."""


@dataclass(frozen=True)
class ImportedPolicy:
    """A policy that was an ONNX file.

    Attributes:
        module: Observation (batch, n) to action (batch, m), both in the environment's units and the action within its
            limits.
        notes: Sentences about what the file says and the network does not do.
        action: The environment's action vector.
        model: What of the file computes the action.
    """

    module: Mlp
    notes: tuple[str, ...]
    action: ActionSpec
    model: ModelProto

    def check(self, observations: NDArray[np.floating]) -> None:
        """Check that the network acts as the file does.

        Args:
            observations: (rows, n), in the environment's units.

        Raises:
            ImportFailedError: It does not, by more than `TOLERANCE` of the action's range.
        """
        rows = np.asarray(observations, dtype=np.float32)
        with refusing("ONNX Runtime cannot run it"):
            wanted = _run(self.model, rows)
        with torch.no_grad():
            found = self.module(torch.from_numpy(rows)).numpy().astype(np.float64)
        lower, upper = np.asarray(self.action.lower), np.asarray(self.action.upper)
        worst = float("nan")
        if np.isfinite(wanted).all():
            worst = float((np.abs(found - wanted.clip(lower, upper)) / (upper - lower)).max())
        if not worst <= TOLERANCE:
            raise ImportFailedError(
                f"the network made of it and the file, as ONNX Runtime runs it, disagree by {worst:.2g} of the "
                f"action's range on {len(rows)} observations; allowed is {TOLERANCE:.0e}"
            )


def import_onnx(path: Path, observation_size: int, action: ActionSpec, *, output: str | None = None) -> ImportedPolicy:
    """Read a policy out of an ONNX file, and check that it acts as the file does on random observations.

    Args:
        path: The file; where it keeps its weights in another one, that has to lie beside it.
        observation_size: Length of the environment's observation vector.
        action: The environment's action vector.
        output: Name of the output that is the action; by default the only one that can be.

    Raises:
        ImportFailedError: The file is damaged or too large, is no MLP, does not fit the environment, or leaves open
            what is the action; the message names the file, the reason, and what is allowed or what to do next.
    """
    with naming(path):
        model = read_model(path)
        # A damaged file can be wrong in more ways than the reading of it knows.
        with refusing("its graph cannot be read"):
            chosen = action_output(model, output, observation_size, action.size)
            policy = _policy(model, observation_size, action, chosen)
        policy.check(_random_observations(policy.module))
        return policy


def _policy(model: ModelProto, observation_size: int, action: ActionSpec, output: str) -> ImportedPolicy:
    graph = model.graph
    nodes, names = needed_nodes(graph, output)
    inputs = inputs_of(model)
    reached = [name for name in inputs if name in names]
    if not reached:
        raise ImportFailedError(f"its output {output} does not depend on any input; name the action with --output")
    if len(reached) > 1:
        they = f"its inputs {', '.join(reached)}"
        if any(STATES.search(name) for name in reached) or any(node.op_type in RECURRENT for node in nodes):
            raise ImportFailedError(f"{they} make it recurrent; recurrent policies are not supported")
        raise ImportFailedError(f"{they} all reach the action, allowed is the observation alone")
    name = reached[0]
    shape = observation_shape(inputs[name], observation_size)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    observation = Signal.of(Point(shape[-1]), shape)
    result = evaluated(nodes, opset_of(model), tensors, {name: observation}, output)
    if not isinstance(result, Signal):
        raise ImportFailedError(f"its output {output} does not depend on any input; name the action with --output")
    module = _module(result, observation_size, action)
    used = onnx.helper.make_graph(
        nodes,
        "policy",
        [inputs[name]],
        [next(value for value in graph.output if value.name == output)],
        [tensor for tensor in graph.initializer if tensor.name in names],
    )
    alone = onnx.helper.make_model(used, ir_version=model.ir_version, opset_imports=model.opset_import)
    return ImportedPolicy(module, tuple(_notes(model, reached, action)), action, alone)


def _notes(model: ModelProto, reached: Sequence[str], action: ActionSpec) -> list[str]:
    notes = []
    others = [name for name in inputs_of(model) if name not in reached]
    if others:
        notes.append(f"the action does not depend on the file's inputs {', '.join(others)}, which are left out")
    keys = [entry.key for entry in model.metadata_props]
    if keys:
        notes.append(
            f"the file says what happens outside of its network ({', '.join(keys)}), and nothing of it is applied: the "
            "environment has to have the observations and actions that the network was trained with, and may say in "
            "observation_terms and action_term how these follow from what is measured and what is commanded"
        )
    if commands := note_on_commands(model, action):
        notes.append(commands)
    return notes


@dataclass(frozen=True)
class _Step:
    """What happens between two linear layers, or before the first: `scale * activation(before) + offset`.

    Attributes:
        activation: None where the signal is affine.
        before: Scale and offset (point's size,) of what the activation is of.
        after: Scale and offset (entries,) of what it gives out.
        entries: Which entry of the point each entry is of.
    """

    activation: Activation | None
    before: tuple[Array, Array]
    after: tuple[Array, Array]
    entries: Array

    def into(self, weight: Array) -> tuple[Array, Array]:
        """Return weight and bias of a layer that takes the activations, for one that takes the signal."""
        scale, offset = self.after
        shape = len(weight), len(self.before[0])
        check_size(shape)
        taken = np.zeros(shape)
        np.add.at(taken.T, self.entries, (weight * scale).T)
        return taken, weight @ offset


def _module(result: Signal, observation_size: int, action: ActionSpec) -> Mlp:
    """Return the network from the observation to a signal."""
    signals = [result]
    while signals[0].point.source is not None:
        signals.insert(0, signals[0].point.source)
    weights = [signal.point.weight for signal in signals if signal.point.weight is not None]
    if not weights:
        raise ImportFailedError("there is no linear layer between the observation and the output")
    statistics, first = _normalization(signals[0])
    layers = []
    used: dict[Activation, str] = {}
    weight, bias = first.into(weights[0])
    for signal, following in zip(signals[1:-1], weights[1:], strict=True):
        step = _activated(signal)
        taken, offset = step.into(following)
        if step.activation is None:
            weight, bias = taken @ weight, taken @ bias + offset
        else:
            used.setdefault(step.activation, f"{step.activation} ({_makers(signal)})")
            layers.append(_scaled(weight, bias, *step.before))
            weight, bias = taken, offset
    if len(used) > 1:
        raise ImportFailedError(f"its hidden layers have {', '.join(used.values())}; an mlp controller has one for all")
    scale, offset, squash = _squashed(result, action)
    layers.append(_scaled(weight[result.entries], bias[result.entries], scale, offset))
    tensors = [(torch.from_numpy(weight), torch.from_numpy(bias)) for weight, bias in layers]
    check_sizes(tensors, observation_size, action)
    module = mlp_of(tensors, statistics, action, activation=next(iter(used), "relu"), squash=squash)
    if not all(torch.isfinite(tensor).all() for tensor in module.state_dict().values()):
        raise ImportFailedError("its weights become too large for float32; take an earlier checkpoint")
    return module


def _scaled(weight: Array, bias: Array, scale: Array, offset: Array) -> tuple[Array, Array]:
    return scale[:, None] * weight, scale * bias + offset


def _makers(signal: Signal) -> str:
    """Return the nodes that make a signal more than affine, as a message calls them."""
    made = [origin.maker for origin in signal.origins() if origin.maker and (not origin.form or origin.form.bounded)]
    return ", ".join(list(dict.fromkeys(made[::-1]))[:8])


def _normalization(signal: Signal) -> tuple[Statistics, _Step]:
    """Return what comes before the first layer as a normalization and what the layer can take in."""
    form, entries, size = signal.form, signal.entries, signal.point.size
    if form is None:
        raise ImportFailedError(
            f"before its first layer there is more than a normalization ({_makers(signal)}); allowed are arithmetic "
            "with constants and one Clip"
        )
    distinct = len(set(entries.tolist())) == len(entries)
    scale, offset, after, clip = form.scale, form.offset, (form.outer_scale, form.outer_offset), None
    if form.bounded:
        middle, half = (form.upper + form.lower) / 2.0, (form.upper - form.lower) / 2.0
        if not (distinct and np.isfinite(middle).all() and (half > 0.0).all()):
            raise ImportFailedError(
                f"before its first layer, {_makers(signal)} clips some entries on one side, or several times; allowed "
                "is one Clip of all entries on both sides"
            )
        clip = 1.0
        if not middle.any() and np.ptp(half) == 0.0:
            clip, half = float(half[0]), np.ones(half.shape)
        # Other bounds than ±clip are scaled to them, and back again in the first layer.
        scale, offset = scale / half, (offset - middle) / half
        after = after[0] * half, after[0] * middle + after[1]
    used = scale != 0.0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        mean = np.where(used, -offset / scale, 0.0)
        fits = np.isfinite(mean.astype(np.float32)).all()
    if not form.bounded and not (distinct and fits):
        return _no_normalization(size), _Step(None, _unchanged(size), (scale, offset), entries)
    # An entry that is multiplied by 0 is a constant, and goes into the bias.
    fixed = np.where(used, 0.0, offset if clip is None else offset.clip(-clip, clip))
    statistics = _no_normalization(size)
    statistics.mean[entries], statistics.inverse_std[entries] = mean, scale
    return (
        Statistics(statistics.mean, statistics.inverse_std, clip),
        _Step(None, _unchanged(size), (after[0], after[0] * fixed + after[1]), entries),
    )


def _no_normalization(size: int) -> Statistics:
    return Statistics(np.zeros(size), np.ones(size), None)


def _unchanged(size: int) -> tuple[Array, Array]:
    return np.ones(size), np.zeros(size)


def _activated(signal: Signal) -> _Step:
    """Return what lies between two linear layers as a step."""
    unchanged = _unchanged(signal.point.size)
    if signal.form is not None and not signal.form.bounded:
        return _Step(None, unchanged, (signal.form.scale, signal.form.offset), signal.entries)
    for before in _affine_origins(signal):
        step = _fitted(signal, before)
        if step is not None:
            return step
    raise ImportFailedError(
        f"what {_makers(signal)} computes between two layers is no activation known here; allowed are "
        f"{', '.join(ACTIVATIONS)} as PyTorch has them by default"
    )


def _affine_origins(signal: Signal) -> list[tuple[Array, Array]]:
    """Return scale and offset (point's size,) of what a signal may be an activation of, the nearest first."""
    found: list[tuple[Array, Array]] = []
    for origin in signal.origins():
        if origin.form is None or origin.form.bounded:
            continue
        scale, offset = _unchanged(signal.point.size)
        scale[origin.entries], offset[origin.entries] = origin.form.scale, origin.form.offset
        covered = np.isin(signal.entries, origin.entries).all()
        if covered and not any(np.array_equal([scale, offset], known) for known in found):
            found.append((scale, offset))
    return found[:CANDIDATES]


def _on_grid(signal: Signal, before: tuple[Array, Array]) -> Array:
    """Return a signal's values (grid, entries) where what the activation is of takes the grid's values."""
    scale, offset = before
    with np.errstate(all="ignore"):
        return signal.at((_GRID[:, None] - offset) / np.where(scale == 0.0, 1.0, scale))


def _fitted(signal: Signal, before: tuple[Array, Array]) -> _Step | None:
    """Return a signal as an activation, scaled and shifted; None if it is none."""
    values = _on_grid(signal, before)
    moderate = np.abs(_GRID) <= _MODERATE[-1]
    if not np.isfinite(values[moderate]).all():
        return None
    for name, kind in ACTIVATIONS.items():
        shape = kind()(torch.from_numpy(_GRID)).numpy()
        centered = shape[moderate] - shape[moderate].mean()
        mean = values[moderate].mean(axis=0)
        scale = centered @ (values[moderate] - mean) / (centered @ centered)
        offset = mean - scale * shape[moderate].mean()
        room = FIT_TOLERANCE * np.abs(scale) * np.maximum(1.0, np.abs(_GRID))[:, None] + 1e-12 * np.abs(offset)
        if (np.abs(values - scale * shape[:, None] - offset) <= room).all():
            return _Step(name, before, (scale, offset), signal.entries)
    return None


def _squashed(signal: Signal, action: ActionSpec) -> tuple[Array, Array, Squash]:
    """Return scale and offset (entries,) of the last layer's output, and how the action is made of that."""
    lower, upper = np.asarray(action.lower), np.asarray(action.upper)
    if len(signal.entries) != action.size:
        raise ImportFailedError(
            f"it commands {len(signal.entries)} numbers, the environment has {action.size}; name the environment it "
            "was trained in"
        )
    room = LIMIT_TOLERANCE * (upper - lower)
    form = signal.form
    if form is not None:
        with np.errstate(invalid="ignore"):
            ends = [form.outer_scale * bound + form.outer_offset for bound in (form.lower, form.upper)]
        low, high = np.minimum(*ends), np.maximum(*ends)
        if form.bounded and not ((low <= lower + room) & (high >= upper - room)).all():
            raise _other_limits("clips its output", low, high, action)
        return form.outer_scale * form.scale, form.outer_scale * form.offset + form.outer_offset, "clip"
    origins = _affine_origins(signal)
    for (scale, offset), share in itertools.product(origins, (1.0, 0.5)):  # the logistic function is tanh of a half
        values = _on_grid(signal, (scale, offset)).clip(lower, upper)
        slope = np.where(values[-1] < values[0], -share, share)
        squashed = (upper + lower) / 2.0 + (upper - lower) / 2.0 * np.tanh(slope * _GRID[:, None])
        if (np.abs(values - squashed) <= room).all():
            return slope * scale[signal.entries], slope * offset[signal.entries], "tanh"
    for before in origins:
        step = _fitted(signal, before)
        if step is not None and step.activation in ("tanh", "sigmoid"):
            lowest = 0.0 if step.activation == "sigmoid" else -1.0
            low, high = np.sort(np.array([lowest, 1.0])[:, None] * step.after[0] + step.after[1], axis=0)
            raise _other_limits(f"squashes its output by {step.activation}", low, high, action)
    raise ImportFailedError(
        f"what {_makers(signal)} computes after the last layer is not known here; allowed are Clip, Tanh or Sigmoid to "
        "the action's limits, and arithmetic with constants"
    )


def _other_limits(does: str, low: Array, high: Array, action: ActionSpec) -> ImportFailedError:
    ends = ", ".join(f"[{a:.6g}, {b:.6g}]" for a, b in zip(low, high, strict=True))
    limits = ", ".join(f"[{a:.6g}, {b:.6g}]" for a, b in zip(action.lower, action.upper, strict=True))
    return ImportFailedError(
        f"it {does} to {ends}, the environment's action limits are {limits}; name the environment it was trained in, "
        "or scale its output to these limits before it is exported"
    )


def _random_observations(module: Mlp) -> NDArray[np.float32]:
    """Return observations (rows, n) of several scales, about 0 and about the mean of the normalization."""
    generator = np.random.default_rng(0)
    mean, inverse_std = module.normalizer.mean.numpy(), module.normalizer.inverse_std.numpy()
    std = 1.0 / np.where(inverse_std == 0.0, 1.0, np.abs(inverse_std))
    rows = []
    for spread in SPREADS:
        sample = spread * generator.normal(size=(2, ROWS, len(mean)))
        rows += [sample[0], mean + std * sample[1]]
    return np.concatenate(rows).astype(np.float32)


def _run(model: ModelProto, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what a model makes of observations (rows, n), one at a time, as the reading of it took them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    kind = np.float64 if given.type == "tensor(double)" else np.float32
    shape = (-1,) if len(given.shape) == 1 else (1, -1)
    results = [session.run(None, {given.name: row.astype(kind).reshape(shape)})[0].ravel() for row in rows]
    return np.asarray(results, dtype=np.float64)
