"""Padding masks: which positions of a batch are data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from rankfold._tensors import map_tensors
from rankfold.batches import arguments
from rankfold.inventory.kinds import is_attention

DATA_MASKS = ("attention_mask", "decoder_attention_mask", "encoder_attention_mask")
"""Arguments of transformers' models that are 0 at padded positions."""

PADDING_MASKS = ("key_padding_mask", "src_key_padding_mask", "tgt_key_padding_mask", "memory_key_padding_mask")
"""Arguments of torch's modules that are True, or very negative, at padded positions."""

COUNTED = "padded positions count as data, because its input does not have the dimensions of the padding mask"
"""Note on a layer to whose inputs the mask cannot be applied."""

_VERY_NEGATIVE = -1e4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Padding:
    """The padding of one batch.

    Parameters
    ----------
    masks : sequence of Tensor
        True where a position is data, ``(batch, length)``.
    sequence_first : bool
        Whether the model has attentions whose inputs are ``(length, batch, features)``.
    """

    masks: Sequence[Tensor]
    sequence_first: bool = False

    @classmethod
    def of(cls, model: nn.Module, inputs: Any) -> Padding | None:
        """Return the padding that a model's inputs state; None if they have no mask, or nothing is padded.

        A mask is an argument of the model, ``(batch, length)``, with a name in `DATA_MASKS` or `PADDING_MASKS`.
        """
        named = _named_arguments(model, inputs)
        masks = [named[name] != 0 for name in DATA_MASKS if _is_mask(named.get(name))]
        for name in PADDING_MASKS:
            if _is_mask(mask := named.get(name)):
                masks.append(mask > _VERY_NEGATIVE if mask.is_floating_point() else mask == 0)
        if all(bool(mask.all()) for mask in masks):
            return None
        first = any(is_attention(module) and not module.batch_first for module in model.modules())
        return cls(masks=masks, sequence_first=first)

    def data(self, x: Tensor, *, batch_first: bool = False) -> tuple[Tensor, bool] | None:
        """Return where the first two dimensions of a tensor hold data, ``(batch, length)``.

        The flag tells that they are ``(length, batch)``, which `batch_first` excludes. The result is None if they have
        the sizes of no mask. If several masks have these sizes, a position is data if any of them says so.
        """
        for transposed in (False,) if batch_first else (self.sequence_first, not self.sequence_first):
            sizes = tuple(x.shape[:2][::-1] if transposed else x.shape[:2])
            fitting = [mask for mask in self.masks if mask.shape == sizes]
            if x.ndim > 2 and fitting:
                return torch.stack(fitting).any(0).to(x.device), transposed
        return None

    def zeroed(self, outputs: Any) -> Any:
        """Return outputs with zeros at the padded positions of tensors ``(batch, length, ...)``."""

        def clear(x: Tensor) -> Tensor:
            found = self.data(x)
            if found is None:
                return x
            data, transposed = found
            return zeroed(x, data.mT if transposed else data)

        return map_tensors(clear, outputs)

    def is_per_sample(self, x: Tensor) -> bool:
        """Return whether a tensor has one vector for each sample, which no padding concerns."""
        return x.ndim == 2 and any(len(mask) == len(x) for mask in self.masks)


def zeroed(x: Tensor, data: Tensor) -> Tensor:
    """Return a tensor with zeros where `data`, of the shape of its first dimensions, is False; NaN is replaced, too."""
    return torch.where(data.reshape(*data.shape, *(1,) * (x.ndim - data.ndim)), x, torch.zeros_like(x))


def _named_arguments(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """Return the arguments of a call by name, as far as they have names."""
    args, kwargs = arguments(inputs)
    try:
        bound: Mapping[str, Any] = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):  # the call will fail as well, or the signature cannot be read
        bound = {}
    return {**bound, **kwargs}


def _is_mask(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim == 2
