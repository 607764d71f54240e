"""Peak activation memory of a graph, by liveness: which buffers are in RAM while each operation runs.

The rules:

- RAM holds activations. Weights, buffers and whatever is computed from them alone (a normalised weight, position
  indices, a mask) are constants: they belong to flash and are not counted.
- The batch is that of the example input. An operation's result is a buffer of its elements times their size.
- A result that shares memory with an operand in torch (views, reshapes that need no copy, dropout in eval mode,
  operations in place) lies in the operand's buffer.
- Elementwise operations and batch normalisation write into the buffer of an operand of the same size that nothing reads
  later, as the runtimes of microcontrollers do by fusing them.
- Inputs of the model are alive from the start until their last reader, results of the model until the end, everything
  else from the operation that writes it until the last one that reads it. What no result depends on is not computed.
- The peak is the largest sum alive during an operation: its operands, its results and all that is needed later. Scratch
  memory inside one operation (im2col, the scores of a fused attention) is the kernel's own and not counted.
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

# Elementwise, but without torch's tag for that.
_ELEMENTWISE = frozenset({"aten::batch_norm", "aten::hardswish", "aten::prelu", "aten::log_sigmoid", "aten::rsub"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation of a program, on numbered pieces of memory.

    Parameters
    ----------
    reads, writes : tuple of int
        Memory of its operands and of its results. What it writes and what has been written before is a view, or is
        changed in place.
    elementwise : bool
        Whether it may put its one result into the memory of an operand.
    """

    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    elementwise: bool = False


@dataclass(frozen=True, slots=True)
class Timeline:
    """When each buffer is alive.

    Parameters
    ----------
    total : tuple of int
        Bytes alive during each step.
    buffer : mapping of int to int
        The buffer in which each piece of memory lies.
    last : mapping of int to int
        The last step at which each buffer is needed.
    """

    total: tuple[int, ...]
    buffer: Mapping[int, int]
    last: Mapping[int, int]

    @property
    def peak(self) -> int:
        """Bytes: the most that is alive at once."""
        return max(self.total, default=0)


def timeline(steps: Sequence[Step], sizes: Mapping[int, int]) -> Timeline:
    """Lay the memory of a program out in time.

    Parameters
    ----------
    steps : sequence of Step
        In order of execution.
    sizes : mapping of int to int
        Bytes of each piece of memory.
    """
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
    """Return the operand whose memory an elementwise step can write its result into."""
    if not step.elementwise or len(step.writes) != 1:
        return None
    # Memory that is read twice, in two orders perhaps, may not be written before all is read.
    fitting = (r for r in step.reads if needed[r] == at and sizes[r] == sizes[piece] and step.reads.count(r) == 1)
    return next(fitting, None)


@dataclass(slots=True)
class _Program:
    """A graph as steps; `nodes` are those of the steps, the first step being the model's inputs (no node)."""

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
    """Return the peak activation memory of an exported graph and what each layer decides of it.

    Parameters
    ----------
    graph : torch.fx.Graph
        ATen operations, whose ``meta["val"]`` are fake tensors that share memory where the real ones would.
    constants : iterable of str
        Names of the placeholders that are parameters, buffers or other constants.
    users : mapping of str to sequence of str
        By node name, the layers that the node computes: one, or the several input projections of an attention.
    layers : iterable of LayerInfo
        The layers that may be factored.
    deploy_dtype : str or None
        The data type of floating-point activations: ``"int8"`` counts each as one byte. By default their own.

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
    known = {layer.name: layer for layer in layers}
    runs: dict[str, list[LayerRun]] = {}
    floor = 0
    for i, node in enumerate(program.nodes):
        names = [] if node is None else list(users.get(node.name, ()))
        source = None if node is None or not names else _source(node, fixed)
        if node is None or source is None or not all(name in known for name in names):
            floor = max(floor, time.total[i])
        if node is None or source is None:
            continue
        for position, name in enumerate(names):
            if name in known:
                run = _run(program, time, i, (node, source), known[name], (position, len(names)), item)
                runs.setdefault(name, []).append(run)
    return ActivationProfile(
        peak=time.peak, floor=floor, layers={name: tuple(runs[name]) for name in known if name in runs}
    )


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

    Where one node computes several layers, all of them projections of the same input, `place` is which of how many.
    Apart, they run one after the other: the results of those before are alive, and the last one frees the input.
    """
    node, source = nodes
    position, several = place
    given, made = source.meta["val"], node.meta["val"]
    buffers = {time.buffer[piece] for piece in _pieces(given) if piece in time.buffer}
    freed = sum(program.sizes[b] for b in buffers if time.last[b] == at)
    output = sum(program.sizes[piece] for piece in _pieces(made)) // several
    others = time.total[at] - freed - output * (several - position)
    dims = len(layer.kernel)
    if layer.kind == "linear":
        call = Call(batch=given.numel() // max(1, layer.in_channels))
    else:
        batch = given.shape[0] if given.ndim == dims + 2 else 1
        call = Call(batch=batch, in_size=tuple(given.shape[-dims:]), out_size=tuple(made.shape[-dims:]))
    final = position == several - 1
    return LayerRun(
        call=call,
        others=others if final else others + freed,
        input=freed if final else 0,
        output=output,
        item=item or made.element_size(),
        contiguous=given.is_contiguous(),
    )


def _source(node: fx.Node, constants: set[fx.Node]) -> fx.Node | None:
    """Return the only operand of a node that is not a constant; None if there are none or several."""
    operands = [operand for operand in node.all_input_nodes if operand not in constants]
    return operands[0] if len(operands) == 1 else None


def _constant_nodes(graph: fx.Graph, names: frozenset[str]) -> set[fx.Node]:
    """Return the nodes whose values depend on no input of the model."""
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
    """Turn a graph into steps, without constants and without what no result depends on."""
    wanted = _wanted(graph)
    kept = [node for node in graph.nodes if node in wanted and node not in constants]
    flash = {piece for node in constants for piece in _pieces(node.meta.get("val"))}
    program = _Program()
    for node in kept:
        # Memory of a constant that something computed is written into is none any more.
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
        # A node's own pieces once each, however many views of one it returns.
        per_node = [dict.fromkeys(_pieces(n.meta.get("val"))) for n in nodes]
        return tuple(piece for own in per_node for piece in own if piece in program.sizes)

    elementwise = node is not None and _is_elementwise(node)
    program.steps.append(Step(reads=pieces(reads), writes=pieces(writes), elementwise=elementwise))
    program.nodes.append(node)


def _wanted(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that a result, or something written in place, depends on; and all inputs."""
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
    """Return the bytes of each piece of memory that a node's value lies in."""
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        raise ModelError(
            f"peak RAM cannot be counted: the exported model has control flow ({node.name!r}), whose memory "
            "depends on the data. Bound other resources, or export a model without it."
        )
    sizes: dict[int, int] = {}
    for tensor in _tensors(node.meta.get("val")):
        size: Any = tensor.untyped_storage().nbytes()
        if not isinstance(size, int):
            raise ModelError(
                f"peak RAM cannot be counted: the size of {node.name!r} depends on the data. Bound other resources, "
                "or give the model inputs of one size."
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
