"""Carry over the attributes and hooks of a layer to the module that replaces it."""

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

# Attributes that torch sets on its layers, whose values a factored layer provides itself.
_STOCK = frozenset({"weight", "bias", "forward", "_compiled_call_impl"}).union(
    vars(nn.ConvTranspose1d(1, 1, 1, device="meta")), vars(nn.Linear(1, 1, device="meta"))
)


def carry_attributes_(old: nn.Module, new: nn.Module, *, without: frozenset[str] = frozenset()) -> None:
    """Set the attributes of a replaced module on its replacement, except those of torch and those that it has already.

    Model code numbers its layers and stores where their inputs come from (``m.i`` and ``m.f`` of detection networks,
    which `forward` reads for every layer), or a configuration. Attributes named in `without` are left out.
    """
    ignored = _STOCK | without | vars(new).keys()
    for name, value in vars(old).items():
        # A name may hide a method of every module (``m.type``), but not one of the replacement.
        if name not in ignored and (hasattr(nn.Module, name) or not hasattr(type(new), name)):
            setattr(new, name, value)


def move_hooks_(old: nn.Module, new: nn.Module) -> None:
    """Move the user's hooks to the new module; those of torch (weight norm, pruning) are part of the factors.

    A `RankfoldWarning` names the hooks and attributes of parameters and state dictionaries, which cannot be moved.
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
        lost.append("legacy backward hooks (they receive the gradients of the last factor)")
    lost += _on_parameters(old, recurse=False)
    if lost:
        info = getattr(new, "info", None)
        title = type(old).__name__ if info is None else info.title
        warnings.warn(
            f"{title} is replaced, and these cannot be carried over: {'; '.join(lost)}. Set them on the factors of the "
            "compressed model.",
            RankfoldWarning,
            stacklevel=2,
        )


def report_parameters(model: nn.Module) -> None:
    """Issue a `RankfoldWarning` for hooks and attributes of parameters, which a deep copy of a model loses."""
    if lost := _on_parameters(model, recurse=True):
        shown = "; ".join(lost[:5]) + (f"; and {len(lost) - 5} more" if len(lost) > 5 else "")
        warnings.warn(
            f"a copy of a model loses {shown}. Set them on the parameters of the result.",
            RankfoldWarning,
            stacklevel=2,
        )


def _on_parameters(module: nn.Module, *, recurse: bool) -> list[str]:
    lost: list[str] = []
    for name, parameter in module.named_parameters(recurse=recurse):
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            lost.append(f"hooks of the parameter {name!r}")
        noted = [key for key in vars(parameter) if not key.startswith("_")] if type(parameter) is nn.Parameter else []
        if noted:  # names that begin with an underscore belong to libraries
            lost.append(f"attributes of the parameter {name!r} ({', '.join(noted)})")
    return lost


def _is_torchs(hook: object) -> bool:
    """Whether a hook, an object or a function, is one of weight norm, spectral norm or pruning."""
    return str(getattr(getattr(hook, "hook", hook), "__module__", "")).startswith("torch.nn.utils.")


def carry_gradient_flags_(old: nn.Module, new: nn.Module) -> None:
    """Make factors trainable if the weight was, and the bias if the bias was."""
    flags: dict[bool, bool] = {}
    for name, parameter in old.named_parameters():
        flags[_is_bias(name)] = flags.get(_is_bias(name), False) or parameter.requires_grad
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(flags.get(_is_bias(name), parameter.requires_grad))


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] in ("bias", "bias_orig", "bias_g", "bias_v") or "parametrizations.bias." in name
