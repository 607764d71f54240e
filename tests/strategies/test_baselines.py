"""What uniform, energy, vbmf and manual mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rankfold as rf
from rankfold.errors import ConfigError, InvalidWeight
from rankfold.factor.vbmf import evbmf_rank
from rankfold.inventory import inspect
from rankfold.methods import get
from rankfold.records import Plan


def mlp() -> nn.Sequential:
    """Return a network whose spectra decay, as those of trained ones do."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 24))
    for layer in (net[0], net[2], net[4]):
        with torch.no_grad():
            u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
            layer.weight.copy_(u * s * 0.8 ** torch.arange(len(s)) @ v)
    return net


X = torch.zeros(1, 32)


def planted(out: int, inside: int, rank: int, noise: float) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    left = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, inside, generator=generator, dtype=torch.float64)
    return left @ right + noise * torch.randn(out, inside, generator=generator, dtype=torch.float64)


def params_of(plan: Plan, net: nn.Module) -> dict[str, int]:
    small = rf.apply(net, plan)
    return {name: sum(p.numel() for p in small.get_submodule(name).parameters()) for name in plan.layers}


# --- energy ---


def test_energy_keeps_the_share_at_the_least_rank() -> None:
    net = mlp()
    for keep in (0.5, 0.8, 0.95):
        plan = rf.plan(net, X, strategy=rf.Energy(keep=keep), methods="svd")
        assert plan.factored
        for name, choice in plan.factored.items():
            values = torch.linalg.svdvals(net.get_submodule(name).weight.detach().double()).square()
            kept = (values.cumsum(0) / values.sum()).tolist()
            (rank,) = choice.ranks
            assert kept[rank - 1] >= keep > ([0.0, *kept])[rank - 1]
            assert choice.error == pytest.approx((1 - kept[rank - 1]) ** 0.5, abs=1e-6)


def test_energy_is_monotone() -> None:
    net = mlp()
    ranks = []
    for keep in (0.3, 0.5, 0.7, 0.9):
        plan = rf.plan(net, X, strategy=rf.Energy(keep=keep), methods="svd")
        ranks.append([plan.layers[n].ranks[0] if plan.layers[n].method else 1000 for n in plan.layers])
    for weaker, stronger in zip(ranks[1:], ranks, strict=False):
        assert all(a >= b for a, b in zip(weaker, stronger, strict=True))
        assert weaker != stronger


def test_energy_gives_every_layer_the_same_share() -> None:
    net = mlp()
    with torch.no_grad():
        net[2].weight.copy_(planted(40, 48, 3, 0.01))  # almost of rank 3: costs nothing to compress
    plan = rf.plan(net, X, budget="params<=45%", strategy="energy", methods="svd")
    ranks = {name: choice.ranks[0] for name, choice in plan.factored.items()}
    assert ranks["2"] <= 3 < min(ranks["0"], ranks["4"])


def test_energy_zero_keeps_only_the_cheapest() -> None:
    net = mlp()
    plan = rf.plan(net, X, strategy=rf.Energy(keep=0.0), methods="svd")
    assert {choice.ranks for choice in plan.layers.values()} == {(1,)}


# --- uniform ---


def test_uniform_gives_every_layer_the_same_reduction() -> None:
    net = mlp()
    dense = {name: cost.params for name, cost in inspect(net, X).costs.items()}
    for keep in (0.3, 0.6):
        plan = rf.plan(net, X, strategy=rf.Uniform(keep=keep), methods="svd")
        after = params_of(plan, net)
        assert set(plan.factored) == set(dense)
        for name in dense:
            one_rank = sum(net.get_submodule(name).weight.shape)
            assert keep * dense[name] - one_rank < after[name] <= keep * dense[name]


def test_uniform_takes_the_method_of_least_error() -> None:
    net, x = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), torch.zeros(1, 8, 6, 6)
    plans = {
        methods: rf.plan(net, x, strategy=rf.Uniform(keep=0.5), methods=methods).layers["0"].error
        for methods in ("svd", "tucker", "spatial_svd", "svd,tucker,spatial_svd")
    }
    assert plans.pop("svd,tucker,spatial_svd") == min(plans.values())


# --- vbmf ---


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_vbmf_finds_a_planted_rank(rank: int) -> None:
    net = nn.Sequential(nn.Linear(60, 40))
    with torch.no_grad():
        net[0].weight.copy_(planted(40, 60, rank, 0.05))
    plan = rf.plan(net, torch.zeros(1, 60), strategy="vbmf")
    assert plan.layers["0"].ranks == (rank,)
    assert plan.layers["0"].reason is None


@pytest.mark.parametrize(("rank", "multiple", "rounded"), [(5, 4, 4), (7, 4, 8), (3, 8, 8), (8, 8, 8)])
def test_vbmf_rounds_to_multiples(rank: int, multiple: int, rounded: int) -> None:
    net = nn.Sequential(nn.Linear(60, 40))
    with torch.no_grad():
        net[0].weight.copy_(planted(40, 60, rank, 0.05))
    choice = rf.plan(net, torch.zeros(1, 60), strategy="vbmf", rank_multiple=multiple).layers["0"]
    assert choice.ranks == (rounded,)
    how = "raised" if rounded > rank else "rounded"
    assert choice.reason == (None if rank == rounded else f"VBMF found rank [{rank}]; {how} to [{rounded}]")
    scaled = rf.plan(net, torch.zeros(1, 60), strategy="vbmf", rank_multiple=multiple, budget="params<=38%")
    assert scaled.layers["0"].ranks[0] % multiple == 0


def test_vbmf_says_when_it_raises_a_rank() -> None:
    net = nn.Sequential(nn.Linear(40, 40))
    nn.init.zeros_(net[0].weight)
    plan = rf.plan(net, torch.zeros(1, 40), strategy="vbmf")
    assert plan.layers["0"].ranks == (1,)
    assert plan.layers["0"].reason == "VBMF found rank [0]; raised to [1]"
    plan = rf.plan(net, torch.zeros(1, 40), strategy=rf.VBMF(min_rank=5))
    assert plan.layers["0"].reason == "VBMF found rank [0]; raised to [5]"


def test_vbmf_says_when_it_lowers_a_rank_to_break_even() -> None:
    net = nn.Sequential(nn.Linear(30, 30))
    with torch.no_grad():
        net[0].weight.copy_(planted(30, 30, 18, 1e-6))
    plan = rf.plan(net, torch.zeros(1, 30), strategy=rf.VBMF(weaken=0.1))
    assert plan.layers["0"].ranks == (14,)  # 15 * 60 is not less than 30 * 30
    assert "lowered to break-even [14]" in (plan.layers["0"].reason or "")


def test_vbmf_keeps_what_no_rank_makes_cheaper() -> None:
    net = nn.Sequential(nn.Linear(1, 5), nn.Linear(5, 40), nn.Linear(40, 5))
    plan = rf.plan(net, torch.zeros(1, 1), strategy="vbmf")
    assert "no rank makes the layer smaller" in plan.kept["0"]


def test_vbmf_weakened_keeps_more() -> None:
    net = nn.Sequential(nn.Conv2d(24, 24, 3))
    found = [
        rf.plan(net, torch.zeros(1, 24, 5, 5), strategy=rf.VBMF(weaken=w)).layers["0"].ranks for w in (1.0, 0.8, 0.6)
    ]
    assert found[0] < found[1] < found[2]


def test_vbmf_uses_the_methods_that_are_allowed() -> None:
    net, x = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 1)), torch.zeros(1, 16, 5, 5)

    def methods(allowed: str) -> list[str | None]:
        plan = rf.plan(net, x, strategy="vbmf", methods=allowed)
        return [choice.method for choice in plan.layers.values()]

    assert methods("svd,tucker,cp") == ["tucker", "svd"]
    assert methods("svd") == ["svd", "svd"]
    assert methods("tucker") == ["tucker", None]
    with pytest.raises(ConfigError, match=r"'vbmf'.*svd and tucker.*Got methods tt"):
        methods("tt")


def test_vbmf_names_a_broken_weight() -> None:
    net = mlp()
    nn.init.constant_(net[2].weight, float("nan"))
    with pytest.raises(InvalidWeight, match="'2'.*NaN"):
        rf.plan(net, X, strategy="vbmf")


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Return a layer of any shape, weights perhaps zero or of rank one, and an input."""
    dims = draw(st.integers(0, 3))
    torch.manual_seed(draw(st.integers(0, 3)))
    if dims == 0:
        inside, out = draw(st.integers(1, 24)), draw(st.integers(1, 24))
        layer, x = nn.Linear(inside, out, bias=draw(st.booleans())), torch.zeros(2, inside)
    else:
        groups = draw(st.sampled_from([1, 1, 2, 3]))
        inside, out = groups * draw(st.integers(1, 6)), groups * draw(st.integers(1, 6))
        kernel = tuple(draw(st.integers(1, 3)) for _ in range(dims))
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        if draw(st.booleans()):
            kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        layer = kinds[dims - 1](inside, out, kernel, groups=groups, bias=draw(st.booleans()))
        x = torch.zeros(1, inside, *(4,) * dims)
    kind = draw(st.sampled_from(["random", "zero", "constant", "tiny", "huge"]))
    with torch.no_grad():
        if kind == "zero":
            layer.weight.zero_()
        elif kind == "constant":
            layer.weight.fill_(0.5)
        elif kind != "random":
            layer.weight.mul_(1e-30 if kind == "tiny" else 1e30)
    return nn.Sequential(layer), x


@settings(max_examples=60)  # of every kind of layer and weight a few
@given(layers(), st.sampled_from([1, 2, 8]), st.integers(1, 4))
def test_vbmf_never_crashes(case: tuple[nn.Module, Tensor], multiple: int, least: int) -> None:
    net, x = case
    inventory = inspect(net, x)
    assume(inventory.compressible)
    plan = rf.plan(net, x, strategy=rf.VBMF(min_rank=least), rank_multiple=multiple)
    before = inventory.total
    (choice,) = plan.layers.values()
    if choice.method is None:
        assert choice.reason
        return
    limits = get(choice.method).max_ranks(inventory.layers[0])
    for rank, limit in zip(choice.ranks, limits, strict=True):
        assert rank == limit or (rank % multiple == 0 and rank >= least)
    small = rf.apply(net, plan)
    after = inspect(small, x).total
    assert after.params < before.params
    assert after.macs <= before.macs
    assert small(x).shape == net(x).shape


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5), st.sampled_from([0.0, 1e-200, 1.0, 1e150]))
def test_evbmf_rank_is_a_rank(rows: int, columns: int, seed: int, scale: float) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    assert 0 <= evbmf_rank(matrix) <= min(rows, columns)


# --- manual ---


def test_manual_from_a_mapping() -> None:
    plan = rf.plan(mlp(), X, strategy=rf.Manual(layers={"0": ("svd", 5), "2": ("svd", [7]), "4": None}))
    assert {name: choice.ranks for name, choice in plan.factored.items()} == {"0": (5,), "2": (7,)}
    assert plan.kept == {"4": "by hand"}


def test_manual_by_pattern_first_match_wins() -> None:
    plan = rf.plan(mlp(), X, strategy=rf.Manual(layers={"2": ("svd", 2), "[02]": ("svd", 9)}))
    assert {name: choice.ranks for name, choice in plan.factored.items()} == {"0": (9,), "2": (2,)}
    assert plan.kept == {"4": "not named"}


def test_manual_by_share() -> None:
    net = mlp()
    plan = rf.plan(net, X, strategy=rf.Manual(layers={"*": ("svd", 0.4)}))
    after = params_of(plan, net)
    for name, cost in inspect(net, X).costs.items():
        assert 0.4 * cost.params - sum(net.get_submodule(name).weight.shape) < after[name] <= 0.4 * cost.params


def test_manual_from_a_file_or_a_plan(tmp_path: Path) -> None:
    net, file = mlp(), tmp_path / "ranks.json"
    file.write_text(json.dumps({"0": ["svd", 5], "2": {"method": "svd", "ranks": [7]}, "4": {"keep": "my head"}}))
    plan = rf.plan(net, X, strategy=rf.Manual(file=str(file)))
    assert {name: choice.ranks for name, choice in plan.factored.items()} == {"0": (5,), "2": (7,)}
    saved = str(plan.save(tmp_path / "plan.json"))
    again = rf.plan(net, X, strategy=rf.Manual(file=saved))
    assert {n: c.ranks for n, c in again.layers.items()} == {n: c.ranks for n, c in plan.layers.items()}
    wins = rf.plan(net, X, strategy=rf.Manual(file=saved, layers={"0": ("svd", 6)}))
    assert wins.layers["0"].ranks == (6,)
    assert wins.layers["2"].ranks == (7,)


def test_manual_from_the_choices_of_a_plan() -> None:
    net = mlp()
    first = rf.plan(net, X, budget="params<=50%")
    again = rf.plan(net, X, strategy=rf.Manual(layers=dict(first.layers)))
    assert {n: c.ranks for n, c in again.layers.items()} == {n: c.ranks for n, c in first.layers.items()}
    assert Plan.from_json(again.to_json()).layers == again.layers


# --- options of all ---


@pytest.mark.parametrize("strategy", ["energy", "uniform", "vbmf"])
@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_rank_multiple(strategy: str, multiple: int) -> None:
    net = nn.Sequential(nn.Conv2d(16, 24, 3), nn.Flatten(), nn.Linear(24 * 16, 40))
    x = torch.zeros(1, 16, 6, 6)
    plan = rf.plan(net, x, budget="params<=50%", strategy=strategy, rank_multiple=multiple, methods="svd,tucker")
    layers = {layer.name: layer for layer in inspect(net, x)}
    assert plan.factored
    for name, choice in plan.factored.items():
        limits = get(choice.method or "").max_ranks(layers[name])
        assert all(r % multiple == 0 or r == limit for r, limit in zip(choice.ranks, limits, strict=True))


@pytest.mark.parametrize("strategy", ["energy", "uniform", "vbmf"])
def test_keep_first_last(strategy: str) -> None:
    plan = rf.plan(mlp(), X, budget="params<=90%", strategy=strategy, keep_first_last=True)
    assert set(plan.kept) == {"0", "4"}
    assert plan.kept["0"] == "kept: first layer"
    assert plan.kept["4"] == "kept: last layer"
    assert set(plan.factored) == {"2"}


@pytest.mark.parametrize("strategy", ["energy", "uniform", "vbmf"])
def test_plans_are_reproducible(strategy: str) -> None:
    plans = [rf.plan(mlp(), X, budget="params<=50%", strategy=strategy).to_json() for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0] != rf.plan(mlp(), X, budget="params<=51%", strategy=strategy).to_json()
