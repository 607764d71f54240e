"""A decorator for functions whose models must be trainable wherever they are called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def trainable(verb: Callable[P, R]) -> Callable[P, R]:
    """Run a function outside of the caller's ``torch.inference_mode`` and ``torch.no_grad``.

    Parameters and buffers created in inference mode can never be trained.
    """

    @functools.wraps(verb)
    def outside(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.enable_grad():
            return verb(*args, **kwargs)

    return outside
