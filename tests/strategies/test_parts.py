"""Budgets of parts of a model: read, met exactly on the built model by every strategy, or refused with a reason."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold import strategies
from rankfold.api.family import folder_name
from rankfold.candidates import TableConfig, build_table
from rankfold.cost import Pricing
from rankfold.errors import BudgetError, InfeasibleBudget, NoMatchingLayer, UnknownNameError
from rankfold.inventory import inspect, layer_weight
from rankfold.records import Budget, Cost, Resource, register_resource, resource_names
from rankfold.records.cost import RESOURCES


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(24, 48), nn.LayerNorm(48), nn.ReLU(), nn.Linear(48, 32))
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.decoder = nn.Sequential(nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 24))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        return self.head(self.decoder(x + self.attention(x, x, x, need_weights=False)[0]))


def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


X = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))
TWO = "params(encoder.*)<=50%, params(decoder)<=70%, params<=75%"


def built(result: rf.Result, part: str) -> Cost:
    """Return the cost of a part of a saved and loaded model, counted on its modules."""
    return inspect(result.model, X).part(part).total


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("params(encoder.*)<=50%", "params(encoder.*)<=50%"),
        (" Params ( encoder.* ) <= 0.5", "params(encoder.*)<=50%"),
        ("parameters(encoder)/4", "params(encoder)<=25%"),
        ("bytes(layer[1-3].*) <= 2KiB; macs(*)<=2", "flash(layer[1-3].*)<=2048, macs(*)<=2"),
        ({"params(encoder.*)": 0.5, "macs": "2k"}, "params(encoder.*)<=50%, macs<=2000"),
        (["memory(a.?)<=1,000", "ram<=2KiB"], "memory(a.?)<=1000, ram<=2048"),
    ],
)
def test_budgets_of_parts_read_and_print(text: object, printed: str) -> None:
    budget = Budget.parse(text)
    assert str(budget) == printed
    assert Budget.parse(printed) == budget


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("params()<=50%", BudgetError, "must name a part by one shell pattern"),
        ("params(a, b)<=50%", BudgetError, "Bound each part separately"),
        ("params(a b)<=50%", BudgetError, "one shell pattern"),
        ("params(a<=50%", BudgetError, "cannot be read"),
        ("params(a)(b)<=50%", BudgetError, "cannot be read"),
        ("params(a)<=150%", BudgetError, "more than the whole part"),
        ("params(a)<=0", BudgetError, "would leave nothing"),
        ("parms(a)<=50%", UnknownNameError, "Did you mean 'params'"),
        ("ram(a)<=50%", BudgetError, "peak RAM belongs to the whole model"),
        ("accuracy_drop(a)<=1%", BudgetError, "accuracy drop belongs to the whole model"),
    ],
)
def test_budgets_of_parts_that_cannot_be(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Budget.parse(text)


@pytest.mark.parametrize("strategy", ["compressnas", "uniform", "energy", "vbmf", "rene"])
def test_two_parts_and_the_model_are_met_on_the_loaded_model(strategy: str, tmp_path: Path) -> None:
    net = network()
    result = rf.compress(net, X, budget=TWO, strategy=strategy, output=tmp_path / "out")
    dense = inspect(net, X)
    for part, share in (("encoder", 0.5), ("decoder", 0.7), ("*", 0.75)):
        assert built(result, part).params <= share * dense.part(part).total.params
        assert dense.part(part).total.params > share * dense.part(part).total.params  # the dense model does not
    rows = {row.resource: row for row in result.report.bounds}
    assert list(rows) == ["params(encoder.*)", "params(decoder)", "params"]
    assert [row.value for row in rows.values()] == [built(result, part).params for part in ("encoder", "decoder", "*")]
    assert all(row.met for row in rows.values())
    loaded = rf.load(tmp_path / "out", network(), example_input=X)
    assert inspect(loaded, X).part("encoder").total == built(result, "encoder")
    shown = result.report.to_markdown().replace("\\*", "*")
    assert "params(encoder.*) ≤ 50 %" in shown
    assert f"{built(result, 'encoder').params:,} of at most" in shown


@pytest.mark.parametrize("resource", sorted(resource_names("additive")))
def test_every_additive_resource_has_parts(resource: str) -> None:
    net = network()
    before = inspect(net, X).part("encoder").total.get(resource)
    if resource == "fm":  # factors of a linear layer only add feature maps
        with pytest.raises(InfeasibleBudget) as caught:
            rf.compress(net, X, budget="fm(encoder.*)<=80%")
        assert caught.value.rows == (("fm(encoder.*)", 384, 480, before),)
        return
    result = rf.compress(net, X, budget=f"{resource}(encoder.*)<=80%")
    assert 0.5 * before < built(result, "encoder").get(resource) <= 0.8 * before
    assert all(name.startswith("encoder.") for name in result.plan.factored)  # nothing else is asked for


def test_a_part_at_a_deployment_data_type() -> None:
    net = network()
    plan = rf.plan(net, X, budget="flash(encoder)<=1500", deploy_dtype="int8")
    small = inspect(rf.apply(net, plan), X)
    pricing = Pricing.of_plan(inspect(net, X), plan)
    counted = pricing.built(small, plan).total.get("flash(encoder)")
    assert counted == pricing.plan_cost(plan).get("flash(encoder)") <= 1500
    assert counted < small.part("encoder").total.weight_bytes


def test_a_resource_that_is_registered_has_parts() -> None:
    register_resource(
        Resource(name="stages", title="stages", summary="", layer=lambda _, b: 9 if b is None else len(b.stages))
    )
    try:
        result = rf.compress(network(), X, budget="stages(decoder.*)<=11, stages<=80%")
        rows = {row.resource: row for row in result.report.bounds}
        assert [(row.dense, row.met) for row in rows.values()] == [(18, True), (81, True)]
        assert len([name for name in result.plan.factored if name.startswith("decoder.")]) >= 1
    finally:
        del RESOURCES["stages"]


@pytest.mark.parametrize(
    "budget",
    [
        TWO,
        "params(encoder)<=60%, params(encoder.3)<=50%, params<=90%",  # nested
        "params(*r.*)<=60%, params(enc*)<=70%",  # overlapping
        "params(attention.q_proj)<=40%, macs(decoder.*)<=50%, flash<=90%",
    ],
)
def test_the_global_search_is_exact_under_bounds_of_parts(budget: str) -> None:
    """Compared with every combination of a thinned table."""
    net = network()
    bounds = Budget.parse(budget)
    pricing = Pricing.of(inspect(net, X, include=["encoder.*", "decoder.*", "*.q_proj"]), resources=bounds.resources)
    table = build_table(pricing, lambda name: layer_weight(net, name), TableConfig(methods=("svd",), points=6))
    problem = strategies.Problem(
        pricing=pricing, table=lambda: table, weight=lambda name: layer_weight(net, name), budget=bounds,
        methods=("svd",), estimator=_Errors(table),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    plan = strategies.get("compressnas").plan(problem)
    rows = [[None, *row] for row in table.rows.values()]
    losses = [
        sum(0.0 if c is None else c.error**2 for c in chosen)
        for chosen in itertools.product(*rows)
        if not bounds.exceeded(table.cost(c for c in chosen if c is not None), table.total)
    ]
    assert plan.provenance.search["predicted_loss"] == pytest.approx(min(losses), rel=1e-9)
    assert min(losses) > 0
    assert not bounds.exceeded(pricing.plan_cost(plan), table.total)


class _Errors:
    """An estimator by the squared errors of the candidates."""

    moments = batches = None

    def __init__(self, table: rf.records.CandidateTable) -> None:
        self.table = table

    def check(self, config: object, *, together: bool) -> None:
        del config, together

    def proxy(self, config: object) -> str:
        del config
        return "weight"

    def single(self, config: object) -> dict[str, dict[tuple[str, tuple[int, ...]], float]]:
        del config
        return {n: {(c.method, c.ranks): c.error**2 for c in row} for n, row in self.table.rows.items()}


@pytest.mark.parametrize("strategy", ["uniform", "energy", "rene"])
def test_each_part_uses_its_own_bound(strategy: str) -> None:
    """A part with a loose bound is not compressed as much as one with a tight bound; a part without a bound is kept."""
    net = network()
    plan = rf.plan(net, X, budget="params(encoder.*)<=30%, params(decoder.*)<=80%", strategy=strategy, methods="svd")
    assert {name.partition(".")[0] for name in plan.factored} == {"encoder", "decoder"}
    after, before = inspect(rf.apply(net, plan), X), inspect(net, X)
    shares = [after.part(p).total.params / before.part(p).total.params for p in ("encoder", "decoder")]
    assert 0.2 < shares[0] <= 0.3
    assert 0.6 < shares[1] <= 0.8


def test_a_part_out_of_reach_says_what_is_reachable_in_it() -> None:
    net = network()
    with pytest.raises(InfeasibleBudget) as caught:
        rf.plan(net, X, budget="params(encoder.*)<=1%, params<=90%")
    (name, asked, least, dense), whole = caught.value.rows
    total = inspect(net, X).part("encoder").total.params
    assert (name, asked, dense) == ("params(encoder.*)", total // 100, total)
    assert whole[0] == "params"
    assert f"{least:,}" in str(caught.value)
    plan = rf.plan(net, X, budget=f"params(encoder.*)<={least}")
    assert inspect(rf.apply(net, plan), X).part("encoder").total.params == least


def test_a_part_that_cannot_be_compressed_says_why() -> None:
    with pytest.raises(InfeasibleBudget, match=r"Not compressible in 'encoder\.1': 'encoder\.1' \(LayerNorm\)"):
        rf.plan(network(), X, budget="params(encoder.1)<=50%")
    with pytest.raises(InfeasibleBudget, match=r"Not compressible in 'head': 'head' .* \(excluded by 'head'\)"):
        rf.plan(network(), X, budget="params(head)<=50%", exclude="head")


def test_a_part_that_matches_nothing_or_has_nothing() -> None:
    with pytest.raises(NoMatchingLayer, match=r"part 'encodr\.\*' matches no module .*'encoder'"):
        rf.plan(network(), X, budget="params(encodr.*)<=50%")
    with pytest.raises(BudgetError, match=r"macs\(encoder\.1\) cannot be bounded: .* have no MACs"):
        rf.plan(network(), X, budget="macs(encoder.1)<=50%")
    with pytest.raises(BudgetError, match="already meets budget"):
        rf.plan(network(), X, budget="params(encoder)<=100%, macs<=100%")


def test_overlapping_parts_bind_together() -> None:
    """A layer in two parts counts in both; each bound holds on its own."""
    net = network()
    plan = rf.plan(net, X, budget="params(encoder)<=80%, params(encoder.0)<=30%")
    after, before = inspect(rf.apply(net, plan), X), inspect(net, X)
    assert after.part("encoder.0").total.params <= 0.3 * before.part("encoder.0").total.params
    assert after.part("encoder").total.params <= 0.8 * before.part("encoder").total.params
    assert set(plan.factored) == {"encoder.0"}  # the inner bound meets the outer one


def test_a_sweep_varies_a_part_and_keeps_the_others() -> None:
    net = network()
    sweep = rf.sweep(net, X, resource="params(encoder.*)", points=4, budget="params(decoder)<=70%")
    dense = inspect(net, X)
    assert len(sweep.feasible) == 4
    shares = [sweep.share(point) for point in sweep.feasible]
    assert shares == sorted(shares)
    assert len(set(shares)) == 4
    for point in sweep.feasible:
        assert point.cost is not None
        assert point.cost.get("params(decoder)") <= 0.7 * dense.part("decoder").total.params
    assert "over params(encoder.*)" in sweep.to_markdown().replace("\\*", "*")
    assert sweep.plan("params(encoder.*)<=60%") is not None
    with pytest.raises(BudgetError, match=r"params\(head\), which no budget of this sweep bounds"):
        sweep.plan("params(head)<=60%")
    listed = rf.sweep(net, X, points=["params(encoder)<=50%", "params(head)<=60%, params<=90%"])
    assert [len(p.plan.factored) > 0 for p in listed.points if p.plan is not None] == [True, True]
    with pytest.raises(UnknownNameError, match="sweep resource 'parms'"):
        rf.sweep(net, X, resource="parms(encoder)")


def test_an_accuracy_bound_together_with_a_part() -> None:
    net = network()
    with torch.no_grad():
        target = net(X)

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return 1 - float((model(X) - target).norm() / target.norm())

    result = rf.compress(net, X, budget="accuracy_drop<=30%, params(encoder.*)<=80%", evaluate=score)
    assert set(result.plan.factored) <= {"encoder.0", "encoder.3"}
    assert built(result, "encoder").params <= 0.8 * inspect(net, X).part("encoder").total.params


def test_the_strategy_that_loops_keeps_parts() -> None:
    net = network()
    data = [(X, net(X).argmax(-1).detach())]
    loss = rf.FineTune(data=data, loss="distill", distill="mse", max_steps=1)
    result = rf.compress(
        net, X, budget="params(encoder.*)<=60%", strategy=strategies.get("similarity", {"drop": 0.9, "coverage": 1.0}),
        calibration=data, evaluate=rf.top1(data), finetune=loss,
    )  # fmt: skip
    assert built(result, "encoder").params <= 0.6 * inspect(net, X).part("encoder").total.params


def test_ranks_set_by_hand_are_checked_against_parts() -> None:
    net = network()
    by_hand = strategies.get("manual", {"layers": {"encoder.0": ("svd", 4)}})
    rf.plan(net, X, budget="params(encoder)<=70%", strategy=by_hand)
    with pytest.raises(InfeasibleBudget, match="set by hand exceed") as caught:
        rf.plan(net, X, budget="params(encoder)<=60%, params<=99%", strategy=by_hand)
    assert [row[0] for row in caught.value.rows] == ["params(encoder)"]


def test_folders_of_different_parts_have_different_names() -> None:
    budgets = ["params(a*)<=50%", "params(a?)<=50%", "params(a)<=50%", "params(a[12])<=50%", "params(a12)<=50%"]
    names = [folder_name(str(Budget.parse(budget))) for budget in budgets]
    assert len(set(names)) == len(names)
    assert names[0] == "params-a@-50pct"
