"""Streams of the global generators do not disturb each other."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from rankfold.tune.randomness import RandomStream, entropy, preserved

CPU = torch.device("cpu")


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_equal_keys_give_equal_streams() -> None:
    def first(*key: int | str) -> tuple[float, ...]:
        with RandomStream(CPU, *key):
            return draw()

    assert first(0, "data", 1) == first(0, "data", 1)
    different = {first(0, "data", 1), first(1, "data", 1), first(0, "model", 1), first(0, "data", 2)}
    assert len(different) == 4
    assert all(len({d[i] for d in different}) == 4 for i in range(3)), "each generator is seeded"


def test_streams_can_be_interleaved_and_nested() -> None:
    with RandomStream(CPU, 1):
        wanted = [draw() for _ in range(3)]
    before = draw()
    a, b = RandomStream(CPU, 1), RandomStream(CPU, 2)
    found = []
    for _ in range(3):
        with b:
            draw()
            with a:
                found.append(draw())
            draw()
        draw()
    assert found == wanted
    assert before not in found


def test_the_outside_goes_on_as_if_nothing_had_been() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    wanted = [draw(), draw()]
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    found = [draw()]
    with RandomStream(CPU, 5):
        draw()
    with pytest.raises(IndexError), preserved(CPU):
        [torch.manual_seed(9), draw()].pop(2)
    assert [*found, draw()] == wanted


def test_entropy() -> None:
    seeds = {entropy(*key) for key in [(0,), (1,), (0, 0), ("a",), ("b",), (0, "a"), (2**40,)]}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert entropy(3, "x") == entropy(3, "x")
