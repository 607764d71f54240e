"""Count the multiply-accumulates of a run, operation by operation.

The formulas are rankfold's own, because those of `torch.utils.flop_counter` differ between releases of torch.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from rankfold._tensors import tensors_of
from rankfold.inventory.dispatching import DispatchMode
from rankfold.inventory.formulas import FORMULAS, Formula, may_multiply

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


class OperationCounter(DispatchMode):
    """Count the multiply-accumulates of all operations that torch dispatches in this thread.

    Parameters
    ----------
    place : callable
        Returns the place of an operation, such as the module that runs.

    Attributes
    ----------
    places : Counter
        Multiply-accumulates of the operations that have a formula, by the place where they ran.
    uncounted : set of str
        Operations that ran, may perform multiply-accumulates, and have no formula.
    """

    # Without this, torch refuses to run operations that take functions, such as flex attention.
    supports_higher_order_operators = True

    def __init__(self, place: Callable[[], Hashable] = lambda: None) -> None:
        super().__init__()
        self.place = place
        self.places: Counter[Hashable] = Counter()
        self.uncounted: set[str] = set()

    @property
    def macs(self) -> int:
        """Total of all places."""
        return self.places.total()

    def dispatched(self, func: Any, types: Iterable[type], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation and count it."""
        if any(cls is not Tensor and hasattr(cls, "__tensor_flatten__") for cls in types):
            return NotImplemented  # a wrapper: the operations on the tensors inside it are dispatched as well
        name = _operation_name(func)
        formula = _formula(name, func, kwargs)
        if formula is None and _is_composite(func) and not any(tensor.is_nested for tensor in tensors_of(args)):
            # In inference mode composite operations arrive whole; elsewhere torch decomposes them first.
            with self:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        result = func(*args, **kwargs)
        if formula is None:
            if may_multiply(name):
                self.uncounted.add(name)
        elif any(tensor.layout in _SPARSE for tensor in tensors_of(args)):
            self.uncounted.add(f"{name} (sparse)")
        else:
            try:
                self.places[self.place()] += int(formula(args, result))
            except Exception:  # the operation's arguments may differ in another release: the total is then partial
                self.uncounted.add(name)
        return result


def _operation_name(func: Any) -> str:
    """Return an operation's name without its overload, such as ``aten::mm``; in-place variants share the name."""
    if isinstance(func, OpOverload):
        name = func._schema.name
        return name[:-1] if name.startswith("aten::") and name.endswith("_") else name
    return f"higher_order::{func.name() if callable(getattr(func, 'name', None)) else func}"


def _is_composite(func: Any) -> bool:
    """Whether an operation is defined in terms of others."""
    return isinstance(func, OpOverload) and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE)


def _formula(name: str, func: Any, kwargs: Mapping[str, Any]) -> Formula | None:
    if name in FORMULAS:
        return FORMULAS[name]
    if not name.startswith("aten::") and (module := sys.modules.get("torch.utils.flop_counter")):
        # A formula that the user registered for a custom operation, in FLOPs.
        flops = module.flop_registry.get(getattr(func, "overloadpacket", func))
        if flops is not None:
            return lambda args, out: flops(*args, **kwargs, out_val=out) // 2
    return None
