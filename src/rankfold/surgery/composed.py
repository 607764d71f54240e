"""A weight that is computed when it is read: writing to it raises, because the value would be lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankfold.errors import ComputedWeightError

# Functions that write, by name. Version counters reveal other writes, except in inference mode and writes to the tensor
# object.
_WRITES = frozenset(
    {
        "__set__", "__delete__", "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__",
        "__ifloordiv__", "__imod__", "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
        "register_hook", "register_post_accumulate_grad_hook",
    }
)  # fmt: skip
_FLAG = "requires_grad_"


def guarded(weight: Tensor, title: str) -> Tensor:
    """Return a computed weight as a tensor that raises when it is written to; `title` is the layer's, for the message.

    While torch records operations (compiling, exporting, tracing, function transforms), return the plain tensor.
    """
    if (
        type(weight) is not Tensor
        or torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._functorch.is_functorch_wrapped_tensor(weight)  # pyright: ignore[reportAttributeAccessIssue]
    ):
        return weight
    out = weight.as_subclass(ComposedWeight)
    out._title = title
    return out


class _LikeParameters(type(Tensor)):
    """Count parameters among the instances: ``torch.testing.assert_close`` compares only tensors of related types."""

    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or isinstance(instance, nn.Parameter)


class ComposedWeight(Tensor, metaclass=_LikeParameters):
    """The weight of a factored layer, as model code reads it.

    Results of operations are plain tensors; those that share the weight's memory (``.data``, ``.detach()``, views) are
    guarded as well. Writing raises `ComputedWeightError`, because the layer computes with its factors.
    """

    _title: str
    _derived = False

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function on plain tensors; raise if it writes to a composed weight."""
        kwargs = kwargs or {}
        composed = list(_composed((*args, *kwargs.values())))
        name = getattr(func, "__name__", "")
        targets = list(_composed((args[:1], kwargs.get("out"))))
        out_given = next(_composed((kwargs.get("out"),)), None) is not None
        if targets and (out_given or _writes(name, targets[0])):
            refuse_write(targets[0]._title, name)
        with torch._C.DisableTorchFunctionSubclass():
            before = [_version(tensor) for tensor in composed]
            out = func(*args, **kwargs)
            for tensor, version in zip(composed, before, strict=True):
                if _version(tensor) != version:  # it was a temporary: nothing is lost
                    refuse_write(tensor._title, name)
            return out if name == _FLAG else _guarded_like(out, composed)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; ``nn.Parameter(layer.weight)`` marks its copy as a parameter and gets a real one."""
        if name == "_is_param":
            self.__class__ = nn.Parameter  # pyright: ignore[reportAttributeAccessIssue]
        elif not (self._derived or name.startswith("_") or hasattr(Tensor, name)):
            refuse_write(self._title, name)  # an attribute such as `no_decay` would be lost with this copy
        else:
            super().__setattr__(name, value)

    def set_(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002 - torch does not ask `__torch_function__`
        """Raise `ComputedWeightError`."""
        refuse_write(self._title, "set_")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return a plain copy without graph."""
        with torch._C.DisableTorchFunctionSubclass():
            copy = self.as_subclass(Tensor).detach().clone()
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a plain tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor).__reduce_ex__(protocol)


def refuse_computed(value: object, name: str) -> None:
    """Raise `ComputedWeightError` if a value is a composed weight, before it is registered under a name."""
    if type(value) is ComposedWeight:
        refuse_write(value._title, name)


def refuse_write(title: str, name: str) -> None:
    """Raise `ComputedWeightError` for `name`, which would write to the weight of a layer."""
    raise ComputedWeightError(
        f"{title} is factored: its weight is computed from the factors at every read, so what {name!r} writes to it "
        "would be lost. Merge adapters, prune, tie or initialize before compressing and plan again; or change the "
        "factors, which are the layer's parameters (requires_grad_(False) of the layer freezes them)."
    )


def _writes(name: str, target: ComposedWeight) -> bool:
    if name == _FLAG:
        return not target._derived  # a detached tensor has its own flag
    return name in _WRITES or (name.endswith("_") and not name.endswith("__"))


def _composed(values: Any) -> Iterator[ComposedWeight]:
    for value in values:
        if type(value) is ComposedWeight:
            yield value
        elif isinstance(value, list | tuple):
            yield from _composed(value)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _guarded_like(out: Any, composed: list[ComposedWeight]) -> Any:
    """Return a result in which the tensors that share memory with a composed weight are guarded."""
    if isinstance(out, Tensor):
        source = next((t for t in composed if _shares(out, t)), None)
        if source is None:
            return out
        view = out if type(out) is ComposedWeight else out.as_subclass(ComposedWeight)
        if view is not source:
            view._title, view._derived = source._title, True
        return view
    if isinstance(out, tuple) and hasattr(out, "_fields"):
        return type(out)(*(_guarded_like(item, composed) for item in out))
    if type(out) in (list, tuple):
        return type(out)(_guarded_like(item, composed) for item in out)
    if isinstance(out, np.ndarray) and out.base is not None:
        out.setflags(write=False)  # it shares the weight's memory
    return out


def _shares(a: Tensor, b: Tensor) -> bool:
    try:
        return a.untyped_storage()._cdata == b.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # sparse tensors have no storage
        return False
