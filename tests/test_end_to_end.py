"""The whole road on small models of every structure: plan, apply, count, save, load, train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold._tensors import tensors_of
from rankfold.batches import call_model
from rankfold.inventory import inspect
from rankfold.records import Budget
from rankfold.surgery import factored_layers

Built = tuple[nn.Module, Any]
MODELS: dict[str, Callable[[], Built]] = {}


def model(build: Callable[[], Built]) -> Callable[[], Built]:
    MODELS[build.__name__.strip("_")] = build
    return build


@model
def _one_linear() -> Built:
    return nn.Linear(24, 20), torch.randn(2, 24)


@model
def _one_convolution() -> Built:
    return nn.Conv2d(8, 12, 3), torch.randn(1, 8, 6, 6)


@model
def _convolutions_1d() -> Built:
    net = nn.Sequential(nn.Conv1d(6, 16, 5, stride=2), nn.ReLU(), nn.Conv1d(16, 16, 3, padding="same"))
    return net, torch.randn(2, 6, 20)


@model
def _convolutions_3d() -> Built:
    net = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.Conv3d(8, 8, (1, 3, 3)))
    return net, torch.randn(2, 3, 4, 5, 5)


@model
def _transposed() -> Built:
    net = nn.Sequential(
        nn.Conv2d(4, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 12, 4, stride=2, padding=1),
        nn.ConvTranspose2d(12, 6, 3, output_padding=1, stride=2, groups=2),
    )
    return net, torch.randn(1, 4, 8, 8)


@model
def _grouped() -> Built:
    net = nn.Sequential(nn.Conv2d(8, 16, 3, groups=2), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 24, 1, groups=4))
    return net, torch.randn(1, 8, 7, 7)


@model
def _padded() -> Built:
    net = nn.Sequential(
        nn.Conv2d(4, 10, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(10, 10, 3, padding="same", padding_mode="reflect", dilation=2),
    )
    return net, torch.randn(1, 4, 9, 9)


@model
def _weight_norm() -> Built:
    net = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(20, 24)),
        nn.Tanh(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(24, 16)),
    )
    return net, torch.randn(2, 20)


class _Shared(nn.Module):
    """One module at two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 20)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


@model
def _shared() -> Built:
    return _Shared(), torch.randn(3, 20)


class _Tied(nn.Module):
    """Two layers with one weight, each with its own bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 12)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.relu(self.first(x))))


@model
def _tied() -> Built:
    return _Tied(), torch.randn(3, 20)


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(20, 20), nn.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@model
def _unused() -> Built:
    return _Unused(), torch.randn(2, 20)


class _Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text, self.head = nn.Conv2d(3, 16, 3), nn.Linear(12, 16), nn.Linear(16, 16)

    def forward(self, image: Tensor, text: Tensor, scale: float = 1.0) -> dict[str, Any]:
        mixed = self.image(image).mean((2, 3)) + scale * self.text(text)
        return {"out": self.head(mixed), "parts": (mixed,)}


@model
def _keywords() -> Built:
    return _Keywords(), {"image": torch.randn(2, 3, 6, 6), "text": torch.randn(2, 12), "scale": 0.5}


@model
def _positions() -> Built:
    return _Keywords(), (torch.randn(2, 3, 6, 6), torch.randn(2, 12))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(24, 4, batch_first=True), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x, x, x, need_weights=False)[0])


@model
def _attention() -> Built:
    return _Attention(), torch.randn(2, 5, 24)


@model
def _transformer() -> Built:
    layer = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 5, 24)


@model
def _decoder() -> Built:
    layer = nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return layer, (torch.randn(2, 5, 16), torch.randn(2, 3, 16))


@model
def _lazy() -> Built:
    net, x = nn.Sequential(nn.LazyLinear(20), nn.ReLU(), nn.LazyLinear(16)), torch.randn(2, 24)
    net(x)
    return net, x


@model
def _half() -> Built:
    return nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24)).bfloat16(), torch.randn(2, 24).bfloat16()


@model
def _double() -> Built:
    return nn.Sequential(nn.Conv2d(4, 12, 3), nn.Conv2d(12, 12, 3)).double(), torch.randn(1, 4, 7, 7).double()


def build(name: str) -> Built:
    torch.manual_seed(0)
    net, x = MODELS[name]()
    return net.eval(), x


def outputs(net: nn.Module, x: Any) -> list[Tensor]:
    with torch.no_grad():
        return tensors_of(call_model(net, x))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


@pytest.fixture(params=sorted(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def budget() -> str:
    return "params<=70%"


def test_the_whole_road(name: str, budget: str, tmp_path: Path) -> None:
    net, x = build(name)
    state = copy.deepcopy(net.state_dict())
    before = outputs(net, x)
    result = rf.compress(net, x, budget=budget, output=tmp_path / "out")
    small = result.model

    # The budget holds on the model as it was built, and the report counts what is there.
    counted = inspect(small, x).total
    unique = {id(p): p.numel() for p in small.parameters()}
    assert sum(unique.values()) == counted.params == result.report.after.params
    assert counted.macs == result.report.after.macs
    assert result.report.before.params == inspect(net, x).total.params
    assert not Budget.parse(budget).exceeded(counted, inspect(net, x).total)
    assert result.plan.factored

    # The input is as it was, the output of the same form.
    assert same(outputs(net, x), before)
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in state.items())
    after = outputs(small, x)
    assert [(t.shape, t.dtype) for t in after] == [(t.shape, t.dtype) for t in before]
    assert not same(after, before)

    # A loaded artifact is the same model, also on a fresh instance with other weights.
    torch.manual_seed(1)
    fresh, _ = MODELS[name]()
    fresh.eval()
    assert not same(outputs(fresh, x), before)
    loaded = rf.load(tmp_path / "out", fresh)
    assert same(outputs(loaded, x), after)
    assert {n: m.choice for n, m in factored_layers(loaded).items()} == {
        n: m.choice for n, m in factored_layers(small).items()
    }

    # Gradients reach every factor of every layer that is used.
    small.train()
    for _, module in factored_layers(small).items():
        module.requires_grad_(True)
    sum(t.float().square().sum() for t in tensors_of(call_model(small, x)) if t.is_floating_point()).backward()
    for path, module in factored_layers(small).items():
        if path != "spare":
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters()), path


def test_full_rank_reproduces_the_model(name: str) -> None:
    """Plans of the largest ranks change no output; those of rank 1 (the negative control) do."""
    from rankfold.methods import get

    net, x = build(name)
    before = outputs(net, x)
    method = get("svd")
    layers = [layer for layer in inspect(net, x).compressible if method.supports(layer) is None]
    assert layers
    full = {layer.name: ("svd", method.max_ranks(layer)) for layer in layers}
    least = {layer.name: ("svd", 1) for layer in layers}
    eps = 0.05 if name == "half" else 1e-4
    for choices, equal in ((full, True), (least, False)):
        plan = rf.plan(net, x, strategy=rf.Manual(layers=choices))
        assert set(plan.factored) == set(full)
        after = outputs(rf.apply(net, plan), x)
        pairs = [(a.double(), b.double()) for a, b in zip(after, before, strict=True)]
        assert all(torch.dist(a, b) <= eps * b.norm() for a, b in pairs) is equal


def test_strip_leaves_plain_modules(name: str, budget: str) -> None:
    net, x = build(name)
    small = rf.compress(net, x, budget=budget).model
    plain = rf.strip(small)
    assert same(outputs(plain, x), outputs(small, x))
    own = {type(m).__name__ for m in plain.modules() if type(m).__module__.startswith("rankfold")}
    assert own <= {"SeparatedAttention"}
    assert any(type(m).__module__.startswith("rankfold") for m in small.modules())
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in small.parameters())
    assert not hasattr(plain, "rankfold_plan")


# --- sharing ---


def test_a_shared_module_stays_one(budget: str, tmp_path: Path) -> None:
    net, x = build("shared")
    assert [(layer.name, layer.aliases) for layer in inspect(net, x)] == [("first", ("second",))]
    result = rf.compress(net, x, budget=budget, output=tmp_path / "out")
    assert list(result.plan.layers) == ["first"]
    for small in (result.model, rf.load(tmp_path / "out", _Shared())):
        assert small.first is small.second
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 4 * result.report.after.params + 2000
    assert result.report.after.params == sum(p.numel() for p in result.model.first.parameters())


def test_tied_layers_share_their_factors(budget: str, tmp_path: Path) -> None:
    net, x = build("tied")
    with torch.no_grad():
        net.second.bias += 1
    assert [(layer.name, layer.ties) for layer in inspect(net, x)] == [("first", ("second",)), ("head", ())]
    result = rf.compress(net, x, budget=budget, output=tmp_path / "out", overrides={"first": ("svd", 4)})
    assert list(result.plan.layers) == ["first", "head"]
    for small in (result.model, rf.load(tmp_path / "out", _Tied())):
        assert small.first is not small.second
        for left, right in zip(small.first, small.second, strict=True):
            assert left.weight is right.weight
        assert torch.equal(small.first.bias, net.first.bias)
        assert torch.equal(small.second.bias, net.second.bias)
    assert result.report.after.params == 4 * (20 + 20) + 20 + 20 + sum(
        p.numel() for p in result.model.head.parameters()
    )


@pytest.mark.parametrize("name", ["shared", "tied"])
def test_a_shared_layer_answers_to_both_names(name: str) -> None:
    net, x = build(name)
    plans = [rf.plan(net, x, overrides={path: ("svd", 3)}) for path in ("first", "second")]
    assert plans[0] == plans[1]
    assert plans[0].layers["first"].ranks == (3,)


def test_an_unused_layer_is_noted(budget: str) -> None:
    net, x = build("unused")
    result = rf.compress(net, x, budget=budget)
    assert any("spare" in note and "not called" in note for note in result.report.notes)


def test_a_lazy_model_that_was_never_run_is_refused() -> None:
    net = nn.Sequential(nn.LazyLinear(20))
    with pytest.raises(rf.RankfoldError, match="lazy"):
        rf.compress(net, torch.randn(2, 24), budget="params<=50%")
    assert isinstance(net[0], nn.LazyLinear)


# --- data ---


def _correlated(count: int, features: int, seed: int) -> Tensor:
    """Return inputs in which a few directions carry almost everything."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=torch.Generator().manual_seed(9))
    scale = 0.5 ** torch.arange(features)
    return (torch.randn(count, features, generator=generator) * scale) @ mixing


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "inputs": lambda x: x,
    "labeled": lambda x: (x, torch.zeros(len(x), dtype=torch.long)),
    "list": lambda x: [x, torch.zeros(len(x), dtype=torch.long)],
    "tuple of one": lambda x: (x,),
    "arguments": lambda x: ((x,), None),
    "mapping": lambda x: {"input": x},
    "mapping with labels": lambda x: {"input": x, "labels": torch.zeros(len(x))},
}


def _linear_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_calibration_data(form: str) -> None:
    net, x = _linear_net(), _correlated(64, 16, 0)
    plain = rf.compress(net, x[:1], budget="params<=60%", calibration=list(x.split(16))).model(x)
    formed = [FORMS[form](part) for part in x.split(16)]
    for data in (formed, iter(formed), (batch for batch in formed)):
        result = rf.compress(net, x[:1], budget="params<=60%", calibration=data)
        assert torch.equal(result.model(x), plain)
        assert result.plan.provenance.reconstruct == "data"
    assert not torch.equal(rf.compress(net, x[:1], budget="params<=60%").model(x), plain)


def test_apply_takes_a_generator() -> None:
    net, x = _linear_net(), _correlated(64, 16, 0)
    plan = rf.plan(net, x[:1], budget="params<=60%")

    def batches() -> Iterator[Tensor]:
        yield from x.split(16)

    a, b = rf.apply(net, plan, batches()), rf.apply(net, plan, list(x.split(16)))
    assert torch.equal(a(x), b(x))


def test_calibration_does_not_touch_the_random_state() -> None:
    net, x = _linear_net(), _correlated(64, 16, 0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=16)
    before = torch.get_rng_state()
    rf.compress(net, x[:1], budget="params<=60%", calibration=loader, evaluate=rf.agreement(net, loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_data_beats_weights_at_the_same_plan() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)).eval()

    def images(seed: int) -> Tensor:
        return _correlated(16 * 36, 8, seed).reshape(16, 6, 6, 8).movedim(-1, 1)

    plan = rf.plan(net, images(0), budget="params<=40%", strategy="energy", methods="svd,tucker")
    held_out = images(5)
    (wanted,) = outputs(net, held_out)
    error = {}
    for mode in ("weights", "data"):
        (found,) = outputs(rf.apply(net, plan, [images(1)], reconstruct=mode), held_out)
        error[mode] = torch.dist(found, wanted)
    assert error["data"] < 0.8 * error["weights"]


@pytest.mark.parametrize("helps", [True, False])
def test_batchnorm_statistics_are_replaced_where_that_helps(helps: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3))
    data = [torch.randn(32, 3, 6, 6) + 5 for _ in range(4)]
    for batch in 20 * data:
        net(batch)
    net.eval()
    # Factors of low rank that ignore the data miss the inputs' mean; those of full rank leave nothing to mend.
    overrides = {"0": ("svd", 6 if helps else 16), "3": None}
    result = rf.compress(net, data[0], calibration=data, data_aware=False, overrides=overrides)
    notes = [note for note in result.report.notes if "BatchNorm" in note]
    assert len(notes) == 1
    assert ("replaced" in notes[0]) is helps
    assert torch.equal(result.model[1].running_mean, net[1].running_mean) is not helps
