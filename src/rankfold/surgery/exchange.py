"""Replace modules of a model wherever they are referenced."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from rankfold._config import spelled
from rankfold.errors import ModelError
from rankfold.surgery.references import References


def exchange_(
    model: nn.Module,
    new: Mapping[nn.Module, nn.Module],
    *,
    original: nn.Module | None = None,
    suspects: list[str] | None = None,
) -> None:
    """Replace modules in place, wherever objects of the model refer to them; nothing is changed if this raises.

    Transformer layers around the modules no longer use their fused paths (`disable_fused_paths_`).

    Parameters
    ----------
    model : nn.Module
        The model, which must not be one of the modules itself.
    new : mapping of Module to Module
        The replacements.
    original : nn.Module or None
        The model that this one is a copy of, if any.
    suspects : list of str or None
        Receives the references that cannot be changed, if a `Proof` will show whether they matter.

    Raises
    ------
    ModelError
        If a reference cannot be changed and `suspects` is None.
    """
    references = References(model, new, () if original is None else original.modules())
    if suspects is not None:
        suspects.extend((*references.fixed, *references.tensors))
    elif references.fixed:
        raise ModelError(
            "layers cannot be replaced: the compressed model would still run the original ones, which are held by\n"
            f"{listed(references.fixed)}\nA copy of the model shares functions and weak references with the original. "
            "Make such a function a method of the class; remove a `forward` that was set on an instance "
            "(`del model.forward`) and set it again on the result. If the references are never used, pass "
            f"{spelled('example_input', ...)}, so that a run proves it."
        )
    disable_fused_paths_(model, set(new))
    references.change()


def listed(lines: list[str], most: int = 5) -> str:
    """Return the first lines, indented, and the number of those left out."""
    more = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join(f"  {line}" for line in (*lines[:most], *more))


def disable_fused_paths_(model: nn.Module, modules: set[nn.Module]) -> None:
    """Make the transformer layers that contain one of the modules call it, also at inference.

    In eval mode ``nn.TransformerEncoderLayer`` passes all of its weights to a fused kernel, for which
    ``nn.TransformerEncoder`` packs padded batches into nested tensors. The kernel would multiply factors out or fail,
    so the switches of both classes are turned off. At padded positions the encoder then returns what its layers
    compute, as in training mode, instead of zeros.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and not modules.isdisjoint(module.modules()):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder) and not modules.isdisjoint(module.modules()):
            module.use_nested_tensor = False
