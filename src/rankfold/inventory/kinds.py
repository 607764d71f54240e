"""Classify modules: layers, attentions, and other owners of parameters."""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from rankfold.records.narrowing import CHANNEL_TENSORS

CONVS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[type[nn.Module], ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
STOCK: tuple[type[nn.Module], ...] = (nn.Linear, *CONVS, *TRANSPOSED)
ROLES = ("q_proj", "k_proj", "v_proj", "out_proj")
LAZY = "lazy module, not initialized; run the model once before compressing it"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HOOKED = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
_OVERRIDES = ("forward", "_conv_forward", "_output_padding", "__call__")
_REASONS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Embedding, nn.EmbeddingBag), "embedding"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent"),
    ((nn.PReLU,), "activation"),
    ((nn.Bilinear,), "bilinear"),
)


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return a module's class; for a parametrized module, its class before parametrization."""
    return parametrize.type_before_parametrizations(module)


def stock_base(module: nn.Module) -> type[nn.Module] | None:
    """Return the torch layer class that a module is an instance of, or None."""
    cls = original_class(module)
    return next((base for base in STOCK if issubclass(cls, base)), None)


def frozen_norm_width(module: nn.Module) -> int | None:
    """Return the number of channels of a ``FrozenBatchNorm2d``, or None for other modules.

    The class of torchvision, timm and detectron2 keeps the four tensors of a BatchNorm as buffers. It is recognized by
    its name and these buffers.
    """
    if not any(cls.__name__ == "FrozenBatchNorm2d" for cls in type(module).__mro__):
        return None
    tensors = [dict(module.named_buffers()).get(name) for name in CHANNEL_TENSORS]
    widths = {None if t is None or t.ndim != 1 else len(t) for t in tensors}
    return widths.pop() if len(widths) == 1 else None


def conv1d_base(module: nn.Module) -> type[nn.Module] | None:
    """Return the ``Conv1D`` class that a module is an instance of, or None.

    The ``Conv1D`` of transformers' GPT-2 is a linear layer whose weight is stored as ``(in, out)``. It is recognized by
    its name, its attributes and the result of its forward, so transformers need not be installed and copies of the
    class are recognized as well.
    """
    base = next((cls for cls in original_class(module).__mro__ if cls.__name__ == "Conv1D" and _is_affine(cls)), None)
    return None if base is None or conv1d_sizes(module) is None else base


def conv1d_sizes(module: nn.Module) -> tuple[int, int] | None:
    """Return the input and output features of a ``Conv1D``; None if its weight has another shape."""
    # Reading the attribute may change the state of a parametrization; TorchScript modules have no dictionary.
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    shape = None if weight is None or weight.ndim != 2 else tuple(weight.shape)
    inn, out = getattr(module, "nx", shape[0] if shape else None), getattr(module, "nf", None)
    if not isinstance(inn, int) or not isinstance(out, int):
        return None
    return (inn, out) if weight is None or shape == (inn, out) else None


@functools.lru_cache(maxsize=64)
def _is_affine(cls: type[nn.Module]) -> bool:
    """Whether a class's forward computes ``x @ weight + bias``, tested on an object with those attributes only."""
    options: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    weight = torch.tensor([[1.0, -2.0], [3.0, 5.0], [-7.0, 11.0]], **options)
    bias = torch.tensor([0.5, -0.25], **options)
    layer = SimpleNamespace(nx=3, nf=2, weight=weight, bias=bias)
    forward: Any = cls.forward
    with torch.no_grad():
        try:
            for x in (torch.tensor([[1.0, 2.0, -3.0]], **options), torch.arange(-6.0, 6.0, **options).view(2, 2, 3)):
                if not torch.equal(forward(layer, x), (x.unsqueeze(-1) * weight).sum(-2) + bias):
                    return False
        except Exception:  # its forward reads attributes that a Conv1D does not have
            return False
    return True


def is_attention(module: nn.Module | None) -> bool:
    """Whether a module is an ``nn.MultiheadAttention`` that runs torch's own forward."""
    return isinstance(module, nn.MultiheadAttention) and own_forward(module, nn.MultiheadAttention) is None


def attention_settings(attention: Any) -> str:
    """Return in words the settings that determine how an attention uses its projections."""
    words = [f"attention of {attention.num_heads} heads"]
    words += ["batch first"] if attention.batch_first else []
    words += ["added zeros"] if attention.add_zero_attn else []
    words += ["added key and value"] if attention.bias_k is not None else []
    return ", ".join(words)


def own_forward(module: nn.Module, base: type[nn.Module]) -> str | None:
    """Return in words how a module overrides the computation of its base class; None if it does not."""
    cls = original_class(module)
    if any(getattr(cls, name, None) is not getattr(base, name, None) for name in _OVERRIDES):
        return f"{cls.__name__} has its own forward"
    if any(name in vars(module) for name in _OVERRIDES):
        return "its forward was replaced on this one instance"
    return None


def is_observed(module: nn.Module) -> bool:
    """Whether hooks, or a forward that was set on the instance, take part when a module is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def weight_hook(module: nn.Module, name: str) -> Any | None:
    """Return the forward pre-hook that computes a weight (legacy weight and spectral norm, pruning), or None."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _HOOKED) and _hook_target(hook) == name:
            return hook
    return None


def hooked_names(module: nn.Module) -> list[str]:
    """Return the names of a module's tensors that pre-hooks recompute at each call."""
    return [_hook_target(h) for h in module._forward_pre_hooks.values() if isinstance(h, _HOOKED)]


def _hook_target(hook: Any) -> str:
    return hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name


def reparametrization(module: nn.Module, name: str = "weight") -> str | None:
    """Return the name of the parametrization that computes a weight, such as ``weight_norm``; None if it is stored."""
    hook = weight_hook(module, name)
    if isinstance(hook, prune.BasePruningMethod):
        return "the pruning mask"
    if hook is not None:
        return _snake(type(hook).__name__)
    if parametrize.is_parametrized(module, name):
        steps = getattr(module.parametrizations, name)
        return ", ".join(_snake(type(step).__name__) for step in steps)
    return None


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.lstrip("_")).lower()


def stored_parameters(module: nn.Module, name: str = "weight") -> dict[str, Tensor]:
    """Return the parameters that a weight is stored in or computed from, by their names in the module."""
    if parametrize.is_parametrized(module, name):
        inner = getattr(module.parametrizations, name)
        return {f"parametrizations.{name}.{k}": p for k, p in inner.named_parameters()}
    suffixes = ("_g", "_v", "_orig") if weight_hook(module, name) is not None else ("",)
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    return {name + s: own[name + s] for s in suffixes if name + s in own}


def own_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's direct parameters, including those of its parametrizations."""
    own: dict[str, Tensor] = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    if parametrize.is_parametrized(module):
        inner = module.parametrizations
        assert isinstance(inner, nn.Module)
        own.update((f"parametrizations.{k}", p) for k, p in inner.named_parameters())
    return own


def packed_weight(module: nn.Module) -> Tensor | None:
    """Return the weight of a quantized layer of torch, which is packed and not a parameter; None for other modules."""
    if not type(module).__module__.startswith("torch.ao.nn."):
        return None
    weight = getattr(module, "weight", None)  # a method if the weight is packed
    packed = weight() if callable(weight) else None
    return packed if isinstance(packed, Tensor) else None


def is_lazy(tensor: Tensor | None) -> bool:
    """Whether a parameter or buffer is lazy: without a shape until the first input."""
    return tensor is not None and nn.parameter.is_lazy(tensor)


def weight_fault(weight: Tensor) -> str | None:
    """Return why a stored weight cannot be factored in any layer; None if it can."""
    if is_lazy(weight):
        return LAZY
    if type(weight) not in (Tensor, nn.Parameter):
        return f"its weight is of type {type(weight).__name__}, not a plain tensor (quantized or sharded)"
    if weight.dtype not in _FLOATS:
        return f"its weight has dtype {dtype_name(weight)}"
    if weight.layout != torch.strided:
        return f"its weight has layout {weight.layout}"
    return None


def dtype_name(tensor: Tensor) -> str:
    """Return a tensor's data type, such as ``"float32"``."""
    return str(tensor.dtype).removeprefix("torch.")


def other_reason(module: nn.Module) -> str:
    """Return why a module that owns parameters outside of any layer is not compressed."""
    cls = original_class(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript module"
    for classes, reason in _REASONS:
        if issubclass(cls, classes):
            return reason
    if issubclass(cls, nn.MultiheadAttention):
        if is_attention(module):
            return "added key and value of the attention"
        return own_forward(module, nn.MultiheadAttention) or "attention"
    if stock_base(module) is not None or conv1d_base(module) is not None:
        return "parameters other than weight and bias"
    if "Norm" in cls.__name__:
        return "normalization"
    if cls.__module__.startswith(("torch.ao.nn.", "torchao.")):
        return "quantized"
    return "holds its own parameters"
