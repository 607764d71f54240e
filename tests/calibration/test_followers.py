"""Layers that read removed channels are refitted to the original's outputs, without labels."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import rankfold as rf
from rankfold.calibration import collect_moments, reconstruct_sequentially
from rankfold.factor.moments import Moments
from rankfold.factor.refit import restricted
from rankfold.inventory import static_inventory
from rankfold.inventory.narrowing import fitted_weight, narrowed_weight
from rankfold.records import Axis, ChannelGroup, Choice, Narrowing, Plan
from rankfold.records.narrowing import Removed
from rankfold.surgery.narrowed import narrowed_copy


def plan_for(model: nn.Module, *groups: ChannelGroup, **choices: Choice) -> Plan:
    kept = {layer.name: Choice(reason="kept") for layer in static_inventory(model)}
    return Plan(layers={**kept, **choices}, narrowing=Narrowing(groups))


def linears() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


HIDDEN = ChannelGroup(
    name="0", width=12, removed=(1, 4, 5, 9), axes=(Axis(name="0", side="outputs"), Axis(name="2", side="inputs"))
)


def test_the_follower_is_the_least_squares_solution() -> None:
    model, x = linears(), torch.randn(500, 6, generator=torch.Generator().manual_seed(1))
    config = rf.Sequential(ridge=1e-9)
    small = reconstruct_sequentially(model, plan_for(model, HIDDEN), [x], config).model
    with torch.no_grad():
        hidden = torch.relu(model[0](x))[:, list(HIDDEN.kept)]
        design = torch.cat([hidden, torch.ones(len(x), 1)], 1).double()
        wanted = torch.linalg.lstsq(design, model(x).double()).solution
    torch.testing.assert_close(small[2].weight.double(), wanted[:-1].mT, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(small[2].bias.double(), wanted[-1], rtol=1e-3, atol=1e-3)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.one, self.two = nn.Conv2d(12, 20, 3, padding=1), nn.Conv2d(20, 12, 3, padding=1)
        self.deep, self.last, self.fc = (
            nn.Conv2d(12, 12, 3, groups=12),
            nn.ConvTranspose2d(12, 8, 2),
            nn.Linear(8 * 49, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(x + self.two(torch.relu(self.one(x))))
        return self.fc(torch.relu(self.last(torch.relu(self.deep(x)))).flatten(1))


@pytest.mark.parametrize("factored", [False, True])
def test_the_refit_brings_outputs_closer_to_the_original(factored: bool) -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    data = [torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    groups = rf.channel_groups(model, data[0][:1])
    narrowing = groups.narrowing({"stem": [0, 5, 7], "one": range(0, 20, 3), "last": [2]})
    choices = {"one": Choice(method="tucker", ranks=(6, 4)), "fc": Choice(method="svd", ranks=(3,))} if factored else {}
    plan = replace(plan_for(model, **choices), narrowing=narrowing)
    cut, fitted, sequential = (
        rf.apply(model, plan, data, reconstruct=mode) for mode in ("weights", "data", "sequential")
    )
    fresh = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        wanted = model(fresh)
        errors = [float((small(fresh) - wanted).square().mean()) for small in (cut, fitted, sequential)]
    assert max(errors[1:]) < 0.6 * errors[0], errors
    assert fitted.one.in_channels == 9 if not factored else fitted.one.info.in_channels == 9  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["data", "sequential"])
def test_in_place_equals_a_copy(mode: Literal["data", "sequential"]) -> None:
    data = [torch.randn(50, 6, generator=torch.Generator().manual_seed(1))]
    model = linears()
    plan = plan_for(model, HIDDEN, **{"2": Choice(method="svd", ranks=(2,))})
    copied = rf.apply(model, plan, data, reconstruct=mode)
    in_place = rf.apply_(model, plan, data, reconstruct=mode)
    x = torch.randn(8, 6)
    torch.testing.assert_close(in_place(x), copied(x), rtol=0, atol=0)
    assert in_place.rankfold_plan.provenance.reconstruct == copied.rankfold_plan.provenance.reconstruct == mode  # type: ignore[union-attr]
    pruned = plan_for(linears(), HIDDEN)
    small = rf.apply_(linears(), pruned, data, reconstruct=mode)
    assert small.rankfold_plan.provenance.reconstruct == mode  # type: ignore[union-attr]
    assert in_place.rankfold_plan.narrowing.groups == (HIDDEN,)  # type: ignore[union-attr]


@pytest.mark.parametrize("reconstruct", ["weights", "data", None])
def test_the_report_names_the_fitted_layers(reconstruct: Literal["weights", "data"] | None) -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    result = rf.compress(
        linears(), x[:1], calibration=[x], budget="params<=70%", strategy="prune", reconstruct=reconstruct
    )
    note = "fitted to the calibration data, because they read removed channels: '2'"
    assert (note in result.report.notes) == (reconstruct != "weights")


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 5), (400, 6)),
    "conv": (nn.Conv2d(6, 5, 3), (200, 6, 7, 7)),
    "strided": (nn.Conv2d(6, 5, 1, stride=2), (200, 6, 7, 7)),
    "grouped": (nn.Conv2d(6, 4, (3, 1), groups=2), (200, 6, 7, 7)),
    "transposed": (nn.ConvTranspose1d(6, 5, 3), (100, 6, 40)),
    "grouped transposed": (nn.ConvTranspose1d(6, 4, 3, groups=2), (100, 6, 40)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_removed_inputs_that_the_others_determine_are_not_missed(name: str) -> None:
    """Inputs 2 and 5 are sums of the others, so the narrow layer computes the same."""
    layer, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for gone, one, other in ((2, 0, 1), (5, 3, 4)):
        x.select(1, gone).copy_(0.5 * x.select(1, one) - 2 * x.select(1, other))
    model = nn.Sequential(layer)
    info = static_inventory(model)[0]
    moments = collect_moments(model, [x], [info])["0"]
    weight = layer.weight.detach()  # type: ignore[union-attr]
    rows = [0, 2, 4] if info.groups == 1 else [0, 1, 2, 3]
    removed = {"inputs": frozenset({2, 5}), "outputs": frozenset(range(info.out_channels)) - frozenset(rows)}
    small = copy.deepcopy(layer)
    small.groups = info.groups  # type: ignore[assignment]
    with torch.no_grad():
        wanted, few = layer(x).index_select(1, torch.tensor(rows)), x[:, [0, 1, 3, 4]]
        small.bias = nn.Parameter(layer.bias[rows])  # type: ignore[index]
        small.weight = nn.Parameter(fitted_weight(weight, info, removed, moments))
        assert (small(few) - wanted).norm() < 0.03 * wanted.norm()
        small.weight = nn.Parameter(narrowed_weight(weight, info, removed))  # the control
        assert (small(few) - wanted).norm() > 0.3 * wanted.norm()


def test_a_depthwise_follower_has_nothing_to_fit() -> None:
    layer = nn.Conv2d(6, 6, 3, groups=6)
    model, x = nn.Sequential(layer), torch.randn(20, 6, 7, 7, generator=torch.Generator().manual_seed(0))
    info = static_inventory(model)[0]
    gone = frozenset({2, 5})
    removed: Removed = {"inputs": gone, "outputs": gone}
    weight = layer.weight.detach()
    fitted = fitted_weight(weight, info, removed, collect_moments(model, [x], [info])["0"])
    torch.testing.assert_close(fitted, weight[[0, 1, 3, 4]])


def test_an_input_first_follower_is_fitted() -> None:
    """The ``Conv1D`` of GPT-2 stores its weight as ``(in, out)``; the fit is that of a linear layer."""
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    linear = linears()
    model = copy.deepcopy(linear)
    model[2] = pytorch_utils.Conv1D(4, 12)
    with torch.no_grad():
        model[2].weight.copy_(linear[2].weight.mT)  # type: ignore[union-attr, operator]
        model[2].bias.copy_(linear[2].bias)  # type: ignore[union-attr, operator]
    data = [torch.randn(50, 6, generator=torch.Generator().manual_seed(1))]
    fitted, expected = (rf.apply(net, plan_for(net, HIDDEN), data) for net in (model, linear))
    assert fitted[2].weight.shape == (8, 4)  # type: ignore[index]
    torch.testing.assert_close(fitted[2].weight.mT, expected[2].weight)  # type: ignore[index]
    assert not torch.equal(fitted[2].weight, model[2].weight[list(HIDDEN.kept)])  # type: ignore[index]


@given(st.integers(1, 5), st.integers(2, 8), st.floats(0, 10), st.data())
def test_the_fit_to_some_entries_is_the_ridge_solution(
    outputs: int, width: int, ridge: float, draw: st.DataObject
) -> None:
    """Against least squares of the rows, to which those of the ridge are added."""
    kept = sorted(draw.draw(st.sets(st.integers(0, width - 1), min_size=1, max_size=width)))
    x = np.random.default_rng(width).normal(size=(50, width)) @ np.random.default_rng(1).normal(size=(width, width))
    weight = np.random.default_rng(2).normal(size=(outputs, width))
    moment, few = x.T @ x / len(x), x[:, kept]
    pull = np.sqrt(ridge * len(x) * np.diag(moment)[kept].mean()) * np.eye(len(kept))
    wanted = np.linalg.lstsq(np.vstack([few, pull]), np.vstack([x @ weight.T, pull @ weight[:, kept].T]))[0].T
    found = restricted(torch.tensor(weight), torch.tensor(moment), torch.tensor(kept), ridge)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-6)


def test_little_data_changes_little_and_dead_inputs_nothing() -> None:
    info = static_inventory(nn.Sequential(nn.Linear(64, 3)))[0]
    x, weight = torch.randn(90, 64, generator=torch.Generator().manual_seed(0)).double(), torch.randn(3, 64)
    removed: Removed = {"inputs": frozenset(range(32))}

    def change(moment: Tensor, count: int) -> float:
        moments = Moments(channel=moment[None], patch=None, count=count)
        fitted = fitted_weight(weight, info, removed, moments)
        return float((fitted - narrowed_weight(weight, info, removed)).norm())

    moment = x.mT @ x / len(x)
    assert 0 < change(moment, 4) < 0.7 * change(moment, 4000)
    assert change(0 * moment, 4) == 0


def test_without_a_refit_the_weights_are_only_cut() -> None:
    """The control of the tests above: a plain cut leaves the follower's weights as they were."""
    model = linears()
    small = narrowed_copy(model, Narrowing((HIDDEN,)))
    torch.testing.assert_close(small[2].weight, model[2].weight[:, list(HIDDEN.kept)])  # type: ignore[index]
