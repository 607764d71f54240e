"""The dependencies between channels, as Torch-Pruning's graph knows them.

Torch-Pruning is asked once, about a copy of the dense model. Its answers are lists of indices, pairs of which become
edges here; the channels that must leave together are the connected components (`rankfold.pruning.groups`).

Fang, Ma, Song, Mi & Wang (2023), "DepGraph: towards any structural pruning", section 3.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from rankfold._tensors import copied, tensors_of
from rankfold.batches import call_model
from rankfold.errors import MissingExtra, ModelError
from rankfold.inventory import copy_model, evaluating, quiet
from rankfold.inventory.kinds import frozen_norm_width, is_lazy, stock_base
from rankfold.inventory.running import example_failure, on_device_of
from rankfold.records.narrowing import Side
from rankfold.surgery.narrowing import NORMS

ADVICE = (
    "Every operation between its layers must be differentiable, without torch.no_grad, detach or TorchScript. Prune "
    "the parts for which this holds, each as a separate model."
)

ATTENTION = "an attention has a fixed width"
ENDLESS = "the graph cannot follow it through a reshape"
OUTPUT = "it is an output of the model"

Key = tuple[str, Side | int]
"""Path of a module or parameter, and its side or dimension."""


@dataclass(slots=True, kw_only=True)
class Couplings:
    """Indices that are coupled, and indices that must stay.

    Parameters
    ----------
    sizes : dict of Key to int
        Number of indices on each axis.
    edges : list
        Pairs of equally long lists: index i on the first axis leaves with index i on the second.
    fixed : list
        Axes with indices that must stay, and why.
    """

    sizes: dict[Key, int] = field(default_factory=dict)
    edges: list[tuple[Key, list[int], Key, list[int]]] = field(default_factory=list)
    fixed: list[tuple[Key, list[int], str]] = field(default_factory=list)


def trace(model: nn.Module, example_input: Any) -> Couplings:
    """Return the couplings between all layers that the graph reaches.

    Raises
    ------
    MissingExtra
        If Torch-Pruning is not installed.
    ModelError
        If the model cannot be traced.
    """
    twin = copy_model(model)
    _thaw_norms_(twin)
    for parameter in twin.parameters():
        if parameter.is_floating_point() and not is_lazy(parameter):
            parameter.requires_grad = True
    names = {module: path for path, module in twin.named_modules()}
    with evaluating(model):  # which restores the random state
        graph = _built(twin, example_input)
    couplings = Couplings()
    reader = _Reader(graph, names, {id(p): n for n, p in twin.named_parameters()}, couplings)
    for module in names:
        if stock_base(module) is not None and module in graph.module2node:
            reader.read(module)
    return couplings


def _thaw_norms_(model: nn.Module) -> None:
    """Replace frozen BatchNorms by BatchNorms: the graph only sees modules with parameters."""
    for path, module in list(model.named_modules()):
        width = frozen_norm_width(module)
        if width is not None and path:
            norm = nn.BatchNorm2d(width, eps=getattr(module, "eps", 1e-5))
            norm.load_state_dict(module.state_dict(), strict=False)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, norm.to(module.weight).eval())  # type: ignore[arg-type]


def _built(model: nn.Module, example_input: Any) -> Any:
    """Return Torch-Pruning's graph of a model whose parameters all require gradients."""
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingExtra("finding the channels that can be removed", "prune", "torch-pruning") from error

    def forward(model: nn.Module, inputs: Any) -> Any:
        # An extra product makes every output a separate node, even if a layer returns it.
        try:
            whole = call_model(model, copied(inputs))
        except Exception as error:
            raise example_failure("the model", example_input, error) from error
        outputs = [t * 1 for t in tensors_of(whole) if t.requires_grad]
        if not outputs:
            raise ModelError(
                "the channels of the model cannot be traced: its outputs do not depend on its parameters by "
                f"differentiable operations. {ADVICE}"
            )
        return outputs

    graph = torch_pruning.DependencyGraph()
    try:
        with quiet(), torch.inference_mode(False), torch.enable_grad():
            graph.build_dependency(model, on_device_of(model, example_input), forward_fn=forward, verbose=False)
    except ModelError:
        raise
    except Exception as error:  # the graph's code, for operations that it does not know
        raise ModelError(
            f"the channels of the model cannot be traced. Torch-Pruning raised {type(error).__name__}: {error}\n"
            f"{ADVICE}"
        ) from error
    return graph


class _Reader:
    """Reads the groups of a graph.

    The graph takes reshapes of other dimensions for a flattening, which multiplies the indices every time that a walk
    passes. Walks with more indices than all layers have channels end.
    """

    def __init__(
        self, graph: Any, names: Mapping[nn.Module, str], parameters: Mapping[int, str], couplings: Couplings
    ) -> None:
        self.graph, self.names, self.parameters, self.couplings = graph, names, parameters, couplings
        self.covered: dict[Key, set[int]] = {}
        layers: list[Any] = [module for module in names if stock_base(module) is not None]
        self.most = sum(size for layer in layers for size in layer.weight.shape)

    def read(self, module: Any) -> None:
        """Follow the outputs of a layer that no earlier layer led to."""
        pruner = self.graph.get_pruner_of_module(module)
        root: Key = (self.names[module], "outputs")
        width = pruner.get_out_channels(module)
        self.couplings.sizes.setdefault(root, width)
        missing = sorted(set(range(width)) - self.covered.get(root, set()))
        if missing:
            self.covered.setdefault(root, set()).update(missing)
            node = self.graph.module2node[module]
            start = [_Index(i, i) for i in missing]
            for reached, handler, indices in _walk(node, pruner.prune_out_channels, start):
                if len(indices) > self.most:
                    self.couplings.fixed.append((root, missing, ENDLESS))
                    break
                self._read_node(root, reached, handler, indices)

    def _read_node(self, root: Key, node: Any, handler: Any, reached: list[Any]) -> None:
        """Record what the outputs of a layer are coupled to at one operation of the graph."""
        reason = _reason(node)
        if any(i.root_idx is None for i in reached):
            whole = list(range(self.couplings.sizes[root]))
            self.couplings.fixed.append((root, whole, "the graph cannot follow it through a grouped-query attention"))
            return
        indices, roots = [i.idx for i in reached], [i.root_idx for i in reached]
        if reason is not None:
            self.couplings.fixed.append((root, roots, reason))
            return
        for key, size in self._axes(node, handler):
            self.couplings.sizes.setdefault(key, size)
            if not all(0 <= i < size for i in indices):
                self.couplings.fixed.append((root, roots, f"the graph misjudges the width of {key[0]!r}"))
                continue
            self.covered.setdefault(key, set()).update(indices)
            if key != root or indices != roots:
                self.couplings.edges.append((root, roots, key, indices))

    def _axes(self, node: Any, handler: Any) -> list[tuple[Key, int]]:
        """Return the axes that an operation of the graph changes; none for operations without tensors."""
        module = node.module
        if isinstance(module, nn.Parameter):
            dim = node.pruning_dim % module.ndim
            return [((self.parameters[id(module)], dim), module.shape[dim])]
        if module not in self.names:
            return []
        name = self.names[module]
        if stock_base(module) is None:
            return [((name, "channels"), self.graph.get_pruner_of_module(module).get_out_channels(module))]
        if isinstance(module, nn.Linear):
            sizes = {"outputs": module.out_features, "inputs": module.in_features}
        else:
            sizes = {"outputs": module.out_channels, "inputs": module.in_channels}
        sides: tuple[Side, ...] = ("outputs",) if handler.__name__ == "prune_out_channels" else ("inputs",)
        if _is_depthwise(module):
            sides = ("inputs", "outputs")
        return [((name, side), sizes[side]) for side in sides]


class _Index(NamedTuple):
    """An index where a walk is, and the output of its root that it comes from, as Torch-Pruning's mappings expect."""

    idx: int
    root_idx: int


def _walk(node: Any, handler: Any, indices: list[Any]) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Yield every operation that indices of a node reach, how it is changed, and the indices there.

    Torch-Pruning's own groups keep one origin for each index that is reached. Here, outputs of one layer that meet in
    a sum are coupled to each other.
    """
    seen: set[Hashable] = set()
    stack = [(node, handler, indices)]
    while stack:
        node, handler, indices = stack.pop()
        state = (id(node), handler, tuple(indices))
        if state in seen:
            continue
        seen.add(state)
        yield node, handler, indices
        for dependency in node.dependencies:
            if dependency.is_triggered_by(handler):
                mapped = indices
                for mapping in dependency.index_mapping:
                    mapped = mapped if mapping is None else mapping(mapped)
                if mapped:
                    stack.append((dependency.target, dependency.handler, mapped))


def _reason(node: Any) -> str | None:
    """Return why the channels that reach an operation must stay; None if they can leave."""
    module = node.module
    kind = type(module).__name__
    if kind == "_OutputOp":
        return OUTPUT
    if isinstance(module, nn.MultiheadAttention):
        return ATTENTION
    if isinstance(module, nn.Parameter) or stock_base(module) is not None:
        if _is_depthwise(module) and getattr(module, "in_channels", 0) != getattr(module, "out_channels", 0):
            return "the graph takes a grouped convolution for a depthwise one"
        return None
    if isinstance(module, NORMS) or not any(True for _ in module.parameters()):
        return None
    return f"{kind} has a fixed width"


def _is_depthwise(module: Any) -> bool:
    """Whether the graph takes a module for a depthwise convolution."""
    return getattr(module, "groups", 1) == getattr(module, "out_channels", 0) > 1
