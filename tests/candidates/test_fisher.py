"""The proxy from gradients: against the exact Jacobian, and against the measured loss of small changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.api.planning import Planner
from rankfold.candidates import ProxyConfig
from rankfold.candidates.fisher import TOGETHER, FisherProxy, draws_for, groups
from rankfold.candidates.network import NetworkProxy
from rankfold.errors import ConfigError, ModelError, UnknownNameError
from rankfold.inventory import inspect, layer_weight
from rankfold.records import LayerInfo


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model in float64 with random weights that do not shrink the signal."""
    random = generator(seed)
    with torch.no_grad():
        for parameter in model.double().parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64) / fan**0.5)
    return model.eval()


def batches_of(*shape: int, count: int = 2) -> list[Tensor]:
    return [torch.randn(*shape, generator=generator(i), dtype=torch.float64) for i in range(count)]


def changed(model: nn.Module, name: str, size: float, count: int = 3) -> list[Tensor]:
    """Return weights of a layer that differ from its own by so much, relatively."""
    weight = layer_weight(model, name)
    moves = [torch.randn(weight.shape, generator=generator(9 + i), dtype=weight.dtype) for i in range(count)]
    return [weight + size * weight.norm() * move / move.norm() for move in moves]


def fisher(model: nn.Module, batches: Sequence[Any], layers: Sequence[LayerInfo], **options: Any) -> FisherProxy:
    return FisherProxy(model, batches, layers, **options)


def mlp() -> nn.Module:
    return randomized(
        nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6, bias=False), nn.Tanh(), nn.Linear(6, 3))
    )


def convolutional() -> nn.Module:
    return randomized(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 8, 3, stride=2),
                      nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    )  # fmt: skip


def exact(model: nn.Module, name: str, batches: Sequence[Tensor], weights: Sequence[Tensor]) -> list[float]:
    """Return ||J d||^2 relative to the outputs' energy, J being built entry by entry."""
    parameter = dict(model.named_parameters())[f"{name}.weight"]
    losses = [0.0] * len(weights)
    energy = 0.0
    for batch in batches:
        outputs = model(batch).flatten()
        rows = [torch.autograd.grad(output, parameter, retain_graph=True)[0].flatten() for output in outputs]
        energy += float(outputs.detach().square().sum())
        for i, weight in enumerate(weights):
            change = (weight - parameter).detach().flatten()
            losses[i] += float((torch.stack(rows) @ change).square().sum())
    return [loss / energy for loss in losses]


@pytest.mark.parametrize("name", ["0", "2", "4"])
def test_the_estimate_agrees_with_the_exact_jacobian(name: str) -> None:
    model, batches = mlp(), batches_of(4, 5)
    layers = inspect(model, batches[0]).compressible
    layer = next(layer for layer in layers if layer.name == name)
    weights = changed(model, name, 0.5)
    found = fisher(model, batches, layers, draws=2048).losses(layer, weights)
    wanted = exact(model, name, batches, weights)
    # sqrt(2 / 2048) = 3 %
    assert found == pytest.approx(wanted, rel=0.1)
    assert found != pytest.approx([1.3 * value for value in wanted], rel=0.1)


def test_a_single_output_needs_no_chance() -> None:
    """With a single output per batch, the sign's square is 1, and the loss is exact."""
    model = randomized(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)))
    batches = batches_of(1, 5, count=3)
    layers = inspect(model, batches[0]).compressible
    for layer in layers:
        weights = changed(model, layer.name, 0.5)
        found = fisher(model, batches, layers, draws=1).losses(layer, weights)
        assert found == pytest.approx(exact(model, layer.name, batches, weights), rel=1e-9)


def test_a_linear_network_is_no_approximation() -> None:
    """Changes of any size: the network's outputs are linear in each weight."""
    model = randomized(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 6, bias=False), nn.Linear(6, 1)))
    batches = batches_of(1, 5, count=4)
    layers = inspect(model, batches[0]).compressible
    measured = NetworkProxy(model, batches)
    for layer in layers:
        weights = changed(model, layer.name, 3.0)
        found = fisher(model, batches, layers, draws=4).losses(layer, weights)
        assert found == pytest.approx(measured.losses(layer, weights), rel=1e-5)
    bent = randomized(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)))
    weights = changed(bent, "0", 3.0)
    first = inspect(bent, batches[0]).compressible
    found = fisher(bent, batches, first, draws=4).losses(first[0], weights)
    assert found != pytest.approx(NetworkProxy(bent, batches).losses(first[0], weights), rel=0.05)


def test_small_changes_do_the_damage_that_is_measured() -> None:
    model, batches = convolutional(), batches_of(2, 3, 9, 9)
    layers = inspect(model, batches[0]).compressible
    gradients, measured = fisher(model, batches, layers, draws=1024), NetworkProxy(model, batches)
    for layer in layers:
        small, large = changed(model, layer.name, 1e-3), changed(model, layer.name, 3.0)
        assert gradients.losses(layer, small) == pytest.approx(measured.losses(layer, small), rel=0.15)
        if layer.name != layers[-1].name:  # the last layer is followed by nothing that bends
            assert gradients.losses(layer, large) != pytest.approx(measured.losses(layer, large), rel=0.15)


def test_damage_grows_with_the_square_of_a_change() -> None:
    model, batches = convolutional(), batches_of(2, 3, 9, 9)
    layers = inspect(model, batches[0]).compressible
    weight = layer_weight(model, "0")
    move = changed(model, "0", 0.1, count=1)[0] - weight
    one, two, none = fisher(model, batches, layers).losses(layers[0], [weight + move, weight + 2 * move, weight])
    assert two == pytest.approx(4 * one)
    assert one > 0
    assert none == 0


@pytest.mark.parametrize("held", [0, 30_000, 2**29])
def test_what_is_held_at_once_changes_nothing(held: int) -> None:
    model, batches = convolutional(), batches_of(2, 3, 9, 9)
    layers = inspect(model, batches[0]).compressible
    whole = fisher(model, batches, layers)
    parts = fisher(model, batches, layers, held=held)
    for layer in reversed(layers):
        weights = changed(model, layer.name, 0.1)
        assert parts.losses(layer, weights) == pytest.approx(whole.losses(layer, weights), rel=1e-9)
        assert sum(rows.nbytes for rows in parts._gradients.values()) <= held
    other = fisher(model, batches, layers, seed=1).losses(layers[0], changed(model, "0", 0.1))
    assert other != whole.losses(layers[0], changed(model, "0", 0.1))


def test_many_weights_at_once() -> None:
    model, batches = convolutional(), batches_of(2, 3, 9, 9)
    (layer, *_) = layers = inspect(model, batches[0]).compressible
    weights = changed(model, layer.name, 0.1, count=TOGETHER + 5)
    proxy = fisher(model, batches, layers)
    assert proxy.losses(layer, weights) == pytest.approx([proxy.losses(layer, [w])[0] for w in weights], rel=1e-9)
    assert proxy.losses(layer, []) == []


def test_layers_that_are_held_together() -> None:
    assert groups([3, 4, 5, 20, 1, 9, 2], held=10) == [[0, 1], [2, 4], [3], [5], [6]]
    assert groups([], held=10) == []
    assert groups([1, 2], held=0) == [[0], [1]]


@pytest.mark.parametrize(("samples", "least"), [(1, 32), (16, 32), (24, 48), (32, 64), (256, 64)])
def test_gradients_of_few_samples(samples: int, least: int) -> None:
    assert draws_for(samples) == least
    model = convolutional()
    batches = batches_of(samples, 3, 9, 9, count=1)
    proxy = fisher(model, batches, inspect(model, batches[0]).compressible)
    assert least <= proxy.draws * len(proxy.pieces) < 2 * least


class Attentive(nn.Module):
    """Attention whose projections share a weight (or not), and a head."""

    def __init__(self, kdim: int | None = None) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=kdim, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        memory = x[..., : self.attention.kdim]
        return self.head(self.attention(x, memory, memory, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("kdim", [None, 4])
def test_attention(kdim: int | None) -> None:
    model, batches = randomized(Attentive(kdim)), batches_of(1, 5, 8)
    layers = inspect(model, batches[0]).compressible
    assert len(layers) >= 4
    gradients, measured = fisher(model, batches, layers, draws=2), NetworkProxy(model, batches)
    values = []
    for layer in layers:
        weights = changed(model, layer.name, 1e-3)
        values.append(gradients.losses(layer, weights))
        assert values[-1] == pytest.approx(measured.losses(layer, weights), rel=0.03), layer.name
    assert values[0] != pytest.approx(values[1], rel=0.03)


class Tied(nn.Module):
    """Two layers with one weight, and a module with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.second.weight = self.first.weight
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.again(torch.tanh(self.second(torch.tanh(self.first(x)))))))


def test_tied_layers_change_together() -> None:
    model, batches = randomized(Tied()), batches_of(1, 6)
    layers = inspect(model, batches[0]).compressible
    tied = next(layer for layer in layers if layer.name == "first")
    assert tied.ties
    weights = changed(model, "first", 1e-3)
    found = fisher(model, batches, layers, draws=2).losses(tied, weights)
    assert found == pytest.approx(NetworkProxy(model, batches).losses(tied, weights), rel=0.03)
    alone = randomized(Tied())
    alone.second.weight = nn.Parameter(alone.first.weight.detach().clone())
    apart = fisher(alone, batches, inspect(alone, batches[0]).compressible, draws=2)
    assert found != pytest.approx(apart.losses(tied, weights), rel=0.03)


class Several(nn.Module):
    """Outputs of very different sizes, one of integers, and one that depends on no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.small, self.large = nn.Linear(5, 6), nn.Linear(6, 1), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.body(x))
        large = 1e4 * self.large(hidden)
        return {"small": self.small(hidden), "large": large, "which": large.argmax(1), "constant": torch.ones(2)}


def test_each_output_counts_the_same() -> None:
    model, batches = randomized(Several()), batches_of(1, 5, count=1)
    layers = inspect(model, batches[0]).compressible
    measured = NetworkProxy(model, batches)
    gradients = fisher(model, batches, layers, draws=1024)
    for layer in layers:
        weights = changed(model, layer.name, 1e-3)
        assert gradients.losses(layer, weights) == pytest.approx(measured.losses(layer, weights), rel=0.15), layer.name
    weights = changed(model, "small", 1e-3)
    small = next(layer for layer in layers if layer.name == "small")
    tapped = fisher(model, batches, layers, taps=("small",), draws=1024).losses(small, weights)
    assert tapped == pytest.approx([3 * value for value in gradients.losses(small, weights)], rel=0.15)


def test_taps() -> None:
    model, batches = convolutional(), batches_of(2, 3, 9, 9)
    layers = inspect(model, batches[0]).compressible
    gradients = fisher(model, batches, layers, taps=("2",), draws=1024)
    measured = NetworkProxy(model, batches, ("2",))
    weights = changed(model, "0", 1e-3)
    assert gradients.losses(layers[0], weights) == pytest.approx(measured.losses(layers[0], weights), rel=0.15)
    assert gradients.losses(layers[-1], changed(model, layers[-1].name, 1.0)) == [0.0] * 3
    with pytest.raises(UnknownNameError, match="tap"):
        fisher(model, batches, layers, taps=("absent",))


def test_frozen_and_computed_weights() -> None:
    model, batches = convolutional(), batches_of(2, 3, 9, 9)
    weights = changed(model, "0", 0.1)
    layers = inspect(model, batches[0]).compressible
    wanted = fisher(model, batches, layers).losses(layers[0], weights)
    model.requires_grad_(False)
    assert fisher(model, batches, layers).losses(layers[0], weights) == wanted
    nn.utils.parametrizations.weight_norm(model[0])
    assert fisher(model, batches, layers).losses(layers[0], weights) == pytest.approx(wanted)


def test_model_and_random_state_are_left_alone() -> None:
    model, batches = convolutional().train(), batches_of(2, 3, 9, 9)
    layers = inspect(model, batches[0]).compressible
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    fisher(model, batches, layers).losses(layers[0], changed(model, "0", 0.1))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


def test_half_precision() -> None:
    model, batches = convolutional(), batches_of(2, 3, 9, 9)
    weights = changed(model, "0", 0.3)
    layers = inspect(model, batches[0]).compressible
    wanted = fisher(model, batches, layers).losses(layers[0], weights)
    model.bfloat16()
    halves = fisher(model, [b.bfloat16() for b in batches], layers)
    assert halves.losses(layers[0], [w.bfloat16() for w in weights]) == pytest.approx(wanted, rel=0.2)


class Cut(nn.Module):
    """A network of which some layers' gradients, or all, are cut off."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        if self.where == "middle":
            hidden = hidden.detach()
        if self.where == "reciprocal":
            return self.head(hidden) / 0
        output = self.head(hidden) * (self.where != "zero")
        if self.where == "in place":
            squared = output.square().sum()
            output.add_(1)
            return squared
        return {"end": output.detach(), "integers": output.argmax(1)}.get(self.where, output)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("end", "no output of the network is a differentiable function"),
        ("middle", "no gradient .* reaches layer 'body'"),
        ("integers", "no floating-point tensors"),
        ("in place", "cannot be differentiated: .*inplace"),
        ("reciprocal", "no finite value|contain NaN"),
        ("zero", "all zero"),
    ],
)
def test_networks_without_gradients(where: str, message: str) -> None:
    model, batches = randomized(Cut(where)), batches_of(4, 5)
    layers = inspect(model, batches[0]).compressible
    with pytest.raises(ModelError, match=message) as caught:
        fisher(model, batches, layers).losses(layers[0], changed(model, "body", 0.1))
    assert "proxy='network'" in str(caught.value)
    whole = randomized(Cut("nowhere"))
    assert fisher(whole, batches, layers).losses(layers[0], changed(whole, "body", 0.1))[0] > 0


def test_a_layer_that_never_runs_does_no_damage() -> None:
    model, batches = randomized(Cut("nowhere")), batches_of(4, 5)
    model.spare = nn.Linear(5, 6).double()
    layers = inspect(model, batches[0]).layers
    spare = next(layer for layer in layers if layer.name == "spare")
    assert fisher(model, batches, layers).losses(spare, changed(model, "spare", 0.1)) == [0.0] * 3


def test_a_plan_by_fisher(tmp_path: Path) -> None:
    model, batches = convolutional(), batches_of(2, 3, 9, 9)
    options: dict[str, Any] = {"budget": "params<=60%", "calibration": batches, "cache": tmp_path}
    whole: dict[str, Any] = {"samples": 16, "points": 8}  # nothing is left to choose
    plan = rf.plan(model, batches[0], strategy=rf.CompressNAS(proxy="fisher", **whole), **options)
    assert plan.factored
    assert plan.provenance.search["proxy"] == "fisher"
    stored = len(list(tmp_path.iterdir()))
    assert stored == len(inspect(model, batches[0]).compressible)
    assert rf.plan(model, batches[0], strategy=rf.CompressNAS(proxy="fisher", **whole), **options) == plan
    assert len(list(tmp_path.iterdir())) == stored  # nothing was measured again ...
    rf.plan(model, batches[0], strategy=rf.CompressNAS(proxy="network", **whole), **options)
    assert len(list(tmp_path.iterdir())) == 2 * stored  # ... except by another proxy


def test_rounds_need_the_network_itself() -> None:
    model, batches = convolutional(), batches_of(2, 3, 9, 9)
    options: dict[str, Any] = {"budget": "params<=60%", "calibration": batches}
    with pytest.raises(ConfigError, match="rounds need proxy='network'"):
        rf.plan(model, batches[0], strategy=rf.CompressNAS(proxy="fisher", rounds=1), **options)
    with pytest.raises(ConfigError, match="needs calibration data"):
        rf.plan(model, batches[0], strategy=rf.CompressNAS(proxy="fisher"), budget="params<=60%")
    assert rf.plan(model, batches[0], strategy=rf.CompressNAS(proxy="network", rounds=1), **options).factored


def test_gradients_take_one_pass_over_the_data() -> None:
    model, batches = convolutional(), batches_of(32, 3, 9, 9)
    layers = inspect(model, batches[0]).compressible
    passes: list[int] = []
    proxy = fisher(model, batches, layers, draws=16)
    proxy.work.register_forward_hook(lambda module, args, out: passes.append(len(args[0])))
    for layer in layers:
        proxy.losses(layer, changed(model, layer.name, 0.1))
    assert sum(passes) == 2 * 64, "once for the energies, once for the gradients of all layers"


def plan_of(model: nn.Module, batches: list[Tensor], **options: Any) -> rf.Plan:
    return rf.plan(model, batches[0], budget="params<=60%", calibration=batches, strategy=rf.CompressNAS(**options))


def test_few_measurements_correct_the_gradients() -> None:
    """Where the network bends, the losses by both are nearer to the measured ones than those by gradients alone."""
    model, batches = convolutional(), batches_of(16, 3, 9, 9)
    planner = Planner(model, batches[0], rf.Search(), batches)
    losses = {proxy: planner.estimator.single(ProxyConfig(proxy=proxy)) for proxy in ("network", "fisher", "auto")}
    keys = [(name, key) for name, row in losses["network"].items() for key in row]
    logs = {p: np.log([max(losses[p][name][key], 1e-12) for name, key in keys]) for p in losses}
    off = {p: float(np.abs(logs[p] - logs["network"]).mean()) for p in ("fisher", "auto")}
    assert off["auto"] < 0.7 * off["fisher"], off


def test_a_network_without_gradients_is_measured(capfd: pytest.CaptureFixture[str]) -> None:
    """By default, the search says so and measures; a proxy that needs gradients raises."""
    model, batches = randomized(Cut("middle")), batches_of(16, 5)
    plan = plan_of(model, batches)
    assert "every candidate is measured, which takes longer: no gradient" in capfd.readouterr().err
    assert plan.provenance.search["proxy"] == "network"
    assert plan.layers == plan_of(model, batches, proxy="network").layers
    with pytest.raises(ModelError, match="reaches layer 'body'"):
        plan_of(model, batches, proxy="fisher+network")
