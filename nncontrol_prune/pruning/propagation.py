"""What each operation of the ATen level does to labels: how a dimension of its result follows from its operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_iter

from nncontrol_prune.pruning.coupling import FIXED, Coupling, Labels, Row
from nncontrol_prune.pruning.errors import PruningError

Rule = Callable[[Coupling, Any, Any, Any], None]
"""Takes the coupling, and the operation's arguments, keywords and result."""


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


def _view(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    source: Tensor = args[0]
    coupling.label(result, reshaped(coupling, source.shape, coupling.labels(source), result.shape))


def reshaped(coupling: Coupling, before: Sequence[int], labels: Labels, after: Sequence[int]) -> Labels:
    """Return labels after a reshape; where a dimension is split, what shares its leading index leaves together.

    That is right for an image that is flattened and unflattened (a channel leaves with all its pixels), for the
    simplices of SimNorm and for the heads of an attention, all of which lead.
    """
    rows: list[Row] = [None] * len(after)
    for ours, theirs in _blocks(before, after):
        labelled = [dim for dim in ours if labels[dim] is not None]
        if not labelled:
            continue
        # One of several can be told apart afterwards: the widest, since an ensemble's members are few.
        chosen = max(labelled, key=lambda dim: before[dim])
        for dim in labelled:
            if dim != chosen:
                coupling.fix(labels[dim])
        shape = [before[dim] for dim in ours]
        spread = [1] * len(ours)
        spread[ours.index(chosen)] = -1
        row = labels[chosen]
        assert row is not None
        entries = np.broadcast_to(row.reshape(spread), shape).reshape([after[dim] for dim in theirs])
        wide = [position for position, dim in enumerate(theirs) if after[dim] > 1]
        if not wide:
            continue
        along = next((position for position in wide if _constant_across(entries, position)), None)
        if along is None:
            along = wide[0]
            for across in np.moveaxis(entries, along, 0).reshape(entries.shape[along], -1):
                coupling.join_all(across.tolist())
        rows[theirs[along]] = np.moveaxis(entries, along, 0).reshape(entries.shape[along], -1)[:, 0].copy()
    return tuple(rows)


def _constant_across(entries: NDArray[np.int64], along: int) -> bool:
    flat = np.moveaxis(entries, along, 0).reshape(entries.shape[along], -1)
    return bool((flat == flat[:, :1]).all())


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split a reshape into the smallest blocks of dimensions that hold the same entries."""
    blocks = []
    i = j = 0
    while i < len(before) or j < len(after):
        ours, theirs = [], []
        left = right = 1
        if i < len(before):
            ours.append(i)
            left = before[i]
            i += 1
        if j < len(after):
            theirs.append(j)
            right = after[j]
            j += 1
        while left != right:
            if left < right:
                ours.append(i)
                left *= before[i]
                i += 1
            else:
                theirs.append(j)
                right *= after[j]
                j += 1
        blocks.append((ours, theirs))
    return blocks


def _expand(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    source: Tensor = args[0]
    offset = result.dim() - source.dim()
    rows: list[Row] = [None] * result.dim()
    for index, row in enumerate(coupling.labels(source)):
        if source.shape[index] == result.shape[offset + index]:
            rows[offset + index] = row
    coupling.label(result, tuple(rows))


def _repeat(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    source, times = args[0], args[1]
    rows: list[Row] = [None] * (result.dim() - source.dim())
    rows += coupling.labels(source)
    tiled = [None if row is None else np.tile(row, count) for row, count in zip(rows, times, strict=True)]
    coupling.label(result, tuple(tiled))


def _staying(coupling: Coupling, source: Tensor, dims: Sequence[int], result: Any) -> None:
    rows = list(coupling.labels(source))
    for dim in dims:
        coupling.fix(rows[dim])
        rows[dim] = None
    coupling.label(result, tuple(rows))


def _glu(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """One half is multiplied with the other, so that dimension stays."""
    _staying(coupling, args[0], [args[1] if len(args) > 1 else kwargs.get("dim", -1)], result)


def _flip(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Entries change places, so these dimensions stay."""
    _staying(coupling, args[0], args[1] if len(args) > 1 else kwargs["dims"], result)


def _roll(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Entries change places, so these dimensions stay; without any it goes through all of them."""
    dims = args[2] if len(args) > 2 else kwargs.get("dims")
    _staying(coupling, args[0], dims or range(args[0].dim()), result)


def _extremum(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Largest or least of two tensors, of all entries, or along a dimension; that tells which one, by its number."""
    if len(args) > 1 and isinstance(args[1], Tensor):
        _elementwise(coupling, args, kwargs, result)
    elif isinstance(result, Tensor):
        _reduction(coupling, args, kwargs, result)
    else:
        _ordered(coupling, args[0], args[1] if len(args) > 1 else kwargs["dim"], result)


def _transpose(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    source, first, second = args
    rows = list(coupling.labels(source))
    rows[first], rows[second] = rows[second], rows[first]
    coupling.label(result, tuple(rows))


def _t(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    coupling.label(result, coupling.labels(args[0])[::-1])


def _permute(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    rows = coupling.labels(args[0])
    coupling.label(result, tuple(rows[dim] for dim in args[1]))


def _unsqueeze(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    rows = list(coupling.labels(args[0]))
    rows.insert(args[1] % result.dim(), None)
    coupling.label(result, tuple(rows))


def _squeeze(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    source: Tensor = args[0]
    asked = range(source.dim()) if len(args) < 2 else [args[1]] if isinstance(args[1], int) else args[1]
    gone = {dim % source.dim() for dim in asked if source.shape[dim] == 1}
    coupling.label(result, tuple(row for dim, row in enumerate(coupling.labels(source)) if dim not in gone))


def _slice(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """A part of a dimension is addressed by number, so all of that dimension stays."""
    source: Tensor = args[0]
    rows = list(coupling.labels(source))
    for dim, size in enumerate(result.shape):
        if size != source.shape[dim]:
            coupling.fix(rows[dim])
            rows[dim] = None
    coupling.label(result, tuple(rows))


def _select(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    source, dim = args[0], args[1] if len(args) > 1 else 0
    rows = list(coupling.labels(source))
    coupling.fix(rows.pop(dim))
    coupling.label(result, tuple(rows))


def _split(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    source, dim = args[0], args[2] if len(args) > 2 else kwargs.get("dim", 0)
    rows = list(coupling.labels(source))
    if len(result) > 1:
        coupling.fix(rows[dim])
        rows[dim] = None
    for part in result:
        coupling.label(part, tuple(rows))


def _unbind(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    rows = list(coupling.labels(args[0]))
    coupling.fix(rows.pop(args[1] if len(args) > 1 else 0))
    for part in result:
        coupling.label(part, tuple(rows))


def _cat(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    tensors: list[Tensor] = [tensor for tensor in args[0] if tensor.numel()]
    along = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % result.dim()
    rows = list(coupling.labels(tensors[0]))
    for tensor in tensors[1:]:
        for dim, row in enumerate(coupling.labels(tensor)):
            if dim != along:
                coupling.join(rows[dim], row)
    parts = [(coupling.labels(tensor)[along], tensor.shape[along]) for tensor in tensors]
    known = any(row is not None for row, _ in parts)
    rows[along] = (
        np.concatenate([np.full(size, FIXED) if row is None else row for row, size in parts]) if known else None
    )
    coupling.label(result, tuple(rows))


def _stack(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    along = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % result.dim()
    rows = list(coupling.labels(args[0][0]))
    for tensor in args[0][1:]:
        for dim, row in enumerate(coupling.labels(tensor)):
            coupling.join(rows[dim], row)
    rows.insert(along, None)
    coupling.label(result, tuple(rows))


def _matmul(coupling: Coupling, first: Tensor, second: Tensor, result: Tensor) -> None:
    """(…, n, k) by (…, k, m); dimensions before the last two are members of an ensemble, which stay."""
    ours, theirs = coupling.labels(first), coupling.labels(second)
    coupling.join(ours[-1], theirs[-2])
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
    matrix, vector = coupling.labels(args[0]), coupling.labels(args[1])
    coupling.join(matrix[1], vector[0])
    coupling.label(result, (matrix[0],))


def _attention(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """(…, positions, channels) of queries, keys and values; the scores are scaled by the queries' size, which stays."""
    queries, keys, values = (coupling.labels(tensor) for tensor in args[:3])
    for row in (*queries[:-2], queries[-1], *keys, *values[:-1]):
        coupling.fix(row)
    for mask in (*args[3:], *kwargs.values()):
        if isinstance(mask, Tensor):
            _fixing(coupling, (mask,), {}, result)
    coupling.label(result[0], (*(None for _ in queries[:-2]), queries[-2], values[-1]))


def _convolution(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    inputs, weight, bias, _, _, _, transposed, _, groups = args[:9]
    ours, theirs = coupling.labels(inputs), coupling.labels(weight)
    outward, inward = (theirs[1], theirs[0]) if transposed else (theirs[0], theirs[1])
    if groups == 1:
        coupling.join(ours[1], inward)
    elif groups == inputs.shape[1] == result.shape[1]:
        # Depthwise: each channel has a kernel of its own, which leaves with it.
        coupling.join(ours[1], theirs[0])
        outward = theirs[0]
    else:
        raise PruningError(
            f"a convolution with {groups} groups and {inputs.shape[1]} input channels cannot be pruned; "
            "allowed are 1 group, and as many as there are channels"
        )
    for row in theirs[2:]:
        coupling.fix(row)
    if bias is not None:
        coupling.join(outward, coupling.labels(bias)[0])
    coupling.label(result, (None, outward, *(None for _ in result.shape[2:])))


def _layer_norm(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Statistics are over the channels that are kept, so nothing is coupled but the affine part."""
    inputs, shape = args[0], args[1]
    rows = coupling.labels(inputs)
    if len(shape) != 1:
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
    """A norm's group leaves as a whole, so that the statistics of the others stay what they are."""
    inputs, weight, bias, _, channels, _, groups = args[:7]
    row = coupling.labels(inputs)[1]
    for affine in (weight, bias):
        if isinstance(affine, Tensor):
            coupling.join(coupling.labels(affine)[0], row)
    if row is not None:
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


def _reduction(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """A mean or a norm over channels is one over those that are kept, as in an RMSNorm written out."""
    source: Tensor = args[0]
    asked = args[1] if len(args) > 1 and args[1] is not None else kwargs.get("dim")
    if isinstance(asked, int):
        asked = [asked]
    gone = {dim % source.dim() for dim in asked or range(source.dim())}
    rows = coupling.labels(source)
    kept: list[Row] = []
    outputs = [value for value in tree_iter(result) if isinstance(value, Tensor)]
    keepdim = outputs[0].dim() == source.dim()
    for dim, row in enumerate(rows):
        if dim not in gone:
            kept.append(row)
        elif keepdim:
            kept.append(None)
    for output in outputs:
        coupling.label(output, tuple(kept))


def _norm_reduction(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    _reduction(coupling, (args[0], args[2] if len(args) > 2 else None), kwargs, result)


def _images(coupling: Coupling, args: Any, kwargs: Any, result: Any) -> None:
    """Pooling, padding and resampling of (batch, channels, ...): channels stay where they are."""
    rows = coupling.labels(args[0])
    for output in tree_iter(result):
        if isinstance(output, Tensor):
            for dim in range(output.dim()):
                if output.shape[dim] != args[0].shape[dim]:
                    coupling.fix(rows[dim])
            coupling.label(
                output,
                tuple(row if output.shape[dim] == args[0].shape[dim] else None for dim, row in enumerate(rows)),
            )


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
softplus log_sigmoid_forward threshold clamp_min clamp_max round floor ceil trunc frac isnan isinf logical_not clone
detach alias _to_copy contiguous lift_fresh dropout native_dropout zeros_like ones_like full_like empty_like rand_like
randn_like nan_to_num positive softshrink hardshrink tanhshrink _conj bitwise_not fill bernoulli view_of
randint_like normal uniform zero
"""
_ELEMENTWISE = """
add sub rsub mul div true_divide floor_divide pow maximum minimum fmax fmin where addcmul addcdiv lerp clamp eq ne lt le
gt ge logical_and logical_or logical_xor atan2 remainder fmod hypot xlogy _prelu_kernel masked_fill copysign logaddexp
bitwise_and bitwise_or
"""
_REDUCTIONS = "mean sum var std amax amin prod logsumexp var_mean std_mean any all"

_IMAGES = """
max_pool1d_with_indices max_pool2d max_pool2d_with_indices avg_pool1d avg_pool2d adaptive_avg_pool2d
_adaptive_avg_pool2d adaptive_max_pool2d constant_pad_nd reflection_pad2d replication_pad2d upsample_nearest1d
upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
_upsample_nearest_exact1d _upsample_nearest_exact2d pixel_unshuffle pixel_shuffle avg_pool3d max_pool3d_with_indices
_adaptive_avg_pool3d adaptive_max_pool3d reflection_pad1d replication_pad1d
"""

RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_REDUCTIONS.split(), _reduction),
    "linalg_vector_norm": _norm_reduction,
    "norm": _norm_reduction,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "view_as"), _view),
    **dict.fromkeys(("expand", "broadcast_to"), _expand),
    "repeat": _repeat,
    "glu": _glu,
    "flip": _flip,
    "roll": _roll,
    **dict.fromkeys(("max", "min"), _extremum),
    "t": _t,
    "transpose": _transpose,
    "permute": _permute,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "slice": _slice,
    "narrow": _slice,
    "select": _select,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "unbind": _unbind,
    "cat": _cat,
    "stack": _stack,
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
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), _layer_norm),
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm"),
        _batch_norm,
    ),
    "native_group_norm": _group_norm,
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum"), _softmax),
    "sort": _sort,
    "topk": _topk,
    **dict.fromkeys(("argmax", "argmin"), _argmax),
    **dict.fromkeys(_IMAGES.split(), _images),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), _fresh),
    **dict.fromkeys(("_local_scalar_dense", "_is_all_true", "_is_any_true", "numel"), _fresh),
    "copy": _copy,
    **dict.fromkeys(("gather", "index", "index_select", "embedding", "scatter", "index_put", "unfold"), _fixing),
}
"""What each operation does to labels, by its ATen name without the trailing underscore of the in-place ones."""
