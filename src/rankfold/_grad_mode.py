"""Verbs that give models which can be trained, wherever they are called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def trainable(verb: Callable[P, R]) -> Callable[P, R]:
    """Let a verb leave the caller's ``torch.inference_mode`` and ``torch.no_grad``.

    Parameters and buffers that are made in inference mode could never be trained.
    """

    @functools.wraps(verb)
    def outside(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.enable_grad():
            return verb(*args, **kwargs)

    return outside
