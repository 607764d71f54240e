"""Models that hold what cannot be copied."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.errors import ModelError
from rankfold.inventory import copy_model

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 8)
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


@dataclass(slots=True)
class Slots:
    """With an own ``__getstate__``, which dataclasses give to slots."""

    first: Any
    second: Any = None


class Plain:
    def __init__(self, first: Any) -> None:
        self.first, self.more = first, {"list": [first]}


def graph() -> Tensor:
    return torch.ones(3, requires_grad=True) * 2


NESTED: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda v: v,
    "list": lambda v: [1, v],
    "dict": lambda v: {"v": {"w": v}},
    "tuple": lambda v: (v, [v]),
    "deque": lambda v: deque([v]),
    "object": Plain,
    "slots": lambda v: Slots([v]),
    "namespace": lambda v: SimpleNamespace(v=v),
    "module": lambda v: nn.ModuleList([Net([v])]),
    "hidden module": lambda v: [Net({"v": v})],
}
HELD: dict[str, Callable[[], Any]] = {
    "graph": graph,
    "lock": threading.Lock,
    "condition": threading.Condition,
    "file": io.StringIO,
    "generator": lambda: (n for n in range(3)),
    "pool": lambda: ThreadPoolExecutor(1),
    "view": lambda: memoryview(b"abc"),
    "Python module": lambda: io,
}


@pytest.mark.parametrize("place", NESTED)
@pytest.mark.parametrize("what", HELD)
def test_a_copy_is_made_whatever_the_model_holds(place: str, what: str) -> None:
    net = Net(NESTED[place](HELD[what]()))
    twin: Any = copy_model(net)
    assert type(twin.held) is type(net.held)
    assert twin.a.weight is not net.a.weight
    assert torch.equal(twin(X), net(X))
    if place in ("list", "dict", "object", "deque", "namespace", "slots"):
        assert twin.held is not net.held  # what holds the thing is copied, the thing is shared or has no graph


def test_tensors_are_copied_without_graph_and_locks_shared() -> None:
    lock, tensor = threading.Lock(), graph()
    net = Net(Slots([tensor], {"lock": lock, "n": [1]}))
    twin: Any = copy_model(net)
    copy = twin.held.first[0]
    assert torch.equal(copy, tensor)
    assert copy.grad_fn is None
    assert copy.data_ptr() != tensor.data_ptr()
    assert tensor.grad_fn is not None
    assert twin.held.second["lock"] is lock
    assert twin.held.second["n"] is not net.held.second["n"]


def test_a_gradient_with_a_graph() -> None:
    leaf = torch.ones(3, requires_grad=True)
    leaf.grad = graph()
    twin: Any = copy_model(Net([leaf]))
    assert torch.equal(twin.held[0], leaf)
    assert twin.held[0].requires_grad


class Stubborn(Net):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise ValueError("this one holds a socket")


def test_the_advice_names_a_function_that_exists() -> None:
    net = Stubborn(None)
    plan = rf.plan(net, X, budget="params<=70%")
    steps: dict[str, Callable[[], object]] = {
        "rankfold.apply_": lambda: rf.apply(net, plan),
        "rankfold.finetune_": lambda: rf.finetune(net, rf.FineTune(data=[X]), teacher=Net(None)),
    }
    for name, step in steps.items():
        with pytest.raises(ModelError, match="cannot be copied: this one holds a socket") as caught:
            step()
        assert name in str(caught.value)
        assert hasattr(rf, name.removeprefix("rankfold."))
    with pytest.raises(ModelError, match="cannot be copied") as caught:
        rf.strip(net)
    assert "_," not in str(caught.value)  # there is no strip_
    assert "a.weight" not in rf.apply_(net, plan).state_dict() or "b.weight" not in net.state_dict()


def test_a_blank_parameter_has_no_values_in_the_copy_unless_other_tensors_share_them() -> None:
    net = Net(None)
    net.register_buffer("view", net.b.weight.detach()[:2])
    twin: Any = copy_model(net, blank=[net.a.weight, net.b.weight])
    assert not twin.a.weight.any()
    assert twin.a.weight.shape == net.a.weight.shape
    assert twin.a.weight.requires_grad
    assert torch.equal(twin.b.weight, net.b.weight)
    assert torch.equal(twin.a.bias, net.a.bias)
    tied = Net(None)
    tied.c, tied.d = nn.Linear(16, 16), nn.Linear(16, 16)
    tied.c.weight = nn.Parameter(tied.a.weight.detach())  # another parameter of the same memory
    tied.d.weight = tied.b.weight  # the same parameter twice
    twin = copy_model(tied, blank=[tied.a.weight, tied.b.weight])
    assert torch.equal(twin.a.weight, tied.a.weight)
    assert twin.d.weight is twin.b.weight
    assert torch.equal(twin.b.weight, tied.b.weight)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_kept_matrix_in_compressed_rows_is_copied() -> None:
    net = nn.Linear(8, 8)
    held: Any = net
    held.kept = [torch.eye(8).to_sparse_csr()]
    assert torch.equal(copy_model(held).kept[0].to_dense(), torch.eye(8))
