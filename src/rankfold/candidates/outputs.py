"""The outputs that proxies compare: those of the network, or of some of its modules."""

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
from rankfold.inventory import Padding, find_layer, run_batch, undisturbed
from rankfold.records import LayerInfo


def check_taps(model: nn.Module, taps: Sequence[str]) -> None:
    """Raise `UnknownNameError` if a tap is not a module of the model."""
    modules = dict(model.named_modules())
    for tap in taps:
        if tap not in modules:
            raise UnknownNameError("tap", tap, filter(None, modules), of="the model")


@contextmanager
def tapped(model: nn.Module, taps: Sequence[str]) -> Iterator[list[Any]]:
    """Collect the outputs of the taps in a list while the model runs."""
    taken: list[Any] = []
    with ExitStack() as hooks:
        for path in taps:
            # Copied, because later operations may modify it in place.
            hook = model.get_submodule(path).register_forward_hook(lambda m, a, out: taken.append(copied(out)))  # noqa: ARG005
            hooks.callback(hook.remove)
        yield taken


def compared(
    model: nn.Module, inputs: Any, what: str, taps: Sequence[str], memory: Memory | None = None
) -> list[Tensor]:
    """Return the compared outputs of one batch; each run starts with the same buffers and random state."""
    with undisturbed(model), remembering(model, memory or {}), tapped(model, taps) as taken:
        torch.default_generator.manual_seed(0)  # restored by `undisturbed`; makes random networks reproducible
        output = run_batch(model, inputs, what)
    return [t.detach().float() for t in data_tensors(model, inputs, taken if taps else output)]


def data_tensors(model: nn.Module, inputs: Any, outputs: Any) -> list[Tensor]:
    """Return the floating-point tensors of outputs, zero at padded positions: what a model puts out there is unused."""
    padding = Padding.of(model, inputs)
    return float_tensors(outputs if padding is None else padding.zeroed(outputs))


def data_hash(
    model: nn.Module, batches: Iterable[Any], taps: Sequence[str] = (), *, purpose: str = "calibration"
) -> str | None:
    """Return a hash of batches, and of the original's outputs on them.

    The outputs reveal differences outside of tensors: an attribute that selects another head, an option in a closure,
    an object in a batch. If batches contain no tensors, but objects that cannot be inspected, a warning is issued and
    the result is None.
    """
    digest = hashlib.sha256()
    for seen, outputs in _seen(model, batches, taps, purpose):
        if seen is None:
            return None
        digest.update(f"{seen} {content_hash(outputs)};".encode())
    return digest.hexdigest()


def data_probe(
    model: nn.Module, batches: Iterable[Any], *, purpose: str = "calibration"
) -> tuple[str, list[float]] | None:
    """Return a hash of batches, and numbers that tell the original's outputs on them.

    The numbers, unlike the hash of `data_hash`, can be compared with those of another device or version, on which
    rounding differs: two per output, the root mean square and the projection onto a fixed direction. None as for
    `data_hash`.
    """
    digest, numbers = hashlib.sha256(), list[float]()
    for seen, outputs in _seen(model, batches, (), purpose):
        if seen is None:
            return None
        digest.update(f"{seen};".encode())
        for output in outputs:
            values = output.double().nan_to_num(0, 0, 0).flatten().cpu()
            signs = torch.randint(2, values.shape, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
            scale = max(values.numel(), 1) ** -0.5
            numbers += [float(values.norm()) * scale, float(values @ signs) * scale]
    return digest.hexdigest(), numbers


def _seen(
    model: nn.Module, batches: Iterable[Any], taps: Sequence[str], purpose: str
) -> Iterator[tuple[str | None, list[Tensor]]]:
    """Yield a hash of each batch with the original's outputs; a None, after a warning, ends a hidden batch's data."""
    for number, batch in enumerate(iterate(batches, purpose), 1):
        inputs, target = split_batch(batch)
        seen = content_hash(inputs)
        if seen is None:
            warnings.warn(
                f"the cache is not used: the {purpose} data contains objects that cannot be inspected "
                f"({type(inputs).__name__}), so it cannot be identified. Use batches of tensors to enable the cache.",
                RankfoldWarning,
                stacklevel=3,
            )
            yield None, []
            return
        inputs = to_device(inputs, model_device(model))
        yield f"{seen} {content_hash(target)}", compared(model, inputs, f"{purpose} batch {number}", taps)


def check_comparable(outputs: Sequence[Tensor], what: str, advice: str) -> None:
    """Raise `ModelError` if outputs of the original contain NaN, or no finite value.

    Infinite values are allowed, because masked scores are -inf. They are not compared, but must not change.
    """
    if all(bool(t.isfinite().all()) for t in outputs):
        return
    if any(bool(t.isnan().any()) for t in outputs):
        raise ModelError(
            f"the network's outputs on {what} contain NaN, which cannot be compared. Check the data for NaN and the "
            f"attention for rows in which all positions are masked. {advice}"
        )
    if not any(bool(t.isfinite().any()) for t in outputs):
        raise ModelError(
            f"the network's outputs on {what} contain no finite value, so they cannot be compared. {advice}"
        )


def nothing_put_out(taps: Sequence[str], what: str) -> str:
    """Return the sentence about outputs without floating-point tensors."""
    where = f"taps {', '.join(taps)} return" if taps else "network returns"
    return f"the {where} no floating-point tensors on {what}."


def modules_of(model: nn.Module, layer: LayerInfo) -> set[nn.Module]:
    """Return the modules that use a layer's weight, under all of its names."""
    return {find_layer(model, path)[0] for path in (layer.name, *layer.aliases, *layer.ties)}
