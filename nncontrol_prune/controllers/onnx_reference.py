"""Tensors and nodes of ONNX files as the onnx package reads and evaluates them, none of a size that fills the memory.

A node is evaluated by the package's reference implementation of the file's operator set, after the package's shape
inference has told how large the results will be. All floating-point numbers are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
import scipy.special
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from nncontrol_prune.controllers.errors import ImportFailedError, refusing
from nncontrol_prune.controllers.onnx_values import MAX_ENTRIES, Array, check_size

TOLD_ENTRIES = 1024
"""Inputs of up to as many entries are told to the shape inference: what asks for a size is one of them."""

Arrays: TypeAlias = Mapping[str, Array]


class Erf(OpRun):
    """Takes the place of the package's, which computes in float32."""

    op_domain = ""

    def _run(self, *args: Any, **kwargs: Any) -> tuple[Array]:
        return (scipy.special.erf(args[0]),)


class Softplus(OpRun):
    """Takes the place of the package's, of which older ones overflow."""

    op_domain = ""

    def _run(self, *args: Any, **kwargs: Any) -> tuple[Array]:
        return (np.logaddexp(0.0, args[0]),)


class _Evaluator(ReferenceEvaluator):
    """Also what evaluates operators that ONNX defines by others, as Gelu by Erf."""

    def __init__(self, proto: Any) -> None:
        super().__init__(proto, new_ops=[Erf, Softplus])


def check_tensor(tensor: TensorProto) -> None:
    """Refuse a tensor that lies in another file, or is too large."""
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ImportFailedError(f"tensor {tensor.name!r} lies in another file")
    if np.prod(tensor.dims, dtype=float) > MAX_ENTRIES:
        raise ImportFailedError(f"tensor {tensor.name!r} has shape {tuple(tensor.dims)}, too large for a controller's")


def constant(tensor: TensorProto) -> Array:
    """Return a tensor that lies in the file, floating-point numbers as float64."""
    check_tensor(tensor)
    with refusing(f"tensor {tensor.name!r} is damaged"):
        return _double(numpy_helper.to_array(tensor))


def _double(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def evaluator(node: NodeProto, opset: int, given: Arrays) -> Callable[[Arrays], list[Array]]:
    """Return what evaluates a node.

    Args:
        node: Of ONNX's own domain; its kind has to be known as one that only computes.
        opset: Version of the operator set.
        given: What the node takes, by name; the functions between layers are later given several such at once.

    Raises:
        ImportFailedError: A result would have more than `MAX_ENTRIES`, or nobody knows how many.
    """
    for attribute in node.attribute:
        for tensor in (attribute.t, *attribute.tensors):
            check_tensor(tensor)
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.domain = ""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
    ]
    told = [numpy_helper.from_array(array, name) for name, array in given.items() if array.size <= TOLD_ENTRIES]
    graph = helper.make_graph([copy], "node", inputs, [], told)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    # Finds what the operator does not have, among it graphs as attributes.
    onnx.checker.check_model(model)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    types: dict[str, Any] = {info.name: info.type.tensor_type for info in inferred.graph.value_info}
    outputs = [name for name in node.output if name]
    for name in outputs:
        known = name in types and types[name].HasField("shape")
        if not known or not all(size.HasField("dim_value") for size in types[name].shape.dim):
            raise ImportFailedError(f"how large {name!r} will be is not known before it is computed")
        check_size([size.dim_value for size in types[name].shape.dim])
    reference = _Evaluator(model)

    def run(arrays: Arrays) -> list[Array]:
        results = [_double(np.asarray(result)) for result in reference.run(outputs, dict(arrays))]
        if any(result.dtype.kind not in "biufV" for result in results):  # bfloat16 is of kind V
            raise ImportFailedError("it gives out what is no number")
        return results

    return run
