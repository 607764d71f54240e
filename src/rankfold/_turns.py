"""Turns: only one thread at a time works on models.

Hooks, train/eval modes, gradient flags, torch's switch for fused attention and random states are shared by the whole
process, so two threads would interfere with each other even on different models. Every public function that runs or
changes models therefore takes a turn while it runs, and other threads wait. Within a thread, turns nest. Threads that a
user's metric starts, and waits for, may take turns as well. Plain forward passes take no turn.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch

from rankfold.errors import RankfoldWarning

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = 60.0
"""Seconds after which a waiting thread issues a warning."""


@dataclass(frozen=True, eq=False)
class _Rest:
    """An interrupted turn: its owner, its nesting depth, and the threads that existed before."""

    owner: threading.Thread
    depth: int
    known: frozenset[threading.Thread]


class _Turns:
    """The owner of the turn, its nesting depth, and the number of its blocks that must not be interrupted."""

    def __init__(self) -> None:
        self.free = threading.Condition(threading.Lock())
        self.owner: threading.Thread | None = None
        self.depth = 0
        self.firm = 0
        self.rests: list[_Rest] = []

    def take(self) -> None:
        me = threading.current_thread()
        with self.free:
            if not self.free.wait_for(lambda: self._admits(me), PATIENCE):
                self._tell_of_waiting()
                self.free.wait_for(lambda: self._admits(me))
            self.owner = me
            self.depth += 1

    def _tell_of_waiting(self) -> None:
        owner = self.owner or self.rests[-1].owner
        warnings.warn(
            f"this thread is waiting for the thread {owner.name!r}, which has been working on models for {PATIENCE} s "
            "or more; only one thread at a time can. If that thread waits for this one (a data loader, a metric or a "
            "callback that hands work to another thread), both are deadlocked: call rankfold in the same thread there.",
            RankfoldWarning,
            stacklevel=5,
        )

    def give(self) -> None:
        with self.free:
            self.depth -= 1
            if self.depth == 0:
                self.owner = None
                self.free.notify_all()

    def rest(self) -> _Rest | None:
        """Interrupt the turn for threads that are started from now on; return None if that is not possible."""
        me = threading.current_thread()
        with self.free:
            if self.owner is not me or self.firm:
                return None
            rest = _Rest(me, self.depth, frozenset(threading.enumerate()))
            self.rests.append(rest)
            self.owner, self.depth = None, 0
        return rest

    def resume(self, rest: _Rest) -> None:
        """Resume the turn after the threads in between have finished."""
        with self.free:
            while self.owner is not None or self.rests[-1] is not rest:
                self.free.wait()
            self.rests.pop()
            self.owner, self.depth = rest.owner, rest.depth

    def after_fork(self) -> None:
        """Release the turns of other threads in a forked child, where only the forking thread exists."""
        self.free = threading.Condition(threading.Lock())
        me = threading.current_thread()
        self.rests = [rest for rest in self.rests if rest.owner is me]
        if self.owner is not me:
            self.owner, self.depth, self.firm = None, 0, 0

    def _admits(self, me: threading.Thread) -> bool:
        if self.owner is not None or not self.rests:
            return self.owner in (None, me)
        return me is self.rests[-1].owner or me not in self.rests[-1].known


_turns = _Turns()
os.register_at_fork(after_in_child=_turns.after_fork)


@contextmanager
def turn(*, firm: bool = False) -> Iterator[None]:
    """Wait until no other thread works on models, and keep the others waiting during the block.

    In a `firm` block, models are in a state that no other thread may see, so `resting` has no effect.
    """
    _turns.take()
    _turns.firm += firm
    try:
        yield
    finally:
        _turns.firm -= firm
        _turns.give()


@contextmanager
def resting() -> Iterator[None]:
    """Let threads that are started during the block work on models, because the user's code may wait for them."""
    rest = _turns.rest()
    try:
        yield
    finally:
        if rest is not None:
            _turns.resume(rest)


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function take a turn while it runs."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with turn():
            return function(*args, **kwargs)

    return run


def in_grad_turn(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function take a turn, outside of the caller's ``torch.inference_mode`` and ``torch.no_grad``.

    Parameters and buffers created in inference mode can never be trained.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with turn(), torch.inference_mode(False), torch.enable_grad():
            return function(*args, **kwargs)

    return run
