"""The network proxy equals the naive loop: replace the weight, run the whole network, compare."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankfold._tensors import tensors_of
from rankfold.batches import call_model, split_batch
from rankfold.candidates.network import NetworkProxy, first_samples, samples_between
from rankfold.errors import DataError, ModelError, RankfoldWarning, UnknownNameError
from rankfold.inventory import fused_attention_off, inspect, layer_weight
from rankfold.surgery import copy_model
from rankfold.surgery.approximate import bake_weights_


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.conv1, self.conv2 = (nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.conv2(self.act(self.conv1(x)))
        out += x
        return self.head(self.act(out).mean((2, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
        self.c.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).tanh()).tanh() + self.b(x))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=5, vdim=5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x_ = self.block(self.embed(x))
        return self.cross(x_, x, x, need_weights=False)[0]


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.old = torch.nn.utils.weight_norm(nn.Linear(6, 6))
        self.new = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
        self.masked = nn.Linear(6, 6)
        torch.nn.utils.prune.random_unstructured(self.masked, "weight", 0.3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.old(x).relu()
        return {"first": x, "second": self.masked(self.new(x))}


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Noisy(nn.Module):
    """Draws before the layer and after it: a replay that leaves the first out draws other numbers for the second."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.first, self.noise, self.second = nn.Linear(4, 4), Noise(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.noise(self.second(self.noise(self.first(x)))) * self.count


class InPlace(nn.Module):
    """Relies on a module that changes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5  # the data, too
        x = self.first(x)
        self.act(x)
        return self.second(x)


def half_of(weight: Tensor) -> list[Tensor]:
    """Return two stand-ins for candidates: half of the weight, and its first columns."""
    fewer = weight.clone()
    fewer[:, weight.shape[1] // 2 :] = 0
    return [weight / 2, fewer]


def naive(model: nn.Module, batches: Sequence[Any], name: str, weight: Tensor, taps: Sequence[str] = ()) -> float:
    """Return the mean of the outputs' relative squared distances, with one weight replaced in a copy."""
    changed = bake_weights_(copy_model(model))
    layer_weight(changed, name).copy_(weight)
    sums: dict[int, list[float]] = {}
    for batch in batches:
        outputs = []
        for one in (copy.deepcopy(changed), copy_model(model).eval()):
            seen: list[Any] = []
            for tap in taps:
                one.get_submodule(tap).register_forward_hook(lambda m, a, out, seen=seen: seen.append(out.clone()))
            with torch.no_grad(), torch.random.fork_rng(), fused_attention_off():
                torch.manual_seed(0)  # one noise for both
                one.requires_grad_(False)  # as in the proxy: products with what requires them are folded otherwise
                found = call_model(one, copy.deepcopy(split_batch(batch)[0]))
            outputs.append(tensors_of(seen if taps else found))
        for i, (ours, theirs) in enumerate(zip(*outputs, strict=True)):
            total = sums.setdefault(i, [0.0, 0.0])
            total[0] += float((ours - theirs).double().square().sum())
            total[1] += float(theirs.double().square().sum())
    return sum(a / b for a, b in sums.values()) / len(sums)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Sequence[str]]] = {
    "residual": (Residual, (4, 3, 6, 6), ()),
    "residual, taps": (Residual, (4, 3, 6, 6), ("stem.0", "conv2", "head")),
    "tied": (Tied, (4, 6), ()),
    "attention": (Attention, (4, 3, 5), ()),
    "normed": (Normed, (4, 6), ()),
    "noisy": (Noisy, (4, 4), ()),
    "in place": (InPlace, (4, 4), ()),
}
ANEW = {"noisy", "in place"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("default::rankfold.errors.RankfoldWarning", "ignore::FutureWarning")
def test_equals_the_naive_loop(case: str, recwarn: pytest.WarningsRecorder) -> None:
    build, shape, taps = CASES[case]
    model = build()
    model.train()  # the proxy judges what the model does in evaluation mode, and leaves it as it is
    batches = [(torch.randn(shape), torch.zeros(4)), (torch.randn(shape),)]
    kept, state = copy.deepcopy(batches), {k: v.clone() for k, v in model.state_dict().items()}
    inventory = inspect(model, torch.randn(shape, generator=torch.Generator()))
    proxy = NetworkProxy(model, batches, taps)
    names = [layer.name for layer in inventory.layers]
    assert len(names) >= 2
    recwarn.clear()
    found = {}
    for n in names:
        torch.rand(3)  # somebody else draws in between
        random = torch.get_rng_state()
        found[n] = proxy.losses(inventory.layer(n), half_of(layer_weight(model, n)))
        assert torch.equal(torch.get_rng_state(), random)
    warned = [w for w in recwarn if issubclass(w.category, RankfoldWarning)]
    for name in names:
        expected = [naive(model, batches, name, weight, taps) for weight in half_of(layer_weight(model, name))]
        assert found[name] == pytest.approx(expected, rel=1e-6 if case != "noisy" else 1e-5), name
        assert min(found[name]) > 1e-8
        assert found[name][0] != pytest.approx(found[name][1], rel=1e-3)
        assert proxy.losses(inventory.layer(name), [layer_weight(model, name)]) == pytest.approx([0], abs=1e-10)
    assert bool(warned) == (case in ANEW), [str(w.message) for w in warned]
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, kept, strict=True)), "the data is untouched"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_baking_a_copy_leaves_the_original_alone() -> None:
    """A copy of a parametrized module has the original's own class, from which torch would delete the weight."""
    model, x = Normed().eval(), torch.randn(4, 6)
    with torch.no_grad():
        expected = model(x)["second"]
        baked = bake_weights_(copy_model(model))
        assert torch.equal(model(x)["second"], expected)
        assert torch.allclose(baked(x)["second"], expected, atol=1e-6)
        assert nn.utils.parametrize.is_parametrized(model.new)
        assert type(baked.new) is nn.Linear
        for layer in (baked.old, baked.new, baked.masked):  # plain memory now
            layer.weight.zero_()
        assert not torch.allclose(baked(x)["second"], expected, atol=1e-3)


def test_replaced_layers_stay_replaced() -> None:
    torch.manual_seed(1)
    model, batches = Residual().eval(), [torch.randn(4, 3, 6, 6)]
    inventory = inspect(model, batches[0])
    proxy = NetworkProxy(model, batches)
    changed = copy.deepcopy(model)
    for name in ("conv1", "head"):
        proxy.replace(name, half_of(layer_weight(model, name))[1])
        layer_weight(changed, name).copy_(half_of(layer_weight(model, name))[1])
    dense = layer_weight(model, "conv2")
    (together,) = proxy.losses(inventory.layer("conv2"), [dense / 2])
    layer_weight(changed, "conv2").copy_(dense / 2)
    with torch.no_grad():
        ours, theirs = changed(batches[0]), model(batches[0])
    assert together == pytest.approx(float((ours - theirs).square().sum() / theirs.square().sum()), rel=1e-6)
    assert together != pytest.approx(NetworkProxy(model, batches).losses(inventory.layer("conv2"), [dense / 2])[0])


class Returns(nn.Module):
    def __init__(self, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.output = nn.Linear(4, 4), output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.fc(x))


@pytest.mark.parametrize(
    ("output", "taps", "message"),
    [
        (lambda y: y[y > 0], (), "cannot be compared.*taps="),
        (lambda y: y.argmax(1), (), "no floating-point tensors on calibration batch 1.*taps="),
        (lambda y: y / 0, (), "no finite value.*taps="),
        (lambda y: y.log(), (), "contain NaN"),
        (lambda y: y, ("unused",), "taps unused return no"),
    ],
)
def test_outputs_that_cannot_be_compared(output: Any, taps: tuple[str, ...], message: str) -> None:
    model, x = Returns(output).eval(), torch.randn(8, 4)
    model.unused = nn.Identity()
    layer = inspect(model, x).layer("fc")
    with pytest.raises(ModelError, match=f"(?s){message}"):
        NetworkProxy(model, [x], taps).losses(layer, [torch.zeros(4, 4)])
    if not taps:  # where taps are named it works
        assert NetworkProxy(model, [x], ("fc",)).losses(layer, [torch.zeros(4, 4)])[0] > 0


def test_unknown_taps_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"'hed'.*Did you mean 'head'"):
        NetworkProxy(Residual(), [], ("hed",))


def test_a_candidate_that_overflows_is_as_bad_as_can_be() -> None:
    model, x = Returns(lambda y: y).eval(), torch.randn(8, 4)
    layer = inspect(model, x).layer("fc")
    values = NetworkProxy(model, [x]).losses(layer, [torch.full((4, 4), v) for v in (float("inf"), float("nan"), 0.1)])
    assert values[0] == values[1] == 1e6 > values[2]


def test_samples_after_those_of_the_proxy() -> None:
    batches = list(torch.arange(12.0).split(5))

    def between(start: int, stop: int) -> list[list[float]]:
        return [inputs.tolist() for inputs, _ in samples_between(batches, start, stop)]

    assert between(0, 6) == [[0, 1, 2, 3, 4], [5]]
    assert between(3, 7) == [[3, 4], [5, 6]]
    assert between(2, 5) == [[2, 3], [4]]
    assert between(5, 12) == [[5, 6, 7, 8, 9], [10, 11]]
    assert between(10, 99) == [[10, 11]]
    assert between(12, 14) == []


def test_first_samples() -> None:
    batches = [(torch.zeros(4, 2), 0), {"a": torch.zeros(3, 2)}, torch.zeros(9, 2)]
    assert [len(first_samples(batches, n)) for n in (1, 4, 5, 7, 8, 16, 1000)] == [1, 1, 2, 2, 3, 3, 3]
    assert len(first_samples(iter(batches), 5)) == 2
    with pytest.raises(DataError, match="empty"):
        first_samples([], 5)
