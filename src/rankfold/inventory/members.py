"""A module as a layer: its record, and the tensors that hold its weight."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from rankfold.inventory.kinds import (
    CONVS,
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
        The layer, without calls and ties.
    module : nn.Module
        The module whose calls are counted: the layer, or the attention.
    holder : nn.Module
        The module that holds the weight; differs from `module` only for an attention's output projection.
    role : str or None
        Which projection of an attention.
    stored : tuple of Tensor
        The parameters that the weight is stored in or computed from.
    weight : Tensor or None
        The weight, if it is a stored parameter or a part of one; None if it is computed.
    """

    info: LayerInfo
    module: nn.Module
    holder: nn.Module
    role: str | None = None
    stored: tuple[Tensor, ...]
    weight: Tensor | None

    @property
    def key(self) -> Hashable:
        """Equal for all members whose weight is the same memory."""
        if self.weight is None:
            return ("computed", id(self.holder), self.role)
        # A transposed view reads the same memory as another weight.
        return (tensor_key(self.weight, self.role), self.weight.shape, self.weight.stride())

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """The tensors in whose memory the weight lies."""
        return self.stored if self.weight is None else (self.weight,)


def members_of(module: Any, paths: tuple[str, ...]) -> list[Member]:
    """Return the layer that a module is, the four that an attention is, or none."""
    if is_attention(module):
        return [_projection(module, paths, role) for role in ROLES]
    base = stock_base(module) or conv1d_base(module)
    if base is None:
        return []
    skip = own_forward(module, base)
    settings: dict[str, Any]
    if base in CONVS or base in TRANSPOSED:
        settings = _conv_settings(module, transposed=base in TRANSPOSED)
        if skip is None and module.groups > 1 and module.groups == module.in_channels:
            skip = "depthwise convolution with one input channel per group, so there is nothing to factor"
    else:
        sizes = (module.in_features, module.out_features) if base is nn.Linear else conv1d_sizes(module)
        assert sizes is not None
        settings = {"in_channels": sizes[0], "out_channels": sizes[1], "input_first": base is not nn.Linear}
    return [_member(module, module, "weight", paths, skip=skip, bias=module.bias is not None, **settings)]


def _conv_settings(module: Any, *, transposed: bool) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "groups", "padding_mode")
    return {
        "kind": "conv",
        **{name: getattr(module, name) for name in names},
        "kernel": tuple(module.kernel_size),
        "stride": tuple(module.stride),
        "padding": module.padding if isinstance(module.padding, str) else tuple(module.padding),
        "dilation": tuple(module.dilation),
        "output_padding": tuple(module.output_padding) if transposed else (),
        "transposed": transposed,
    }


def _projection(attention: Any, paths: tuple[str, ...], role: str) -> Member:
    """Return a projection of an attention, a linear layer however the attention packs its weights."""
    holder, name, bias = attention, f"{role}_weight", attention.in_proj_bias
    if role == "out_proj":
        holder, name, bias = attention.out_proj, "weight", attention.out_proj.bias
    elif attention._qkv_same_embed_dim:
        name = "in_proj_weight"
    return _member(
        attention,
        holder,
        name,
        tuple(f"{path}.{role}" if path else role for path in paths),
        role=role,
        in_channels={"k_proj": attention.kdim, "v_proj": attention.vdim}.get(role, attention.embed_dim),
        out_channels=attention.embed_dim,
        bias=bias is not None,
        attention=attention_settings(attention),
    )


def _member(
    module: nn.Module,
    holder: nn.Module,
    name: str,
    paths: tuple[str, ...],
    *,
    role: str | None = None,
    skip: str | None = None,
    kind: Literal["conv", "linear"] = "linear",
    **settings: Any,
) -> Member:
    """Return the member whose weight is the tensor `name` of `holder`."""
    stored = stored_parameters(holder, name)
    computed = reparametrization(holder, name)
    if stored:
        fault = next((fault for tensor in stored.values() if (fault := weight_fault(tensor))), None)
    else:
        fault = "its weight is not a parameter of the layer (computed, or a frozen buffer)"
    info = LayerInfo(
        name=paths[0],
        kind=kind,
        aliases=paths[1:],
        # A layer without parameters is skipped, and its data type does not matter.
        dtype=next(map(dtype_name, stored.values()), "float32"),
        type_name=original_class(module).__name__,
        skip=fault or skip,
        note=f"{computed} is folded into the factors" if computed else None,
        **settings,
    )
    weight = None if computed else stored.get(name)
    if is_lazy(weight) or (role is not None and fault):
        weight = None
    elif weight is not None and role is not None:
        weight = projection(module, role)[0].detach()
    elif weight is not None and info.input_first:
        weight = weight.detach().mT
    return Member(info=info, module=module, holder=holder, role=role, stored=tuple(stored.values()), weight=weight)
