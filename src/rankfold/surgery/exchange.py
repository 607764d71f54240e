"""Exchange modules of a model wherever they are referred to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from rankfold.errors import ModelError
from rankfold.surgery.references import References

_SHOWN = 5


def exchange_(
    model: nn.Module,
    new: Mapping[nn.Module, nn.Module],
    *,
    original: nn.Module | None = None,
    suspects: list[str] | None = None,
) -> None:
    """Put modules in the place of others, wherever objects of the model refer to them.

    Nothing is changed if this raises. The transformer layers around the modules are told to call them
    (`disable_fused_paths_`).

    Parameters
    ----------
    model : nn.Module
        Changed in place; it is none of the modules itself.
    new : mapping of Module to Module
        The replacements.
    original : nn.Module or None
        The model that this one is a copy of, if it is one.
    suspects : list of str or None
        Is given the references that cannot be changed, if it is going to be proved by a run that they do not matter.

    Raises
    ------
    ModelError
        If a reference cannot be changed and no list is given for them.
    """
    found = References(model, new, () if original is None else original.modules())
    if suspects is not None:
        suspects.extend((*found.fixed, *found.tensors))
    elif found.fixed:
        raise ModelError(
            "layers would be replaced, but the compressed model would still run the original ones, which are held by\n"
            f"{listed(found.fixed)}\nA copy of the model shares functions and weak references with the original, and "
            "they keep the module that they were made for. Make the function a method of the class; take off a "
            "`forward` that was set on an instance (`del model.forward`) and set it on the result again. If what is "
            "held is never run, pass example_input=... so that this is proved."
        )
    disable_fused_paths_(model, set(new))
    found.change()


def listed(lines: list[str]) -> str:
    """Return the first few lines, indented, and how many are left out."""
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join(f"  {line}" for line in (*lines[:_SHOWN], *more))


def disable_fused_paths_(model: nn.Module, modules: set[nn.Module]) -> None:
    """Make the transformer layers around modules call them, also at inference.

    In eval mode ``nn.TransformerEncoderLayer`` hands all of its weights to one fused kernel, and
    ``nn.TransformerEncoder`` packs a padded batch into nested tensors for it: factors would be
    multiplied out there, or the kernel would fail. Both have switches, which this
    turns off for the layers that contain one of the modules. What the encoder returns at padded
    positions is then, as in training mode, what the layers compute there and not zero.

    Parameters
    ----------
    model : nn.Module
        Changed in place; only the switches.
    modules : set of Module
        The modules that will be called.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and not modules.isdisjoint(module.modules()):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder) and not modules.isdisjoint(module.modules()):
            module.use_nested_tensor = False
