"""Gauged plans end to end: priced by shapes, chosen where they win, applied, saved, exported, on the command line."""

from __future__ import annotations

import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import rankfold as rf
from rankfold.candidates import TableConfig, build_table
from rankfold.cli import app
from rankfold.cost import Pricing, blueprint_cost, gauged_cost
from rankfold.errors import ConfigError, CorruptArtifact, GaugeError
from rankfold.inventory import inspect, layer_weight
from rankfold.methods import get
from rankfold.records import Choice, LayerInfo, Plan, gauge_blueprint
from rankfold.testing.subject import relative_error

X = torch.randn(2, 6, 9, 9, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(6, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1, padding_mode="reflect", bias=False),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 40),
        nn.ReLU(),
        nn.Linear(40, 12),
    ).eval()


LAYERS = {"0": ("spatial_svd", (9,)), "2": ("tt", (8, 14, 10)), "5": ("svd", (16,)), "7": ("qr", (6,))}
SAVED = 81 + 64 + 196 + 100 + 256 + 36


def by_hand(gauge: bool) -> nn.Module:
    net = network()
    return rf.apply(net, rf.plan(net, X, strategy=rf.Manual(layers=LAYERS), gauge=gauge))


def params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_table_offers_the_gauged_candidate_where_it_wins() -> None:
    model, inventory = network(), inspect(network(), X)
    names = ("svd", "tucker", "tt", "cp")

    def rows(gauge: bool) -> dict[str, dict[Any, Any]]:
        config = TableConfig(methods=names, points=6)
        table = build_table(Pricing.of(inventory, gauge=gauge), lambda name: layer_weight(model, name), config)
        return {name: {(c.method, c.ranks): c for c in row} for name, row in table.rows.items()}

    plain, gauged = rows(False), rows(True)
    assert not any(c.gauge for row in plain.values() for c in row.values())
    for layer, row in plain.items():
        assert set(row) < set(gauged[layer])  # and ranks that were past break-even before
        for key, before in row.items():
            after = gauged[layer][key]
            assert after.error == before.error
            if after.gauge:
                assert after.cost.params < before.cost.params
                assert after.cost.macs < before.cost.macs
                assert after.cost.weight_bytes <= before.cost.weight_bytes
            else:
                assert after.cost == before.cost
                fixed = gauge_blueprint(get(key[0]).blueprint(inventory.layer(layer), key[1]))
                assert not fixed.gauged or 4 * (fixed.params + fixed.indices) > before.cost.weight_bytes
        assert any(c.gauge for c in gauged[layer].values())
        assert not any(c.gauge for c in gauged[layer].values() if c.method == "cp")
    with pytest.raises(ConfigError, match="gauge must be true or false"):
        Pricing.of(inspect(torch.nn.Linear(4, 4), torch.zeros(1, 4)), gauge=1)


def test_break_even_moves_to_the_full_rank() -> None:
    layer = inspect(nn.Sequential(nn.Linear(64, 48)), torch.zeros(1, 64)).layers[0]
    dense = 64 * 48 + 48
    method = get("svd")
    cheaper = [r for r in range(1, 49) if blueprint_cost(method.blueprint(layer, (r,)), layer).params < dense]
    gauged = [r for r in range(1, 49) if gauged_cost(method.blueprint(layer, (r,)), layer)[0].params < dense]
    assert max(cheaper) == 27
    assert max(gauged) == 47
    assert gauged_cost(method.blueprint(layer, (20,)), layer, gauge=False)[1] is False


def test_indices_count_as_bytes() -> None:
    """At rank 4 of 64 the identity saves 16 numbers and costs 64 indices: not worth it."""
    layer = inspect(nn.Sequential(nn.Linear(64, 48)), torch.zeros(1, 64)).layers[0]
    assert [gauged_cost(get("svd").blueprint(layer, (r,)), layer)[1] for r in (4, 8, 9)] == [False, True, True]
    small = rf.factorize(nn.Linear(64, 48), "svd", 4, gauge=True)  # asked for by hand it is done
    assert params(small) == 4 * (64 + 48 - 4) + 48


def test_a_budget_buys_higher_ranks() -> None:
    model = network()
    plans = [rf.plan(model, X, budget="params<=45%", gauge=g) for g in (False, True)]
    errors = [max(c.error or 0 for c in p.factored.values()) for p in plans]
    assert errors[1] < errors[0]
    for plan in plans:
        assert params(rf.apply(model, plan)) <= 0.45 * params(model)
    assert any(c.gauge for c in plans[1].factored.values())
    assert not any(c.gauge for c in plans[0].factored.values())


def test_plans_by_hand_compute_the_same_with_fewer_parameters_and_macs() -> None:
    plain, gauged = by_hand(False), by_hand(True)
    with torch.no_grad():
        assert 0 < relative_error(gauged(X), plain(X)) < 1e-5
    assert params(plain) - params(gauged) == SAVED
    macs = []
    for module in (plain, gauged):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(X)
        macs.append(counter.get_total_flops() // 2)
        assert inspect(module, X).total.macs == macs[-1]
    # At the bonds of the first layer 9 x 9 positions, of the second 9 x 9, 5 x 9 and 5 x 5, then rows; of two images.
    assert macs[0] - macs[1] == 2 * (81 * 81 + 64 * 81 + 196 * 45 + 100 * 25 + 256 + 36)


def test_the_choice_is_a_word_in_the_plan(tmp_path: Path) -> None:
    net = network()
    plan = rf.plan(net, X, strategy=rf.Manual(layers=LAYERS))
    edited = json.loads(plan.to_json())
    assert "gauge" not in json.dumps(edited)
    for name in ("2", "5"):
        edited["layers"][name]["gauge"] = True
    read = Plan.from_json(json.dumps(edited))
    assert [n for n, c in read.factored.items() if c.gauge] == ["2", "5"]
    assert Plan.from_json(read.to_json()) == read
    plain, small = rf.apply(net, plan), rf.apply(net, read)
    assert params(plain) - params(small) == 64 + 196 + 100 + 256
    loaded = rf.load(rf.save(small, tmp_path / "out"), network())
    assert torch.equal(loaded(X), small(X))
    edited["layers"]["2"]["gauge"] = "yes"
    with pytest.raises(CorruptArtifact, match="'2': 'gauge' must be true or false. Got 'yes'"):
        Plan.from_json(json.dumps(edited))


def test_overrides() -> None:
    net = network()
    layers = {"0": {"method": "tucker", "ranks": [12, 4], "gauge": True}, "5": ("svd", 0.4), "7": ("svd", (3,))}
    plan = rf.plan(net, X, budget="params<=60%", overrides=layers)
    assert {n: c.gauge for n, c in plan.factored.items() if n in layers} == {"0": True, "5": False, "7": False}
    with_gauge = rf.plan(net, X, budget="params<=60%", overrides=layers, gauge=True)
    assert with_gauge.layers["5"].gauge
    assert not with_gauge.layers["7"].gauge  # rank 3: more bytes
    assert with_gauge.layers["5"].ranks[0] > plan.layers["5"].ranks[0]
    assert params(rf.apply(net, with_gauge)) <= 0.6 * params(net)
    with pytest.raises(GaugeError, match="'0'.*single channels"):
        rf.plan(net, X, overrides={"0": {"method": "cp", "ranks": [3], "gauge": True}})


@pytest.mark.parametrize("strategy", ["energy", "uniform", "vbmf"])
def test_every_strategy_takes_it(strategy: str) -> None:
    net = network()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a signal of rank 12 in the noise, for vbmf to find
        for weight in (p for p in net.parameters() if p.ndim > 1):
            left, right = (torch.randn(n, 12, generator=generator) for n in (weight.shape[0], weight[0].numel()))
            weight += 0.2 * (left @ right.T).reshape(weight.shape)
    plan = rf.plan(net, X, budget="params<=70%", strategy=strategy, methods="svd,tucker,tt", gauge=True)
    small = rf.apply(net, plan)
    assert any(c.gauge for c in plan.factored.values())
    assert params(small) <= 0.7 * params(net)


def test_compress_reports_it(tmp_path: Path) -> None:
    net = network()
    result = rf.compress(net, X, budget="params<=50%, flash<=60%", gauge=True, output=tmp_path / "out")
    gauged = [n for n, c in result.plan.factored.items() if c.gauge]
    assert gauged
    rows = {row.name: row for row in result.report.layers}
    assert all("gauged" in str(rows[n].note) for n in gauged)
    assert result.report.after.params == params(result.model)
    total = inspect(result.model, X).total
    assert result.report.after.weight_bytes == total.weight_bytes
    stored = sum(t.numel() * t.element_size() for t in result.model.state_dict().values())
    assert total.weight_bytes == stored <= 0.6 * 4 * params(net)


def test_compile_and_export() -> None:
    plain, small = by_hand(False), by_hand(True)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = small(X)
        assert torch.equal(torch.compile(small, backend="eager", fullgraph=True)(X), expected)
        program = torch.export.export(small, (X,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
        one = torch.cat([X, X, X])
        assert torch.allclose(program.module()(one), small(one), atol=1e-6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = small(X)
        assert found.dtype is torch.bfloat16
        assert torch.dist(found.float(), plain(X)) < 0.05 * expected.norm()
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # of torch 2.11's own exporter
def test_onnx(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    small = by_hand(True)
    program = torch.onnx.export(
        small, (X,), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    assert program is not None
    program.save(str(tmp_path / "small.onnx"))
    tensors = onnx.load(str(tmp_path / "small.onnx")).graph.initializer
    stored = sum(math.prod(t.dims) for t in tensors if t.data_type == onnx.TensorProto.FLOAT and t.dims)
    assert stored == params(small)  # the identities are not in it
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    with torch.no_grad():
        for x in (X, X[:1]):
            (found,) = session.run(None, {name: x.numpy()})
            assert relative_error(torch.from_numpy(found), small(x)) < 1e-5
            assert relative_error(torch.from_numpy(found), small(x + 0.1)) > 1e-4


def test_fine_tuning_keeps_the_identity() -> None:
    net, small = network(), by_hand(True)
    loader = [(torch.randn(8, 6, 9, 9), torch.randint(0, 12, (8,))) for _ in range(3)]
    before = copy.deepcopy(small.state_dict())
    tuned = rf.finetune(small, rf.FineTune(data=loader, epochs=2, lr=1e-3), teacher=net).model
    after = tuned.state_dict()
    assert params(tuned) == params(small)
    assert all(torch.equal(before[n], t) for n, t in after.items() if n.endswith("order"))
    changed = [n for n, t in after.items() if t.is_floating_point() and not torch.equal(before[n], t)]
    assert sum("rest" in n for n in changed) >= 5


def test_command_line(tmp_path: Path) -> None:
    runner = CliRunner(env={"COLUMNS": "100"})
    args = ["--weights", "bundled", "--budget", "params<=40%", "--gauge", "--json"]
    planned = runner.invoke(app, ["plan", "lenet5_mnist5k", *args, "--out", str(tmp_path / "plan.json")])
    assert planned.exit_code == 0, planned.stderr
    plan = Plan.load(tmp_path / "plan.json")
    assert any(c.gauge for c in plan.factored.values())
    done = runner.invoke(app, ["compress", "lenet5_mnist5k", *args, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    assert Plan.load(tmp_path / "out").layers == plan.layers
    report, predicted = (json.loads(d.stdout)["report"] for d in (done, planned))
    assert report["after"]["params"] <= 0.4 * report["before"]["params"]
    assert predicted["after"]["params"] == report["after"]["params"]


def test_a_share_of_the_parameters_buys_a_higher_rank() -> None:
    layer = nn.Conv2d(24, 32, 3)
    plain, gauged = (rf.factorize(layer, "tucker", 0.4, gauge=g) for g in (False, True))
    assert params(gauged) <= 0.4 * params(layer)
    assert relative_error(gauged.weight, layer.weight) < relative_error(plain.weight, layer.weight)


@pytest.mark.parametrize("reconstruct", ["weights", "data", "sequential"])
def test_every_reconstruction_fills_gauged_factors(reconstruct: Any) -> None:
    net, data = network(), [torch.randn(8, 6, 9, 9, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    plans = [rf.plan(net, X, strategy=rf.Manual(layers=LAYERS), gauge=gauge) for gauge in (False, True)]
    plain, gauged = (rf.apply(net, plan, data, reconstruct=reconstruct) for plan in plans)
    assert params(plain) - params(gauged) == SAVED
    with torch.no_grad():
        assert relative_error(gauged(data[0]), plain(data[0])) < 1e-5


def test_a_layer_without_bond_is_kept_plain() -> None:
    """Tucker of full ranks is one stage; a choice of it gauged is an error that says so."""
    layer = inspect(nn.Sequential(nn.Conv2d(6, 8, 3)), torch.zeros(1, 6, 5, 5)).layers[0]
    assert isinstance(layer, LayerInfo)
    cost, gauged = gauged_cost(get("tucker").blueprint(layer, (8, 6)), layer)
    assert not gauged
    assert cost == blueprint_cost(get("tucker").blueprint(layer, (8, 6)), layer)
    net = nn.Sequential(nn.Conv2d(6, 8, 3))
    with pytest.raises(GaugeError, match="single stage, without a bond"):
        rf.apply(net, Plan(layers={"0": Choice(method="tucker", ranks=(8, 6), gauge=True)}))


def test_no_warnings_on_the_way() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = by_hand(True)
        small.train()
        small(X).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
