"""Whatever a forward pass changes in a model is as before when rankfold has run it."""

from __future__ import annotations

import random
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.inventory import KeptState, undisturbed

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))


@dataclass(slots=True)
class Slots:
    """A cache of the user's, without a ``__dict__``."""

    keys: list[Tensor] = field(default_factory=list)
    length: int = 0


class Cache:
    """A cache of the user's, changed in place and by assignment."""

    def __init__(self) -> None:
        self.store = torch.zeros(4, 8)
        self.inner: dict[str, Any] = {"steps": [0], "seen": None}


class Base(nn.Module):
    """Two layers; the hidden activations depend on the state."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.setup()

    def setup(self) -> None:
        """Make the state."""

    def step(self, h: Tensor) -> Tensor:
        """Use and change the state."""
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.step(torch.relu(self.a(x))))


class Membrane(Base):
    def setup(self) -> None:
        self.membrane = None

    def step(self, h: Tensor) -> Tensor:
        self.membrane = h if self.membrane is None else 0.9 * self.membrane + h
        return self.membrane


class Deep(Base):
    """The state is two modules down."""

    def setup(self) -> None:
        self.inside = nn.ModuleList([Membrane()])

    def step(self, h: Tensor) -> Tensor:
        return self.inside[0](h)


class Containers(Base):
    def setup(self) -> None:
        self.kept: list[Any] = [{"n": 0}]
        self.queue: deque[Tensor] = deque([torch.zeros(8)], maxlen=3)
        self.names = {"start"}
        self.table = OrderedDict(first=torch.zeros(8))
        self.user = UserDict(first=1.0)

    def step(self, h: Tensor) -> Tensor:
        self.kept[0]["n"] += 1
        self.kept.append(h)
        self.queue.append(h.mean(0))
        self.names.add(str(len(self.kept)))
        self.table["first"].add_(1)
        self.table[f"new {len(self.kept)}"] = h
        self.user["first"] *= 2
        return h + sum(self.queue) + self.table["first"] + self.user["first"]


class Objects(Base):
    def setup(self) -> None:
        self.cache, self.slots, self.space = Cache(), Slots(), SimpleNamespace(gain=1.0)

    def step(self, h: Tensor) -> Tensor:
        self.cache.store[0] += h[0]
        self.cache.inner["steps"].append(1)
        self.cache.inner["seen"] = h
        self.slots.keys.append(h)
        self.slots.length += 1
        self.space.gain += 1.0
        return h * self.space.gain + self.cache.store[0] + self.slots.length


class Buffers(Base):
    def setup(self) -> None:
        self.register_buffer("scale", None)
        self.register_buffer("count", torch.zeros(()))

    def step(self, h: Tensor) -> Tensor:
        if self._buffers["scale"] is None:
            self.scale = h.abs().mean(0) + 1
            self.register_buffer("late", h.mean(0))
        self.count += 1
        return h / self.scale + self.count


class Random(Base):
    def setup(self) -> None:
        self.numbers, self.generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
        self.old, self.array = random.Random(1), np.zeros(8, dtype=np.float32)

    def step(self, h: Tensor) -> Tensor:
        self.array += 1
        drawn = self.numbers.normal() + self.old.random() + random.random() + np.random.normal()  # noqa: NPY002
        return h + drawn + torch.rand(8, generator=self.generator) + torch.from_numpy(self.array)


class Unregistered(Base):
    """A BatchNorm that no module table holds changes its mode and its statistics."""

    def setup(self) -> None:
        self.hidden = [nn.BatchNorm1d(8)]

    def step(self, h: Tensor) -> Tensor:
        return self.hidden[0](h)


KINDS = [Membrane, Deep, Containers, Objects, Buffers, Random, Unregistered]
DATA = [torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (4, 4, 4)]


def reseeded(net: nn.Module, x: Tensor) -> Tensor:
    """Return the next output, the global generators being the same each time."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    with torch.no_grad():
        return net(x)


PLAN: dict[str, Callable[[nn.Module], object]] = {
    "inspect": lambda net: rf.inspect(net, X),
    "plan": lambda net: rf.plan(net, X, budget="params<=70%", calibration=DATA, strategy="energy"),
    "network proxy": lambda net: rf.plan(net, X, budget="params<=70%", calibration=DATA),
    "fisher proxy": lambda net: rf.plan(
        net, X, budget="params<=70%", calibration=DATA, strategy=rf.CompressNAS(proxy="fisher")
    ),
    "compress": lambda net: rf.compress(net, X, budget="params<=70%", calibration=DATA[:1]),
    "top-1": lambda net: rf.evaluate(net, rf.top1([(x, torch.zeros(4, dtype=torch.long)) for x in DATA])),
    "own metric": lambda net: rf.evaluate(net, lambda model: float(model(X).sum())),
    "latency": lambda net: rf.compare_latency({"net": net}, X, repeats=2, warmup=0),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("verb", PLAN)
def test_the_next_call_gives_what_it_would_have_given(kind: type[Base], verb: str) -> None:
    torch.manual_seed(0)
    net, twin = kind().eval(), kind().eval()
    twin.load_state_dict(net.state_dict())
    if isinstance(net, Unregistered):
        twin.hidden[0].load_state_dict(net.hidden[0].state_dict())  # pyright: ignore
        net.hidden[0].eval(), twin.hidden[0].eval()  # pyright: ignore
    want = reseeded(twin, X)
    PLAN[verb](net)
    assert torch.equal(reseeded(net, X), want)


@pytest.mark.parametrize("kind", [*KINDS], ids=lambda kind: kind.__name__)
def test_a_call_of_the_model_itself_does_change_the_next(kind: type[Base]) -> None:
    torch.manual_seed(0)
    net = kind()
    assert not torch.equal(reseeded(net, X), reseeded(net, X)) or kind is Unregistered


def test_identities_and_order_are_kept() -> None:
    net = Containers().eval()
    held = {name: id(value) for name, value in vars(net).items()}
    names, contents = list(net._buffers), [id(v) for v in net.kept]
    with undisturbed(net):
        net(X)
        assert len(net.kept) == 2
    assert {name: id(value) for name, value in vars(net).items()} == held
    assert (list(net._buffers), [id(v) for v in net.kept]) == (names, contents)
    assert list(net.table) == ["first"]
    assert not net.table["first"].any()


def test_every_batch_meets_the_model_as_it_was_handed_over() -> None:
    net = Membrane().eval()
    alone = net.a(X).relu()
    seen = []
    net.b.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rf.evaluate(net, rf.top1([(X, torch.zeros(4, dtype=torch.long)), (X[:2], torch.zeros(2, dtype=torch.long))]))
    assert len(seen) == 2  # the second batch is smaller: a state of the first could not be added to it
    assert all(torch.allclose(h, alone[: len(h)]) for h in seen)


def test_both_networks_of_a_sequential_fit_start_equal() -> None:
    torch.manual_seed(0)
    net = Membrane().eval()
    plan = rf.plan(net, X, budget="params<=99%", methods="svd", strategy=rf.CompressNAS(proxy="weight"))
    whole = rf.apply(net, plan, DATA, reconstruct="sequential")
    shuffled = rf.apply(net, plan, DATA[::-1], reconstruct="sequential")
    for x in DATA:
        whole.membrane = shuffled.membrane = None
        assert torch.allclose(whole(x), shuffled(x), atol=1e-4)  # the order of the batches makes no difference


def test_backward_is_not_spoilt_where_nothing_changed() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)).eval()
    loss = net(X).square().sum()
    rf.inspect(net, X)
    loss.backward()
    assert net[0].weight.grad is not None


def test_requires_grad_and_modes_are_kept_when_the_block_raises() -> None:
    net = Buffers()
    net.a.weight.requires_grad_(False)

    def fail(model: nn.Module) -> float:
        model(X)
        net.b.bias.requires_grad_(False)
        raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        rf.evaluate(net, fail)
    assert net.scale is None
    assert "late" not in net._buffers
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]


def test_the_state_is_kept_in_little_time() -> None:
    import time

    net = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(250)))
    start = time.process_time()
    for _ in range(10):
        KeptState(net).reset()
    assert time.process_time() - start < 2  # 750 modules; about 0.2 s
