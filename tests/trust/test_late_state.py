"""Buffers and layers that a network makes in its first forward pass: they load, or are refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.errors import ModelError, PlanMismatch

X = torch.randn(16, 32, generator=torch.Generator().manual_seed(3))
BUDGET = "params<=60%"


class Scaled(nn.Module):
    """A buffer that is None until the first pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 8)
        self.register_buffer("scale", None)

    def forward(self, x: Tensor) -> Tensor:
        if self._buffers["scale"] is None:
            self.scale = x.detach().abs().mean(0)
        return self.b(torch.relu(self.a(x / self.scale)))


class Late(Scaled):
    """A buffer that is not there until the first pass."""

    def __init__(self) -> None:
        super().__init__()
        del self._buffers["scale"]

    def forward(self, x: Tensor) -> Tensor:
        if "scale" not in self._buffers:
            self.register_buffer("scale", x.detach().abs().mean(0))
        return self.b(torch.relu(self.a(x / self.scale)))


class Nested(nn.Module):
    """The same, one module down."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Late(), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Lazy(nn.Module):
    """A layer that is not there until the first pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), None

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        if self.b is None:
            self.b = nn.Linear(x.shape[1], 8)
        return self.b(x)


@pytest.mark.parametrize("kind", [Scaled, Late, Nested])
@pytest.mark.parametrize("used", [False, True])
def test_an_artifact_loads_onto_a_new_instance(kind: type[nn.Module], used: bool, tmp_path: Path) -> None:
    net = kind().eval()
    if used:
        net(X)
    result = rf.compress(net, X, budget=BUDGET, output=tmp_path / "out")
    again = rf.load(tmp_path / "out", kind().eval())
    assert torch.equal(again(X), result.model(X))
    other = torch.randn(16, 32)
    assert torch.equal(again(other), result.model(other))


def test_buffers_of_another_class_are_refused(tmp_path: Path) -> None:
    class Other(Scaled):
        pass

    net = Scaled().eval()
    net(X)
    rf.save(rf.apply(net, rf.plan(net, X, budget=BUDGET)), tmp_path / "out")
    with pytest.raises(PlanMismatch, match="scale is not in the model"):
        rf.load(tmp_path / "out", Other().eval())


def test_training_that_makes_a_buffer_resumes(tmp_path: Path) -> None:
    net = Scaled()
    small = rf.apply(net, rf.plan(net, X, budget=BUDGET))
    recipe: dict[str, Any] = {"data": [X, X + 1], "checkpoint": tmp_path / "c.pt"}
    whole = rf.finetune(small, rf.FineTune(data=[X, X + 1], epochs=2), teacher=net)
    rf.finetune(small, rf.FineTune(**recipe, epochs=2, max_steps=4), teacher=net)
    resumed = rf.finetune(small, rf.FineTune(**recipe, epochs=2, max_steps=4), teacher=net)
    assert torch.equal(resumed.model.scale, whole.model.scale)  # pyright: ignore
    assert net._buffers["scale"] is None


@pytest.mark.parametrize("verb", ["inspect", "plan", "compress"])
def test_a_layer_that_is_not_there_yet_is_asked_for(verb: str, tmp_path: Path) -> None:
    net, out = Lazy().eval(), tmp_path / "out"
    calls = {
        "inspect": lambda: rf.inspect(net, X),
        "plan": lambda: rf.plan(net, X, budget=BUDGET),
        "compress": lambda: rf.compress(net, X, budget=BUDGET, output=out),
    }
    with pytest.raises(ModelError, match=r"creates 'b\.weight' in its first forward pass.*Run the model once before"):
        calls[verb]()
    assert net.b is None
    assert not out.exists()


def test_an_artifact_of_late_layers_loads_onto_an_instance_that_has_run(tmp_path: Path) -> None:
    net, new = Lazy().eval(), Lazy().eval()
    net(X)
    result = rf.compress(net, X, budget=BUDGET, output=tmp_path / "out")
    with pytest.raises(PlanMismatch, match="run the new instance once before loading"):
        rf.load(tmp_path / "out", new)
    new(X)
    assert torch.equal(rf.load(tmp_path / "out", new)(X), result.model(X))


def test_an_artifact_of_lazy_modules_asks_for_an_instance_that_has_run(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.Linear(32, 8)).eval()

    net, new = network(), network()
    with pytest.raises(ModelError, match=r"'0\.weight' of the model belongs to a lazy module"):
        rf.compress(net, X, budget=BUDGET, output=tmp_path / "out")
    net(X)
    result = rf.compress(net, X, budget=BUDGET, output=tmp_path / "out")
    with pytest.raises(PlanMismatch, match="lazy modules that are not initialized.*run the new instance once"):
        rf.load(tmp_path / "out", new)
    new(X)
    assert torch.equal(rf.load(tmp_path / "out", new)(X), result.model(X))


class Membrane(nn.Module):
    """A buffer that has a row for each sample of the last batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 8)
        self.register_buffer("charge", torch.zeros(1, 32))

    def forward(self, x: Tensor) -> Tensor:
        old = self.charge if len(self.charge) == len(x) else torch.zeros_like(x)
        self.charge = old * 0.9 + torch.relu(self.a(x)).detach()
        return self.b(self.charge)


def test_a_buffer_of_the_last_batch_loads_onto_an_instance_that_has_had_one(tmp_path: Path) -> None:
    net, new = Membrane().eval(), Membrane().eval()
    net(X)
    charge = net.charge.clone()
    result = rf.compress(net, X, budget=BUDGET, calibration=[X[:4]], output=tmp_path / "out")
    assert torch.equal(net.charge, charge)
    with pytest.raises(PlanMismatch, match=r"(?s)charge has shape.*resizes buffers in its forward pass, run the new"):
        rf.load(tmp_path / "out", new)
    new(X)
    again = rf.load(tmp_path / "out", new)
    assert torch.equal(again.get_buffer("charge"), charge)
    assert torch.equal(again(X), result.model(X))


class Renormalized(nn.Module):
    def __init__(self, *, decay: float, data: bool) -> None:
        super().__init__()
        self.a, self.b, self.decay, self.data = nn.Linear(32, 32), nn.Linear(32, 8), decay, data

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            (self.a.weight.data if self.data else self.a.weight).mul_(self.decay)
        return self.b(self.a(x))


@pytest.mark.parametrize("data", [True, False])
def test_a_parameter_that_forward_changes_is_named_and_put_back(data: bool) -> None:
    net = Renormalized(decay=0.9, data=data)
    before = net.a.weight.clone()
    with pytest.raises(ModelError, match=r"changes its parameter 'a\.weight' in forward"):
        rf.inspect(net, X)
    assert torch.equal(net.a.weight, before)
    assert rf.inspect(Renormalized(decay=1.0, data=data), X).layers  # writing the same values changes nothing
