"""Counting the multiply-accumulates of every operation of a run, whatever the release of torch.

The formulas are rankfold's own: those of `torch.utils.flop_counter` differ from release to release.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from rankfold.inventory.formulas import FORMULAS, Formula, may_multiply

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


class OperationCounter(TorchDispatchMode):
    """Counts the multiply-accumulates of all operations inside; it sees what torch dispatches in this thread.

    Attributes
    ----------
    macs : int
        Of the operations that have a formula.
    uncounted : set of str
        Operations that ran, may do such work, and have no formula.
    """

    # Otherwise torch refuses to run an operation that takes functions, such as flex attention.
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.uncounted: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if any(_wraps_tensors(cls) for cls in types):
            return NotImplemented  # it does its work on the tensors that it wraps, and those operations are seen
        name = operation_name(func)
        formula = _formula(name, func, kwargs)
        if formula is None and _is_composite(func) and not any(tensor.is_nested for tensor in _tensors(args)):
            # In inference mode operations arrive whole that are otherwise taken apart before.
            with self:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        result = func(*args, **kwargs)
        if formula is None:
            if may_multiply(name):
                self.uncounted.add(name)
        elif any(tensor.layout in _SPARSE for tensor in _tensors(args)):
            self.uncounted.add(f"{name} (sparse)")
        else:
            self._add(name, formula, args, result)
        return result

    def _add(self, name: str, formula: Formula, args: Sequence[Any], result: Any) -> None:
        try:
            self.macs += int(formula(args, result))
        except Exception:
            # Another release may give the operation other arguments: then the total is known to be partial.
            self.uncounted.add(name)


def operation_name(func: Any) -> str:
    """Return an operation's name without its overload, such as ``aten::mm``; in-place variants share the name."""
    if isinstance(func, OpOverload):
        name = func._schema.name
        return name[:-1] if name.startswith("aten::") and name.endswith("_") else name
    return f"higher_order::{func.name() if callable(getattr(func, 'name', None)) else func}"


def _is_composite(func: Any) -> bool:
    """Tell whether an operation is defined by others."""
    return isinstance(func, OpOverload) and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE)


def _wraps_tensors(cls: type) -> bool:
    return cls is not Tensor and hasattr(cls, "__tensor_flatten__")


def _tensors(args: Iterable[Any]) -> Iterable[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _tensors(arg)


def _formula(name: str, func: Any, kwargs: Mapping[str, Any]) -> Formula | None:
    if name in FORMULAS:
        return FORMULAS[name]
    if not name.startswith("aten::") and (module := sys.modules.get("torch.utils.flop_counter")):
        # What the user has registered for an operation of theirs, in FLOPs.
        flops = module.flop_registry.get(getattr(func, "overloadpacket", func))
        if flops is not None:
            return lambda args, out: flops(*args, **kwargs, out_val=out) // 2
    return None
