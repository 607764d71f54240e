"""The similarity of feature maps (Kokhazadeh et al. 2025, section 5.1, step 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from rankfold._tensors import copied, detached, float_tensors, map_tensors, model_device, tensors_of, to_device
from rankfold.batches import batch_size, iterate, leading, pieces, split_batch
from rankfold.errors import DataError
from rankfold.factor.linalg import double
from rankfold.inventory import find_layer, run_batch, undisturbed
from rankfold.inventory.dataflow import operation_name, trace
from rankfold.records import LayerInfo

_ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus",
    "softsign", "softshrink", "hardshrink", "tanhshrink", "sigmoid", "logsigmoid", "log_sigmoid", "hardsigmoid",
    "hardswish", "tanh", "hardtanh", "threshold", "softmax", "log_softmax", "glu", "clamp", "clamp_min",
}  # fmt: skip
_POOLING = {
    f"{kind}_pool{axes}d" for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg") for axes in (1, 2, 3)
} | {"mean"}
_NORMS = {"batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm", "local_response_norm"}
_COMPARED = _ACTIVATIONS | _POOLING | _NORMS
_PASSED = {
    "flatten", "reshape", "view", "permute", "transpose", "movedim", "squeeze", "unsqueeze", "contiguous",
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
}  # fmt: skip
FOLLOWING = frozenset(_COMPARED | _PASSED)
"""Names of the operations after a layer that belong to its feature map: activations, pooling and normalization; and
those between them that leave the values as they are in evaluation mode."""

PIECE = 64
"""Samples of a batch that run at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the feature maps of a layer are compared.

    Parameters
    ----------
    following : mapping of str to tuple of tuple of str
        By the path of each module that computes with the layer's weight: for each of its calls in a run, the
        operations after it up to the feature map.
    branched : bool
        Whether data can get from the model's input to its output without the layer, as in residual blocks and in the
        branches of inception, fire and dense blocks.
    """

    following: Mapping[str, tuple[tuple[str, ...], ...]]
    branched: bool


def compared_places(model: nn.Module, layers: Iterable[LayerInfo], inputs: Any) -> dict[str, Place]:
    """Return where the feature maps of layers are compared; layers that are not called are left out.

    The feature map of a layer is its output after the activations, pooling and normalization that follow it
    (`FOLLOWING`), in any order. It ends where the output is read by more than one operation, or by any other operation:
    the next layer, the sum of a residual block, a concatenation.

    Parameters
    ----------
    model : Module
        The original.
    layers : iterable of LayerInfo
        Its layers. A projection of an ``nn.MultiheadAttention`` is compared at the output of the attention.
    inputs : object
        Inputs of one batch; the first samples are run (`PIECE`).
    """
    hosts = {layer.name: _hosts(model, layer) for layer in layers}
    modules = {path: model.get_submodule(path) for paths in hosts.values() for path in paths}
    inputs = to_device(leading(inputs, PIECE), model_device(model))
    with undisturbed(model):
        flow = trace(model, modules, lambda: run_batch(model, inputs, "the first calibration samples"))
    places = dict[str, Place]()
    for name, paths in hosts.items():
        calls = {path: flow.calls[path] for path in paths if path in flow.calls}
        if calls:
            places[name] = Place(
                following={p: tuple(_trimmed(flow.following(c, FOLLOWING)) for c in made) for p, made in calls.items()},
                branched=any(flow.is_branched(call) for made in calls.values() for call in made),
            )
    return places


def similarities(
    model: nn.Module, small: nn.Module, places: Mapping[str, Place], batches: Iterable[Any], *, samples: int
) -> dict[str, float]:
    """Return the cosine similarity of the feature maps of layers in a compressed model and in the original.

    Only the original runs, in evaluation mode. Each layer of the compressed model is called next to the original's
    layer, with the same input, so that other layers have no effect, and both always process the same data (routed
    samples, proposed boxes). The operations up to the feature map are then repeated on its output, with parameters and
    buffers of the compressed model: BatchNorm uses its running statistics. A layer that is called several times is
    compared at each call. No feature map is held longer than to the comparison, and samples run in pieces (`PIECE`).

    Parameters
    ----------
    model, small : Module
        The original and the compressed model.
    places : mapping of str to Place
        The layers to compare, from `compared_places`.
    batches : iterable
        Batches; targets are ignored.
    samples : int
        Number of samples that are compared at most.

    Returns
    -------
    dict of str to float
        By layer, the mean over samples and calls of the cosine between the two feature maps of a sample, -1..1. Samples
        are the entries of the first dimension. Two feature maps of zeros have similarity 1; if only one is zero, or one
        has values that are not finite, 0. A layer that no sample reaches has similarity 0.

    Raises
    ------
    DataError
        If there is no sample.

    References
    ----------
    Kokhazadeh et al. (2025), section 5.1, step 4, and eq. 1.
    """
    following = {path: chains for place in places.values() for path, chains in place.following.items()}
    sums, counts = dict.fromkeys(following, 0.0), dict.fromkeys(following, 0)
    with undisturbed(model) as reset, undisturbed(small) as reset_small:
        for number, piece in enumerate(_first(batches, samples), 1):
            what = f"calibration samples {PIECE * (number - 1) + 1} to {PIECE * number}"
            for path, cosines in _compared(model, small, following, piece, what):
                sums[path] += float(cosines.sum())
                counts[path] += len(cosines)
            reset()
            reset_small()
    if not any(counts.values()):
        raise DataError("the calibration data has no samples to compare feature maps on. Pass more batches.")

    def mean(place: Place) -> float:
        return sum(sums[p] for p in place.following) / max(1, sum(counts[p] for p in place.following))

    return {name: mean(place) for name, place in places.items()}


def _hosts(model: nn.Module, layer: LayerInfo) -> list[str]:
    """Return the paths of the modules that compute with a layer's weight; of the attention for its projections."""
    paths = dict[str, None]()
    for path in layer.paths:
        role = find_layer(model, path)[1]
        paths[path if role is None else path.rpartition(".")[0]] = None
    distinct = {model.get_submodule(path): path for path in reversed(paths)}
    return list(reversed(distinct.values()))


def _trimmed(names: Sequence[str]) -> tuple[str, ...]:
    """Return the operations up to the last one that changes values."""
    last = max((i for i, name in enumerate(names, 1) if name in _COMPARED), default=0)
    return tuple(names[:last])


def _first(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    """Yield the inputs of the first samples in pieces."""
    left = samples
    for batch in iterate(batches, "calibration"):
        for piece in pieces(split_batch(batch)[0], PIECE):
            if left <= 0:
                return
            yield leading(piece, left)
            left -= batch_size(piece)


class _Comparison(TorchFunctionMode):
    """Runs layers of a compressed model, and the operations after them, next to those of the original.

    Attributes
    ----------
    cosines : list of tuple of str and Tensor
        Path and cosines of each feature map.
    """

    def __init__(self, model: nn.Module, small: nn.Module, following: Mapping[str, Sequence[Sequence[str]]]) -> None:
        super().__init__()
        self.cosines: list[tuple[str, Tensor]] = []
        self._small, self._device, self._following = small, model_device(small), following
        twins = dict(_named_tensors(small))
        self._twins = {id(tensor): twins[name] for name, tensor in _named_tensors(model) if name in twins}
        self._calls = Counter[str]()
        self._outputs = list[Any]()  # those of the compressed model, for each layer that the original is in
        self._aside = False  # whether a layer of the compressed model runs
        self._next: Any = WeakIdKeyDictionary()  # tensor -> path, operations up to the feature map, tensor of the other

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        given, twin = (args, kwargs or {}), None
        for tensor in () if self._outputs or self._aside else tensors_of(given):
            if tensor in self._next and self._next[tensor][1][0] == operation_name(func):
                path, operations, ours = self._next.pop(tensor)
                (a, k) = map_tensors(lambda t, one=tensor, other=ours: other if t is one else self._twin(t), given)
                twin = path, operations[1:], func(*a, **k)
        result = func(*args, **(kwargs or {}))
        if twin is not None:
            self._reached(*twin, result)
        return result

    def _twin(self, tensor: Tensor) -> Tensor:
        """Return the compressed model's tensor of the same name; a tensor without a name itself."""
        return self._twins.get(id(tensor), tensor)

    def _reached(self, path: str, operations: Sequence[str], ours: Any, theirs: Any) -> None:
        """Compare two results that are feature maps, or follow them to the next operation."""
        one, other = (next(iter(float_tensors(result)), None) for result in (ours, theirs))
        if one is None or other is None:
            return
        if operations:
            self._next[other] = path, operations, one
        else:
            self.cosines.append((path, _cosines(one.detach(), other.detach().to(one.device))))

    def before(self, path: str) -> Any:
        layer = self._small.get_submodule(path)

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ARG001
            if self._aside:  # the models share this layer
                return
            args, kwargs = copied(detached(to_device((args, kwargs), self._device)))
            self._aside = True
            self._outputs.append(layer(*args, **kwargs))
            self._aside = False

        return hook

    def after(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ARG001
            if self._aside:
                return
            chains, call = self._following[path], self._calls[path]
            self._calls[path] += 1
            self._reached(path, chains[min(call, len(chains) - 1)], self._outputs.pop(), output)

        return hook


def _compared(
    model: nn.Module, small: nn.Module, following: Mapping[str, Sequence[Sequence[str]]], inputs: Any, what: str
) -> list[tuple[str, Tensor]]:
    """Run the original on one piece of a batch; return path and cosines of each feature map."""
    comparison = _Comparison(model, small, following)
    with ExitStack() as stack:
        for path in following:
            module, before, after = model.get_submodule(path), comparison.before(path), comparison.after(path)
            handles = (
                module.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
                module.register_forward_hook(after, with_kwargs=True, prepend=True),
            )
            for handle in handles:
                stack.callback(handle.remove)
        stack.enter_context(comparison)
        run_batch(model, to_device(inputs, model_device(model)), what)
    return comparison.cosines


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer under each of its names."""
    return chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


def _cosines(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the cosine similarity of each sample's values (eq. 1); a vector is one sample."""
    a, b = (double(values if values.ndim > 1 else values.reshape(1, -1)).flatten(1) for values in (ours, theirs))
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    cosines = ((a * b).sum(1) / norms.clamp_min(torch.finfo(norms.dtype).tiny)).nan_to_num(0.0)
    return torch.where(a.any(1) | b.any(1), cosines.clamp(-1, 1), torch.ones_like(cosines))
