"""One thread at a time works on models.

Running a model under hooks, switching modes and gradients, torch's switch of the fused attention and its random states
belong to the whole process: two threads would disturb each other, on one model or on two. So every verb takes a turn
for as long as it runs, and another thread that calls one waits. Within a thread, verbs may call verbs; so may threads
that a user's metric starts, which the metric waits for. Plain forward passes take no turn.
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

from rankfold.errors import RankfoldWarning

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = 60.0
"""Seconds after which a thread that waits says so."""


@dataclass(frozen=True, eq=False)
class _Rest:
    """A turn that is interrupted: whose, how deep in verbs, and the threads that were there before."""

    owner: threading.Thread
    depth: int
    known: frozenset[threading.Thread]


class _Turns:
    """Whose turn it is, how deep in its verbs that thread is, and in how many blocks that nobody may interrupt."""

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
            f"this thread waits for the thread {owner.name!r}, which has been working on models for {PATIENCE} s or "
            "more: one thread at a time does. If that thread waits for this one (a data loader, a metric or a callback "
            "that hands work to another thread), neither will end: call rankfold in the same thread there.",
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
        """Interrupt the turn for threads that are started from now on; None if this cannot be."""
        me = threading.current_thread()
        with self.free:
            if self.owner is not me or self.firm:
                return None
            rest = _Rest(me, self.depth, frozenset(threading.enumerate()))
            self.rests.append(rest)
            self.owner, self.depth = None, 0
        return rest

    def resume(self, rest: _Rest) -> None:
        """Take up the turn again, after whoever came in between has finished."""
        with self.free:
            while self.owner is not None or self.rests[-1] is not rest:
                self.free.wait()
            self.rests.pop()
            self.owner, self.depth = rest.owner, rest.depth

    def after_fork(self) -> None:
        """In the child only the thread that forked is left: nobody else will ever give the turn back."""
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
    """Wait until no other thread works on models, and keep them waiting during the block.

    Parameters
    ----------
    firm : bool
        Whether a model is in a state within the block that no other thread may see: then `resting` does nothing.
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
    """Let threads that are started during the block work on models: the user's code there may wait for them."""
    rest = _turns.rest()
    try:
        yield
    finally:
        if rest is not None:
            _turns.resume(rest)


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function take a turn for as long as it runs."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with turn():
            return function(*args, **kwargs)

    return run
