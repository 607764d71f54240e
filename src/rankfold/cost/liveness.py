"""Peak activation memory of a graph, from the buffers that are alive during each operation.

The rules:

- RAM holds activations. Weights, buffers and values computed only from them (a normalized weight, position indices, a
  mask) are constants: they belong to flash and are not counted.
- The batch is that of the example input. The size of a buffer is the number of elements times their size.
- A result that shares memory with an operand in torch (views, reshapes without a copy, dropout in eval mode, in-place
  operations) uses the operand's buffer.
- Elementwise operations and batch normalization reuse the buffer of an operand of the same size that is not read later,
  as runtimes for microcontrollers do by fusing them.
- Model inputs are alive from the start until they are last read, model outputs until the end, and everything else from
  the operation that writes it until it is last read. Values without influence on an output are not computed.
- The peak is the largest sum of the buffers alive during one operation: its operands, its results and everything needed
  later. Scratch memory inside an operation (im2col, the scores of a fused attention) is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from rankfold.errors import ModelError
from rankfold.records import Call, LayerInfo
from rankfold.records.activations import ActivationProfile, LayerRun
from rankfold.records.deploy import check_deploy_dtype, item_bytes

# Elementwise operations that torch does not tag as pointwise.
_ELEMENTWISE = frozenset({"aten::batch_norm", "aten::hardswish", "aten::prelu", "aten::log_sigmoid", "aten::rsub"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation of a program, on numbered pieces of memory.

    A piece that has been written before is a view, or is modified in place.
    """

    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    elementwise: bool = False  # whether a single result may reuse the memory of an operand


@dataclass(frozen=True, slots=True)
class Timeline:
    """The lifetimes of buffers."""

    total: tuple[int, ...]  # bytes alive during each step
    buffer: Mapping[int, int]  # the buffer of each piece of memory
    last: Mapping[int, int]  # the last step that needs each buffer

    @property
    def peak(self) -> int:
        """The largest number of bytes alive at once."""
        return max(self.total, default=0)


def timeline(steps: Sequence[Step], sizes: Mapping[int, int]) -> Timeline:
    """Return the lifetimes of the buffers of a program, given the bytes of each piece of memory."""
    needed: dict[int, int] = {}
    for i, step in enumerate(steps):
        needed |= dict.fromkeys((*step.reads, *step.writes), i)
    buffer: dict[int, int] = {}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for i, step in enumerate(steps):
        for piece in dict.fromkeys(step.writes):
            if piece in buffer:
                continue
            host = _host(step, piece, i, needed, sizes)
            buffer[piece] = piece if host is None else buffer[host]
            first.setdefault(buffer[piece], i)
            last[buffer[piece]] = needed[piece]
    change = [0] * (len(steps) + 1)
    for name, start in first.items():
        change[start] += sizes[name]
        change[last[name] + 1] -= sizes[name]
    total, now = [], 0
    for difference in change[:-1]:
        now += difference
        total.append(now)
    return Timeline(tuple(total), buffer, last)


def _host(step: Step, piece: int, at: int, needed: Mapping[int, int], sizes: Mapping[int, int]) -> int | None:
    """Return the operand whose memory the result of an elementwise step can reuse."""
    if not step.elementwise or len(step.writes) != 1:
        return None
    # Memory that is read twice, possibly in two orders, must not be overwritten while it is read.
    fitting = (r for r in step.reads if needed[r] == at and sizes[r] == sizes[piece] and step.reads.count(r) == 1)
    return next(fitting, None)


@dataclass(slots=True)
class _Program:
    """A graph as steps, each with its node; the first step, the model's inputs, has none."""

    steps: list[Step] = field(default_factory=list)
    sizes: dict[int, int] = field(default_factory=dict)
    nodes: list[fx.Node | None] = field(default_factory=list)


def activation_profile(
    graph: fx.Graph,
    constants: Iterable[str],
    users: Mapping[str, Sequence[str]],
    layers: Iterable[LayerInfo],
    *,
    deploy_dtype: str | None = None,
) -> ActivationProfile:
    """Return the peak activation memory of an exported graph, by layer.

    Parameters
    ----------
    graph : torch.fx.Graph
        Graph of ATen operations, whose ``meta["val"]`` are fake tensors that share memory like the real tensors.
    constants : iterable of str
        Names of the placeholders that are parameters, buffers or other constants.
    users : mapping of str to sequence of str
        The layers that each node computes, by node name: one layer, or several input projections of an attention.
    layers : iterable of LayerInfo
        The layers that may be factored.
    deploy_dtype : str or None
        Data type of floating-point activations; ``"int8"`` counts one byte each. The default is their own data type.

    Raises
    ------
    ModelError
        If the size of a tensor depends on the data, or the graph has control flow.
    """
    check_deploy_dtype(deploy_dtype)
    item = None if deploy_dtype is None else item_bytes(deploy_dtype)
    fixed = _constant_nodes(graph, frozenset(constants))
    program = _read(graph, fixed, item)
    time = timeline(program.steps, program.sizes)
    by_name = {layer.name: layer for layer in layers}
    runs: dict[str, list[LayerRun]] = {}
    floor = 0
    for i, node in enumerate(program.nodes):
        names = [] if node is None else list(users.get(node.name, ()))
        source = None if node is None or not names else _source(node, fixed)
        if node is None or source is None or not all(name in by_name for name in names):
            floor = max(floor, time.total[i])
        if node is None or source is None:
            continue
        for position, name in enumerate(names):
            if name in by_name:
                run = _run(program, time, i, (node, source), by_name[name], (position, len(names)), item)
                runs.setdefault(name, []).append(run)
    ordered = {name: tuple(runs[name]) for name in by_name if name in runs}
    return ActivationProfile(peak=time.peak, floor=floor, layers=ordered)


def _run(
    program: _Program,
    time: Timeline,
    at: int,
    nodes: tuple[fx.Node, fx.Node],
    layer: LayerInfo,
    place: tuple[int, int],
    item: int | None,
) -> LayerRun:
    """Return a layer's run at a step.

    If one node computes several projections of one input, `place` is the layer's position and their number. They run
    one after the other: the results of earlier ones are alive, and the last one frees the input.
    """
    node, source = nodes
    position, several = place
    inputs, result = source.meta["val"], node.meta["val"]
    buffers = {time.buffer[piece] for piece in _pieces(inputs) if piece in time.buffer}
    freed = sum(program.sizes[b] for b in buffers if time.last[b] == at)
    output = sum(program.sizes[piece] for piece in _pieces(result)) // several
    others = time.total[at] - freed - output * (several - position)
    dims = len(layer.kernel)
    if layer.kind == "linear":
        call = Call(batch=inputs.numel() // max(1, layer.in_channels))
    else:
        batch = inputs.shape[0] if inputs.ndim == dims + 2 else 1
        call = Call(batch=batch, in_size=tuple(inputs.shape[-dims:]), out_size=tuple(result.shape[-dims:]))
    final = position == several - 1
    return LayerRun(
        call=call, others=others if final else others + freed, input=freed if final else 0, output=output,
        item=item or result.element_size(), contiguous=inputs.is_contiguous(),
    )  # fmt: skip


def _source(node: fx.Node, constants: set[fx.Node]) -> fx.Node | None:
    """Return the single operand of a node that is not a constant; None if there are none or several."""
    operands = [operand for operand in node.all_input_nodes if operand not in constants]
    return operands[0] if len(operands) == 1 else None


def _constant_nodes(graph: fx.Graph, names: frozenset[str]) -> set[fx.Node]:
    """Return the nodes that do not depend on the model's inputs."""
    constants: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            fixed = node.name in names
        else:
            fixed = node.op != "output" and all(operand in constants for operand in node.all_input_nodes)
        if fixed:
            constants.add(node)
    return constants


def _read(graph: fx.Graph, constants: set[fx.Node], item: int | None) -> _Program:
    """Turn a graph into steps, without constants and unused values."""
    wanted = _wanted(graph)
    kept = [node for node in graph.nodes if node in wanted and node not in constants]
    flash = {piece for node in constants for piece in _pieces(node.meta.get("val"))}
    program = _Program()
    for node in kept:
        # A constant that is modified in place is counted.
        taken = set() if _writes_in_place(node) else flash
        for piece, size in _sizes(node, item).items():
            if piece not in taken:
                program.sizes.setdefault(piece, size)
    inputs = [node for node in kept if node.op == "placeholder"]
    _append(program, None, (), inputs)
    for node in kept:
        if node.op != "placeholder":
            _append(program, node, node.all_input_nodes, () if node.op == "output" else (node,))
    return program


def _append(program: _Program, node: fx.Node | None, reads: Iterable[fx.Node], writes: Iterable[fx.Node]) -> None:
    def pieces(nodes: Iterable[fx.Node]) -> tuple[int, ...]:
        # Each piece of a node counts once, even if the node returns several views of it.
        per_node = [dict.fromkeys(_pieces(n.meta.get("val"))) for n in nodes]
        return tuple(piece for own in per_node for piece in own if piece in program.sizes)

    elementwise = node is not None and _is_elementwise(node)
    program.steps.append(Step(reads=pieces(reads), writes=pieces(writes), elementwise=elementwise))
    program.nodes.append(node)


def _wanted(graph: fx.Graph) -> set[fx.Node]:
    """Return all inputs, and the nodes on which an output or an in-place operation depends."""
    wanted: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op in ("output", "placeholder") or node in wanted or _writes_in_place(node):
            wanted.add(node)
            wanted.update(node.all_input_nodes)
    return wanted


def _writes_in_place(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _is_elementwise(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return torch.Tag.pointwise in target.tags or target._schema.name in _ELEMENTWISE


def _sizes(node: fx.Node, item: int | None) -> dict[int, int]:
    """Return the bytes of each piece of memory of a node's value."""
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        raise ModelError(
            f"peak RAM cannot be computed: the exported model has control flow ({node.name!r}), whose memory "
            "depends on the data. Bound other resources, or export a model without control flow."
        )
    sizes: dict[int, int] = {}
    for tensor in _tensors(node.meta.get("val")):
        size: Any = tensor.untyped_storage().nbytes()
        if not isinstance(size, int):
            raise ModelError(
                f"peak RAM cannot be computed: the size of {node.name!r} depends on the data. Bound other resources, "
                "or use inputs of a fixed size."
            )
        if item is not None and tensor.is_floating_point():
            size = size // tensor.element_size() * item
        sizes[_piece(tensor)] = size
    return sizes


def _pieces(value: Any) -> list[int]:
    return [_piece(tensor) for tensor in _tensors(value)]


def _piece(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
