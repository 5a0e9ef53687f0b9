"""What each kind of node in an ONNX graph does to the values that it takes; see onnx_values.py for what these are.

Nodes are evaluated by the onnx package (onnx_reference.py). Here is what has a closed form (linear layers, and what is
affine or clips), and which kinds there are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from nncontrol_prune.controllers.errors import ImportFailedError
from nncontrol_prune.controllers.onnx_reference import Arrays, evaluator
from nncontrol_prune.controllers.onnx_values import Array, Form, Signal, Value, elementwise, joined, multiplied, spread
from nncontrol_prune.controllers.specs import Activation

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
FLOAT_NAMES = "float and double"
ALLOWED = (
    f"linear layers (Gemm, MatMul, Einsum), the activations {', '.join(get_args(Activation))}, Clip, arithmetic with "
    "constants, and what only moves entries, such as Reshape"
)
"""In words; `OPERATORS` has the names."""


@dataclass(frozen=True)
class Node:
    """A node with the values that it takes.

    Attributes:
        what: How messages call it.
        inputs: None where it takes none.
        proto: As it is in the file.
        opset: Version of the file's operator set.
    """

    what: str
    inputs: Sequence[Value | None]
    proto: NodeProto
    opset: int

    @property
    def given(self) -> dict[str, Value]:
        """What it takes, by name."""
        pairs = zip(self.proto.input, self.inputs, strict=True)
        return {name: value for name, value in pairs if value is not None}

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
            raise ImportFailedError(
                f"{self.proto.input[position]!r} depends on the observation, and has to be constant"
            )
        return default if found is None else found

    def finite(self, position: int) -> Any:
        """Return an input that has to be constant, and finite if there is one."""
        found = self.constant(position)
        if found is not None:
            _check_finite(found, self.proto.input[position])
        return found

    def evaluator(self, given: Arrays) -> Callable[[Arrays], list[Array]]:
        return evaluator(self.proto, self.opset, given)


def _check_finite(array: Array, name: str, *, infinite: bool = False) -> None:
    if array.dtype.kind == "f" and not (~np.isnan(array) if infinite else np.isfinite(array)).all():
        raise ImportFailedError(f"tensor {name!r} holds NaN or infinite values; take an earlier checkpoint")


def results_of(node: Node) -> list[Value]:
    """Return what a node of a kind in `OPERATORS` gives out.

    Raises:
        ImportFailedError: It does what no MLP does; the message says what is allowed.
    """
    kind = node.proto.op_type
    if kind not in UNFOLDED and not any(isinstance(value, Signal) for value in node.inputs):
        return _evaluated(node)
    results = OPERATORS[kind](node)
    return results if isinstance(results, list) else [results]


def _evaluated(node: Node) -> list[Value]:
    """Return what a node gives out whose results depend on nothing but constants and shapes."""
    arrays = {name: value.index if isinstance(value, Signal) else value for name, value in node.given.items()}
    return list(node.evaluator(arrays)(arrays))


def _of_constants(node: Node) -> Value:
    raise ImportFailedError(f"what it takes depends on the observation, and has to be constant; allowed are {ALLOWED}")


def _moved(node: Node) -> list[Value]:
    """Return parts of the first input: the reference is told where its entries are."""
    constants = {name: node.constant(position) for position, name in enumerate(node.proto.input) if position and name}
    signal = node.value(0)
    assert isinstance(signal, Signal)  # All others are constant.
    arrays = {node.proto.input[0]: signal.positions, **constants}
    return [signal.taken(positions, node.what) for positions in node.evaluator(arrays)(arrays)]


def _entrywise(node: Node) -> Value:
    """Return a function of every entry, its inputs broadcast."""
    given = node.given
    for name, value in given.items():
        if not isinstance(value, Signal):
            _check_finite(value, name, infinite=node.proto.op_type in CLIPPING)
    values = dict(zip(given, spread(list(given.values())), strict=True))
    run = node.evaluator({name: np.zeros(v.shape) if isinstance(v, Signal) else v for name, v in values.items()})

    def operation(*arrays: Array) -> Array:
        return run(dict(zip(values, arrays, strict=True)))[0]

    form = FORMS.get(node.proto.op_type)
    operands = [values[name] for name in node.proto.input if name]
    return elementwise(operation, list(values.values()), node.what, form(node, operands) if form else None)


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


def _clipped(value: Value, lower: Any, upper: Any) -> Form | None:
    """Return the form of a value clipped to bounds, of which None is none."""
    if not isinstance(value, Signal) or value.form is None:
        return None
    bounds = [np.asarray(end if bound is None else bound) for bound, end in ((lower, -np.inf), (upper, np.inf))]
    # Older versions of ONNX write the ends of float32 for no bound.
    ends = [np.where(np.abs(bound) >= np.finfo(np.float32).max, np.copysign(np.inf, bound), bound) for bound in bounds]
    low, high = (np.broadcast_to(end, value.shape).ravel() for end in ends)
    return value.form.clip(low, high)


def _clip(node: Node, values: list[Value]) -> Form | None:
    # Attributes in older versions of ONNX, inputs in newer ones.
    lower, upper = (node.constant(place, node.attribute(name, None)) for place, name in ((1, "min"), (2, "max")))
    return _clipped(values[0], lower, upper)


def _extreme(node: Node, values: list[Value]) -> Form | None:
    """Return the form of Max and Min, which clip where all but one of their inputs are constant."""
    signals = [value for value in values if isinstance(value, Signal)]
    constants = [value for value in values if not isinstance(value, Signal)]
    if len(signals) > 1 or not constants:
        return None
    highest = node.proto.op_type == "Max"
    bound = np.max(constants, axis=0) if highest else np.min(constants, axis=0)
    return _clipped(signals[0], *((bound, None) if highest else (None, bound)))


def _gelu(node: Node) -> Value:
    if node.attribute("approximate", b"none") != b"none":
        raise ImportFailedError("it approximates gelu by tanh, which is another function; export it without")
    return _entrywise(node)


NO_LAYER = "it has to multiply a value that depends on the observation by a constant matrix"


def _matmul(node: Node) -> Value:
    left, right = node.value(0), node.value(1)
    if isinstance(left, Signal) and not isinstance(right, Signal) and right.ndim == 2:
        vector, shape = left.shape[-1:] == (left.size,), (*left.shape[:-1], right.shape[1])
        return _layer(left, node.finite(1).T, vector, shape)
    if isinstance(right, Signal) and not isinstance(left, Signal) and left.ndim == 2:
        column = right.shape[-2:] == (right.size, 1)
        shape = (*right.shape[:-2], len(left), 1) if column else (len(left),)
        return _layer(right, node.finite(0), column or len(right.shape) == 1, shape)
    raise ImportFailedError(NO_LAYER)


def _gemm(node: Node) -> Value:
    signal, weight, bias = node.value(0), node.finite(1), node.finite(2)
    if not isinstance(signal, Signal) or node.attribute("transA", 0) or weight is None or weight.ndim != 2:
        raise ImportFailedError(NO_LAYER)
    weight = node.attribute("alpha", 1.0) * (weight if node.attribute("transB", 0) else weight.T)
    result = _layer(signal, weight, signal.shape == (1, signal.size), (1, len(weight)))
    return result if bias is None else _combined(operator.add, result, node.attribute("beta", 1.0) * bias, node.what)


def _einsum(node: Node) -> Value:
    signal, weight = node.value(0), node.finite(1)
    equation = node.attribute("equation", b"").decode().replace(" ", "")
    for order, product in (("bi,io->bo", weight.T), ("bi,oi->bo", weight)):
        # The same letters, or others in their places.
        same = len(equation) == len(order) and len({*zip(equation, order, strict=True)}) == len({*order})
        if isinstance(signal, Signal) and weight.ndim == 2 and same and len({*equation}) == len({*order}):
            return _layer(signal, product, signal.shape == (1, signal.size), (1, len(product)))
    raise ImportFailedError(f"{NO_LAYER}, by 'bi,io->bo' or 'bi,oi->bo'")


def _layer(signal: Signal, weight: Array, vector: bool, shape: tuple[int, ...]) -> Signal:
    """Return what a layer of weight (outputs, entries) makes of a signal, if that is a vector, as a tensor of shape."""
    if weight.dtype.kind != "f":
        raise ImportFailedError(f"its weights are {weight.dtype}, allowed are floating-point numbers")
    if not vector:
        raise ImportFailedError(f"it multiplies a tensor of shape {signal.shape}, allowed are vectors")
    if weight.shape[1] != signal.size:
        raise ImportFailedError(f"it takes {weight.shape[1]} numbers and is given {signal.size}")
    return multiplied(weight, signal, shape)


def _combined(operation: Callable[[Any, Any], Any], signal: Value, number: Array, what: str) -> Value:
    values = spread([signal, number])
    return elementwise(operation, values, what, _affine(operation, *values))


def _batch_norm(node: Node) -> Value:
    signal = node.value(0)
    if node.attribute("training_mode", 0):
        raise ImportFailedError("it is exported for training; export the policy after eval()")
    scale, bias, mean, variance = (np.asarray(node.finite(position)) for position in range(1, 5))
    factor = scale / np.sqrt(variance + node.attribute("epsilon", 1e-5))
    shape = (-1, *[1] * (len(signal.shape) - 2))
    scaled = _combined(operator.mul, signal, factor.reshape(shape), node.what)
    return _combined(operator.add, scaled, (bias - mean * factor).reshape(shape), node.what)


def _cast(node: Node) -> Value:
    to = node.attribute("to", 0)
    if to not in FLOATS:
        kind = TensorProto.DataType.Name(to).lower()
        raise ImportFailedError(f"it turns what the network computes into {kind}, allowed are {FLOAT_NAMES}")
    return _as_floats(node.value(0))


def _cast_like(node: Node) -> Value:
    value, like = node.value(0), node.value(1)
    if not isinstance(value, Signal):
        return value.astype(np.float64)
    if not isinstance(like, Signal) and like.dtype.kind != "f":
        raise ImportFailedError(f"it turns what the network computes into {like.dtype}, allowed are {FLOAT_NAMES}")
    return _as_floats(value)


def _as_floats(value: Value) -> Value:
    """Return what is computed as numbers; only what has no form can be something else, as comparisons are."""
    if isinstance(value, Signal) and value.form is not None:
        return value
    return elementwise(lambda array: array.astype(np.float64), [value], "", None)


def _dropout(node: Node) -> Value:
    training = node.constant(2)
    if training is not None and np.any(training):
        raise ImportFailedError("it is exported for training; export the policy after eval()")
    return node.value(0)


def _concat(node: Node) -> Value:
    signals = [value for value in node.inputs if isinstance(value, Signal)]
    if len(signals) < len(node.inputs) or any(signal.point is not signals[0].point for signal in signals):
        raise ImportFailedError("it joins what comes from different layers, or constants")
    return joined(signals, node.attribute("axis", 0), node.what)


FORMS: dict[str, Callable[[Node, list[Value]], Form | None]] = {
    "Add": lambda node, values: _affine(operator.add, *values),
    "Clip": _clip,
    "Div": lambda node, values: _affine(operator.truediv, *values),
    "Max": _extreme,
    "Min": _extreme,
    "Mul": lambda node, values: _affine(operator.mul, *values),
    "Neg": lambda node, values: _affine(operator.mul, values[0], np.full(values[0].shape, -1.0)),
    "Relu": lambda node, values: _clipped(values[0], 0.0, None),
    "Sub": lambda node, values: _affine(operator.sub, *values),
}
"""Of what is done entry by entry, given the inputs broadcast; None where it has none."""
CLIPPING = ("Clip", "Max", "Min")
"""Their bounds may be infinite."""
_ENTRYWISE = """
Abs Acos Acosh And Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Equal Erf Exp Floor Greater GreaterOrEqual HardSigmoid
HardSwish LeakyRelu Less LessOrEqual Log Mish Mod Not Or PRelu Pow Reciprocal Round Selu Shrink Sigmoid Sign Sin Sinh
Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Where Xor
"""
_MOVING = "Expand Flatten Gather GatherND Identity Reshape Slice Split Squeeze Tile Transpose Unsqueeze"
_OF_CONSTANTS = """
Constant ConstantOfShape EyeLike Range ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare
"""
OPERATORS: dict[str, Callable[[Node], Value | list[Value]]] = {
    **dict.fromkeys((*FORMS, *_ENTRYWISE.split()), _entrywise),
    **dict.fromkeys(_MOVING.split(), _moved),
    **dict.fromkeys(_OF_CONSTANTS.split(), _of_constants),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _concat,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Shape": _evaluated,
    "Size": _evaluated,
}
"""What each kind of node gives out that depends on the observation. None of it runs code of the file's."""
UNFOLDED = ("Dropout", "Einsum")
"""Not evaluated on constants: the one may be random, the other may take any time."""
