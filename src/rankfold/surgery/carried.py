"""What model code notes and hooks on a layer, carried over to the module that replaces it."""

from __future__ import annotations

import warnings

from torch import nn

from rankfold.errors import RankfoldWarning

_MOVED = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_hooks",
    "_backward_pre_hooks",
)  # fmt: skip
_LEFT = {
    "_state_dict_hooks": "state-dict hooks",
    "_state_dict_pre_hooks": "state-dict pre-hooks",
    "_load_state_dict_pre_hooks": "load_state_dict pre-hooks",
    "_load_state_dict_post_hooks": "load_state_dict post-hooks",
}

# What torch's own layers set on themselves; a factored layer answers for these itself.
_STOCK = frozenset(
    {
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "transposed",
        "output_padding",
        "groups",
        "padding_mode",
        "_reversed_padding_repeated_twice",
        "in_features",
        "out_features",
        "weight",
        "bias",
        "forward",
        "_compiled_call_impl",
    }
)


def carry_attributes_(old: nn.Module, new: nn.Module, *, without: frozenset[str] = frozenset()) -> None:
    """Set on a module the attributes that were set on the one it replaces.

    Model code numbers its layers and notes where their inputs come from (``m.i`` and ``m.f`` of detection networks,
    which `forward` reads for every layer), or leaves a configuration on them. What torch's own layers set, and what
    the new module has already, is left alone.

    Parameters
    ----------
    old, new : nn.Module
        The replaced module and its replacement, which is changed in place.
    without : frozenset of str
        Further names to leave out.
    """
    ignored = _STOCK | without | vars(nn.Module()).keys() | vars(new).keys()
    for name, value in vars(old).items():
        # A name may hide a method that every module has (``m.type``), but none that the replacement needs.
        if name not in ignored and (hasattr(nn.Module, name) or not hasattr(type(new), name)):
            setattr(new, name, value)


def move_hooks_(old: nn.Module, new: nn.Module) -> None:
    """Register the user's hooks on the new module; torch's own (weight norm, pruning) ended in the factors.

    What belongs to a parameter or a state dictionary that the new module does not have cannot be moved; a
    `RankfoldWarning` names it.
    """
    theirs = {k for k, hook in old._forward_pre_hooks.items() if not _is_torchs(hook)}
    for table in _MOVED:
        getattr(new, table).update(getattr(old, table))
    for table in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
        getattr(new, table).update({k: hook for k, hook in getattr(old, table).items() if k in theirs})
    if old._backward_hooks:
        new._is_full_backward_hook = old._is_full_backward_hook
    lost = [words for table, words in _LEFT.items() if any(not _is_torchs(h) for h in getattr(old, table).values())]
    if old._is_full_backward_hook is False and old._backward_hooks:
        lost.append("backward hooks of the older kind (they see the last factor's gradients)")
    lost += _on_parameters(old, recurse=False)
    if lost:
        info = getattr(new, "info", None)
        title = type(old).__name__ if info is None else info.title
        warnings.warn(
            f"{title} is replaced, and what was set on it cannot be carried over: {'; '.join(lost)}. Set it on the "
            "factors of the compressed model.",
            RankfoldWarning,
            stacklevel=2,
        )


def report_parameters(model: nn.Module) -> None:
    """Name in a `RankfoldWarning` the hooks and attributes of parameters: a deep copy of a model has none of them."""
    if lost := _on_parameters(model, recurse=True):
        shown = "; ".join(lost[:5]) + (f"; and {len(lost) - 5} more" if len(lost) > 5 else "")
        warnings.warn(
            f"a copy of a model loses {shown}. Set them on the parameters of the compressed model.",
            RankfoldWarning,
            stacklevel=2,
        )


def _on_parameters(module: nn.Module, *, recurse: bool) -> list[str]:
    lost: list[str] = []
    for name, parameter in module.named_parameters(recurse=recurse):
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            lost.append(f"hooks of the parameter {name!r}")
        noted = [key for key in vars(parameter) if not key.startswith("_")] if type(parameter) is nn.Parameter else []
        if noted:  # libraries' own marks begin with an underscore
            lost.append(f"attributes of the parameter {name!r} ({', '.join(noted)})")
    return lost


def _is_torchs(hook: object) -> bool:
    """Whether a hook, an object or a function, is one of weight norm, spectral norm or pruning."""
    return str(getattr(getattr(hook, "hook", hook), "__module__", "")).startswith("torch.nn.utils.")


def carry_gradient_flags_(old: nn.Module, new: nn.Module) -> None:
    """Let the factors be trained if the weight was, and the bias if the bias was."""
    flags: dict[bool, bool] = {}
    for name, parameter in old.named_parameters():
        flags[_is_bias(name)] = flags.get(_is_bias(name), False) or parameter.requires_grad
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(flags.get(_is_bias(name), parameter.requires_grad))


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] in ("bias", "bias_orig", "bias_g", "bias_v") or "parametrizations.bias." in name
