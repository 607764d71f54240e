"""Capture a model as a graph, from which all formats are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from rankfold._config import spelled
from rankfold._tensors import copied, detached, map_tensors
from rankfold.batches import arguments, batch_size
from rankfold.errors import ModelError
from rankfold.inventory import on_device_of, trace, undisturbed

T = TypeVar("T")
Capture = Callable[[nn.Module], torch.export.ExportedProgram]
"""Captures a graph with the inputs and dynamic dimensions of the program that it was made from."""


def captured(
    model: nn.Module, example_input: Any, *, dynamic_batch: bool = True, largest: int | None = None
) -> torch.export.ExportedProgram:
    """Return the graph of a model in evaluation mode, without gradients.

    Parameters
    ----------
    model : Module
        The model; it is left unchanged.
    example_input : object
        A tuple of positional arguments, a mapping of keyword arguments, or a single argument.
    dynamic_batch : bool
        Whether the first dimension of tensors that have the batch's size there may vary.
    largest : int or None
        The largest batch, at least 2; None for any size.

    Raises
    ------
    ModelError
        If torch cannot capture the model.
    """
    with undisturbed(model):
        return recaptured(model, copied(detached(example_input)), dynamic_batch=dynamic_batch, largest=largest)


def recaptured(
    graph: nn.Module, example_input: Any, *, dynamic_batch: bool = True, largest: int | None = None
) -> torch.export.ExportedProgram:
    """Return the graph of a module made from a program, which has no modes to switch; see `captured`."""
    inputs = on_device_of(graph, several(example_input) if dynamic_batch else example_input)
    shapes = None
    advice = "Its forward must consist of tensor operations that torch.export can trace."
    if dynamic_batch:
        args, kwargs = arguments(inputs)
        batch = torch.export.Dim("batch", min=None if largest is None else 1, max=largest)
        shapes = _shapes(kwargs or args, batch_size(inputs), batch)
        advice = f"If the model needs a fixed batch size, set {spelled('dynamic_batch', False)}."
    return trace(graph, inputs, advice=advice, shapes=shapes)


def several(inputs: Any) -> Any:
    """Return inputs of at least two samples, by repeating a single one: torch's exporter fixes a batch of one."""
    count = batch_size(inputs)
    if count != 1:
        return inputs
    return map_tensors(lambda t: t.repeat(2, *[1] * (t.ndim - 1)) if _batched(t, count) else t, inputs)


def converted(
    program: torch.export.ExportedProgram, runtime: str, convert: Callable[[torch.export.ExportedProgram], T]
) -> T:
    """Return what a runtime's converter makes of a program.

    Raises
    ------
    ModelError
        If it fails; the message names the first layer that cannot be converted alone.
    """
    try:
        return convert(program)
    except Exception as error:
        layer = next((path for path, operation in _operations(program) if _fails(convert, operation)), None)
        raise ModelError(
            f"{f'layer {layer!r}' if layer else 'the model'} cannot be exported to {runtime}, which raised "
            f"{type(error).__name__}: {error}\nUse the format 'onnx', or replace the operation that it names."
        ) from error


class _Operation(nn.Module):
    """One operation of a graph, with its parameters."""

    def __init__(self, node: fx.Node, parameters: dict[fx.Node, Tensor]) -> None:
        super().__init__()
        self._node, self._names = node, list(parameters)
        self._free = [source for source in node.all_input_nodes if source not in parameters]
        self.weights = nn.ParameterList([nn.Parameter(t.detach(), requires_grad=False) for t in parameters.values()])

    def inputs(self) -> tuple[Tensor, ...]:
        """Return inputs of the sizes in the graph."""
        values = [node.meta["val"] for node in self._free]
        sizes = [[n if isinstance(n, int) else n.node.hint for n in value.shape] for value in values]
        return tuple(torch.zeros(size, dtype=value.dtype) for size, value in zip(sizes, values, strict=True))

    def forward(self, *inputs: Tensor) -> Any:
        tensors = dict(zip([*self._free, *self._names], [*inputs, *self.weights], strict=True))
        args, kwargs = map_arg((self._node.args, self._node.kwargs), lambda node: tensors[node])
        assert callable(self._node.target)
        return self._node.target(*args, **kwargs)


def _operations(program: torch.export.ExportedProgram) -> Iterator[tuple[str, _Operation]]:
    """Yield the operations of modules with parameters, each with the path of its module."""
    names = program.graph_signature.inputs_to_parameters
    calls = [node for node in program.graph.nodes if node.op == "call_function" and node.meta.get("nn_module_stack")]
    paths = {node: list(node.meta["nn_module_stack"].values())[-1][0] for node in calls}
    layers = {paths[node] for node in calls if any(source.name in names for source in node.all_input_nodes)}
    for node, path in paths.items():
        sources = node.all_input_nodes
        if path in layers and sources and all(isinstance(source.meta.get("val"), Tensor) for source in sources):
            yield path, _Operation(node, {n: program.state_dict[names[n.name]] for n in sources if n.name in names})


def _fails(convert: Callable[[torch.export.ExportedProgram], object], operation: _Operation) -> bool:
    try:
        program = torch.export.export(operation.eval(), operation.inputs())
    except Exception:  # it cannot be tried alone
        return False
    try:
        convert(program)
    except Exception:
        return True
    return False


def _batched(tensor: Tensor, count: int) -> bool:
    return tensor.ndim > 0 and tensor.shape[0] == count


def _shapes(value: Any, count: int, batch: Any) -> Any:
    """Return the variable dimensions of arguments, in their structure; None for what does not vary."""
    if isinstance(value, Tensor):
        return {0: batch} if _batched(value, count) else None
    if isinstance(value, dict):
        return {key: _shapes(item, count, batch) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_shapes(item, count, batch) for item in value)
    return None
