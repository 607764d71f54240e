"""Sequential reconstruction against closed forms, an all-in-memory oracle, and plain data-aware factors."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.calibration import Sequential, collect_moments, reconstruct_sequentially
from rankfold.calibration.flow import observe
from rankfold.calibration.pairs import PairSums
from rankfold.calibration.patches import patch_vectors
from rankfold.errors import ConfigError, DataError, ModelError, RankfoldWarning
from rankfold.factor.moments import Moments
from rankfold.factor.refit import PairMoments, choose_ridge, damped, ridge_correction
from rankfold.inventory import layer_weight, static_inventory
from rankfold.records import Choice, Plan
from rankfold.surgery import Factored, apply_plan_, factored_layers, plan_of
from rankfold.surgery.apply import factor_layer

TINY = Sequential(ridge=1e-10)


def correlated(rows: int, n: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    scales = torch.logspace(0, -1.5, n, dtype=torch.float64)
    return (torch.randn(rows, n, generator=generator, dtype=torch.float64) * scales @ mix + 0.3).to(dtype)


def images(batch: int, channels: int, seed: int, size: int = 8) -> Tensor:
    flat = correlated(batch * size * size, channels, seed)
    return flat.reshape(batch, size, size, channels).movedim(-1, 1).contiguous()


def by_hand(**layers: tuple[str, tuple[int, ...]]) -> Plan:
    return Plan(layers={name.replace("__", "."): Choice(method=m, ranks=r) for name, (m, r) in layers.items()})


def mlp(*sizes: int, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (a, b) in enumerate(pairwise(sizes)):
        stages[f"fc{i}"] = nn.Linear(a, b, bias=bias)
        stages[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(stages).eval()


class Residual(nn.Module):
    """A small residual network: plain convolutions, BatchNorm, one shortcut that changes nothing and one 1x1."""

    def __init__(self, *, shortcut_last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.bn0 = nn.Conv2d(4, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv1, self.bn1 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv3, self.bn3 = nn.Conv2d(12, 16, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(16)
        self.down, self.bn4 = nn.Conv2d(12, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 5)
        self.shortcut_last = shortcut_last
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        with torch.no_grad():
            for _ in range(30):  # sensible statistics
                self(images(16, 4, 7))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        y += x
        x = y.relu_()
        if self.shortcut_last:
            x = self.bn3(self.conv3(x)) + self.bn4(self.down(x))
        else:
            short = self.bn4(self.down(x))
            x = short.add_(self.bn3(self.conv3(x)))
        return self.fc(x.relu_().mean((2, 3)))


RESIDUAL_PLAN = by_hand(
    stem=("svd", (6,)), conv1=("tucker", (6, 7)), conv2=("tucker", (6, 6)), conv3=("svd", (7,)), down=("svd", (6,))
)


def distance(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - other(x)).norm() / other(x).norm())


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


# The pieces


def pairs_of(x: Tensor, lacking: Tensor) -> PairMoments:
    n = len(x)
    return PairMoments(
        second=(x.T @ x / n)[None], cross=(lacking.T @ x / n)[None], lacking=lacking.mean(0)[None],
        given=x.mean(0)[None], scale=x.square().mean()[None], energy=float(lacking.square().sum()) / n, count=n,
    )  # fmt: skip


def test_correction_gives_the_ridge_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, y = (torch.randn(n, m, generator=generator, dtype=torch.float64) for n, m in ((50, 6), (4, 6), (50, 4)))
    pairs = pairs_of(x, y - x @ w.T)
    ridge = 0.1 * float(pairs.second[0].diagonal().mean())
    found = ridge_correction(pairs, 0.1)
    # The form of the textbooks: (Y X^T + ridge W) (X X^T + ridge I)^-1.
    pull = ridge * torch.eye(6, dtype=x.dtype)
    wanted = torch.linalg.solve(x.T @ x / 50 + pull, (y.T @ x / 50 + ridge * w).T).T
    torch.testing.assert_close(w + found[0], wanted, rtol=0, atol=1e-12)
    assert pairs.residual(found) == pytest.approx(float((y - x @ wanted.T).square().sum()) / 50, rel=1e-10)
    assert pairs.residual(found) < pairs.residual(torch.zeros_like(found))


def test_the_damped_metric_measures_what_a_correction_loses() -> None:
    generator = torch.Generator().manual_seed(0)
    x, d, v = (torch.randn(n, m, generator=generator, dtype=torch.float64) for n, m in ((50, 6), (50, 4), (4, 6)))
    pairs, ridge = pairs_of(x, d), 0.3

    def objective(correction: Tensor) -> float:
        return pairs.residual(correction) + ridge * float(pairs.scale) * float(correction.square().sum())

    best = ridge_correction(pairs, ridge)
    loss = objective(v[None]) - objective(best)
    for metric, fits in ((damped(pairs, ridge), True), (pairs.second, False)):
        found = float(torch.einsum("goi,gij,goj->", v - best, metric, v - best))
        assert (found == pytest.approx(loss, rel=1e-10)) == fits


def test_centred_moments_are_those_of_centred_data() -> None:
    generator = torch.Generator().manual_seed(0)
    x, d = (torch.randn(50, m, generator=generator, dtype=torch.float64) + 2 for m in (6, 4))
    found, wanted = pairs_of(x, d).centered(), pairs_of(x - x.mean(0), d - d.mean(0))
    torch.testing.assert_close(found.second, wanted.second)
    torch.testing.assert_close(found.cross, wanted.cross)
    assert found.energy == pytest.approx(wanted.energy)
    assert found.energy < 0.5 * pairs_of(x, d).energy


def test_one_sample_can_be_fitted_to() -> None:
    """About its mean a lone sample has no moment but rounding, which must not be taken for one that is negative."""
    torch.manual_seed(0)
    conv = nn.Conv2d(72, 4, 1)
    (layer,) = static_inventory(conv)
    sums = PairSums(layer, max_patch=100, max_positions=100)
    y = torch.randn(2, 4, 1, 1)
    assert sums.add(y, y + 1, 0.1 * torch.rand(2, 72, 1, 1) + 0.1)
    folds = [fold.centered() for fold in sums.folds()]
    assert [fold.count for fold in folds] == [1, 1]
    for fold in folds:
        assert float(ridge_correction(fold, 1e-4).abs().max()) < 1e-2


@pytest.mark.parametrize(("rows", "noise"), [(12, 1.0), (2000, 0.1), (12, 0.0)])
def test_the_ridge_follows_the_data(rows: int, noise: float) -> None:
    """Little data asks for a strong pull, much data or clean data for a weak one."""
    generator = torch.Generator().manual_seed(2)
    x = correlated(2 * rows, 16, 1, torch.float64)
    true = 0.1 * torch.randn(4, 16, generator=generator, dtype=torch.float64)
    d = x @ true.T + noise * torch.randn(2 * rows, 4, generator=generator, dtype=torch.float64)
    ridges = (1e-4, 1e-2, 1.0)
    chosen = choose_ridge([pairs_of(x[i::2], d[i::2]) for i in range(2)], ridges)
    unseen = correlated(4000, 16, 7, torch.float64)
    errors = {r: float((unseen @ (ridge_correction(pairs_of(x, d), r)[0] - true).T).norm()) for r in ridges}
    assert errors[chosen] <= 1.1 * min(errors.values())
    assert (chosen == 1e-4) == (noise < 1)
    assert choose_ridge([pairs_of(x, d)], ridges) == 1.0


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 1e-18])
def test_pair_sums_equal_those_of_all_vectors(groups: int, stride: int, scale: float) -> None:
    conv = nn.Conv2d(4, 6, 3, stride=stride, padding=1, groups=groups, bias=False)
    (layer,) = static_inventory(conv)
    sums = PairSums(layer, max_patch=100, max_positions=10_000)
    given = [images(5, 4, s + 10) * scale for s in range(2)]
    with torch.no_grad():
        wanted, found = [conv(images(5, 4, s)) for s in range(2)], [conv(x) for x in given]
        for parts in zip(wanted, found, given, strict=True):
            assert sums.add(*parts)
        made = sums.moments()
        y = (torch.cat(wanted) - torch.cat(found)).double().unflatten(1, (groups, -1)).movedim(0, 2).flatten(2)
        p = patch_vectors(torch.cat(given).double(), layer, 10_000)
    n = p.shape[-1]
    for sums_found, expected in (
        (made.second, p @ p.mT / n),
        (made.cross, y @ p.mT / n),
        (made.lacking, y.mean(-1)),
        (made.given, p.mean(-1)),
    ):
        assert float((sums_found - expected).norm() / expected.norm()) < 1e-6
    assert made.energy * n == pytest.approx(float(y.square().sum()), rel=1e-6)
    halves = sums.folds()
    assert [half.count for half in halves] == [n // 2, n // 2]
    first = patch_vectors(torch.cat(given)[::2].double(), layer, 10_000)
    torch.testing.assert_close(halves[0].given, first.mean(-1), rtol=1e-5, atol=0)
    assert sums.total == pytest.approx(float(torch.cat(wanted).square().sum()), rel=1e-6)


def test_pair_sums_refuse_what_does_not_belong_together() -> None:
    (layer,) = static_inventory(nn.Conv2d(4, 6, 3))
    sums = PairSums(layer, max_patch=100, max_positions=100)
    y, x = torch.zeros(2, 6, 6, 6), torch.zeros(2, 4, 8, 8)
    assert not sums.add(y, y, torch.zeros(3, 4, 8, 8))
    assert not sums.add(y, torch.zeros(2, 6, 5, 5), x)
    assert not sums.add(torch.zeros(2, 6, 5, 5), torch.zeros(2, 6, 5, 5), x)
    assert sums.count == 0
    assert sums.add(y, y, x)
    assert sums.count == 72
    with pytest.raises(DataError, match="output of layer"):
        sums.add(torch.full((2, 6, 6, 6), torch.nan), y, x)


@pytest.mark.parametrize("shortcut_last", [False, True])
def test_flow_finds_norms_and_sums(shortcut_last: bool) -> None:
    net = Residual(shortcut_last=shortcut_last)
    modules = {layer.name: [net.get_submodule(layer.name)] for layer in static_inventory(net)}
    with torch.no_grad():
        uses = observe(net, modules, lambda: net(images(2, 4, 0)))
    last, before = ("down", "conv3") if shortcut_last else ("conv3", "down")
    assert list(uses) == ["stem", "conv1", "conv2", before, last, "fc"]
    assert {name: use.norm for name, use in uses.items()} == {
        "stem": "bn0", "conv1": "bn1", "conv2": "bn2", "conv3": "bn3", "down": "bn4", "fc": None,
    }  # fmt: skip
    # Of the two terms of the last sum only the later layer knows the other term.
    assert [name for name, use in uses.items() if use.joins] == ["conv2", last]
    assert {name: use.sibling for name, use in uses.items() if use.sibling} == {last: before}


class Forked(nn.Module):
    """The output of `a` has two readers, that of `b` is changed in place; `c` is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.b, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.c = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = self.norm(y) + y
        w = self.b(z)
        w.mul_(2)
        return self.c(self.c(self.norm2(w))) + 0 * x


def test_flow_is_careful() -> None:
    net = Forked().eval()
    with torch.no_grad():
        uses = observe(net, {name: [net.get_submodule(name)] for name in "abc"}, lambda: net(images(2, 4, 0)))
    assert [use.norm for use in uses.values()] == [None, None, None]
    assert [use.calls for use in uses.values()] == [1, 1, 2]
    assert not any(use.joins for use in uses.values())


# The walk


def test_linear_layers_reach_the_closed_form() -> None:
    net = mlp(12, 16, 10).double()
    x = correlated(400, 12, 0, torch.float64)
    plan = by_hand(fc0=("svd", (4,)), fc1=("svd", (3,)))
    small = reconstruct_sequentially(net, plan, list(x.split(100)), TINY).model
    with torch.no_grad():
        hidden, seen = torch.relu(net[0](x)), torch.relu(small[0](x))
        target = net[2](hidden)
        ones = torch.ones(400, 1, dtype=x.dtype)
        free = torch.cat([seen, ones], 1) @ torch.linalg.lstsq(torch.cat([seen, ones], 1), target).solution
        # The best affine map of rank 3: the best one, projected onto its leading directions (reduced-rank regression).
        center = free.mean(0)
        basis = torch.linalg.svd(free - center, full_matrices=False).Vh[:3]
        best = (free - center) @ basis.T @ basis + center
        reached = float((small[2](seen) - target).norm())
        assert reached == pytest.approx(float((best - target).norm()), rel=1e-6)
        plain = rf.apply(net, plan, list(x.split(100)), reconstruct="data")
        assert float((plain[2](torch.relu(plain[0](x))) - target).norm()) > 1.05 * reached


def test_streamed_sums_equal_an_oracle_that_keeps_everything() -> None:
    net, x = Residual(), images(24, 4, 3)
    config = Sequential(ridge=1e-2, shortcuts=False)
    made = reconstruct_sequentially(net, RESIDUAL_PLAN, list(x.split(7)), config)
    small: Any = made.model
    with torch.no_grad():
        before, after = torch.relu(net.bn0(net.stem(x))), torch.relu(small.bn0(small.stem(x)))
        layer = next(layer for layer in static_inventory(net) if layer.name == "conv1")
        p, y = patch_vectors(after.double(), layer, 10_000)[0], net.conv1(before).double().movedim(1, 0).flatten(1)
        centered = p - p.mean(1, keepdim=True)
        second, cross = centered @ centered.T / p.shape[1], y @ centered.T / p.shape[1]
        pull = 1e-2 * p.square().mean() * torch.eye(len(second), dtype=second.dtype)
        weight = torch.linalg.solve(second + pull, (cross + net.conv1.weight.double().flatten(1) @ pull).T).T
        plan = by_hand(conv1=("tucker", (6, 7)))
        lone = copy.deepcopy(net)
        lone.conv1.weight.copy_(weight.reshape(lone.conv1.weight.shape))
        metric = second + pull
        moments = Moments(
            channel=metric.reshape(12, 9, 12, 9).diagonal(dim1=1, dim2=3).mean(-1)[None], patch=metric[None], count=1
        )
        wanted = factor_layer(lone, layer, plan.layers["conv1"], moments).weight
        assert float((small.conv1.weight - wanted).norm() / wanted.norm()) < 1e-4
        error = (small.conv1.weight.double().flatten(1) @ centered - (y - y.mean(1, keepdim=True))).norm() / y.norm()
        assert made.errors["conv1"] == pytest.approx(float(error), rel=1e-3)
        means = [m.bn1(m.conv1(x)).mean((0, 2, 3)) for m, x in ((small, after), (net, before))]
        torch.testing.assert_close(*means)
        assert float((wanted - net.conv1.weight).norm() / wanted.norm()) > 0.05


@pytest.mark.parametrize("shortcut_last", [False, True])
def test_better_than_plain_data_aware_factors(shortcut_last: bool) -> None:
    net = Residual(shortcut_last=shortcut_last)
    data, held_out = list(images(64, 4, 5).split(16)), images(64, 4, 6)
    plain = rf.apply(net, RESIDUAL_PLAN, data, reconstruct="data", batchnorm=False)
    error = {}
    for refit_kept in (True, False):
        small = rf.apply(net, RESIDUAL_PLAN, data, reconstruct=rf.Sequential(refit_kept=refit_kept), batchnorm=False)
        error[refit_kept] = distance(small, net, held_out)
    assert error[True] < 0.8 * distance(plain, net, held_out)
    assert error[True] < error[False] < distance(plain, net, held_out)


def test_a_branch_makes_up_for_its_shortcut() -> None:
    net, data = Residual(), list(images(64, 4, 5).split(16))

    def block(model: Any) -> Tensor:
        x = torch.relu(model.bn0(model.stem(images(64, 4, 6))))
        return model.bn2(model.conv2(torch.relu(model.bn1(model.conv1(x))))) + x

    error = {}
    with torch.no_grad():
        for shortcuts in (True, False):
            config = Sequential(shortcuts=shortcuts)
            small = reconstruct_sequentially(net, by_hand(stem=("svd", (6,))), data, config).model
            error[shortcuts] = float((block(small) - block(net)).norm())
    assert error[True] < 0.95 * error[False]


def test_full_ranks_reproduce_the_model() -> None:
    net, x = Residual(), images(16, 4, 3)
    plan = by_hand(stem=("svd", (12,)), conv1=("tucker", (12, 12)), conv3=("svd", (16,)), fc=("svd", (5,)))
    made = reconstruct_sequentially(net, plan, [x])
    assert distance(made.model, net, images(8, 4, 9)) < 1e-5
    assert max(made.errors.values()) < 1e-5
    assert distance(reconstruct_sequentially(net, RESIDUAL_PLAN, [x]).model, net, images(8, 4, 9)) > 1e-2


def test_nothing_else_changes_and_runs_repeat() -> None:
    net = Residual()
    net.bn1.train()
    net.register_forward_pre_hook(lambda *_: None)
    before, hooks = state(net), len(net._forward_pre_hooks)
    generator = torch.get_rng_state()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images(32, 4, 3)), batch_size=8, shuffle=True)
    first = reconstruct_sequentially(net, RESIDUAL_PLAN, loader).model
    second = reconstruct_sequentially(net, RESIDUAL_PLAN, loader).model
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(state(first).values(), state(second).values(), strict=True))
    assert net.bn1.training
    assert not net.bn2.training
    assert first.get_submodule("bn1").training
    assert no_hooks(net) == no_hooks(first) == hooks
    assert plan_of(first).provenance.reconstruct == "sequential"


def no_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def test_hooks_are_gone_after_an_error() -> None:
    net = Residual()
    with pytest.raises(ModelError, match="calibration batch 2"):
        reconstruct_sequentially(net, RESIDUAL_PLAN, [images(4, 4, 3), torch.zeros(2, 5, 8, 8)])
    with pytest.raises(DataError, match="NaN"):
        reconstruct_sequentially(net, RESIDUAL_PLAN, [images(4, 4, 3), torch.full((2, 4, 8, 8), torch.nan)])
    assert no_hooks(net) == 0
    assert not any(module.training for module in net.modules())


class Sharing(nn.Module):
    """One module under two names, called twice; two layers with one weight; one layer never called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(8, 8)
        self.again = self.first
        self.tied, self.twin = nn.Linear(8, 8), nn.Linear(8, 8)
        self.twin.weight = self.tied.weight
        self.idle = nn.Linear(8, 8)
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(torch.relu(self.first(x)))
        return self.last(self.twin(torch.relu(self.tied(x))))


def test_shared_layers_are_fitted_to_all_their_calls() -> None:
    net, x = Sharing().eval(), correlated(256, 8, 0)
    plan = by_hand(first=("svd", (4,)), tied=("svd", (4,)), idle=("svd", (2,)))
    with pytest.warns(RankfoldWarning, match="no calibration sample reaches 'idle'"):
        made = reconstruct_sequentially(net, plan, list(x.split(64)))
    small: Any = made.model
    assert small.first is small.again
    assert isinstance(small.first, Factored)
    assert all(a.weight is b.weight for a, b in zip(small.tied, small.twin, strict=True))
    assert small.tied.bias is not small.twin.bias
    assert made.notes == {
        "idle": "not fitted: its inputs were not visible on the calibration data; factored independently"
    }
    assert plan_of(small).layers["idle"].reason == made.notes["idle"]
    with pytest.warns(RankfoldWarning, match="no calibration sample reaches 'idle'"):
        plain = rf.apply(net, plan, list(x.split(64)), reconstruct="data")
    held_out = correlated(256, 8, 1)
    assert distance(small, net, held_out) < 0.9 * distance(plain, net, held_out)
    with torch.no_grad():  # the two calls of `first` have one mean error, and the bias takes it
        h, k = torch.relu(net.first(x)), torch.relu(net.first(x))
        wanted = torch.cat([net.first(x), net.first(h)]).mean(0)
        seen = torch.cat([small.first(x), small.first(k)]).mean(0)
    torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-4)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.whole = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.whole(x, x, x, need_weights=False)[0]
        return x + self.mlp(x)


def test_attention() -> None:
    net, x = Attending().eval(), correlated(40 * 6, 16, 0).reshape(40, 6, 16)
    plan = by_hand(attention__q_proj=("svd", (6,)), attention__v_proj=("svd", (6,)), attention__out_proj=("svd", (6,)))
    made = reconstruct_sequentially(net, plan, [x])
    assert set(made.errors) == {f"attention.{name}_proj" for name in ("q", "k", "v", "out")} | {"mlp"}
    assert set(factored_layers(made.model)) == set(plan.factored)
    assert isinstance(net.attention, nn.MultiheadAttention)
    assert isinstance(made.model.get_submodule("whole"), nn.MultiheadAttention)
    plain = rf.apply(net, plan, [x], reconstruct="data")
    assert distance(made.model, net, x) < 0.8 * distance(plain, net, x)


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder(norm_first: bool) -> None:
    torch.manual_seed(6)
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.1, batch_first=True, norm_first=norm_first)
    net = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    data, x = (
        [correlated(40 * 6, 16, s).reshape(40, 6, 16) for s in range(2)],
        correlated(240, 16, 5).reshape(40, 6, 16),
    )
    names = ("self_attn.v_proj", "self_attn.out_proj", "linear1", "linear2")
    plan = Plan(layers={f"layers.{i}.{n}": Choice(method="svd", ranks=(6,)) for i in range(3) for n in names})
    made = reconstruct_sequentially(net, plan, data)
    assert set(factored_layers(made.model)) == set(plan.factored) <= set(made.errors)
    assert distance(made.model, net, x) < 0.9 * distance(rf.apply(net, plan, data, reconstruct="data"), net, x)
    made.model.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.model.parameters())


KINDS: dict[str, Callable[[], nn.Module]] = {
    "grouped": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "transposed": lambda: nn.ConvTranspose2d(8, 8, 3, stride=2),
    "circular": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)),
}


@pytest.mark.parametrize("max_patch", [2304, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_layers(kind: str, max_patch: int) -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Tanh(), KINDS[kind](), nn.Tanh(), nn.Conv2d(8, 4, 3)).eval()
    factored = {} if kind == "depthwise" else {"2": Choice(method="svd", ranks=(3,))}
    plan = Plan(layers={"0": Choice(method="svd", ranks=(3,)), **factored})
    data, held_out = [images(48, 4, 0)], images(48, 4, 1)
    made = reconstruct_sequentially(net, plan, data, Sequential(max_patch=max_patch))
    moments = collect_moments(net, data, static_inventory(net), max_patch=max_patch)
    plain = apply_plan_(copy.deepcopy(net), plan, moments)
    assert made.notes == {}
    assert distance(made.model, net, held_out) < 0.97 * distance(plain, net, held_out)
    assert set(made.errors) == ({"0", "2", "4"} - ({"2"} if kind == "transposed" else set()) if max_patch else set())


def test_kept_layers_that_cannot_be_written_to_are_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.c = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x))) @ self.b.weight

    net = Odd().eval()
    weight = layer_weight(net, "b").clone()
    made = reconstruct_sequentially(net, by_hand(a=("svd", (3,))), [correlated(64, 8, 0)])
    assert set(made.notes) == {"b", "c"}
    assert "used outside" in made.notes["b"]
    assert "computed" in made.notes["c"]
    assert torch.equal(layer_weight(made.model, "b"), weight)


def test_layers_with_too_many_inputs_are_factored_by_weights() -> None:
    net, data = mlp(6, 8, 12, 4), [correlated(64, 6, 0)]
    plan = by_hand(fc0=("svd", (2,)), fc1=("svd", (3,)))
    made = reconstruct_sequentially(net, plan, data, Sequential(max_inputs=7))
    why = {n: f"not fitted: its {k} input channels are more than max_inputs = 7" for n, k in (("fc1", 8), ("fc2", 12))}
    assert made.notes == {"fc1": why["fc1"] + "; factored by its weight alone", "fc2": why["fc2"]}
    assert set(made.errors) == {"fc0"}
    plain = rf.apply(net, plan, reconstruct="weights")
    torch.testing.assert_close(made.model.get_submodule("fc1").weight, plain.get_submodule("fc1").weight)
    assert torch.equal(layer_weight(made.model, "fc2"), layer_weight(net, "fc2"))
    assert set(reconstruct_sequentially(net, plan, data, Sequential(max_inputs=8)).errors) == {"fc0", "fc1"}


def test_calls_that_do_not_correspond() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y[y.sum(-1) > 0])

    net, data = Moody().eval(), [correlated(64, 8, 0)]
    plan = by_hand(a=("svd", (2,)), b=("svd", (3,)))
    made = reconstruct_sequentially(net, plan, data)
    assert made.notes == {"b": "not fitted: its calls in the two networks do not correspond; factored independently"}
    plain = rf.apply(net, plan, data, reconstruct="data")
    torch.testing.assert_close(made.model.get_submodule("b").weight, plain.get_submodule("b").weight)


@pytest.mark.parametrize("in_attention", [False, True])
def test_in_place(in_attention: bool) -> None:
    net = Attending().eval() if in_attention else Residual()
    x = correlated(240, 16, 0).reshape(40, 6, 16) if in_attention else images(16, 4, 3)
    plan = by_hand(attention__v_proj=("svd", (6,)), mlp=("svd", (4,))) if in_attention else RESIDUAL_PLAN
    wanted = rf.apply(net, plan, [x], reconstruct="sequential", batchnorm=False)
    old = copy.deepcopy(net)
    parameter = net.get_parameter("whole.in_proj_weight" if in_attention else "fc.weight")
    assert rf.apply_(net, plan, iter([x]), reconstruct="sequential") is net
    assert any(parameter is p for p in net.parameters())
    with torch.no_grad():
        torch.testing.assert_close(net(x), wanted(x), rtol=0, atol=0)
    assert distance(net, old, x) > 1e-3
    assert plan_of(net).provenance.reconstruct == "sequential"


def test_a_lone_layer() -> None:
    net, x = nn.Linear(12, 10), correlated(100, 12, 0)
    plan = Plan(layers={"": Choice(method="svd", ranks=(3,))})
    small = rf.apply(net, plan, [x], reconstruct="sequential")
    assert isinstance(small, Factored)
    assert isinstance(rf.apply_(net, plan, [x], reconstruct="sequential"), Factored)
    # Nothing stands before it: only the mean tells the two ways apart.
    assert distance(small, net, x) <= distance(rf.apply(net, plan, [x]), net, x)


def test_compress_and_artifact(tmp_path: Any) -> None:
    net, data = Residual(), list(images(32, 4, 3).split(8))
    result = rf.compress(
        net, data[0], budget="params<=60%", calibration=data, reconstruct="sequential", output=tmp_path / "out"
    )
    assert result.plan.provenance.reconstruct == "sequential"
    again = rf.load(tmp_path / "out", net)
    with torch.no_grad():
        assert torch.equal(again(data[0]), result.model(data[0]))
    plain = rf.compress(net, data[0], budget="params<=60%", calibration=data)
    assert plain.plan.layers.keys() == result.plan.layers.keys()
    held_out = images(64, 4, 8)
    assert distance(result.model, net, held_out) < distance(plain.model, net, held_out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0}, "ridge must be a number above 0, or None"),
        ({"ridge": float("inf")}, "ridge"),
        ({"refit_kept": 1}, "refit_kept must be True or False"),
        ({"max_patch": -1}, "max_patch"),
        ({"max_positions": 0}, "max_positions"),
        ({"max_inputs": 0}, "max_inputs must be an integer >= 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    net, x = mlp(8, 8), correlated(10, 8, 0)
    with pytest.raises((ConfigError, rf.RankfoldError), match=message):
        rf.apply(net, by_hand(fc0=("svd", (2,))), [x], reconstruct=rf.Sequential(**options))


def test_mode_without_data() -> None:
    net, plan = mlp(8, 8), by_hand(fc0=("svd", (2,)))
    with pytest.raises(ConfigError, match="reconstruct='sequential' needs calibration data"):
        rf.apply(net, plan, reconstruct="sequential")
    with pytest.raises(ConfigError, match="reconstruct='sequential' needs calibration data"):
        rf.apply(net, plan, reconstruct=rf.Sequential(ridge=1e-2))
    with pytest.raises(DataError, match="empty"):
        rf.apply(net, plan, [], reconstruct="sequential")


class Rude(nn.Module):
    """Changes its input in place, merges something when it is put into eval mode, and normalizes along positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Linear(8, 6), nn.BatchNorm1d(4), nn.Linear(6, 5)
        self.merged = 0

    def train(self, mode: bool = True) -> Rude:
        self.merged += not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return self.second(self.norm(self.first(x)).relu())


@pytest.mark.parametrize("positions", [4, 6])  # 6: as many as the layer has outputs, which makes a mistake silent
def test_models_that_behave_badly(positions: int) -> None:
    net = Rude()
    net.norm = nn.BatchNorm1d(positions)
    data = [correlated(16 * positions, 8, seed).reshape(16, positions, 8) for seed in range(2)]
    before, kept = [x.clone() for x in data], state(net)
    plan = by_hand(first=("svd", (3,)))
    small = reconstruct_sequentially(net, plan, data, TINY).model
    assert all(torch.equal(a, b) for a, b in zip(data, before, strict=True))
    assert net.merged == 0
    assert net.training
    assert all(torch.equal(v, kept[k]) for k, v in net.state_dict().items())
    rf.apply(net, plan, data)
    assert all(torch.equal(a, b) for a, b in zip(data, before, strict=True))
    # The norm runs along positions: it cannot take up a mean of the layer's outputs, and is what it was.
    assert isinstance(small.norm, nn.BatchNorm1d)
    assert torch.equal(small.norm.running_mean, net.norm.running_mean)  # type: ignore[arg-type]
    full = reconstruct_sequentially(net, by_hand(first=("svd", (6,))), data, TINY).model
    with torch.no_grad():
        torch.testing.assert_close(full.eval()(before[0].clone()), net.eval()(before[0].clone()), rtol=1e-3, atol=1e-4)


def test_an_input_that_was_changed_in_place_is_another_one() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            x += self.a(x)
            return self.b(x)

    net = Steps().eval()
    with torch.no_grad():
        uses = observe(net, {"a": [net.a], "b": [net.b]}, lambda: net(torch.randn(3, 4)))
    assert uses["b"].sibling is None
