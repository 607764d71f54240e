"""One module as a layer: its record, and where its weight lies."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rankfold.inventory.kinds import (
    ROLES,
    TRANSPOSED,
    attention_settings,
    conv1d_base,
    conv1d_sizes,
    dtype_name,
    is_attention,
    is_lazy,
    original_class,
    own_forward,
    reparametrization,
    stock_base,
    stored_parameters,
    weight_fault,
)
from rankfold.inventory.sharing import tensor_key
from rankfold.inventory.weights import projection
from rankfold.records import LayerInfo


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Member:
    """One module, or one projection of an attention, that computes with a weight.

    Parameters
    ----------
    info : LayerInfo
        The layer on its own: no calls, no ties.
    module : nn.Module
        The module whose calls are this member's calls: the layer, or the attention.
    holder : nn.Module
        The module that holds the weight; another one only for an attention's output projection.
    role : str or None
        Which projection of an attention.
    stored : tuple of Tensor
        The parameters that the weight is made of.
    weight : Tensor or None
        The weight, where it is a stored parameter or a part of one; None if it is computed.
    """

    info: LayerInfo
    module: nn.Module
    holder: nn.Module
    role: str | None = None
    stored: tuple[Tensor, ...]
    weight: Tensor | None

    @property
    def key(self) -> Hashable:
        """The same for all members whose weight is the same memory."""
        if self.weight is None:
            return ("computed", id(self.holder), self.role)
        # The same memory read in another order, as by a transposed view, is another weight.
        return (tensor_key(self.weight, self.role), self.weight.shape, self.weight.stride())


def members_of(module: Any, paths: tuple[str, ...]) -> list[Member]:
    """Return the layer that a module is, the four that an attention is, or none."""
    if is_attention(module):
        return [_projection(module, paths, role) for role in ROLES]
    base = stock_base(module)
    if base is nn.Linear:
        return [_linear(module, paths, base, (module.in_features, module.out_features))]
    if base is not None:
        return [_conv(module, paths, base)]
    base, sizes = conv1d_base(module), conv1d_sizes(module)
    if base is None or sizes is None:
        return []
    return [_linear(module, paths, base, sizes, input_first=True)]


def _linear(
    module: Any, paths: tuple[str, ...], base: type[nn.Module], sizes: tuple[int, int], *, input_first: bool = False
) -> Member:
    stored = stored_parameters(module)
    computed = reparametrization(module)
    weight = None if computed else _plain(stored)
    info = LayerInfo(
        name=paths[0],
        kind="linear",
        in_channels=sizes[0],
        out_channels=sizes[1],
        input_first=input_first,
        bias=module.bias is not None,
        dtype=_dtype(stored),
        type_name=original_class(module).__name__,
        aliases=paths[1:],
        skip=_fault(stored) or own_forward(module, base),
        note=_folded(computed),
    )
    return Member(
        info=info,
        module=module,
        holder=module,
        stored=tuple(stored.values()),
        weight=weight.detach().mT if input_first and weight is not None else weight,
    )


def _conv(module: Any, paths: tuple[str, ...], base: type[nn.Module]) -> Member:
    stored = stored_parameters(module)
    computed = reparametrization(module)
    transposed = base in TRANSPOSED
    skip = _fault(stored) or own_forward(module, base)
    if skip is None and module.groups > 1 and module.groups == module.in_channels:
        skip = "depthwise convolution: each group has one input channel, nothing to factor"
    info = LayerInfo(
        name=paths[0],
        kind="conv",
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=module.padding if isinstance(module.padding, str) else tuple(module.padding),
        dilation=tuple(module.dilation),
        output_padding=tuple(module.output_padding) if transposed else (),
        groups=module.groups,
        padding_mode=module.padding_mode,
        transposed=transposed,
        bias=module.bias is not None,
        dtype=_dtype(stored),
        type_name=original_class(module).__name__,
        aliases=paths[1:],
        skip=skip,
        note=_folded(computed),
    )
    return Member(
        info=info,
        module=module,
        holder=module,
        stored=tuple(stored.values()),
        weight=None if computed else _plain(stored),
    )


def _projection(attention: Any, paths: tuple[str, ...], role: str) -> Member:
    """The projections of an attention are linear layers, whichever way it packs their weights."""
    names = tuple(f"{path}.{role}" if path else role for path in paths)
    holder, name = attention, f"{role}_weight"
    inputs = {"k_proj": attention.kdim, "v_proj": attention.vdim}.get(role, attention.embed_dim)
    bias = attention.in_proj_bias is not None
    if role == "out_proj":
        holder, name = attention.out_proj, "weight"
        bias = holder.bias is not None
    elif attention._qkv_same_embed_dim:
        name = "in_proj_weight"
    stored = stored_parameters(holder, name)
    computed = reparametrization(holder, name)
    info = LayerInfo(
        name=names[0],
        kind="linear",
        in_channels=inputs,
        out_channels=attention.embed_dim,
        bias=bias,
        dtype=_dtype(stored),
        type_name=original_class(attention).__name__,
        attention=attention_settings(attention),
        aliases=names[1:],
        skip=_fault(stored),
        note=_folded(computed),
    )
    known = not computed and info.skip is None
    return Member(
        info=info,
        module=attention,
        holder=holder,
        role=role,
        stored=tuple(stored.values()),
        weight=projection(attention, role)[0].detach() if known else None,
    )


def _plain(stored: Mapping[str, Tensor]) -> Tensor | None:
    weight = stored.get("weight")
    return None if is_lazy(weight) else weight


def _fault(stored: Mapping[str, Tensor]) -> str | None:
    if not stored:
        return "its weight is no parameter of the layer (computed, or a frozen buffer)"
    return next((fault for t in stored.values() if (fault := weight_fault(t))), None)


def _dtype(stored: Mapping[str, Tensor]) -> str:
    # Without any parameter nothing is known; the layer is skipped and costs no bytes to speak of.
    return next((dtype_name(tensor) for tensor in stored.values()), "float32")


def _folded(computed: str | None) -> str | None:
    return None if computed is None else f"{computed} is folded into the factors"
