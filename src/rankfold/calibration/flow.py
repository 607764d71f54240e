"""What becomes of a layer's output: the order of execution, the BatchNorm behind a layer, the sum it enters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from rankfold._tensors import tensors_of

SUMS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How a model uses one layer.

    Parameters
    ----------
    calls : int
        How often it is called in one forward pass.
    norm : str or None
        The BatchNorm that is the only reader of its only output: there the mean of the output can be shifted.
    joins : bool
        Whether its output (that of its `norm`, if there is one) is added to a tensor of the same shape that no later
        layer, nor this one, has a part in: the shortcut of a residual block, say.
    beside : str or None
        The layer called just before with the same input.
    """

    calls: int
    norm: str | None
    joins: bool
    beside: str | None


def observe(model: nn.Module, modules: Mapping[str, Iterable[nn.Module]], run: Callable[[], object]) -> dict[str, Use]:
    """Watch one forward pass and return the use of each layer that is called, in the order of their first calls.

    Parameters
    ----------
    model : Module
        The model, in evaluation mode.
    modules : mapping
        The modules that compute with each layer's weight, by the layer's name.
    run : callable
        Runs the model once.
    """
    watch = _Watch()
    norms = {m: path for path, m in model.named_modules() if is_steady_norm(m)}
    with ExitStack() as stack:
        for name, members in modules.items():
            for module in members:
                stack.enter_context(_hooked(module, watch.enters(name), watch.leaves(name)))
        for module in norms:
            stack.enter_context(_hooked(module, None, watch.normalised))
        with watch:
            run()
    return {name: watch.use(name, norms) for name in watch.order}


def is_steady_norm(module: nn.Module) -> bool:
    """Return whether a module is a BatchNorm that maps each channel by fixed numbers."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None


@contextmanager
def _hooked(module: nn.Module, before: Any, after: Any) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)] if before else []
    handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchDispatchMode):
    """Follows the outputs of layers from operation to operation."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []
        self.calls: Counter[str] = Counter()
        self.norms: dict[str, _BatchNorm] = {}
        self.norm_calls: Counter[nn.Module] = Counter()
        self.readers: Counter[str] = Counter()
        self.joins: set[str] = set()
        self.beside: dict[str, str] = {}
        self._last: str | None = None
        self._given: Any = WeakIdKeyDictionary()  # which layer a tensor was last given to
        self._level: Any = WeakIdKeyDictionary()  # the latest layer that had a part in a tensor
        self._raw: Any = WeakIdKeyDictionary()  # outputs of layers
        self._term: Any = WeakIdKeyDictionary()  # outputs of layers or of their norms

    def enters(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ARG001
            if name not in self.calls:
                self.order.append(name)
                given = first_tensor(args, kwargs)
                if given is not None:
                    if self._last is not None and self._given.get(given) == self._last:
                        self.beside[name] = self._last
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

    def normalised(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
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
            beside=self.beside.get(name),
        )

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
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
            for known in (self._raw, self._term, self._given):  # changed in place: no longer what it was
                known.pop(tensor, None)
        return result


def _summands(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Return both orders of the two terms, if the operation is a plain sum of equal shapes."""
    if func not in SUMS or kwargs.get("alpha", 1) != 1 or len(args) != 2:
        return []
    a, b = args
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
        return []
    return [(a, b), (b, a)]


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the first argument of a call if it is a tensor."""
    value = args[0] if args else next(iter(kwargs.values()), None)
    return value if isinstance(value, Tensor) else None


class OtherTerm(TorchDispatchMode):
    """Catches what is added to a tensor, just before it is.

    Parameters
    ----------
    found : callable
        Called with the other term; may raise to end the pass.
    """

    def __init__(self, found: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.term: Tensor | None = None
        self._found = found

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if self.term is not None:
            for term, other in _summands(func, args, kwargs or {}):
                if term is self.term:
                    self._found(other)
                    break
        return func(*args, **(kwargs or {}))
