"""Networks that differentiate in their forward, outputs with a graph, and verbs called without gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.errors import ModelError

X = torch.randn(4, 12, generator=torch.Generator().manual_seed(3))
DATA = [torch.randn(8, 12, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]


class Potential(nn.Module):
    """Forces from an energy; relies on gradients being on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))

    def differentiate(self, position: Tensor) -> tuple[Tensor, Tensor]:
        energy = self.net(position).sum(-1)
        return energy, -torch.autograd.grad(energy.sum(), position, create_graph=self.training)[0]

    def forward(self, position: Tensor) -> Any:
        return self.differentiate(position.detach().requires_grad_(True))


class Enabled(Potential):
    """Switches gradients on itself."""

    def forward(self, position: Tensor) -> Any:
        with torch.enable_grad():
            energy, force = self.differentiate(position.clone().requires_grad_(True))
        return {"energy": energy, "more": [force]}


class Inside(nn.Module):
    """A part of a larger network differentiates, and layers come before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(12, 12), Potential(), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.first(x))[1])


KINDS = [Potential, Enabled, Inside]
STEPS: dict[str, Callable[[nn.Module], object]] = {
    "compress": lambda net: rf.compress(net, X, budget="params<=60%"),
    "with data": lambda net: rf.compress(net, X, budget="params<=60%", calibration=DATA),
    "sequential": lambda net: rf.compress(
        net,
        X,
        budget="params<=60%",
        calibration=DATA,
        reconstruct="sequential",
        strategy=rf.CompressNAS(proxy="weight"),
    ),
    "latency": lambda net: rf.compare_latency({"net": net}, X, repeats=1, warmup=0),
    "metric": lambda net: rf.evaluate(net, lambda model: float(_first(model(X)).detach().sum())),
    "agreement": lambda net: rf.evaluate(net, rf.agreement(net, [X])),
}


def test_a_metric_runs_other_networks_without_gradients() -> None:
    """In an evaluation and after an epoch of training, whether or not the model differentiates."""
    reference = nn.Linear(12, 1)
    seen: list[bool] = []

    def metric(model: nn.Module) -> float:
        seen.append(reference(X).requires_grad or not all(p.requires_grad for p in model.parameters()))
        return float(_first(model(X)).sum())

    net = plain()
    rf.evaluate(net, metric)
    small = rf.apply(net, rf.plan(net, X, budget="params<=60%"))
    rf.finetune(small, rf.FineTune(data=DATA, epochs=1), teacher=net, metric=metric)
    assert seen == [False, False]


@pytest.mark.parametrize("kind", [Potential, Inside])
def test_a_metric_of_forces(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = kind().eval()

    def metric(model: nn.Module) -> float:
        return float(_first(model(X)).detach().sum())

    expected = metric(net)
    assert rf.evaluate(net, metric) == expected
    small = rf.apply(net, rf.plan(net, X, budget="params<=60%"))
    tuned = rf.finetune(small, rf.FineTune(data=DATA, epochs=1, distill="mse"), teacher=net, metric=metric)
    assert tuned.history[0].metric == metric(tuned.model.eval())


class Functional(Potential):
    """Differentiates by a transform, in which the layers' inputs cannot be kept."""

    def forward(self, position: Tensor) -> Tensor:
        return torch.func.grad(lambda x: self.net(x).sum())(position)


class Mapped(Potential):
    def forward(self, position: Tensor) -> Tensor:
        return torch.func.vmap(self.net)(position)


@pytest.mark.filterwarnings("ignore:the network's activations before")
@pytest.mark.parametrize("kind", [Functional, Mapped])
def test_layers_inside_of_a_transform_are_named_where_data_is_to_be_taken(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = kind().eval()
    for data in (DATA[:1], DATA):
        with pytest.raises(ModelError, match=r"layer 'net\.0' runs inside a transform of torch\.func"):
            rf.compress(net, X, budget="params<=60%", calibration=data)
    assert rf.compress(net, X, budget="params<=60%", calibration=DATA, data_aware=False).report.factored


@pytest.mark.parametrize("error", [RuntimeError("no data"), ValueError("x does not require grad")])
def test_a_metric_that_fails_is_called_once(error: Exception) -> None:
    calls: list[int] = []

    def metric(model: nn.Module) -> float:
        calls.append(1)
        raise error

    with pytest.raises(type(error), match=str(error)):
        rf.evaluate(plain(), metric)
    assert calls == [1]


def _first(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


@pytest.mark.filterwarnings("ignore:the network's activations before")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [name for name in STEPS if name != "agreement"])
def test_every_step_runs(kind: type[nn.Module], step: str) -> None:
    torch.manual_seed(0)
    net = kind().eval()
    STEPS[step](net)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize("kind", [Potential, Inside])
@pytest.mark.parametrize("distill", ["kl", "mse"])
def test_they_are_trained_by_their_teacher(kind: type[nn.Module], distill: Any) -> None:
    torch.manual_seed(0)
    net = kind()
    small = rf.apply(net, rf.plan(net, X, budget="params<=60%"))
    tuned = rf.finetune(small, rf.FineTune(data=DATA, epochs=2, loss="distill", distill=distill), teacher=net)
    moved = [not torch.equal(p, q) for p, q in zip(tuned.model.parameters(), small.parameters(), strict=True)]
    assert sum(moved) > len(moved) // 2


def test_what_is_read_on_the_way_back_is_no_use_outside_of_the_layer() -> None:
    net = Potential().eval()
    assert [layer.note for layer in rf.inspect(net, X).layers] == [None] * 3


class Cached(nn.Module):
    """A teacher whose output has a graph whatever the mode, and is the same tensor each time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 32), nn.Linear(32, 12)
        self.offset = torch.zeros(12, requires_grad=True)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"logits": self.b(torch.relu(self.a(x))) + self.offset * 2}


class Recurrent(nn.Module):
    """Keeps its state, with the graph, from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.state = nn.Linear(12, 32), nn.Linear(32, 12), None
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        self.state = h if self.state is None else h + 0.5 * self.state
        self.steps += 1
        return self.b(self.state)


@pytest.mark.parametrize("kind", [Cached, Recurrent])
def test_training_goes_through_no_graph_twice(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = kind()
    small = rf.apply(net, rf.plan(net, X, budget="params<=70%"))
    data = [(x, torch.arange(8)) for x in DATA]
    tuned = rf.finetune(small, rf.FineTune(data=data, epochs=2), teacher=net)
    assert tuned.steps == 4
    if isinstance(net, Recurrent):
        assert (net.state, tuned.model.state) == (None, None)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def trains(model: nn.Module) -> bool:
    model.train()
    model(X).square().mean().backward()
    return all(p.requires_grad and p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("verb", ["compress", "apply", "apply_", "finetune", "load", "gauge", "strip"])
def test_the_result_trains_wherever_the_verb_was_called(
    mode: Callable[[], AbstractContextManager[object]], verb: str, tmp_path: Path
) -> None:
    net = plain()
    plan = rf.plan(net, X, budget="params<=50%", methods="svd")
    small = rf.apply(net, plan)
    rf.save(small, tmp_path / "out")
    with mode():
        data = [torch.randn(8, 12) for _ in range(2)]  # made here, as a validation hook would
        made = {
            "compress": lambda: rf.compress(net, X.clone(), budget="params<=50%", calibration=data).model,
            "apply": lambda: rf.apply(net, plan, data),
            "apply_": lambda: rf.apply_(plain(), plan, data) if mode is torch.no_grad else rf.apply_(net, plan, data),
            "finetune": lambda: rf.finetune(small, rf.FineTune(data=data), teacher=net).model,
            "load": lambda: rf.load(tmp_path / "out", plain()),
            "gauge": lambda: rf.gauge(small),
            "strip": lambda: rf.strip(small),
        }[verb]()
    assert trains(made)


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        net = plain()
    plan = rf.plan(net, X, budget="params<=50%")
    assert trains(rf.apply(net, plan))
    assert trains(rf.finetune(net, rf.FineTune(data=DATA), teacher=plain()).model)
    with pytest.raises(ModelError, match=r"created under torch.inference_mode.*Use finetune"):
        rf.finetune_(net, rf.FineTune(data=DATA), teacher=plain())


class OwnWeights(nn.Module):
    """Differentiates by its own parameters, which have no gradients while a model is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x))
        y = self.b(hidden)
        slope = torch.autograd.grad(y.square().mean(), self.b.weight, create_graph=self.training)[0]
        return y - nn.functional.linear(hidden, slope)


def test_gradients_of_own_parameters_are_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match="differentiates by its own parameters") as caught:
        rf.compress(OwnWeights().eval(), X, budget="params<=60%")
    assert "Correct example_input" not in str(caught.value)
