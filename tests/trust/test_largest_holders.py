"""What cannot be compressed is named where it decides: in the coverage line and where a budget is out of reach."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.errors import InfeasibleBudget, ModelError

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


class Language(nn.Module):
    """An embedding, optionally tied to the head, and two layers."""

    def __init__(self, *, vocabulary: int = 400, tied: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, 32)
        self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, vocabulary if tied else 8, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(self.tokens(ids))))))


class Bags(nn.Module):
    """Two bags of words."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.EmbeddingBag(300, 16), nn.EmbeddingBag(200, 16)
        self.mix = nn.Linear(32, 32)

    def forward(self, ids: Tensor) -> Tensor:
        return self.mix(torch.cat([self.user(ids), self.item(ids)], 1))


class Speech(nn.Module):
    """A recurrent layer holds nearly all."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(32, 64, batch_first=True)
        self.out = nn.Linear(64, 32)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.cells(nn.functional.one_hot(ids, 32).float())[0])


class Table(nn.Module):
    """A parameter of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(300, 32))
        self.out = nn.Linear(32, 32)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.table[ids])


CASES = {
    "embedding": (Language, "tokens (embedding)", ["'tokens' (Embedding) holds 12,800 parameters, 74% of the total"]),
    "tied": (lambda: Language(tied=True), "head (its weight is shared with 'tokens' (Embedding))", ["'tokens'"]),
    "bags": (
        Bags,
        "user (embedding)",
        ["'user' (EmbeddingBag) holds 4,800 parameters, 53%", "'item' (EmbeddingBag) holds 3,200 parameters, 35%"],
    ),
    "recurrent": (Speech, "cells (recurrent)", ["'cells' (LSTM) holds 25,088 parameters, 92%"]),
    "own": (Table, "the model itself", ["the model itself (Table) holds 9,600 parameters, 90%"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_coverage_line_names_the_largest_rest(case: str) -> None:
    make, rest, _ = CASES[case]
    inventory = rf.inspect(make(), IDS)
    line = inventory.summary()
    assert f"; largest rest: {rest}" in line
    assert line.endswith(f" {inventory.holders[0].share:.0%}")
    assert "\n" not in line


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [{}, {"strategy": "uniform"}, {"budget": "flash<=20%"}])
def test_a_budget_out_of_reach_names_what_stands_in_its_way(case: str, options: dict[str, str]) -> None:
    make, _, named = CASES[case]
    with pytest.raises(InfeasibleBudget) as caught:
        rf.compress(make(), IDS, **{"budget": "params<=20%", **options})
    assert "Not compressible: " in str(caught.value)
    assert all(name in str(caught.value) for name in named)
    assert "exclude fewer layers" not in str(caught.value)


def test_excluded_layers_are_what_can_be_changed() -> None:
    with pytest.raises(InfeasibleBudget, match=r"exclude fewer layers\..*'a' \(Linear 32->64\).*excluded by 'a'"):
        rf.compress(Language(vocabulary=40), IDS, budget="params<=20%", exclude="a")


def test_without_a_large_rest_the_line_is_short() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64))
    assert rf.inspect(net, torch.randn(2, 64)).summary().endswith("(2 of 2 layers)")
    with pytest.raises(InfeasibleBudget) as caught:
        rf.plan(net, torch.randn(2, 64), budget="params<=1%")
    assert "What cannot" not in str(caught.value)


@pytest.mark.parametrize("make", [lambda: nn.Embedding(50, 4), lambda: nn.Sequential(nn.Embedding(50, 4))])
def test_a_model_of_nothing_else(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ModelError, match=r"holds 200 parameters, 100% of the total \(embedding"):
        rf.compress(make(), IDS, budget="params<=50%")


def test_the_report_says_so() -> None:
    net = Language()
    result = rf.compress(net, IDS, budget="params<=95%")
    assert any("'tokens' (Embedding) holds" in note for note in result.report.notes)


class Products(nn.Module):
    """Multiplications that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((x @ x.mT) @ x)


def test_operations_outside_of_layers_are_named_for_macs() -> None:
    with pytest.raises(InfeasibleBudget, match=r"outside of convolutions and linear layers make up 80% of the MACs"):
        rf.plan(Products(), torch.randn(1, 64, 32), budget="macs<=20%")


@pytest.mark.parametrize("strategy", ["prune", "norton"])
def test_pruning_names_the_embedding(strategy: str) -> None:
    with pytest.raises(InfeasibleBudget, match="'tokens' .*embedding"):
        rf.plan(Language(), IDS, budget="params<=40%", strategy=strategy)


class Memory(nn.Module):
    """A buffer holds nearly all bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.randn(400, 32))
        self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x + self.memory.mean(0))))


def test_a_bound_on_bytes_names_the_buffer() -> None:
    with pytest.raises(InfeasibleBudget, match=r"Buffers are not compressed: 'memory' \(51,200 bytes\)"):
        rf.plan(Memory(), torch.randn(2, 32), budget="flash<=20%")
