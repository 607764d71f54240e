"""Parts of a model whose outputs jump, such as a detector that selects boxes: each is examined as a model.

No trial can compare the outputs of such a model: rounding alone selects other boxes. Its largest modules with
continuous outputs, such as the backbone, are compared instead, each on the inputs that it receives from the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._tensors import copied, detached, float_tensors
from rankfold.batches import call_model
from rankfold.inventory import undisturbed
from rankfold.inventory.kinds import stock_base

SLIGHT, STRONG = 1e-4, 0.5
"""Relative changes of the weights: to the first, continuous outputs respond by at most `JUMP`; the second may change
any value, but not how many there are."""
JUMP = 0.1
"""Relative to the largest output."""

Path = str


def jumps(model: nn.Module, inputs: Any, generator: torch.Generator) -> bool:
    """Return whether a slight change of the weights changes outputs abruptly, or a strong one their shapes.

    Empty outputs count as jumping: larger scores may fill them.
    """
    before = _outputs(model, inputs)
    if not all(t.numel() for t in before):
        return True
    for step in (SLIGHT, STRONG):
        with _changed(model, step, generator):
            after = _outputs(model, inputs)
        if [t.shape for t in before] != [t.shape for t in after]:
            return True
        if step == SLIGHT and any(
            bool(((a - b).abs() > JUMP * b.abs().max()).any()) for a, b in zip(after, before, strict=True)
        ):
            return True
    return False


@contextmanager
def _changed(model: nn.Module, step: float, generator: torch.Generator) -> Iterator[None]:
    """Run the block with all weights changed by random shares of their size."""
    weights = [p for p in model.parameters() if p.is_floating_point() and p.ndim > 1]
    kept = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.mul_(1 + step * torch.randn(weight.shape, generator=generator).to(weight))
    try:
        yield
    finally:
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)


def parts(model: nn.Module, inputs: Any) -> Iterator[tuple[Path, nn.Module, tuple[Any, ...]]]:
    """Yield the path of each module inside a model that holds layers and is called, with its first inputs.

    Modules inside others that are called are left out, and so are those with keyword arguments or empty tensors.
    """
    called: dict[Path, tuple[Any, ...]] = {}
    hooks = []

    def recorder(path: Path) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:  # noqa: ARG001
            if not kwargs and all(t.numel() for t in float_tensors(args)):
                called.setdefault(path, copied(detached(args)))

        return record

    modules = {path: module for path, module in model.named_modules() if path}
    try:
        for path, module in modules.items():
            hooks.append(module.register_forward_pre_hook(recorder(path), with_kwargs=True))
        _outputs(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for path, module in modules.items():
        above = (path[:i] for i, letter in enumerate(path) if letter == ".")
        if path not in called or stock_base(module) is not None or any(one in called for one in above):
            continue
        if any(stock_base(inner) is not None for inner in module.modules()):
            yield path, module, called[path]


def shared(part: nn.Module, model: nn.Module, path: Path) -> set[Path]:
    """Return the modules of a part, by their paths inside it, with parameters that others outside of the part use."""
    outside = {
        id(p)
        for name, module in model.named_modules(remove_duplicate=False)
        if name != path and not name.startswith(f"{path}.")
        for p in module.parameters(recurse=False)
    }
    return {
        name
        for name, module in part.named_modules(remove_duplicate=False)
        if any(id(p) in outside for p in module.parameters(recurse=False))
    }


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with undisturbed(model):
        return [t.detach() for t in float_tensors(call_model(model, copied(inputs)))]
