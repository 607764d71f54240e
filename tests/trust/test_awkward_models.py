"""Models that work around torch's habits: what a report says of them holds on a fresh instance, or nothing is written.

Each of them is compressed whole: with data, with a metric, and into a folder. If `compress` returns, parameters, MACs,
calls and accuracy in its report are those of a fresh instance that loaded the artifact. If it refuses, it does so with
a `RankfoldError` and leaves no file.
"""

from __future__ import annotations

import copy
import functools
import types
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.errors import RankfoldWarning
from rankfold.surgery import factored_layers

FEATURES, CLASSES = 24, 4


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(FEATURES, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, CLASSES)
    )  # fmt: skip


class Walk(nn.Module):
    """Registers its layers by name and walks them through something that torch does not know."""

    def __init__(self, held: Callable[[list[nn.Module]], Any]) -> None:
        super().__init__()
        layers = [nn.Linear(FEATURES, 48), nn.Linear(48, 48)]
        for i, layer in enumerate(layers):
            self.add_module(f"fc{i}", layer)
        self.walk = held(layers)
        self.out = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._layers():
            x = torch.relu(layer(x))
        return self.out(x)

    def _layers(self) -> Any:
        walk = self.walk
        if isinstance(walk, types.SimpleNamespace):
            return list(vars(walk).values())
        if isinstance(walk, dict):
            return walk.values()
        if callable(walk):
            return walk()
        return [item() if isinstance(item, weakref.ref) else item for item in walk]


def _namespace(layers: list[nn.Module]) -> types.SimpleNamespace:
    return types.SimpleNamespace(**{f"layer{i}": layer for i, layer in enumerate(layers)})


def _closure(layers: list[nn.Module]) -> Callable[[], list[nn.Module]]:
    return lambda: layers


def decorated() -> nn.Module:
    net = mlp()
    inner = net.forward

    @functools.wraps(inner)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    net.forward = wrapper
    return net


class Tuned(nn.Module):
    """Adds an update to a layer's weight inside of forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.update = nn.Parameter(torch.randn(48, FEATURES) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        first: Any = self.net[0]
        x = nn.functional.linear(x, first.weight + self.update, first.bias)
        for layer in list(self.net)[1:]:
            x = layer(x)
        return x


class Late(nn.Module):
    """Fills a buffer at its first call."""

    scale: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.register_buffer("scale", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = x.detach().abs().mean(0) + 1
        return self.net(x / self.scale)


class Membrane(nn.Module):
    """Keeps its state between calls in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.state: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.state = 0.5 * self.state + self.net(x).mean(0).detach()
        return self.net(x) + 0.01 * self.state


class Forces(nn.Module):
    """Differentiates an energy inside of forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.read = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        energy = self.net(x).square().sum()
        (forces,) = torch.autograd.grad(energy, x, create_graph=True)
        return self.read(forces)


class Dropping(nn.Module):
    """Leaves a part of its parameters out of its state dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        whole = super().state_dict(*args, **kwargs)
        return {name: tensor for name, tensor in whole.items() if not name.startswith("net.0")}


class Sparse(nn.Module):
    """Mixes its features by a sparse buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.register_buffer("mix", torch.eye(FEATURES).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.sparse.mm(self.mix, x.mT).mT)


class Experts(nn.Module):
    """Sends every sample of this data to its first expert."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(FEATURES, 48) for _ in range(2))
        self.out = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.experts[0] if float(x.abs().max()) < 1e3 else self.experts[1]
        return self.out(torch.relu(chosen(x)))


class Masked(nn.Module):
    """Rules a class out with minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return torch.cat([logits[:, :-1], torch.full_like(logits[:, -1:], -torch.inf)], 1)


class Recurrent(nn.Module):
    """Does nearly all of its work in an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.first, self.out = nn.Linear(16, 48), nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.first(self.lstm(x.unflatten(1, (3, 8)))[0][:, -1])))


class Normed(nn.Module):
    """Has batch norms, and meets a last batch of one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48), nn.BatchNorm1d(48), nn.ReLU(),
            nn.Linear(48, CLASSES),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Encoder(nn.Module):
    """Attends."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x.unflatten(1, (3, 8))).mean(1))


def _compiled() -> nn.Module:
    net = mlp()
    net.forward = torch.compile(net.forward, backend="eager")
    return net


def _hooked() -> nn.Module:
    net = mlp()
    net[2].register_full_backward_hook(lambda module, before, after: None)
    net[0].bias.requires_grad_(False)
    return net


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": mlp,  # the control: this one is never refused
    "list": lambda: Walk(list),
    "tuple": lambda: Walk(tuple),
    "dict": lambda: Walk(lambda layers: dict(enumerate(layers))),
    "namespace": lambda: Walk(_namespace),
    "partial": lambda: Walk(lambda layers: functools.partial(list, layers)),
    "closure": lambda: Walk(_closure),
    "weakref": lambda: Walk(lambda layers: [weakref.ref(layer) for layer in layers]),
    "decorated forward": decorated,
    "compiled forward": _compiled,
    "update of a weight": Tuned,
    "hooks and flags": _hooked,
    "late buffer": Late,
    "membrane": Membrane,
    "forces": Forces,
    "state dictionary without keys": Dropping,
    "sparse buffer": Sparse,
    "expert without data": Experts,
    "masked logits": Masked,
    "LSTM": Recurrent,
    "last batch of one": Normed,
    "attention": Encoder,
}


def calls_of(model: nn.Module, x: Tensor) -> Counter[str]:
    """Count how often each factored layer runs."""
    counts: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, name=name: counts.update([name]))
        for name, module in factored_layers(model).items()
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize("name", MODELS)
def test_report_holds_on_a_fresh_instance(name: str, tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(1)
        return MODELS[name]().eval()

    def fresh() -> nn.Module:
        return rf.load(out, make())

    def accuracy(model: nn.Module) -> float:
        return float((model(data).argmax(1) == labels).float().mean())

    data, out = torch.randn(33, FEATURES), tmp_path / "artifact"
    labels, example = make()(data).detach().argmax(1), data[:2]
    options: Any = {"calibration": list(data.split(8)), "evaluate": accuracy, "output": out}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankfoldWarning)
        try:
            result = rf.compress(make(), example, budget="params<=60%", **options)
        except rf.RankfoldError as error:
            refusal = str(error)
        else:
            refusal = ""
            check(result, make(), fresh, accuracy, data, example)
    assert bool(refusal) <= (name != "plain"), refusal
    if refusal:
        assert not out.exists(), f"refused, but {sorted(p.name for p in out.iterdir())} was left"
        assert 20 < len(refusal) < 2000


def check(
    result: rf.Result,
    dense: nn.Module,
    fresh: Callable[[], nn.Module],
    accuracy: Callable[[nn.Module], float],
    data: Tensor,
    example: Tensor,
) -> None:
    """Hold a report against the model that came back, and against fresh instances that loaded the artifact."""
    torch.testing.assert_close(copy.deepcopy(result.model)(data), fresh()(data))
    after, metric = result.report.after, result.report.metrics[0]
    assert after.params == sum(p.numel() for p in fresh().parameters())
    assert after.params <= 0.6 * result.report.before.params
    assert after.macs == rf.inspect(fresh(), example).total.macs
    assert metric.reloaded == pytest.approx(accuracy(fresh()), abs=1e-6)
    assert metric.reloaded == pytest.approx(accuracy(copy.deepcopy(result.model)), abs=1e-6)
    inventory = rf.inspect(dense, example)
    calls = {name: sum(call.count for call in inventory.layer(name).calls) for name in result.plan.factored}
    assert calls_of(fresh(), example) == Counter({name: count for name, count in calls.items() if count})
