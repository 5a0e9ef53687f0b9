"""ONNX files, and the graphs in them read node by node without running them. No other file's path is followed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from nncontrol_prune.controllers.checkpoints import MAX_ARCHIVE_BYTES
from nncontrol_prune.controllers.errors import ImportFailedError, refusing
from nncontrol_prune.controllers.onnx_operators import ALLOWED, FLOAT_NAMES, FLOATS, OPERATORS, Node, results_of
from nncontrol_prune.controllers.onnx_reference import constant
from nncontrol_prune.controllers.onnx_values import MAX_ENTRIES, MixedError, Signal, Value

DOMAINS = ("", "ai.onnx")
"""Names of ONNX's own operator set."""
RECURRENT = ("GRU", "LSTM", "RNN")


def read_model(path: Path) -> ModelProto:
    """Return the model with all its weights inside."""
    with refusing("it cannot be read"):
        size = path.stat().st_size
        content = b"" if size > MAX_ARCHIVE_BYTES else path.read_bytes()
    if size > MAX_ARCHIVE_BYTES:
        raise ImportFailedError(f"it has {size} bytes, allowed are {MAX_ARCHIVE_BYTES}")
    with refusing("it is not an ONNX file"):
        model = onnx.load_model_from_string(content)
    if not model.graph.node:
        raise ImportFailedError("it is not an ONNX file, or its graph is empty")
    if model.functions:
        raise ImportFailedError(
            f"it has functions of its own ({model.functions[0].name}); inline them with "
            "onnx.inliner.inline_local_functions"
        )
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            size += _take_in(tensor, path, MAX_ARCHIVE_BYTES - size)
    return model


def _take_in(tensor: TensorProto, path: Path, allowed: int) -> int:
    """Put into a tensor what it keeps in a file beside the model, and return its bytes; no other path is followed."""
    told = {entry.key: entry.value for entry in tensor.external_data}
    name = told.get("location", "")
    file = path.parent / name
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name or file.is_symlink():
        raise ImportFailedError(
            f"tensor {tensor.name!r} lies in {name!r}, allowed are files beside it that are no links; export it into "
            "one file"
        )
    if not file.is_file():
        raise ImportFailedError(f"tensor {tensor.name!r} lies in {name!r}, which is not there; put it beside")
    with refusing(f"tensor {tensor.name!r} cannot be read from {name!r}"):
        start = int(told.get("offset", 0))
        length = int(told.get("length", file.stat().st_size - start))
        if length > allowed:
            raise ImportFailedError(f"it and the files beside it have more than {MAX_ARCHIVE_BYTES} bytes")
        if start < 0 or not 0 <= length <= file.stat().st_size - start:
            raise ImportFailedError(f"tensor {tensor.name!r} lies beyond the end of {name!r}")
        with file.open("rb") as opened:
            opened.seek(start)
            tensor.raw_data = opened.read(length)
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
    return length


def opset_of(model: ModelProto) -> int:
    """Return the version of the operator set that the graph is written in."""
    versions = [used.version for used in model.opset_import if used.domain in DOMAINS]
    if not versions:
        raise ImportFailedError("it does not say which version of ONNX's operators it uses")
    return versions[0]


def inputs_of(model: ModelProto) -> dict[str, Any]:
    """Return what the graph is given from outside, by name; older files list their weights among it."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {value.name: value for value in model.graph.input if value.name not in weights}


def _dimensions(value: Any) -> list[int | None] | None:
    """Return the shape of an input or output, None where a dimension is free; None if it tells none."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim]


def action_output(model: ModelProto, asked: str | None, observation_size: int, action_size: int) -> str:
    """Return the name of the output that is the action."""
    outputs = {value.name: _dimensions(value) for value in model.graph.output}
    shown = ", ".join(f"{name} {_shown(shape)}" for name, shape in outputs.items()) or "none"
    if asked is not None and asked not in outputs:
        raise ImportFailedError(f"it has no output {asked!r}; --output may name {shown}")
    if asked is not None:
        return asked
    if len(outputs) == 1:
        return next(iter(outputs))
    inputs = inputs_of(model)
    observations = {name for name, value in inputs.items() if _last(_dimensions(value)) in (None, observation_size)}
    fitting = [
        name
        for name, shape in outputs.items()
        if _last(shape) in (None, action_size)
        and shape != [None]  # one number an observation, as a value is
        and observations & needed_nodes(model.graph, name)[1]
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ImportFailedError(f"its outputs {', '.join(fitting)} all fit the action; name the action with --output")
    raise ImportFailedError(
        f"no output gives {action_size} actions for {observation_size} observations; name the environment it was "
        f"trained in, or the action with --output: {shown}"
    )


def _last(shape: list[int | None] | None) -> int | None:
    return shape[-1] if shape else None


def _shown(shape: list[int | None] | None) -> str:
    return "of unknown shape" if shape is None else f"({', '.join('any' if n is None else str(n) for n in shape)})"


def observation_shape(value: Any, observation_size: int) -> tuple[int, ...]:
    """Return the shape of an input for one observation."""
    kind, shape = value.type.tensor_type.elem_type, _dimensions(value)
    if kind not in FLOATS:
        given = TensorProto.DataType.Name(kind).lower()
        raise ImportFailedError(f"its input {value.name} is {given}, allowed are {FLOAT_NAMES}")
    shape = [None, None] if shape is None else shape
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] not in (None, 1)):
        raise ImportFailedError(
            f"its input {value.name} has shape {_shown(shape)}, allowed are (batch, {observation_size}), with a batch "
            f"that is free or 1, and ({observation_size},)"
        )
    size = shape[-1] or observation_size
    if size != observation_size:
        raise ImportFailedError(
            f"it observes {size} numbers, the environment has {observation_size}; name the environment it was trained "
            "in"
        )
    return (1, size) if len(shape) == 2 else (size,)


def described(node: NodeProto) -> str:
    """Return how a message calls a node."""
    kind = node.op_type if node.domain in DOMAINS else f"{node.domain}::{node.op_type}"
    return f"node {node.name or next(iter(node.output), '')!r} ({kind})"


def needed_nodes(graph: onnx.GraphProto, output: str) -> tuple[list[NodeProto], set[str]]:
    """Return the nodes that an output is computed by, in order, and the names of all values on the way to it."""
    names = {output}
    nodes = []
    for node in reversed(graph.node):
        if names.intersection(node.output):
            nodes.append(node)
            names.update(name for name in node.input if name)
    return nodes[::-1], names


def evaluated(
    nodes: Sequence[NodeProto],
    opset: int,
    tensors: Mapping[str, TensorProto],
    given: Mapping[str, Signal],
    output: str,
) -> Value:
    """Return what one of the nodes, or the graph, gives out.

    Args:
        nodes: In an order in which they can be run.
        opset: Version of the operator set.
        tensors: The graph's constants by name.
        given: The graph's inputs by name.
        output: The value's name.

    Raises:
        ImportFailedError: A node does what no MLP does; the message names the node and what is allowed.
    """
    values: dict[str, Value] = dict(given)
    mixed: dict[str, MixedError] = {}
    made = 0
    for proto in nodes:
        what = described(proto)
        if proto.op_type in RECURRENT:
            raise ImportFailedError(f"{what} makes it recurrent; recurrent policies are not supported")
        if proto.op_type not in OPERATORS or proto.domain not in DOMAINS:
            raise ImportFailedError(f"{what} is not supported; allowed are {ALLOWED}")
        inputs: list[Value | None] = []
        for name in proto.input:
            if name in tensors and name not in values:
                values[name] = constant(tensors[name])
            if name in mixed and proto.op_type == "Shape":
                values[name] = np.broadcast_to(0, mixed[name].shape)
            elif name in mixed:
                raise mixed[name]
            if name and name not in values:
                raise ImportFailedError(f"{what} takes {name!r}, which nothing before it gives out")
            inputs.append(values[name] if name else None)
        with refusing(f"{what} cannot be read"), np.errstate(all="ignore"):
            try:
                results = results_of(Node(what, inputs, proto, opset))
            except MixedError as error:
                error.args = (f"{what}: {error}",)
                mixed[proto.output[0]] = error
                continue
            except ImportFailedError as error:
                raise ImportFailedError(f"{what}: {error}") from error
        made += sum(result.size for result in results)
        if made > MAX_ENTRIES:
            raise ImportFailedError(f"{what} and those before it make more than {MAX_ENTRIES} entries")
        values.update(zip([name for name in proto.output if name], results, strict=False))
    if output in mixed:
        raise mixed[output]
    return values[output]
