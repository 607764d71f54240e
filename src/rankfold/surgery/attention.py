"""A twin of ``nn.MultiheadAttention`` whose projections are separate layers."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankfold.errors import AttentionError, ModelError
from rankfold.inventory import find_layer
from rankfold.inventory.kinds import ROLES, is_attention, stored_parameters
from rankfold.inventory.weights import projection
from rankfold.surgery.carried import carry_attributes_, move_hooks_
from rankfold.surgery.exchange import exchange_

_OWN = frozenset(vars(nn.MultiheadAttention(1, 1, device="meta")))


class SeparatedAttention(nn.Module):
    """Multi-head attention with four ordinary linear layers, each of which can be factored.

    Takes the same arguments and returns the same results as the given ``nn.MultiheadAttention``, including masks,
    dropout and returned weights. Torch's fused inference path, which reads a packed weight, is not used; attention
    itself is ``scaled_dot_product_attention`` unless the attention weights are requested.

    The parameters of the output projection and of the added key and value are shared with the given module; those of
    the input projections are copied from the packed ones.
    """

    # nn.TransformerEncoderLayer and nn.TransformerEncoder read these before they choose the fused path, and do not
    # choose it if they are None.
    in_proj_weight = in_proj_bias = q_proj_weight = k_proj_weight = v_proj_weight = None
    _qkv_same_embed_dim = False
    # TorchScript sees no other attributes of a class.
    __constants__: ClassVar = [
        *("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight", "_qkv_same_embed_dim")
    ]

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim: int = attention.embed_dim
        self.kdim: int = attention.kdim
        self.vdim: int = attention.vdim
        self.num_heads: int = attention.num_heads
        self.head_dim: int = attention.head_dim
        self.dropout: float = attention.dropout
        self.batch_first: bool = attention.batch_first
        self.add_zero_attn: bool = attention.add_zero_attn
        self.q_proj = _linear(attention, "q_proj")
        self.k_proj = _linear(attention, "k_proj")
        self.v_proj = _linear(attention, "v_proj")
        self.out_proj = _linear(attention, "out_proj")
        self.bias_k = _added(attention.bias_k)
        self.bias_v = _added(attention.bias_v)
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention's output and its weights, as ``nn.MultiheadAttention`` does.

        Raises
        ------
        AttentionError
            If a mask has the wrong shape or type, ``is_causal`` is set without a mask, or inputs are nested tensors.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            raise AttentionError("separated attention does not support nested tensors. Pass padded tensors and a mask.")
        if is_causal and attn_mask is None:
            raise AttentionError(
                "is_causal is only a hint that attn_mask is causal, but there is no attn_mask. Pass the causal mask as "
                "well, or leave is_causal out."
            )
        batched = query.dim() == 3
        hidden = None if key_padding_mask is None else _additive(key_padding_mask, query.dtype)
        if is_causal and hidden is None and not need_weights:
            mask = None
        else:
            mask = None if attn_mask is None else _additive(attn_mask, query.dtype)
            is_causal = is_causal and hidden is None

        q = self._batch_first(self.q_proj(query), batched)
        k = self._batch_first(self.k_proj(key), batched)
        v = self._batch_first(self.v_proj(value), batched)
        mask = self._joined(mask, hidden, q, k, batched)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1)], dim=1)
        q, k, v = self._heads(q), self._heads(k), self._heads(v)
        if self.add_zero_attn:
            k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
        if mask is not None:  # the added keys are never hidden
            mask = functional.pad(mask, (0, k.shape[2] - mask.shape[3]))

        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(2, 3)
            shares = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            shares = functional.dropout(shares, dropout) if dropout > 0 else shares
            weights, heads = shares, shares @ v
        else:
            heads = functional.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)

        output = heads.permute(0, 2, 1, 3) if self.batch_first else heads.permute(2, 0, 1, 3)
        output = self.out_proj(output.flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            output = output.squeeze(0 if self.batch_first else 1)
            weights = None if weights is None else weights.squeeze(0)
        return output, weights

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def _batch_first(self, x: Tensor, batched: bool) -> Tensor:
        if not batched:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _joined(self, mask: Tensor | None, hidden: Tensor | None, q: Tensor, k: Tensor, batched: bool) -> Tensor | None:
        """Return an additive mask that broadcasts to ``(batch, heads, length, source length)``."""
        batch, length, source = q.shape[0], q.shape[1], k.shape[1]
        if mask is not None and mask.dim() == 3:
            _check_shape("attn_mask", mask, [batch * self.num_heads, length, source])
            mask = mask.view(batch, self.num_heads, length, source)
        elif mask is not None:
            _check_shape("attn_mask", mask, [length, source])
            mask = mask[None, None]
        if hidden is None:
            return mask
        _check_shape("key_padding_mask", hidden, [batch, source] if batched else [source])
        hidden = hidden.view(batch, 1, 1, source)
        return hidden if mask is None else mask + hidden


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        raise AttentionError(
            f"masks must be boolean or floating point. Got {mask.dtype} instead. If non-zero entries are to be hidden, "
            "pass mask.bool()."
        )
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


def _check_shape(name: str, mask: Tensor, shape: list[int]) -> None:
    if list(mask.shape) != shape:
        raise AttentionError(f"{name} must have shape {shape}. Got {list(mask.shape)} instead.")


def _linear(attention: nn.MultiheadAttention, role: str) -> nn.Linear:
    """Return one projection as a stock layer, without drawing random numbers."""
    with torch.no_grad():
        weight, bias = projection(attention, role)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    if role == "out_proj":
        holder, names = attention.out_proj, ("weight", "bias")
    else:
        holder = attention
        names = ("in_proj_weight" if attention._qkv_same_embed_dim else f"{role}_weight", "in_proj_bias")
    layer.weight = _parameter(weight, holder, names[0])
    if bias is not None:
        layer.bias = _parameter(bias, holder, names[1])
    return layer


def _added(bias: Tensor | None) -> nn.Parameter | None:
    return bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)


def _parameter(tensor: Tensor, holder: nn.Module, name: str) -> nn.Parameter:
    """Return a whole parameter itself, and a copy of a part of one or of a computed tensor."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    trained = any(p.requires_grad for p in stored_parameters(holder, name).values())
    return nn.Parameter(tensor.detach().clone(), requires_grad=trained)


def separate_attention_(model: nn.Module, path: str) -> SeparatedAttention:
    """Replace the ``nn.MultiheadAttention`` at a path by its twin, in place, and return the twin.

    If the path is empty, the model itself is the attention: it is not changed, and the twin is the new model.

    Raises
    ------
    NoMatchingLayer
        If `path` names no module.
    ModelError
        If it is not an ``nn.MultiheadAttention``, or overrides its forward.
    """
    attention, _ = find_layer(model, path)
    if not isinstance(attention, nn.MultiheadAttention) or not is_attention(attention):
        raise ModelError(
            f"{path!r} is of type {type(attention).__name__}, not a plain nn.MultiheadAttention; its "
            f"projections ({', '.join(ROLES)}) cannot be separated."
        )
    twin = separated(attention)
    exchange_(model, {attention: twin})
    return twin


def separated(attention: nn.MultiheadAttention) -> SeparatedAttention:
    """Return the twin of an attention, with its hooks and the attributes that model code has set."""
    twin = SeparatedAttention(attention)
    move_hooks_(attention, twin)
    carry_attributes_(attention, twin, without=_OWN)
    return twin
