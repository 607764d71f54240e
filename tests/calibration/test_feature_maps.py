"""Feature maps of layers are compared after the operations that follow, each layer with the original's input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

import rankfold as rf
from rankfold.calibration import feature_maps
from rankfold.calibration.feature_maps import compared_places, similarities
from rankfold.errors import DataError
from rankfold.inventory import static_inventory


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = randn(10, 3, 8, 8)


class Residual(nn.Module):
    """A stem, a residual block and a classifier; operations as modules, functions or methods, in place or not."""

    def __init__(self, relu: Callable[[Tensor], Tensor], *, pool: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.one, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 16, 5)
        self.relu, self.pool = relu, pool or nn.MaxPool2d(2)
        for norm in (self.norm, self.norm1, self.norm2):
            norm.running_mean = 0.3 * randn(8, seed=1)
            norm.running_var = randn(8, seed=2).exp()
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.stem(x))))
        out = self.relu(self.norm1(self.one(x)))
        out = self.norm2(self.two(out))
        out += x
        return self.head(self.relu(out).flatten(1))


RELUS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "module": nn.ReLU,
    "module in place": lambda: nn.ReLU(inplace=True),
    "function": lambda: F.relu,
    "torch": lambda: torch.relu,
    "method": lambda: Tensor.relu,
    "method in place": lambda: Tensor.relu_,
    "function in place": lambda: lambda x: F.relu(x, inplace=True),
}


def compressed(model: nn.Module, names: list[str], noise: float = 0.3) -> nn.Module:
    """Return a copy with other weights, as factors would have."""
    small = copy.deepcopy(model)
    for i, name in enumerate(names):
        weight: Any = small.get_submodule(name).weight
        with torch.no_grad():
            weight += noise * randn(*weight.shape, seed=10 + i) * weight.std()
    return small


def compare(
    model: nn.Module, small: nn.Module, x: Any = X, *, names: list[str] | None = None, samples: int = 1000
) -> dict[str, float]:
    layers = [layer for layer in static_inventory(model) if names is None or layer.name in names]
    places = compared_places(model, layers, x[0] if isinstance(x, list) else x)
    return similarities(model, small, places, x if isinstance(x, list) else [x], samples=samples)


LAYERS = ["stem", "one", "two", "head"]


@pytest.mark.parametrize("relu", RELUS)
def test_it_equals_a_recomputation_by_hand(relu: str) -> None:
    model = Residual(RELUS[relu]()).eval()
    small = compressed(model, LAYERS)
    with torch.no_grad():  # the original's inputs of each layer
        x = model.pool(F.relu(model.norm(model.stem(X))))
        out = F.relu(model.norm1(model.one(x)))
        given = {"stem": X, "one": x, "two": out, "head": F.relu(model.norm2(model.two(out)) + x).flatten(1)}
        after: dict[str, Callable[[Any, Tensor], Tensor]] = {
            "stem": lambda net, out: net.pool(F.relu(net.norm(out))),
            "one": lambda net, out: F.relu(net.norm1(out)),
            "two": lambda net, out: net.norm2(out),
            "head": lambda _, out: out,
        }
        wanted = {}
        for name in LAYERS:
            ours, theirs = (
                after[name](net, net.get_submodule(name)(given[name])).double().flatten(1) for net in (small, model)
            )
            cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(ours, theirs, strict=True)]
            wanted[name] = sum(cosines) / len(cosines)
    assert compare(model, small) == pytest.approx(wanted, abs=1e-6)
    assert all(0.3 < value < 0.999 for value in wanted.values())


def test_identical_layers_give_one() -> None:
    model = Residual(nn.ReLU()).eval()
    assert compare(model, copy.deepcopy(model)) == pytest.approx(dict.fromkeys(LAYERS, 1.0), abs=1e-12)


def test_other_layers_have_no_effect() -> None:
    model = Residual(nn.ReLU()).eval()
    both, one = compressed(model, ["stem", "two"]), compressed(model, ["stem"])
    assert compare(model, both)["stem"] == compare(model, one)["stem"] < 1
    assert compare(model, both)["one"] == pytest.approx(1, abs=1e-12)


def test_where_feature_maps_end_and_what_is_branched() -> None:
    model = Residual(nn.ReLU()).eval()
    places = compared_places(model, static_inventory(model), X)
    assert {name: place.following[name][0] for name, place in places.items()} == {
        "stem": ("batch_norm", "relu", "max_pool2d"),
        "one": ("batch_norm", "relu"),
        "two": ("batch_norm",),  # the sum reads another tensor
        "head": (),
    }
    assert {name: place.branched for name, place in places.items()} == {
        "stem": False, "one": True, "two": True, "head": False
    }  # fmt: skip


def test_a_model_in_training_mode_is_compared_in_evaluation_mode_and_left_as_it_was() -> None:
    model = Residual(nn.ReLU()).eval()
    small = compressed(model, LAYERS)
    wanted = compare(model, small)
    for net in (model, small):
        net.train()
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    assert compare(model, small) == wanted
    assert model.training
    assert small.norm.training  # pyright: ignore[reportAttributeAccessIssue]
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())


def test_a_scaled_output_counts_after_batchnorm_with_running_statistics() -> None:
    model = Residual(nn.ReLU()).train()
    small = copy.deepcopy(model)
    with torch.no_grad():
        small.one.weight *= 3  # BatchNorm in training mode would undo it
        small.head.weight *= 3
        small.head.bias *= 3
    values = compare(model, small)
    assert values["one"] < 0.99
    assert values["head"] == pytest.approx(1, abs=1e-6)  # no operation follows, and the cosine ignores the scale


class Fork(nn.Module):
    """Two operations read the output of the first layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.b(F.relu(a)) + a


def test_an_output_with_two_readers_is_compared_before_them() -> None:
    model = Fork().eval()
    small, x = compressed(model, ["a"]), randn(7, 6)
    with torch.no_grad():
        wanted = float(F.cosine_similarity(small.a(x).double(), model.a(x).double()).mean())  # pyright: ignore
    assert compare(model, small, x)["a"] == pytest.approx(wanted, abs=1e-6)
    assert compared_places(model, static_inventory(model), x)["a"].following == {"a": ((),)}
    assert not compared_places(model, static_inventory(model), x)["a"].branched
    assert compared_places(model, static_inventory(model), x)["b"].branched


class Shared(nn.Module):
    """One layer is called twice, with other operations after it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.layer(F.relu(self.layer(x))))


def test_a_shared_layer_is_compared_at_each_call() -> None:
    model = Shared().eval()
    small, x = compressed(model, ["layer"]), randn(7, 6)
    with torch.no_grad():
        given = F.relu(model.layer(x))
        first = F.cosine_similarity(F.relu(small.layer(x)).double(), given.double())  # pyright: ignore
        maps = [torch.sigmoid(net.layer(given)).double() for net in (small, model)]  # pyright: ignore
        wanted = float(torch.cat([first, F.cosine_similarity(*maps)]).mean())
    assert compare(model, small, x)["layer"] == pytest.approx(wanted, abs=1e-6)
    place = compared_places(model, static_inventory(model), x)["layer"]
    assert place.following == {"layer": (("relu",), ("sigmoid",))}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.idle = nn.Linear(2, 2)
        self.mix, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(x + self.mix(x, x, x, need_weights=False)[0]))


def test_projections_are_compared_at_the_attention_and_idle_layers_are_left_out() -> None:
    model, x = Attention().eval(), randn(4, 5, 8)
    plan = rf.plan(model, x, strategy=rf.Manual(layers={"mix.q_proj": ("svd", 2)}))
    values = compare(model, rf.apply(model, plan), x)
    assert "idle" not in values
    assert values["mix.q_proj"] == values["mix.k_proj"] < 1
    assert values["out"] == pytest.approx(1, abs=1e-12)


def test_pieces_and_batches_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Residual(nn.ReLU()).eval()
    small = compressed(model, LAYERS)
    wanted = compare(model, small)
    assert compare(model, small, [X[:7], X[7:]]) == pytest.approx(wanted, abs=1e-6)
    assert compare(model, small, samples=4) == pytest.approx(compare(model, small, X[:4]), abs=1e-6)
    assert abs(compare(model, small, samples=4)["one"] - wanted["one"]) > 1e-4
    monkeypatch.setattr(feature_maps, "PIECE", 3)
    assert compare(model, small) == pytest.approx(wanted, abs=1e-6)
    assert compare(model, small, [X[:5], X[5:]], samples=8) == pytest.approx(compare(model, small, X[:8]), abs=1e-6)


def test_feature_maps_of_zeros_and_of_infinite_values() -> None:
    model = Shared().eval()
    silent, infinite = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        silent.layer.bias.fill_(-100)
        infinite.layer.bias.fill_(torch.inf)
    x = randn(7, 6)
    plain = nn.Sequential(model.layer, nn.ReLU())
    assert compare(nn.Sequential(silent.layer, nn.ReLU()), nn.Sequential(silent.layer, nn.ReLU()), x) == {"0": 1}
    assert compare(plain, nn.Sequential(silent.layer, nn.ReLU()), x) == {"0": 0}
    assert compare(plain, nn.Sequential(infinite.layer, nn.ReLU()), x) == {"0": 0}


def test_no_samples_are_refused() -> None:
    model = Shared().eval()
    with pytest.raises(DataError, match="no samples"):
        compare(model, model, [randn(7, 6)], samples=0)


class Routed(nn.Module):
    """The first layer decides which samples the second layer receives; the third one has no samples at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.expert, self.token = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.start = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x)[:, 0] > 0
        x = torch.tanh(x + self.token(self.start))
        x[chosen] = self.expert(x[chosen])
        return x


def test_both_models_process_the_same_samples() -> None:
    model, x = Routed().eval(), randn(12, 6)
    small = compressed(model, ["router", "expert", "token"], noise=2.0)
    with torch.no_grad():
        assert not torch.equal(small(x)[:, 0] > 0, model(x)[:, 0] > 0)
        chosen = model.router(x)[:, 0] > 0
        given = torch.tanh(x + model.token(model.start))[chosen]
        maps = [net.expert(given).double() for net in (small, model)]  # pyright: ignore[reportCallIssue]
        tokens = [net.token(model.start).double() for net in (small, model)]  # pyright: ignore[reportCallIssue]
        wanted = {
            "expert": float(F.cosine_similarity(*maps).mean()), "token": float(F.cosine_similarity(*tokens, dim=0))
        }  # fmt: skip
    values = compare(model, small, x)
    assert {name: values[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert compare(model, small, [-x[:1].abs() * 9, x])["expert"] == pytest.approx(wanted["expert"], abs=1e-6)


def test_operations_after_a_layer_use_the_trained_values_of_the_compressed_model() -> None:
    model = Residual(nn.ReLU(inplace=True)).eval()
    small = copy.deepcopy(model)
    with torch.no_grad():
        small.norm1.weight *= -1
        small.norm2.running_mean += 1  # pyright: ignore[reportOperatorIssue]
    values = compare(model, small)
    assert values["stem"] == values["head"] == 1
    assert values["one"] < 0.8
    assert values["two"] < 0.99
