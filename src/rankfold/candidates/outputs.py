"""What the proxies that run the network compare: its outputs, or those of some modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from rankfold._batches import copied
from rankfold.errors import UnknownNameError
from rankfold.inventory import find_layer
from rankfold.records import LayerInfo


def check_taps(model: nn.Module, taps: Sequence[str]) -> None:
    """Raise `UnknownNameError` if a tap is no module of the model."""
    modules = dict(model.named_modules())
    for tap in taps:
        if tap not in modules:
            raise UnknownNameError("tap (a module of the model)", tap, modules)


@contextmanager
def tapped(model: nn.Module, taps: Sequence[str]) -> Iterator[list[Any]]:
    """Give a list that fills with what the taps put out while the block runs the model."""
    taken: list[Any] = []
    with ExitStack() as hooks:
        for path in taps:
            # Copied, because what follows may change it in place.
            hook = model.get_submodule(path).register_forward_hook(lambda m, a, out: taken.append(copied(out)))  # noqa: ARG005
            hooks.callback(hook.remove)
        yield taken


def nothing_put_out(taps: Sequence[str], what: str) -> str:
    """Return the sentence for outputs that hold nothing to compare."""
    where = f"taps {', '.join(taps)} put" if taps else "network puts"
    return f"the {where} out no floating-point tensors on {what}."


def modules_of(model: nn.Module, layer: LayerInfo) -> set[nn.Module]:
    """Return the modules that compute with a layer's weight, under all of its names."""
    return {find_layer(model, path)[0] for path in (layer.name, *layer.aliases, *layer.ties)}
