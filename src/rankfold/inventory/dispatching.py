"""A mode that sees every operation of a run, and does not import torch's compiler."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """Base of modes that implement `dispatched`, which torch's compiler never traces.

    torch protects the handlers of modes from its compiler by importing the compiler at their first operation, which
    takes more than a second. These modes do so only if it has been imported: otherwise nothing can be compiled.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: torch does not wrap the handler."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Handle one operation."""
        kind = type(self)
        handle = _untraced(kind) if "torch._dynamo" in sys.modules else kind.dispatched
        return handle(self, func, types, args, kwargs or {})

    def dispatched(self, func: Any, types: Iterable[type], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of an operation, or ``NotImplemented``."""
        raise NotImplementedError


@cache
def _untraced(kind: type[DispatchMode]) -> Callable[..., Any]:
    return torch.compiler.disable(kind.dispatched)
