"""Gauged stages and gauged models: what is copied comes from the right place, refusals, ties, everything around."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import rankfold as rf
from rankfold import methods
from rankfold.errors import GaugeError
from rankfold.factor.gauge import Gauge
from rankfold.records import Choice, ConvSpec, GaugedSpec, LinearSpec, Plan
from rankfold.surgery import apply_plan_, check_plan, factored_layers, gauging, plan_of
from rankfold.surgery import gauged as stages
from rankfold.surgery.gauged import Gauged, GaugedInput, GaugedOutput
from rankfold.testing.subject import relative_error


def params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def fill(stage: Gauged, matrix: Tensor) -> Gauged:
    """Fill a stage with any pivots and numbers: `matrix` gives both."""
    r = stage.rank
    order = matrix[:, :, 0].argsort(1)
    pivots, others = (part.sort(1).values for part in (order[:, :r], order[:, r:]))
    rest = matrix.gather(1, others.unsqueeze(2).expand(-1, -1, r))
    with torch.no_grad():
        stage.fill(Gauge(rest=rest, transfer=rest[:, :r], pivots=pivots, others=others, condition=1.0))
        if stage.bias is not None:
            stage.bias.copy_(torch.arange(stage.bias.numel()))
    return stage


def conv(side: Any, **options: Any) -> tuple[Gauged, nn.Module]:
    """Return a gauged convolution, filled at random, and the stock one with its weight and bias."""
    spec = ConvSpec(**{"name": "s", "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), **options})
    kind = GaugedInput if side == "input" else GaugedOutput
    gauged = GaugedSpec(base=spec, side=side)
    stage = kind(gauged, dtype=torch.float64, device=torch.device("cpu"))
    fill(stage, torch.randn(gauged.groups, gauged.size, gauged.rank, dtype=torch.float64))
    stock = nn.Conv2d(
        spec.in_channels, spec.out_channels, spec.kernel, spec.stride, spec.padding, spec.dilation, spec.groups,
        spec.bias, spec.padding_mode, dtype=torch.float64,
    )  # fmt: skip
    with torch.no_grad():
        stock.weight.copy_(stage.weight)
        if stock.bias is not None:
            stock.bias.copy_(stage.bias)
    return stage, stock


CONVS: list[tuple[str, dict[str, Any]]] = [
    ("output", {"in_channels": 3, "out_channels": 8, "kernel": (1, 1), "bias": True}),
    ("output", {"in_channels": 6, "out_channels": 16, "kernel": (1, 1), "groups": 2, "bias": True}),
    ("output", {"in_channels": 4, "out_channels": 4, "kernel": (1, 1), "bias": True}),
    ("input", {"in_channels": 9, "out_channels": 4, "kernel": (1, 1)}),
    ("input", {"in_channels": 18, "out_channels": 8, "kernel": (1, 1), "groups": 2}),
    ("input", {"in_channels": 4, "out_channels": 4, "kernel": (1, 1)}),
    ("input", {"in_channels": 9, "out_channels": 4, "kernel": (1, 1), "stride": (2, 1), "padding": (1, 0)}),
    ("input", {"in_channels": 4, "out_channels": 7, "kernel": (3, 1), "stride": (2, 1), "padding": (1, 0)}),
    ("input", {"in_channels": 4, "out_channels": 12, "kernel": (3, 1)}),  # every position is copied
    ("input", {"in_channels": 8, "out_channels": 10, "kernel": (1, 3), "groups": 2, "dilation": (1, 2)}),
    ("input", {"in_channels": 4, "out_channels": 5, "kernel": (4, 1), "padding": "same"}),
    ("input", {"in_channels": 4, "out_channels": 5, "kernel": (3, 2), "padding": (1, 2), "padding_mode": "reflect"}),
    ("input", {"in_channels": 4, "out_channels": 5, "kernel": (1, 3), "padding": "same", "padding_mode": "circular"}),
    ("input", {"in_channels": 4, "out_channels": 5, "kernel": (3, 1), "padding": (2, 0), "padding_mode": "replicate"}),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize(("side", "options"), CONVS)
def test_a_stage_computes_what_the_stock_layer_with_its_weight_does(side: str, options: dict[str, Any]) -> None:
    stage, stock = conv(side, **options)
    x = torch.randn(2, options["in_channels"], 7, 6, dtype=torch.float64)
    assert relative_error(stage(x), stock(x)) < 1e-14
    assert params(stock) - params(stage) == stage.groups * stage.rank**2
    ones = stage.weight.flatten(1)
    assert int((ones == 1).sum()) >= stage.groups * stage.rank
    stage.order.copy_(stage.order.roll(1))  # what the order says matters
    if stage.rest is not None:
        assert relative_error(stage(x), stock(x)) > 1e-3


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_linear_stage_of_any_leading_dimensions(side: Any) -> None:
    sizes = {"in_features": 9, "out_features": 5} if side == "input" else {"in_features": 5, "out_features": 9}
    gauged = GaugedSpec(base=LinearSpec(name="s", **sizes, bias=side == "output"), side=side)
    kind = GaugedInput if side == "input" else GaugedOutput
    stage = fill(kind(gauged, dtype=torch.float32, device=torch.device("cpu")), torch.randn(1, 9, 5))
    for leading in ((), (3,), (2, 1, 3), (0,)):
        x = torch.randn(*leading, sizes["in_features"])
        torch.testing.assert_close(stage(x), nn.functional.linear(x, stage.weight, stage.bias))


def test_channels_last_stays() -> None:
    stage, _ = conv("output", in_channels=3, out_channels=8, kernel=(1, 1))
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    assert stage(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    assert stage(x).is_contiguous()


SINGLE: list[tuple[nn.Module, str, tuple[int, ...], tuple[int, ...]]] = [
    (nn.Linear(40, 30), "svd", (12,), (3, 40)),
    (nn.Conv2d(12, 20, 3, padding=1), "tucker", (9, 7), (2, 12, 6, 6)),
    (nn.Conv1d(8, 12, 5, stride=2), "tt", (6, 9), (2, 8, 12)),
    (nn.Conv2d(12, 10, 3, padding=1, padding_mode="circular"), "spatial_svd", (14,), (2, 12, 6, 6)),
]


@pytest.mark.parametrize(("layer", "method", "ranks", "shape"), SINGLE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_factorize_gauged(
    layer: nn.Module, method: str, ranks: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    layer = copy.deepcopy(layer).to(dtype)
    plain, gauged = (rf.factorize(layer, method, ranks, gauge=g) for g in (False, True))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2}[dtype]
    assert relative_error(gauged(torch.ones(shape, dtype=dtype)), plain(torch.ones(shape, dtype=dtype))) < tolerance
    assert relative_error(gauged.weight, plain.weight) < tolerance
    assert params(gauged) < params(plain)
    assert gauged.choice == Choice(method=method, ranks=ranks, gauge=True)
    assert "gauged" in repr(gauged)
    assert "gauged" not in repr(plain)


WEIGHTS = {
    "zero": torch.zeros(12, 20),
    "constant": torch.full((12, 20), 0.3),
    "rank 2": torch.outer(torch.arange(12.0), torch.ones(20)) + torch.outer(torch.ones(12), torch.arange(20.0)),
    "huge": torch.randn(12, 20, generator=torch.Generator().manual_seed(0)) * 1e30,
    "tiny": torch.randn(12, 20, generator=torch.Generator().manual_seed(0)) * 1e-30,
}


@pytest.mark.parametrize("values", list(WEIGHTS.values()), ids=list(WEIGHTS))
def test_weights_of_any_kind(values: Tensor) -> None:
    layer = nn.Linear(20, 12, bias=False)
    with torch.no_grad():
        layer.weight.copy_(values)
    gauged = rf.factorize(layer, "svd", 11, gauge=True)
    assert all(bool(p.isfinite().all()) for p in gauged.parameters())
    plain = rf.factorize(layer, "svd", 11)
    assert relative_error(gauged.weight, plain.weight) < 1e-5


def test_what_cannot_be_gauged_is_refused_with_the_reason() -> None:
    with pytest.raises(GaugeError, match="'cp' with ranks.*single channels.*Leave gauge out"):
        rf.factorize(nn.Conv2d(6, 8, 3), "cp", 4, gauge=True)
    net = nn.Sequential(OrderedDict(fc=nn.Linear(12, 12), out=nn.Linear(12, 6)))
    plan = rf.Plan(layers={"fc": Choice(method="ttm", ranks=(4,), gauge=True), "out": Choice(method="svd", ranks=(2,))})
    with pytest.raises(GaugeError, match=r"'fc'.*reshape"):
        check_plan(net, plan)
    with pytest.raises(GaugeError, match=r"'fc'.*reshape"):
        apply_plan_(net, plan)
    assert not factored_layers(net)


def test_an_ill_conditioned_gauge_is_refused_and_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_rows(matrix: Tensor) -> Gauge:
        """Take the first rows for pivots, as a gauge without pivoting would."""
        r, batch, m = matrix.shape[2], matrix.shape[0], matrix.shape[1]
        rows = torch.arange(m).expand(batch, -1)
        rest = torch.linalg.solve(matrix[:, :r], matrix[:, r:], left=False)
        return Gauge(rest, matrix[:, :r], rows[:, :r], rows[:, r:], float(torch.linalg.cond(matrix[:, :r]).max()))

    net = nn.Sequential(OrderedDict(fc=nn.Linear(20, 16)))
    with torch.no_grad():
        weight = net.get_parameter("fc.weight")
        weight[:, 1] = weight[:, 0] * (1 + 1e-7)  # the first two inputs are nearly the same
    plan = rf.Plan(layers={"fc": Choice(method="svd", ranks=(8,), gauge=True)})
    apply_plan_(copy.deepcopy(net), plan)  # with pivoting there is no trouble
    monkeypatch.setattr(gauging, "gauge", first_rows)
    with pytest.raises(
        GaugeError, match=r"'fc' .*change its weight by \S+ relative in float32, more than the allowed 1e-05"
    ) as caught:
        apply_plan_(net, plan)
    assert "condition number" in str(caught.value)
    assert "Leave gauge out" in str(caught.value)
    assert not factored_layers(net)


class Tied(nn.Module):
    """`a` is used under two names; `b` and `c` share a weight but not the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(12, 12)
        self.alias = self.a
        self.b = nn.Linear(12, 12)
        self.c = nn.Linear(12, 12)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.alias(self.a(x)).relu()).relu())


@pytest.mark.parametrize("later", [False, True])
def test_ties_and_aliases_stay(later: bool, tmp_path: Path) -> None:
    model, x = Tied().eval(), torch.randn(3, 12)
    layers = {n: {"method": "svd", "ranks": [5], "gauge": not later} for n in "ab"}
    made = rf.apply(model, rf.plan(model, x, strategy=rf.Manual(layers=layers)))
    small: Any = rf.gauge(made) if later else made
    plain = rf.apply(model, rf.plan(model, x, strategy=rf.Manual(layers=dict.fromkeys("ab", ("svd", 5)))))
    torch.testing.assert_close(small(x), plain(x), rtol=1e-5, atol=1e-6)
    assert small.a is small.alias
    assert small.b is not small.c
    shared = [p for p in small.b.parameters() if any(p is q for q in small.c.parameters())]
    assert sum(p.numel() for p in shared) == 5 * (12 + 12 - 5)
    torch.testing.assert_close(small.c.bias, model.c.bias)
    assert params(plain) - params(small) == 2 * 25
    again = rf.load(rf.save(small, tmp_path / "out"), Tied())
    assert torch.equal(again(x), small(x))
    assert params(again) == params(small)
    assert {n: c.gauge for n, c in plan_of(again).factored.items()} == {"a": True, "b": True}


def network() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(4, 16, 3, padding=1),
            norm=nn.BatchNorm2d(16),
            act=nn.ReLU(),
            wide=nn.Conv2d(16, 16, 3, padding=1, bias=False),
            cp=nn.Conv2d(16, 16, 3, padding=1),
            pool=nn.AdaptiveAvgPool2d(2),
            flat=nn.Flatten(),
            fc=nn.Linear(64, 32),
            ttm=nn.Linear(32, 24),
        )
    ).eval()


LAYERS = {
    "conv": ("svd", (3,)),
    "wide": ("tt", (6, 9, 8)),
    "cp": ("cp", (4,)),
    "fc": ("svd", (10,)),
    "ttm": ("ttm", (5,)),
}
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def compressed() -> nn.Module:
    net = network()
    return rf.apply(net, rf.plan(net, X, strategy=rf.Manual(layers=LAYERS)))


def test_gauge_of_a_trained_model_is_lossless() -> None:
    small = compressed()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        small(X).square().mean().backward()
        optimizer.step()
    small.train()
    small.get_submodule("wide").requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    smaller = rf.gauge(small)
    assert all(torch.equal(before[n], t) for n, t in small.state_dict().items())
    assert smaller.training
    assert not any(p.requires_grad for p in smaller.get_submodule("wide").parameters())
    assert all(p.requires_grad for p in smaller.get_submodule("fc").parameters())
    small.eval()
    smaller.eval()
    with torch.no_grad():
        assert relative_error(smaller(X), small(X)) < 1e-6
    assert (
        params(small) - params(smaller) == 36 + 81 + 64 + 100
    )  # wide's three bonds and fc's; conv's indices cost more
    gauged = {name for name, choice in plan_of(smaller).factored.items() if choice.gauge}
    assert gauged == {"wide", "fc"}
    assert not any(choice.gauge for choice in plan_of(small).factored.values())
    again = rf.gauge(smaller)  # nothing is left to do
    assert torch.equal(again(X), smaller(X))
    with torch.no_grad():  # a negative control: another pivot is another function
        order = smaller.get_buffer("fc.input.order")
        order.copy_(order.roll(1))
        assert relative_error(smaller(X), small(X)) > 1e-3


def test_gauge_needs_a_compressed_model() -> None:
    with pytest.raises(rf.RankfoldError, match="has no factored layers"):
        rf.gauge(network())


def test_gauge_of_one_layer_and_inside_attention() -> None:
    layer = rf.factorize(nn.Conv2d(12, 16, 3), "tucker", (6, 5))
    smaller = rf.gauge(layer)
    assert params(layer) - params(smaller) == 36 + 25
    x = torch.randn(1, 12, 5, 5)
    torch.testing.assert_close(smaller(x), layer(x))
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    small = rf.compress(encoder, x, budget="params<=50%").model
    smaller = rf.gauge(small)
    assert params(smaller) < params(small)
    torch.testing.assert_close(smaller(x), small(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), small(x), rtol=1e-5, atol=1e-5)


def test_hooks_and_channels_last_are_kept() -> None:
    small = compressed().to(memory_format=torch.channels_last)
    calls: list[int] = []
    small.get_submodule("wide").register_forward_hook(lambda *_: calls.append(1))
    smaller = rf.gauge(small)
    smaller(X)
    assert calls == [1]
    core = smaller.get_submodule("wide.axis1").weight
    assert core.is_contiguous(memory_format=torch.channels_last)


def test_state_dict_says_where_the_pivots_are() -> None:
    smaller = rf.gauge(compressed())
    state = smaller.state_dict()
    assert state["fc.input.order"].dtype is torch.int32
    assert sorted(state["fc.input.order"].tolist()) == list(range(64))
    fresh = copy.deepcopy(smaller)
    for stage in (m for m in fresh.modules() if isinstance(m, stages.Gauged)):
        stage.order.copy_(stage._first())
    assert relative_error(fresh(X), smaller(X)) > 1e-3
    fresh.load_state_dict(state)
    assert torch.equal(fresh(X), smaller(X))
    half = copy.deepcopy(smaller).half()
    assert half.get_buffer("fc.input.order").dtype is torch.int32


def test_strip_needs_no_class_of_rankfold() -> None:
    smaller = rf.gauge(compressed())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = rf.strip(smaller)
    assert torch.equal(plain(X), smaller(X))
    assert not any(type(m).__module__.startswith("rankfold") for m in plain.modules())
    assert params(plain) == params(smaller)
    plain(X).square().sum().backward()
    assert all(p.grad is not None for p in plain.parameters())


def test_chosen_blueprint_is_what_is_built() -> None:
    for module in factored_layers(rf.gauge(compressed())).values():
        blueprint = methods.chosen_blueprint(module.info, module.choice)
        assert blueprint.params == params(module)
        assert bool(blueprint.gauged) == module.choice.gauge


def test_a_bias_that_was_folded_in_is_kept() -> None:
    """Gauged layers refuse folding, so batch norms are folded first; that gives factors a bias they did not have."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(16).eval()
    nn.init.normal_(norm.bias)
    nn.init.uniform_(norm.weight, 0.5, 2)
    small = rf.factorize(nn.Conv2d(16, 16, 3, bias=False), "svd", (12,)).eval()
    folded = fuse_conv_bn_eval(small, norm)  # type: ignore[type-var]
    x = torch.randn(2, 16, 6, 6)
    smaller = rf.gauge(folded)
    assert params(smaller) < params(folded)
    torch.testing.assert_close(smaller(x), norm(small(x)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(smaller(x), norm(small(x)) - norm.bias[:, None, None], atol=1e-2)
    bare = rf.factorize(nn.Conv2d(16, 16, 3), "svd", (12,)).eval()
    bare.bias = None
    torch.testing.assert_close(rf.gauge(bare)(x), bare(x), rtol=1e-4, atol=1e-5)


class Namesakes(nn.Module):
    """Two layers with one weight, each with a note and a hook of its own; the second one has another name, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
        self.b.weight = self.a.weight
        self.c = self.b
        self.calls: list[str] = []
        for name, layer in (("a", self.a), ("b", self.b)):
            layer.note = name  # type: ignore[assignment]
            layer.register_forward_hook(lambda *_, name=name: self.calls.append(name))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


@pytest.mark.parametrize("how", ["apply", "apply_", "sequential", "sequential_", "gauge"])
def test_tied_layers_keep_their_own_hooks_and_notes(how: str) -> None:
    model, x = Namesakes(), torch.randn(64, 32)
    plan = Plan(layers={"a": Choice(method="svd", ranks=(12,))})
    way = {"reconstruct": "sequential", "calibration": [x]} if how.startswith("sequential") else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a hook or function of the model refers to the original")
        small: Any = (rf.apply_ if how.endswith("_") else rf.apply)(model, plan, **way)
    small = rf.gauge(small) if how == "gauge" else small
    assert (small.a.note, small.b.note) == ("a", "b")
    model.calls.clear()
    small(x)
    assert model.calls == ["a", "b", "b"]
    assert small.b is small.c
    weights = [p for n, p in small.a.named_parameters() if n.endswith("weight")]
    assert [id(p) for p in weights] == [id(p) for n, p in small.b.named_parameters() if n.endswith("weight")]
    assert small.a.bias is not small.b.bias


def test_a_shared_bias_stays_shared() -> None:
    model = Namesakes()
    model.b.bias = model.a.bias
    small: Any = rf.apply(model, Plan(layers={"a": Choice(method="svd", ranks=(12,))}))
    assert small.a.bias is small.b.bias
    assert params(small) == 12 * 64 + 32
    smaller: Any = rf.gauge(small)
    assert smaller.a.bias is smaller.b.bias
    assert params(smaller) == params(small) - 12**2
