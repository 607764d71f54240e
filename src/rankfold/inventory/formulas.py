"""Formulas for the multiply-accumulates of each operation.

A multiply-accumulate is a product that is added to a sum. Counted are matrix products, convolutions, attention,
recurrent layers, pairwise distances and Fourier transforms (5 N log2 N floating-point operations). Elementwise
products, normalization, softmax, pooling and interpolation count zero. Masks do not lower the count, and a product of
complex numbers counts once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Formula = Callable[[Sequence[Any], Any], int]
"""Maps an operation's arguments and result to its number of multiply-accumulates."""


def may_multiply(name: str) -> bool:
    """Whether an operation without a formula may perform multiply-accumulates."""
    namespace, _, plain = name.partition("::")
    if namespace in FREE_NAMESPACES or name in FREE:
        return False
    return namespace != "aten" or plain in UNKNOWN or plain.startswith(UNKNOWN_PREFIXES)


def _product(first: int) -> Formula:
    """Return the formula of a matrix product whose left factor is the argument at `first`."""
    # In batched products such as torch.bmm, both the first factor and the output hold the batch.
    return lambda args, out: args[first].numel() * out.shape[-1]


def _grouped_product(args: Sequence[Any], _: Any) -> int:
    left, right = args[:2]
    # Each column of a two-dimensional right factor belongs to a single group.
    groups = left.shape[0] if left.ndim == 3 and right.ndim == 2 else 1
    return left.numel() * right.shape[-1] // groups


def _elements(index: int) -> Formula:
    """Return the formula of one product for each element of the argument at `index`."""
    return lambda args, _: args[index].numel()


def _positions(features: Tensor, weight: Tensor) -> int:
    """Return the positions at which a kernel is applied; `features` may lack the batch dimension."""
    features = features if features.ndim == weight.ndim else features.unsqueeze(0)
    return features.shape[0] * math.prod(features.shape[2:])


def _plain_convolution(args: Sequence[Any], out: Any) -> int:
    return _positions(out, args[1]) * args[1].numel()


def _transposed_convolution(args: Sequence[Any], _: Any) -> int:
    return _positions(args[0], args[1]) * args[1].numel()


def _convolution(args: Sequence[Any], out: Any) -> int:
    return _transposed_convolution(args, out) if args[6] else _plain_convolution(args, out)


def _convolution_backward(args: Sequence[Any], _: Any) -> int:
    grad_out, source, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    return _positions(source if transposed else grad_out, weight) * weight.numel() * sum(wanted[:2])


def _time_convolution(args: Sequence[Any], out: Any) -> int:
    return out.shape[0] * out.shape[1] * args[1].numel()


def _attention(args: Sequence[Any], _: Any) -> int:
    query, key, value = args[:3]
    # In grouped-query attention, several query heads share a head of keys and values.
    rows = math.prod(query.shape[:-1])
    return rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _attention_backward(args: Sequence[Any], _: Any) -> int:
    query, key, value = args[1:4]
    rows = math.prod(query.shape[:-1])
    # 3: the scores again, the gradients of queries and keys. 2: the gradients of the scores and of the values.
    return rows * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1])


def _packed_attention(first: int, query_ends: int, key_ends: int) -> Formula:
    """Return the formula of attention over ``(batch, length, heads, features)``, or packed without the batch."""

    def formula(args: Sequence[Any], _: Any) -> int:
        query, key, value = args[first : first + 3]
        heads, width = query.shape[-2], query.shape[-1] + value.shape[-1]
        ends = args[query_ends]
        if ends is None:
            return query.shape[0] * query.shape[1] * key.shape[1] * heads * width
        others = ends if args[key_ends] is None else args[key_ends]
        return int((ends.diff().long() * others.diff().long()).sum()) * heads * width

    return formula


def _fused_attention(args: Sequence[Any], _: Any) -> int:
    query, key, value = args[:3]
    projections = (query.numel() + key.numel() + value.numel()) * query.shape[-1] + query.numel() * query.shape[-1]
    return projections + 2 * query.numel() * key.shape[1]


def _encoder_layer(args: Sequence[Any], out: Any) -> int:
    source, first, second = args[0], args[14], args[16]
    rows = source.numel() // source.shape[-1]
    return _fused_attention((source, source, source), out) + rows * (first.numel() + second.numel())


def _recurrent_layer(args: Sequence[Any], _: Any) -> int:
    source, weights = args[0], args[1:3]
    return source.numel() // source.shape[-1] * sum(weight.numel() for weight in weights)


def _recurrent_network(weights: int) -> Formula:
    """Return the formula of an operation that runs all layers and directions; packed sequences hold no padding."""

    def formula(args: Sequence[Any], _: Any) -> int:
        matrices = sum(weight.numel() for weight in args[weights] if weight.ndim == 2)
        return args[0].numel() // args[0].shape[-1] * matrices

    return formula


def _trilinear(args: Sequence[Any], _: Any) -> int:
    shapes: list[list[int]] = []
    for tensor, expand in zip(args[:3], args[3:6], strict=True):
        shape = list(tensor.shape)
        for position in sorted(expand):
            shape.insert(position, 1)
        shapes.append(shape)
    return math.prod(torch.broadcast_shapes(*shapes))


def _distances(args: Sequence[Any], out: Any) -> int:
    return out.numel() * args[0].shape[-1]


def _fourier(args: Sequence[Any], out: Any) -> int:
    source, dims = args[:2]
    longer = max(source, out, key=Tensor.numel)  # a half spectrum is shorter than its real signal
    length = math.prod(longer.shape[dim] for dim in dims)
    # The transform of a real signal takes half the operations.
    flops = 5 * longer.numel() * math.log2(max(length, 1)) / (1 if source.is_complex() and out.is_complex() else 2)
    return round(flops / 2)


def _named(formula: Formula, names: str) -> dict[str, Formula]:
    return {name if "::" in name else f"aten::{name}": formula for name in names.split()}


# Operations of torch and torchvision on every device, in every supported release.
FORMULAS: dict[str, Formula] = {
    **_named(
        _product(0),
        "mm bmm linear mkldnn_linear _int_mm _scaled_mm _scaled_mm_v2 _weight_int8pack_mm _weight_int4pack_mm "
        "_weight_int4pack_mm_for_cpu _weight_int4pack_mm_with_scales_and_zeros",
    ),
    **_named(_product(1), "addmm baddbmm addbmm _addmm_activation"),
    **_named(_grouped_product, "_grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2"),
    **_named(_elements(0), "mv dot vdot"),
    **_named(_elements(1), "addmv"),
    **_named(_convolution, "convolution _convolution convolution_overrideable"),
    **_named(
        _plain_convolution,
        "cudnn_convolution cudnn_convolution_relu cudnn_convolution_add_relu mkldnn_convolution miopen_convolution "
        "miopen_convolution_relu miopen_convolution_add_relu miopen_depthwise_convolution _mps_convolution "
        "_slow_conv2d_forward thnn_conv2d slow_conv3d slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d "
        "_conv_depthwise2d conv_depthwise3d _nnpack_spatial_convolution torchvision::deform_conv2d",
    ),
    **_named(
        _transposed_convolution,
        "cudnn_convolution_transpose miopen_convolution_transpose _mps_convolution_transpose slow_conv_transpose2d "
        "slow_conv_transpose3d",
    ),
    **_named(_convolution_backward, "convolution_backward convolution_backward_overrideable"),
    **_named(_time_convolution, "conv_tbc"),
    **_named(
        _attention,
        "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math_for_mps "
        "higher_order::flex_attention",
    ),
    **_named(
        _attention_backward,
        "_scaled_dot_product_flash_attention_backward _scaled_dot_product_flash_attention_for_cpu_backward "
        "_scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention_backward "
        "_scaled_dot_product_fused_attention_overrideable_backward",
    ),
    **_named(_packed_attention(0, 3, 4), "_flash_attention_forward torch_attn::_varlen_attn"),
    **_named(_packed_attention(1, 4, 5), "_flash_attention_forward_no_dropout_inplace"),
    **_named(_packed_attention(0, 4, 5), "_efficient_attention_forward"),
    **_named(_fused_attention, "_native_multi_head_attention _triton_multi_head_attention"),
    **_named(_encoder_layer, "_transformer_encoder_layer_fwd"),
    **_named(_recurrent_layer, "mkldnn_rnn_layer"),
    **_named(_recurrent_network(1), "_cudnn_rnn miopen_rnn"),
    **_named(_recurrent_network(2), "_lstm_mps"),
    **_named(_trilinear, "_trilinear"),
    **_named(_distances, "_cdist_forward _euclidean_dist _pdist_forward"),
    **_named(_fourier, "_fft_c2c _fft_r2c _fft_c2r"),
}

# Operations of torch that multiply matrices and have no formula above: with them, a total is partial.
UNKNOWN_PREFIXES = (
    "_sparse_mm", "_sparse_addmm", "_sparse_sparse_matmul", "_sparse_semi_structured_", "_cslt_sparse_mm",
    "quantized_lstm", "quantized_gru", "quantized_rnn", "fbgemm_linear_", "_wrapped_quantized_linear",
    "_dyn_quant_matmul", "_mixed_dtypes_linear", "_foreach_mm", "_flash_attention_", "_efficient_attention_",
    "_cudnn_attention_", "_scaled_dot_product_", "_triton_", "linalg_", "_linalg_",
)  # fmt: skip
UNKNOWN = frozenset(
    {
        "hspmm", "sspaddmm", "sparse_sampled_addmm", "_spsolve", "_cudnn_rnn_backward", "miopen_rnn_backward",
        "mkldnn_rnn_layer_backward", "lstm_mps_backward", "_cdist_backward", "_pdist_backward", "conv_tbc_backward",
        "linear_backward", "matmul_backward", "mkldnn_linear_backward", "mkldnn_linear_backward_input",
        "mkldnn_linear_backward_weights", "_slow_conv2d_backward", "cholesky_inverse", "cholesky_solve",
        "_cholesky_solve_helper", "geqrf", "orgqr", "ormqr", "lu_solve", "_lu_with_info", "triangular_solve",
        "_compute_linear_combination",
        # These reach the counter as a whole only on nested tensors, whose sizes cannot be read.
        "matmul", "scaled_dot_product_attention",
    }
)  # fmt: skip
# Operations that multiply no matrices: those of other libraries, and those of torch that a prefix above includes.
FREE = frozenset(
    [f"torchvision::{name}" for name in ("nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")]
    + [f"aten::{name}" for name in ("linalg_vector_norm", "linalg_cross", "linalg_diagonal", "_linalg_check_errors")]
)
FREE_NAMESPACES = frozenset(("prim", "prims", "profiler", "rngprims", "c10d", "_c10d_functional", "debugprims"))
