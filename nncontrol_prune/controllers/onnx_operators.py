"""What each kind of node in an ONNX graph does to the values that it takes; see onnx_values.py for what these are."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import onnx
import scipy.special
from onnx import NodeProto, TensorProto, numpy_helper

from nncontrol_prune.controllers.errors import ImportFailedError, refusing
from nncontrol_prune.controllers.onnx_values import (
    MAX_ENTRIES,
    Array,
    Form,
    Signal,
    Value,
    check_size,
    elementwise,
    joined,
    moved,
    multiplied,
    spread,
)
from nncontrol_prune.controllers.specs import Activation

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
ALLOWED = (
    f"linear layers (Gemm, MatMul), the activations {', '.join(get_args(Activation))}, Clip, arithmetic with "
    "constants, and what only moves entries, such as Reshape"
)
"""In words; `OPERATORS` has the names."""
FLOAT_NAMES = "float and double"


def constant(tensor: TensorProto) -> Array:
    """Return a tensor that lies in the file, floating-point numbers as float64."""
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ImportFailedError(f"tensor {tensor.name!r} lies in another file")
    if np.prod(tensor.dims, dtype=float) > MAX_ENTRIES:
        raise ImportFailedError(f"tensor {tensor.name!r} has shape {tuple(tensor.dims)}, too large for a controller's")
    with refusing(f"tensor {tensor.name!r} is damaged"):
        array = numpy_helper.to_array(tensor)
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array


@dataclass(frozen=True)
class Node:
    """A node with the values that it takes."""

    what: str
    inputs: Sequence[Value | None]
    names: Sequence[str]
    proto: NodeProto

    def attribute(self, name: str, default: Any) -> Any:
        for attribute in self.proto.attribute:
            if attribute.name == name:
                return onnx.helper.get_attribute_value(attribute)
        return default

    def value(self, position: int) -> Value:
        found = self.inputs[position] if position < len(self.inputs) else None
        if found is None:
            raise ImportFailedError(f"it lacks input {position}")
        return found

    def constant(self, position: int, default: Any = None) -> Any:
        """Return an input that has to be constant."""
        found = self.inputs[position] if position < len(self.inputs) else None
        if isinstance(found, Signal):
            raise ImportFailedError(f"{self.names[position]!r} depends on the observation, and has to be constant")
        return default if found is None else found

    def setting(self, name: str, position: int, default: Any = None) -> Any:
        """Return what was an attribute in older versions of ONNX and is a constant input in newer ones."""
        return self.constant(position, self.attribute(name, default))

    def values(self) -> list[Value]:
        """Return all inputs in one shape, the constants among them finite."""
        for name, value in zip(self.names, self.inputs, strict=True):
            if not isinstance(value, Signal):
                _check_finite(value, name)
        return spread([self.value(position) for position in range(len(self.inputs))])

    def move(self, change: Callable[[Array], Array]) -> Value:
        return moved(self.value(0), change, self.what)


def _check_finite(array: Any, name: str) -> None:
    if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ImportFailedError(f"tensor {name!r} holds NaN or infinite values; take an earlier checkpoint")


def _function(operation: Callable[..., Array]) -> Callable[[Node], Value]:
    """Return a handler of what is done entry by entry and is neither affine nor clips."""
    return lambda node: elementwise(operation, node.values(), node.what, None)


def _arithmetic(operation: Callable[[Any, Any], Any]) -> Callable[[Node], Value]:
    def handle(node: Node) -> Value:
        values = node.values()
        if all(isinstance(value, np.ndarray) and value.dtype.kind in "iu" for value in values):
            # Shapes are computed with; ONNX divides whole numbers to whole numbers.
            return elementwise(operator.floordiv if operation is operator.truediv else operation, values, "", None)
        return elementwise(operation, values, node.what, _affine(operation, *values))

    return handle


def _affine(operation: Callable[[Any, Any], Any], left: Value, right: Value) -> Form | None:
    """Return the form of a sum, difference, product or quotient of two values; None if it has none."""
    if isinstance(left, Signal) and isinstance(right, Signal):
        one, two = left.form, right.form
        if one is None or two is None or one.bounded or two.bounded or operation not in (operator.add, operator.sub):
            return None
        return Form.affine(operation(one.scale, two.scale), operation(one.offset, two.offset))
    signal = left if isinstance(left, Signal) else right
    if not isinstance(signal, Signal) or signal.form is None:
        return None
    other = right if signal is left else left
    number = np.asarray(other, dtype=np.float64).ravel()
    ones, zeros = np.ones(number.shape), np.zeros(number.shape)
    if operation is operator.add:
        return signal.form.then(ones, number)
    if operation is operator.sub:
        return signal.form.then(ones, -number) if signal is left else signal.form.then(-ones, number)
    if operation is operator.mul:
        return signal.form.then(number, zeros)
    if signal is right:
        return None
    if (number == 0.0).any():
        raise ImportFailedError("it divides by zero")
    return signal.form.then(1.0 / number, zeros)


def _negative(node: Node) -> Value:
    value = node.value(0)
    form = value.form if isinstance(value, Signal) else None
    negative = None if form is None else form.then(-np.ones(form.scale.shape), np.zeros(form.scale.shape))
    return elementwise(operator.neg, [value], node.what, negative)


def _bounded(value: Value, lower: Any, upper: Any, what: str) -> Value:
    """Return a value clipped to bounds, of which None is none."""
    bounds = [np.asarray(end if bound is None else bound) for bound, end in ((lower, -np.inf), (upper, np.inf))]
    if np.isnan(bounds[0]).any() or np.isnan(bounds[1]).any():
        raise ImportFailedError("a bound is NaN")
    # Older versions of ONNX write the ends of float32 for no bound.
    ends = [np.where(np.abs(bound) >= np.finfo(np.float32).max, np.copysign(np.inf, bound), bound) for bound in bounds]
    spread_out = spread([value, *ends])
    value, low, high = spread_out
    form = value.form if isinstance(value, Signal) else None
    if form is not None:
        form = form.clip(np.asarray(low).ravel(), np.asarray(high).ravel())
    return elementwise(lambda x, low, high: np.minimum(np.maximum(x, low), high), spread_out, what, form)


def _clip(node: Node) -> Value:
    return _bounded(node.value(0), node.setting("min", 1), node.setting("max", 2), node.what)


def _extreme(operation: Callable[..., Array]) -> Callable[[Node], Value]:
    """Return a handler of Max and Min, which clip where all but one of their inputs are constant."""

    def handle(node: Node) -> Value:
        values = [node.value(position) for position in range(len(node.inputs))]
        result = values[0]
        for value in values[1:]:
            signal, other = (value, result) if isinstance(value, Signal) else (result, value)
            if isinstance(signal, Signal) and not isinstance(other, Signal):
                bounds = (other, None) if operation is np.maximum else (None, other)
                result = _bounded(signal, bounds[0], bounds[1], node.what)
            else:
                result = elementwise(operation, spread([result, value]), node.what, None)
        return result

    return handle


def _gelu(node: Node) -> Value:
    if node.attribute("approximate", b"none") != b"none":
        raise ImportFailedError("it approximates gelu by tanh, which is another function; export it without")
    return elementwise(lambda x: x * 0.5 * (1.0 + scipy.special.erf(x / np.sqrt(2.0))), node.values(), node.what, None)


def _with_alpha(operation: Callable[..., Array], default: float) -> Callable[[Node], Value]:
    def handle(node: Node) -> Value:
        alpha = node.attribute("alpha", default)
        return elementwise(lambda x: operation(x, alpha), node.values(), node.what, None)

    return handle


def _elu(x: Array, alpha: Any) -> Array:
    return np.where(x > 0.0, x, alpha * np.expm1(np.minimum(x, 0.0)))


def _leaky(x: Array, alpha: Any) -> Array:
    return np.where(x > 0.0, x, alpha * x)


def _matmul(node: Node) -> Value:
    left, right = node.value(0), node.value(1)
    if isinstance(left, Signal) and not isinstance(right, Signal) and right.ndim == 2:
        _check_layer(node, 1, right, left, left.shape[-1:] == (left.index.size,), right.shape[0])
        return multiplied(right.T, left, (*left.shape[:-1], right.shape[1]))
    if isinstance(right, Signal) and not isinstance(left, Signal) and left.ndim == 2:
        column = right.shape[-2:] == (right.index.size, 1)
        _check_layer(node, 0, left, right, column or right.index.ndim == 1, left.shape[1])
        return multiplied(left, right, (*right.shape[:-2], len(left), 1) if column else (len(left),))
    raise ImportFailedError("it has to multiply a value that depends on the observation by a constant matrix")


def _gemm(node: Node) -> Value:
    signal, weight = node.value(0), node.constant(1)
    if not isinstance(signal, Signal) or node.attribute("transA", 0) or weight is None or weight.ndim != 2:
        raise ImportFailedError("it has to multiply a value that depends on the observation by a constant matrix")
    weight = weight if node.attribute("transB", 0) else weight.T
    _check_layer(node, 1, weight, signal, signal.shape == (1, signal.index.size), weight.shape[1])
    result: Value = multiplied(node.attribute("alpha", 1.0) * weight, signal, (1, len(weight)))
    bias = node.constant(2)
    if bias is None:
        return result
    _check_finite(bias, node.names[2])
    values = spread([result, node.attribute("beta", 1.0) * bias])
    return elementwise(operator.add, values, node.what, _affine(operator.add, *values))


def _check_layer(node: Node, position: int, weight: Array, signal: Signal, vector: bool, inputs: int) -> None:
    _check_finite(weight, node.names[position])
    if weight.dtype.kind != "f":
        raise ImportFailedError(f"its weights are {weight.dtype}, allowed are floating-point numbers")
    if not vector:
        raise ImportFailedError(f"it multiplies a tensor of shape {signal.shape}, allowed are vectors")
    if inputs != signal.index.size:
        raise ImportFailedError(f"it takes {inputs} numbers and is given {signal.index.size}")


def _batch_norm(node: Node) -> Value:
    signal = node.value(0)
    if node.attribute("training_mode", 0):
        raise ImportFailedError("it is exported for training; export the policy after eval()")
    scale, bias, mean, variance = (np.asarray(node.constant(position)) for position in range(1, 5))
    for name, array in zip(node.names[1:], (scale, bias, mean, variance), strict=False):
        _check_finite(array, name)
    factor = scale / np.sqrt(variance + node.attribute("epsilon", 1e-5))
    shape = (-1, *[1] * (len(signal.shape) - 2))
    for operation, number in ((operator.mul, factor), (operator.add, bias - mean * factor)):
        values = spread([signal, number.reshape(shape)])
        signal = elementwise(operation, values, node.what, _affine(operation, *values))
    return signal


def _cast(node: Node) -> Value:
    value, to = node.value(0), node.attribute("to", 0)
    if isinstance(value, Signal):
        if to not in FLOATS:
            kind = TensorProto.DataType.Name(to).lower()
            raise ImportFailedError(f"it turns what the network computes into {kind}, allowed are {FLOAT_NAMES}")
        return value
    array = value.astype(onnx.helper.tensor_dtype_to_np_dtype(to))
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array


def _cast_like(node: Node) -> Value:
    value, like = node.value(0), node.value(1)
    if isinstance(value, Signal):
        if not isinstance(like, Signal) and like.dtype.kind != "f":
            raise ImportFailedError(
                f"it turns what the network computes into {like.dtype}, allowed are float and double"
            )
        return value
    return value.astype(np.float64 if isinstance(like, Signal) else like.dtype)


def _dropout(node: Node) -> Value:
    training = node.constant(2)
    if training is not None and np.any(training):
        raise ImportFailedError("it is exported for training; export the policy after eval()")
    return node.value(0)


def _constant(node: Node) -> Value:
    for attribute in node.proto.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return constant(value)
        if attribute.name in ("value_float", "value_floats"):
            return np.array(value, dtype=np.float64)
        if attribute.name in ("value_int", "value_ints"):
            return np.array(value, dtype=np.int64)
    raise ImportFailedError("it holds no number")


def _shape(node: Node) -> Value:
    shape = node.value(0).shape
    return np.array(shape[node.attribute("start", 0) : node.attribute("end", None)], dtype=np.int64)


def _reshape(node: Node) -> Value:
    wanted, shape = [int(size) for size in node.constant(1)], node.value(0).shape
    if not node.attribute("allowzero", 0):
        wanted = [shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return node.move(lambda a: a.reshape(wanted))


def _flatten(node: Node) -> Value:
    shape, axis = node.value(0).shape, node.attribute("axis", 1)
    rows = int(np.prod(shape[:axis], dtype=int))
    return node.move(lambda a: a.reshape(rows, -1))


def _axes(node: Node) -> tuple[int, ...] | None:
    axes = node.setting("axes", 1)
    return None if axes is None else tuple(int(axis) for axis in axes)


def _gather(node: Node) -> Value:
    positions = node.constant(1)
    return node.move(lambda a: np.take(a, positions, axis=node.attribute("axis", 0)))


def _slice(node: Node) -> Value:
    starts, ends = node.setting("starts", 1), node.setting("ends", 2)
    axes = node.setting("axes", 3, range(len(starts)))
    steps = node.constant(4, [1] * len(starts))
    cut = [slice(None)] * len(node.value(0).shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # Before the first entry is where a backward slice ends that ONNX has end at its least number.
        last = None if step < 0 and end < -(2**31) + 1 else int(end)
        cut[int(axis)] = slice(int(start), last, int(step))
    return node.move(lambda a: a[tuple(cut)])


def _split(node: Node) -> list[Value]:
    axis, sizes, parts = node.attribute("axis", 0), node.setting("split", 1), len(node.proto.output)
    length = node.value(0).shape[axis]
    if sizes is None:
        size = -(-length // parts)
        sizes = [min(size, length - part * size) for part in range(parts)]
    ends = np.cumsum([0, *sizes])
    if ends[-1] != length:
        raise ImportFailedError(f"it splits {length} entries into {list(sizes)}")
    return [
        node.move(lambda a, begin=begin, end=end: np.take(a, range(begin, end), axis))  # type: ignore[misc]
        for begin, end in itertools.pairwise(ends)
    ]


def _expand(node: Node) -> Value:
    wanted = tuple(int(size) for size in node.constant(1))
    check_size(wanted)
    shape = np.broadcast_shapes(node.value(0).shape, wanted)
    check_size(shape)
    return node.move(lambda a: np.broadcast_to(a, shape))


def _filled(node: Node) -> Value:
    shape = tuple(int(size) for size in node.constant(0))
    check_size(shape)
    value = node.attribute("value", None)
    return np.broadcast_to(np.zeros(1) if value is None else constant(value), shape)


def _concat(node: Node) -> Value:
    parts = [node.value(position) for position in range(len(node.inputs))]
    axis = node.attribute("axis", 0)
    signals = [part for part in parts if isinstance(part, Signal)]
    if not signals:
        return np.concatenate([part for part in parts if not isinstance(part, Signal)], axis)
    if len(signals) < len(parts) or any(part.point is not signals[0].point for part in signals):
        raise ImportFailedError("it joins what comes from different layers, or constants")
    return joined(signals, axis, node.what)


OPERATORS: dict[str, Callable[[Node], Value | list[Value]]] = {
    "Abs": _function(np.abs),
    "Add": _arithmetic(operator.add),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Celu": _with_alpha(lambda x, alpha: _elu(x / alpha, 1.0) * alpha, 1.0),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Div": _arithmetic(operator.truediv),
    "Dropout": _dropout,
    "Elu": _with_alpha(_elu, 1.0),
    "Erf": _function(scipy.special.erf),
    "Exp": _function(np.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Greater": _function(np.greater),
    "GreaterOrEqual": _function(np.greater_equal),
    "Identity": lambda node: node.value(0),
    "LeakyRelu": _with_alpha(_leaky, 0.01),
    "Less": _function(np.less),
    "LessOrEqual": _function(np.less_equal),
    "MatMul": _matmul,
    "Max": _extreme(np.maximum),
    "Min": _extreme(np.minimum),
    "Mul": _arithmetic(operator.mul),
    "Neg": _negative,
    "PRelu": _function(_leaky),
    "Pow": _function(np.power),
    "Reciprocal": _function(np.reciprocal),
    "Relu": lambda node: _bounded(node.value(0), 0.0, None, node.what),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _function(scipy.special.expit),
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _function(np.sqrt),
    "Squeeze": lambda node: node.move(lambda a: np.squeeze(a, _axes(node))),
    "Sub": _arithmetic(operator.sub),
    "Swish": _with_alpha(lambda x, alpha: x * scipy.special.expit(alpha * x), 1.0),
    "Tanh": _function(np.tanh),
    "Transpose": lambda node: node.move(lambda a: np.transpose(a, node.attribute("perm", None))),
    "Unsqueeze": lambda node: node.move(lambda a: np.expand_dims(a, _axes(node) or ())),
    "Where": _function(np.where),
}
"""What each kind of node gives out. None of it runs code of the file's."""
