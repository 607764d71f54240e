"""How a model uses its layers: their order, the BatchNorm after each, and the sums that their outputs enter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakIdKeyDictionary

from rankfold._tensors import tensors_of
from rankfold.inventory.dispatching import DispatchMode

ADD_OPS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How a model uses one layer.

    Parameters
    ----------
    calls : int
        Number of calls in one forward pass.
    norm : str or None
        The BatchNorm that alone reads the layer's only output: it can shift the mean of that output.
    joins : bool
        Whether the output (of `norm`, if there is one) is added to a tensor of the same shape to which neither this
        layer nor a later one contributes, such as the shortcut of a residual block.
    sibling : str or None
        The layer called just before with the same input.
    """

    calls: int
    norm: str | None
    joins: bool
    sibling: str | None


def observe(model: nn.Module, modules: Mapping[str, Iterable[nn.Module]], run: Callable[[], object]) -> dict[str, Use]:
    """Watch one forward pass and return the use of each layer that is called, in the order of the first calls.

    Parameters
    ----------
    model : Module
        The model, in evaluation mode.
    modules : mapping
        The modules that compute with each layer's weight, by layer name.
    run : callable
        Runs the model once.
    """
    watch = _Watch()
    # BatchNorms without running statistics normalize by the batch, so their outputs do not take a shift of the mean.
    norms: dict[nn.Module, str] = {
        m: path for path, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
    }
    with ExitStack() as stack:
        for name, members in modules.items():
            for module in members:
                before = module.register_forward_pre_hook(watch.enters(name), with_kwargs=True, prepend=True)
                stack.callback(before.remove)
                stack.callback(module.register_forward_hook(watch.leaves(name), with_kwargs=True).remove)
        for module in norms:
            stack.callback(module.register_forward_hook(watch.normalized, with_kwargs=True).remove)
        with watch:
            run()
    return {name: watch.use(name, norms) for name in watch.order}


class _Watch(DispatchMode):
    """Follows the outputs of layers from operation to operation."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []
        self.calls: Counter[str] = Counter()
        self.norms: dict[str, _BatchNorm] = {}
        self.norm_calls: Counter[nn.Module] = Counter()
        self.readers: Counter[str] = Counter()
        self.joins: set[str] = set()
        self.sibling: dict[str, str] = {}
        self._last: str | None = None
        self._given: Any = WeakIdKeyDictionary()  # input tensor -> the layer that it was last passed to
        self._level: Any = WeakIdKeyDictionary()  # tensor -> the latest layer that contributed to it
        self._raw: Any = WeakIdKeyDictionary()  # output of a layer -> the layer
        self._term: Any = WeakIdKeyDictionary()  # output of a layer or of its norm -> the layer

    def enters(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ARG001
            if name not in self.calls:
                self.order.append(name)
                given = first_tensor(args, kwargs)
                if given is not None:
                    if self._last is not None and self._given.get(given) == self._last:
                        self.sibling[name] = self._last
                    self._given[given] = name
                self._last = name
            self.calls[name] += 1

        return hook

    def leaves(self, name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ARG001
            if isinstance(output, Tensor):
                self._level[output] = max(self._level.get(output, -1), self.order.index(name))
                self._term[output] = name
                if output.ndim == module.weight.ndim:  # dimension 1 holds its channels, as a BatchNorm takes them
                    self._raw[output] = name

        return hook

    def normalized(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        self.norm_calls[module] += 1
        given = first_tensor(args, kwargs)
        name = None if given is None else self._raw.get(given)
        if name is not None and isinstance(output, Tensor) and output is not given:
            self.norms[name] = module
            self._term[output] = name

    def use(self, name: str, norms: Mapping[nn.Module, str]) -> Use:
        norm = self.norms.get(name)
        once = self.calls[name] == 1
        alone = once and norm is not None and self.readers[name] == 1 and self.norm_calls[norm] == 1
        return Use(
            calls=self.calls[name],
            norm=norms[norm] if alone and norm is not None else None,
            joins=once and name in self.joins and (norm is None or alone),
            sibling=self.sibling.get(name),
        )

    def dispatched(self, func: Any, types: Iterable[type], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation and follow the outputs of layers through it."""
        del types
        given = tensors_of([*args, *kwargs.values()])
        for tensor in given:
            if tensor in self._raw:
                self.readers[self._raw[tensor]] += 1
        for term, other in _summands(func, args, kwargs):
            name = self._term.get(term)
            if name is not None and self._level.get(other, -1) < self.order.index(name):
                self.joins.add(name)
        level = max((self._level.get(tensor, -1) for tensor in given), default=-1)
        result = func(*args, **kwargs)
        for tensor in tensors_of(result):
            self._level[tensor] = max(self._level.get(tensor, -1), level)
            for outputs in (self._raw, self._term, self._given):  # if it was changed in place, it is another tensor now
                outputs.pop(tensor, None)
        return result


def _summands(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Return both orders of the two terms if the operation is a plain sum of equal shapes."""
    if func not in ADD_OPS or kwargs.get("alpha", 1) != 1 or len(args) != 2:
        return []
    a, b = args
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
        return []
    return [(a, b), (b, a)]


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the first argument of a call if it is a tensor."""
    value = args[0] if args else next(iter(kwargs.values()), None)
    return value if isinstance(value, Tensor) else None


class OtherTerm(DispatchMode):
    """Calls a function with what is about to be added to `term`; the function may raise to end the pass."""

    def __init__(self, on_sum: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.term: Tensor | None = None
        self._on_sum = on_sum

    def dispatched(self, func: Any, types: Iterable[type], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, after `on_sum` if it adds something to the term."""
        del types
        if self.term is not None:
            for term, other in _summands(func, args, kwargs):
                if term is self.term:
                    self._on_sum(other)
                    break
        return func(*args, **kwargs)
