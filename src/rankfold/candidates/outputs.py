"""What the proxies that run the network compare: its outputs, or those of some modules."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankfold._hashing import content_hash
from rankfold._tensors import copied, float_tensors, model_device, to_device
from rankfold.batches import iterate, split_batch
from rankfold.calibration.replay import Memory, remembering
from rankfold.errors import ModelError, RankfoldWarning, UnknownNameError
from rankfold.inventory import find_layer, run_batch, undisturbed
from rankfold.records import LayerInfo


def check_taps(model: nn.Module, taps: Sequence[str]) -> None:
    """Raise `UnknownNameError` if a tap is not a module of the model."""
    modules = dict(model.named_modules())
    for tap in taps:
        if tap not in modules:
            raise UnknownNameError("tap (a module of the model)", tap, modules)


@contextmanager
def tapped(model: nn.Module, taps: Sequence[str]) -> Iterator[list[Any]]:
    """Give a list that collects the outputs of the taps while the block runs the model."""
    taken: list[Any] = []
    with ExitStack() as hooks:
        for path in taps:
            # Copied, because what follows may change it in place.
            hook = model.get_submodule(path).register_forward_hook(lambda m, a, out: taken.append(copied(out)))  # noqa: ARG005
            hooks.callback(hook.remove)
        yield taken


def compared(
    model: nn.Module, inputs: Any, what: str, taps: Sequence[str], memory: Memory | None = None
) -> list[Tensor]:
    """Return what is compared of one batch; each run begins with the same buffers and random state."""
    with undisturbed(model), remembering(model, memory or {}), tapped(model, taps) as taken:
        torch.default_generator.manual_seed(0)  # restored by `undisturbed`; a network that draws draws the same
        output = run_batch(model, inputs, what)
    return [t.detach().float() for t in float_tensors(taken if taps else output)]


def data_hash(
    model: nn.Module, batches: Iterable[Any], taps: Sequence[str] = (), *, purpose: str = "calibration"
) -> str | None:
    """Return a hash of batches, and of the original's outputs on them.

    The outputs tell what no tensor of model and data shows: an attribute that selects another head, an option in a
    closure, an object in a batch. None, after a warning, if batches hold objects that cannot be looked into and no
    tensors: too little would be known of them.
    """
    digest = hashlib.sha256()
    for number, batch in enumerate(iterate(batches, purpose), 1):
        inputs, target = split_batch(batch)
        seen = content_hash(inputs)
        if seen is None:
            warnings.warn(
                f"nothing is kept in the cache: the {purpose} data holds objects whose content cannot be seen "
                f"({type(inputs).__name__}); other data could not be told from it. Batches of tensors can be cached.",
                RankfoldWarning,
                stacklevel=2,
            )
            return None
        inputs = to_device(inputs, model_device(model))
        outputs = content_hash(compared(model, inputs, f"{purpose} batch {number}", taps))
        digest.update(f"{seen} {content_hash(target)} {outputs};".encode())
    return digest.hexdigest()


def check_comparable(outputs: Sequence[Tensor], what: str, advice: str) -> None:
    """Raise `ModelError` if outputs of the original hold NaN, or nothing finite.

    Infinite values are fine: scores of classes or tokens that a network masks are -inf. They are left out of the
    comparison, and have to stay what they are.
    """
    if all(bool(t.isfinite().all()) for t in outputs):
        return
    if any(bool(t.isnan().any()) for t in outputs):
        raise ModelError(
            f"the network's outputs on {what} are not all finite: they hold NaN, which cannot be compared. Does the "
            f"data hold NaN, or does an attention mask all positions of a row? {advice}"
        )
    if not any(bool(t.isfinite().any()) for t in outputs):
        raise ModelError(
            f"the network's outputs on {what} are not all finite: no value is, so there is nothing to compare. {advice}"
        )


def nothing_put_out(taps: Sequence[str], what: str) -> str:
    """Return the sentence for outputs that hold nothing to compare."""
    where = f"taps {', '.join(taps)} put" if taps else "network puts"
    return f"the {where} out no floating-point tensors on {what}."


def modules_of(model: nn.Module, layer: LayerInfo) -> set[nn.Module]:
    """Return the modules that compute with a layer's weight, under all of its names."""
    return {find_layer(model, path)[0] for path in (layer.name, *layer.aliases, *layer.ties)}
