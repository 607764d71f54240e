"""The data flow of a run: which operations read what, from the model's inputs to its outputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from rankfold._tensors import tensors_of


@dataclass(eq=False, slots=True)
class Node:
    """An operation: a call of a torch function, of a layer, or the model's input or output.

    Parameters
    ----------
    name : str
        The function's name without underscores at its ends (in-place variants share it), or the layer's name.
    layer : bool
        Whether it is the call of a layer.
    readers : list of Node
        The operations that read its result.
    """

    name: str
    layer: bool = False
    readers: list[Node] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class DataFlow:
    """The operations of one run.

    Parameters
    ----------
    calls : mapping of str to list of Node
        The calls of each layer, in order; layers that were not called are left out.
    source, sink : Node
        The model's input, which the first operations read, and its output, which reads the last ones.
    """

    calls: Mapping[str, list[Node]]
    source: Node
    sink: Node

    def following(self, call: Node, passing: Collection[str]) -> list[str]:
        """Return the names of the operations after a call, as long as each is the only reader of the one before.

        Ends before the first operation that is not in `passing`.
        """
        names: list[str] = []
        while len(call.readers) == 1 and not call.readers[0].layer and call.readers[0].name in passing:
            call = call.readers[0]
            names.append(call.name)
        return names

    def is_branched(self, call: Node) -> bool:
        """Return whether data can get from the input to the output without this call."""
        seen, open_ = {call, self.source}, [self.source]
        while open_:
            for reader in open_.pop().readers:
                if reader is self.sink:
                    return True
                if reader not in seen:
                    seen.add(reader)
                    open_.append(reader)
        return False


class _Recorder(TorchFunctionMode):
    """Records the calls of torch functions on tensors that depend on the model's input."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.sink = Node("input"), Node("output")
        self.calls: dict[str, list[Node]] = defaultdict(list)
        self._nodes: Any = WeakIdKeyDictionary()
        self._inside = 0

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        if not self._inside and tensors_of(result):
            self._read(Node(operation_name(func)), [args, kwargs or {}], result)
        return result

    def _read(self, node: Node, given: Any, result: Any = ()) -> None:
        """Record that an operation reads some tensors, and that its results depend on them."""
        parents = dict.fromkeys(self._nodes[tensor] for tensor in tensors_of(given) if tensor in self._nodes)
        for parent in parents:
            parent.readers.append(node)
        for tensor in tensors_of(result) if parents else ():
            self._nodes[tensor] = node

    def watch_model(self, model: nn.Module) -> Iterator[RemovableHandle]:
        """Record the arguments of the model's first call as the input, and its result as the output."""

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ARG001
            for tensor in tensors_of([args, kwargs]):
                self._nodes[tensor] = self.source

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ARG001
            self._read(self.sink, output)

        yield model.register_forward_pre_hook(before, with_kwargs=True)
        yield model.register_forward_hook(after, with_kwargs=True)

    def watch_layer(self, module: nn.Module, name: str) -> Iterator[RemovableHandle]:
        """Record each call of a layer as one operation."""

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ARG001
            self._inside += 1

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ARG001
            self._inside -= 1
            node = Node(name, layer=True)
            self.calls[name].append(node)
            self._read(node, [args, kwargs], output)

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after, with_kwargs=True, prepend=True)


def operation_name(func: Any) -> str:
    """Return the name of a torch function or tensor method, such as ``relu`` for ``Tensor.relu_``."""
    return getattr(func, "__name__", "").strip("_")


def trace(model: nn.Module, layers: Mapping[str, nn.Module], run: Callable[[], object]) -> DataFlow:
    """Record the data flow of one run.

    Operations are linked by the tensors that they return and read. No graph is traced, so that any Python code can be
    followed. Data that leaves torch on the way is lost, and so is a change of a tensor through a view of it.

    Parameters
    ----------
    model : Module
        The model, in the mode in which it should run.
    layers : mapping
        Modules by name. Each call of one of them is a single operation.
    run : callable
        Runs the model once.
    """
    recorder = _Recorder()
    with ExitStack() as stack:
        watched = [recorder.watch_model(model), *(recorder.watch_layer(m, name) for name, m in layers.items())]
        for handle in chain.from_iterable(watched):
            stack.callback(handle.remove)
        stack.enter_context(recorder)
        run()
    return DataFlow(dict(recorder.calls), recorder.source, recorder.sink)
