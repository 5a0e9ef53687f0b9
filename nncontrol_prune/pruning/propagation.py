"""What each operation of the ATen level does to labels: how a dimension of its result follows from its operands."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_iter

from nncontrol_prune.pruning.coupling import Cause, Coupling, Row, Rule
from nncontrol_prune.pruning.rearranging import REARRANGING, fix_along

SPREAD_ENTRIES = 3
"""Entries that have to be left of those that a spread is taken of: two differ from their mean by as much, and a norm
leaves of them signs, +1 and -1 whatever the inputs. What comes after hangs on rounding, and a planner's choices too."""
WHOLE_ENTRIES = 2
"""Entries that have to be left of those that are put beside what is made of them all, such as their root mean square:
one is as large as that."""


def _same(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """One tensor in, entry by entry."""
    source = next(value for value in tree_iter(args) if isinstance(value, Tensor))
    for output in tree_iter(result):
        if isinstance(output, Tensor) and output.shape == source.shape:
            coupling.label(output, coupling.labels(source))


def _elementwise(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Several tensors in, entry by entry, with broadcasting."""
    dims = result.dim()
    joined: list[Row] = [None] * dims
    known = [False] * dims
    for tensor in tree_iter((args, kwargs)):
        if not isinstance(tensor, Tensor) or tensor.dim() == 0:
            continue
        offset = dims - tensor.dim()
        for index, row in enumerate(coupling.labels(tensor)):
            dim = offset + index
            if tensor.shape[index] != result.shape[dim] or tensor.stride(index) == 0:
                continue  # broadcast, here or in an expand: this operand has no say in it
            if known[dim]:
                coupling.join(joined[dim], row)
            if joined[dim] is None:
                joined[dim] = row
            known[dim] = True
    coupling.label(result, tuple(joined))


def _glu(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """One half is multiplied with the other, entry by entry."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
    rows = list(coupling.labels(args[0]))
    rows[dim] = coupling.divide(rows[dim], 2)
    coupling.label(result, tuple(rows))


def _extremum(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Largest or least of two tensors, of all entries, or along a dimension; that tells which one, by its number."""
    if len(args) > 1 and isinstance(args[1], Tensor):
        _elementwise(coupling, args, kwargs, result)
    elif isinstance(result, Tensor):
        _reduction(coupling, args, kwargs, result)
    else:
        _ordered(coupling, args[0], args[1] if len(args) > 1 else kwargs["dim"], result)


def _matmul(coupling: Coupling, first: Tensor, second: Tensor, result: Tensor) -> None:
    """(…, n, k) by (…, k, m); dimensions before the last two are members of an ensemble, which stay."""
    ours, theirs = coupling.labels(first), coupling.labels(second)
    coupling.contract((first, -1), (second, -2))
    for row in (*ours[:-2], *theirs[:-2]):
        coupling.fix(row)
    coupling.label(result, (*(None for _ in ours[:-2]), ours[-2], theirs[-1]))


def _mm(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    _matmul(coupling, args[0], args[1], result)


def _addmm(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    bias, first, second = args[:3]
    _matmul(coupling, first, second, result)
    product = coupling.labels(result)
    offset = result.dim() - bias.dim()
    for index, row in enumerate(coupling.labels(bias)):
        if bias.shape[index] == result.shape[offset + index]:
            coupling.join(product[offset + index], row)


def _mv(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    coupling.contract((args[0], 1), (args[1], 0))
    coupling.label(result, coupling.labels(args[0])[:1])


def _attention(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """(…, positions, channels) of queries, keys and values; that channels of the first two stay, tracing.py sees to."""
    queries, keys, values = (coupling.labels(tensor) for tensor in args[:3])
    for row in (*queries[:-2], *keys[:-1], *values[:-1]):
        coupling.fix(row)
    for mask in (*args[3:], *kwargs.values()):
        if isinstance(mask, Tensor):
            _fixing(coupling, (mask,), {}, result)
    coupling.label(result[0], (*(None for _ in queries[:-2]), queries[-2], values[-1]))


def _convolution(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    inputs, weight, bias, _, _, _, transposed, _, groups = args[:9]
    ours, theirs = coupling.labels(inputs), coupling.labels(weight)
    outward = theirs[1 if transposed else 0]
    if groups == 1:
        coupling.contract((inputs, 1), (weight, 0 if transposed else 1))
    elif groups == inputs.shape[1] == result.shape[1]:
        # Depthwise: each channel has a kernel of its own, which leaves with it.
        coupling.join(ours[1], theirs[0])
        outward = theirs[0]
    else:
        # Each group would have to lose as many channels.
        remedy = "use one of a single group, or of as many as it has channels"
        coupling.begin(Cause(f"go through a convolution of {groups} groups, which stays", remedy))
        for row in (ours[1], *theirs[:2]):
            coupling.fix(row)
        outward = None
    for row in (ours[0], *ours[2:], *theirs[2:]):  # a kernel runs over positions
        coupling.fix(row)
    if bias is not None:
        coupling.join(outward, coupling.labels(bias)[0])
    coupling.label(result, (None, outward, *(None for _ in result.shape[2:])))


def _layer_norm(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    _norm(coupling, args, result, SPREAD_ENTRIES)


def _rms_norm(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    _norm(coupling, args, result, WHOLE_ENTRIES)


def _norm(coupling: Coupling, args: Any, result: Any, entries: int) -> None:
    """Statistics are over the channels that are kept, so nothing is coupled but the affine part."""
    inputs, shape = args[0], args[1]
    rows = coupling.labels(inputs)
    if len(shape) == 1:
        coupling.need(rows[-1], entries)
    else:
        for row in rows[-len(shape) :]:
            coupling.fix(row)
    for affine in args[2:4]:
        if isinstance(affine, Tensor):
            for mine, row in zip(coupling.labels(affine), rows[-len(shape) :], strict=True):
                coupling.join(mine, row)
    output = result[0] if isinstance(result, (tuple, list)) else result
    coupling.label(output, rows)


def _batch_norm(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    inputs = args[0]
    rows = coupling.labels(inputs)
    for tensor in args[1:5]:
        if isinstance(tensor, Tensor):
            coupling.join(coupling.labels(tensor)[0], rows[1])
    coupling.label(result[0] if isinstance(result, (tuple, list)) else result, rows)


def _group_norm(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """A norm's group leaves as a whole, so that the statistics of the others stay what they are.

    One group of all channels is a LayerNorm of images: its statistics are over the channels that are kept.
    """
    inputs, weight, bias, _, channels, _, groups = args[:7]
    row = coupling.labels(inputs)[1]
    for affine in (weight, bias):
        if isinstance(affine, Tensor):
            coupling.join(coupling.labels(affine)[0], row)
    if groups == 1:
        _need(coupling, inputs, set(range(1, inputs.dim())), SPREAD_ENTRIES)
    elif row is not None:
        for members in row.reshape(groups, channels // groups).tolist():
            coupling.join_all(members)
    coupling.label(result[0], coupling.labels(inputs))


def _softmax(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Shares of a whole change when a part leaves: that dimension stays."""
    rows = list(coupling.labels(args[0]))
    coupling.fix(rows[args[1]])
    rows[args[1]] = None
    coupling.label(result, tuple(rows))


def _ordered(coupling: Coupling, source: Tensor, dim: int, result: Any) -> None:
    """Which entry comes where hangs on all of them: that dimension stays."""
    rows = list(coupling.labels(source))
    coupling.fix(rows[dim])
    rows[dim] = None
    for output in tree_iter(result):
        found = list(rows)
        if output.dim() < source.dim():
            found.pop(dim)
        coupling.label(output, tuple(found))


def _sort(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    _ordered(coupling, args[0], args[1] if len(args) > 1 else kwargs.get("dim", -1), result)


def _topk(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    _ordered(coupling, args[0], args[2] if len(args) > 2 else kwargs.get("dim", -1), result)


def _argmax(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Without a dimension, entries of all of them are told apart by number."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    if dim is None:
        _fixing(coupling, args, kwargs, result)
    else:
        _ordered(coupling, args[0], dim, result)


def _reduced(source: Tensor, args: Any, kwargs: Any) -> set[int]:
    """Return the dimensions that a reduction is over."""
    asked = args[1] if len(args) > 1 and args[1] is not None else kwargs.get("dim")
    if isinstance(asked, int):
        asked = [asked]
    return {dim % source.dim() for dim in asked or range(source.dim())}


def _reduction(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """A mean or a norm over channels is one over those that are kept, as in an RMSNorm written out."""
    source: Tensor = args[0]
    gone = _reduced(source, args, kwargs)
    rows = coupling.labels(source)
    kept: list[Row] = []
    outputs = [value for value in tree_iter(result) if isinstance(value, Tensor)]
    keepdim = outputs[0].dim() == source.dim()
    if keepdim:  # it is made to be put beside the entries again
        _need(coupling, source, gone, WHOLE_ENTRIES)
    for dim, row in enumerate(rows):
        if dim not in gone:
            kept.append(row)
        elif keepdim:
            kept.append(None)
    for output in outputs:
        coupling.label(output, tuple(kept))


def _spread(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """A variance or a standard deviation, as in a LayerNorm written out, asks for more entries than one."""
    source: Tensor = args[0]
    _need(coupling, source, _reduced(source, args, kwargs), SPREAD_ENTRIES)
    _reduction(coupling, args, kwargs, result)


def _need(coupling: Coupling, source: Tensor, gone: set[int], entries: int) -> None:
    """Tell that so many entries have to be left of those that a reduction over some dimensions is of."""
    for dim in gone:
        others = math.prod(source.shape[other] for other in gone if other != dim)
        coupling.need(coupling.labels(source)[dim], math.ceil(entries / others))


def _norm_reduction(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    _reduction(coupling, (args[0], args[2] if len(args) > 2 else None), kwargs, result)


def _positions(count: int) -> Rule:
    """Return the rule of what takes the last so many dimensions for positions, and makes others of them."""

    def rule(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
        for output in tree_iter(result):
            if isinstance(output, Tensor):
                fix_along(coupling, args[0], range(args[0].dim() - count, args[0].dim()), output)

    return rule


def _pad(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Widths come in pairs, those of the last dimension first."""
    source, widths = args[0], args[1]
    padded = [source.dim() - 1 - place // 2 for place, width in enumerate(widths) if width]
    fix_along(coupling, source, padded, result)


def _restride(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Pooling to a single pixel does it to its result, whose entries stay where they are; else any may be read."""
    if result is not args[0] or result.dim() < 3 or result.shape[2:].numel() != 1:
        _fixing(coupling, args, kwargs, result)
        coupling.label(result, (None,) * result.dim())


def _embedding(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Rows of the table are addressed by number, and its columns are channels."""
    coupling.operands = ()
    rows, columns = coupling.labels(args[0])
    coupling.fix(rows)
    for row in coupling.labels(args[1]):
        coupling.fix(row)
    coupling.label(result, (*(None for _ in args[1].shape), columns))


def _fresh(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """A new tensor of a given size: nothing of it is a channel."""


def _copy(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Written in place: what is written stays, and so does the place."""
    coupling.operands = ()  # it is the writing that makes it stay, and not what is written into
    for tensor in args[:2]:
        for row in coupling.labels(tensor):
            coupling.fix(row)


def _fixing(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Entries are addressed by number: all of them stay."""
    coupling.operands = ()  # whatever the numbers come from
    for tensor in tree_iter(args):
        if isinstance(tensor, Tensor):
            for row in coupling.labels(tensor):
                coupling.fix(row)


_SAME = """
abs neg exp exp2 expm1 log log1p log2 log10 sqrt rsqrt square reciprocal sign sin cos tan asin acos atan sinh cosh tanh
atanh asinh acosh erf erfc sigmoid relu relu6 leaky_relu elu selu celu silu mish gelu hardtanh hardswish hardsigmoid
softplus log_sigmoid_forward threshold round floor ceil trunc frac isnan isinf logical_not clone
detach alias _to_copy contiguous lift_fresh dropout native_dropout zeros_like ones_like full_like empty_like rand_like
randn_like nan_to_num positive softshrink hardshrink tanhshrink _conj bitwise_not fill bernoulli view_of
randint_like normal uniform zero
"""
_ELEMENTWISE = """
add sub rsub mul div true_divide floor_divide pow maximum minimum fmax fmin where addcmul addcdiv lerp clamp clamp_min
clamp_max eq ne lt le gt ge logical_and logical_or logical_xor atan2 remainder fmod hypot xlogy _prelu_kernel
masked_fill copysign logaddexp bitwise_and bitwise_or
"""
_REDUCTIONS = "mean sum amax amin prod logsumexp any all"

_POSITIONS = {
    1: """
max_pool1d_with_indices avg_pool1d upsample_nearest1d upsample_linear1d _upsample_nearest_exact1d reflection_pad1d
replication_pad1d
""",
    2: """
max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d
reflection_pad2d replication_pad2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d
""",
    3: """
upsample_nearest3d upsample_trilinear3d avg_pool3d max_pool3d_with_indices _adaptive_avg_pool3d adaptive_max_pool3d
pixel_unshuffle pixel_shuffle
""",
}

RULES: dict[str, Rule] = {
    **REARRANGING,
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_REDUCTIONS.split(), _reduction),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), _spread),
    "linalg_vector_norm": _norm_reduction,
    "norm": _norm_reduction,
    "glu": _glu,
    **dict.fromkeys(("max", "min"), _extremum),
    **dict.fromkeys(("mm", "bmm"), _mm),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "mv": _mv,
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
        ),
        _attention,
    ),
    **dict.fromkeys(("convolution", "_convolution", "mkldnn_convolution"), _convolution),
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm"),
        _batch_norm,
    ),
    "native_group_norm": _group_norm,
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax", "cumsum"), _softmax),
    "sort": _sort,
    "topk": _topk,
    **dict.fromkeys(("argmax", "argmin"), _argmax),
    **{name: _positions(count) for count, names in _POSITIONS.items() for name in names.split()},
    "constant_pad_nd": _pad,
    "as_strided": _restride,
    "embedding": _embedding,
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), _fresh),
    **dict.fromkeys(("_local_scalar_dense", "_is_all_true", "_is_any_true", "numel"), _fresh),
    "copy": _copy,
    **dict.fromkeys(("gather", "scatter", "index_put", "unfold"), _fixing),
}
"""What each operation does to labels, by its ATen name without the trailing underscore of the in-place ones."""
