"""What model code notes and hooks on a layer, carried over to the module that replaces it."""

from __future__ import annotations

from torch import nn

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
    """Register the user's forward hooks on the new module; torch's own (weight norm, pruning) ended in the factors."""
    theirs = {k for k, hook in old._forward_pre_hooks.items() if not type(hook).__module__.startswith("torch.nn.utils")}
    for table in ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
        getattr(new, table).update(getattr(old, table))
    for table in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
        getattr(new, table).update({k: hook for k, hook in getattr(old, table).items() if k in theirs})
