"""The similarity of feature maps (Kokhazadeh et al. 2025, section 5.1, step 4)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from rankfold._tensors import copied, detached, float_tensors, model_device, tensors_of, to_device
from rankfold.batches import batch_size, iterate, leading, pieces, split_batch
from rankfold.errors import DataError, ModelError
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
"""Names of the operations after a layer that belong to its feature map: activations, pooling and normalisation; and
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

    The feature map of a layer is its output after the activations, pooling and normalisation that follow it
    (`FOLLOWING`), in any order. It ends where the output is read by more than one operation, or by any other operation:
    the next layer, the sum of a residual block, a concatenation.

    Parameters
    ----------
    model : Module
        The original.
    layers : iterable of LayerInfo
        Its layers. A projection of an ``nn.MultiheadAttention`` is compared at the output of the attention.
    inputs : object
        Inputs of one batch; the first sample is run.
    """
    hosts = {layer.name: _hosts(model, layer) for layer in layers}
    modules = {path: model.get_submodule(path) for paths in hosts.values() for path in paths}
    inputs = to_device(leading(inputs, 1), model_device(model))
    with undisturbed(model):
        flow = trace(model, modules, lambda: run_batch(model, inputs, "the first calibration sample"))
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

    Each layer of the compressed model receives the input that the layer of the original receives, so that layers
    before it have no effect. Both models run in evaluation mode: BatchNorm uses its running statistics. A layer that is
    called several times is compared at each call. Feature maps are compared piece by piece (`PIECE` samples), and those
    of all samples are never held at once.

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
        By layer, the mean over samples and calls of the cosine between the two feature maps of a sample, -1..1. Two
        feature maps of zeros have similarity 1; if only one is zero, or one has values that are not finite, 0.

    Raises
    ------
    DataError
        If there is no sample.
    ModelError
        If a layer has more feature maps in one of the models.

    References
    ----------
    Kokhazadeh et al. (2025), section 5.1, step 4, and eq. 1.
    """
    following = {path: chains for place in places.values() for path, chains in place.following.items()}
    sums, counts = dict.fromkeys(following, 0.0), dict.fromkeys(following, 0)
    for number, piece in enumerate(_first(batches, samples), 1):
        what = f"calibration samples {PIECE * (number - 1) + 1} to {PIECE * number}"
        theirs = _feature_maps(model, following, piece, what)
        ours = _feature_maps(small, following, piece, what, given=theirs.given)
        for path in following:
            if len(ours.maps[path]) != len(theirs.maps[path]):
                raise ModelError(
                    f"the original has {len(theirs.maps[path])} feature maps of {path!r} on {what}, the compressed "
                    f"model {len(ours.maps[path])}, so they cannot be compared. Exclude the layer."
                )
            for one, other in zip(ours.maps[path], theirs.maps[path], strict=True):
                cosines = _cosines(one, other.to(one.device))
                sums[path] += float(cosines.sum())
                counts[path] += len(cosines)
    if not any(counts.values()):
        raise DataError("the calibration data has no samples to compare feature maps on. Pass more batches.")

    def mean(place: Place) -> float:
        return sum(sums[p] for p in place.following) / max(1, sum(counts[p] for p in place.following))

    return {name: mean(place) for name, place in places.items()}


def _hosts(model: nn.Module, layer: LayerInfo) -> list[str]:
    """Return the paths of the modules that compute with a layer's weight; of the attention for its projections."""
    paths = dict[str, None]()
    for path in (layer.name, *layer.aliases, *layer.ties):
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


class _Reader(TorchFunctionMode):
    """Reads the feature maps of layers in a run, and the arguments of the layers, or passes others to them.

    Attributes
    ----------
    maps : dict of str to list of Tensor
        Feature maps by path, in the order in which the calls were made.
    given : dict of str to list
        The arguments of each call: those of this run, or those that were passed instead.
    """

    def __init__(self, following: Mapping[str, Sequence[Sequence[str]]], given: Mapping[str, list[Any]] | None) -> None:
        super().__init__()
        self.maps: dict[str, list[Tensor]] = defaultdict(list)
        self.given = {path: list[Any]() for path in following} if given is None else given
        self._passes = given is not None
        self._following = following
        self._calls = Counter[str]()
        self._next: Any = WeakIdKeyDictionary()  # tensor -> path and the operations up to the feature map
        self._inside = 0

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        read = () if self._inside else [self._next[t] for t in tensors_of([args, kwargs or {}]) if t in self._next]
        result = func(*args, **(kwargs or {}))
        for path, operations in read:
            if operations[0] == operation_name(func):
                self._reached(path, operations[1:], result)
        return result

    def _reached(self, path: str, operations: Sequence[str], result: Any) -> None:
        """Take a result that is the feature map, or follow it to the next operation."""
        values = float_tensors(result)
        if not values:
            return
        if operations:
            self._next[values[0]] = path, operations
        else:
            self.maps[path].append(values[0].detach().clone())  # later operations may modify it in place

    def before(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:  # noqa: ARG001
            self._inside += 1
            if not self._passes:
                self.given[path].append(copied(detached((args, kwargs))))
                return None
            call = self._calls[path]
            return copied(self.given[path][call]) if call < len(self.given[path]) else None

        return hook

    def after(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ARG001
            self._inside -= 1
            chains, call = self._following[path], self._calls[path]
            self._calls[path] += 1
            self._reached(path, chains[min(call, len(chains) - 1)], output)

        return hook


def _feature_maps(
    network: nn.Module,
    following: Mapping[str, Sequence[Sequence[str]]],
    inputs: Any,
    what: str,
    *,
    given: Mapping[str, list[Any]] | None = None,
) -> _Reader:
    """Run a model on one piece of a batch and return the feature maps; layers receive the arguments in `given`."""
    reader = _Reader(following, given)
    inputs = to_device(inputs, model_device(network))
    with undisturbed(network), ExitStack() as stack:
        for path in following:
            module = network.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(reader.before(path), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(reader.after(path), with_kwargs=True, prepend=True).remove)
        torch.default_generator.manual_seed(0)  # restored by `undisturbed`; both networks draw the same numbers
        stack.enter_context(reader)
        run_batch(network, inputs, what)
    return reader


def _cosines(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the cosine similarity of each sample's values (eq. 1)."""
    a, b = double(ours).flatten(1), double(theirs).flatten(1)
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    cosines = ((a * b).sum(1) / norms.clamp_min(torch.finfo(norms.dtype).tiny)).nan_to_num(0.0)
    return torch.where(a.any(1) | b.any(1), cosines.clamp(-1, 1), torch.ones_like(cosines))
