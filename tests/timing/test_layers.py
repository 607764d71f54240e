"""The table of layer times: what is measured, interpolated, cached and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rankfold import methods
from rankfold.api import layer_times
from rankfold.candidates.cache import Cache
from rankfold.cost import Pricing
from rankfold.errors import RankfoldError
from rankfold.inventory import inspect
from rankfold.reporting.latency import LatencyTable
from rankfold.testing.clockwork import BLOCK, Clockwork
from rankfold.timing import LayerTable, Target, Timer
from rankfold.timing.steps import PROBE

TARGET = Target(runtime="clockwork")


def table_of(net: nn.Module, x: Tensor, folder: Path | None = None) -> LayerTable:
    return Timer(net, x, TARGET, None if folder is None else Cache(folder)).layers


def test_every_candidate_has_its_own_time(net: nn.Module, x: Tensor, clock: Clockwork) -> None:
    table, layer = table_of(net, x), inspect(net, x).layer("2")
    for name in ("svd", "tucker", "spatial_svd"):
        method = methods.get(name)
        for ranks in method.rank_grid(layer, points=9):
            blueprint = method.blueprint(layer, ranks)
            assert table.ns(layer, blueprint) == pytest.approx(clock.layer(layer, blueprint, layer.calls[0]), abs=2)
    assert table.block(layer) == BLOCK


def test_few_settings_are_measured_and_equal_layers_once(net: nn.Module, x: Tensor, clock: Clockwork) -> None:
    inventory, table = inspect(net, x), table_of(net, x)
    pricing = Pricing.of(inventory, resources=("latency",), times=table)
    clock.layers.clear()
    one, other = inventory.layer("2"), inventory.layer("4")
    candidates = pricing.candidates(one, methods.get("svd"), methods.get("svd").rank_grid(one))
    assert len(candidates) > 40
    assert len(clock.layers) == 5 + len(PROBE)  # the dense layer, four ranks, and the probe
    assert [c.cost for c in pricing.candidates(other, methods.get("svd"), [(8,)])] == [
        c.cost for c in candidates if c.ranks == (8,)
    ]
    assert len(clock.layers) == 5 + len(PROBE)
    assert pricing.inventory.total.get("latency") == table.whole
    assert pricing.inventory.costs["2"].get("latency") == clock.layer(one, None, one.calls[0])


def test_calls_are_those_of_the_target(net: nn.Module, x: Tensor, clock: Clockwork) -> None:
    layer = inspect(net, x).layer("2")
    times = [Timer(net, x, Target(runtime="clockwork", batch=n)).layers.ns(layer, None) for n in (1, 8)]
    assert times[1] - clock.stage_ns == 8 * (times[0] - clock.stage_ns)


def test_the_cache_saves_measurements(net: nn.Module, x: Tensor, clock: Clockwork, tmp_path: Path) -> None:
    layer, svd = inspect(net, x).layer("2"), methods.get("svd")
    first, again, other = table_of(net, x, tmp_path), table_of(net, x, tmp_path), Target(runtime="clockwork", threads=7)
    blueprint = svd.blueprint(layer, (12,))
    ns = first.ns(layer, blueprint)
    assert first.measured > 0
    assert again.ns(layer, blueprint) == ns
    assert again.measured == 0
    elsewhere = Timer(net, x, other, Cache(tmp_path)).layers
    assert elsewhere.ns(layer, blueprint) == ns
    assert elsewhere.measured == first.measured
    for file in tmp_path.glob("*.json"):
        file.write_text("{}", "utf-8")
    damaged = table_of(net, x, tmp_path)
    assert damaged.ns(layer, blueprint) == ns
    assert damaged.measured == first.measured


def test_an_unwritable_folder_is_refused(net: nn.Module, x: Tensor, clock: Clockwork, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(RankfoldError, match="file"):
        layer_times(net, x, target="clockwork", cache=tmp_path / "file" / "cache")
    assert clock.runs == 0


def test_a_busy_machine_is_said_to_be_busy(net: nn.Module, x: Tensor, clock: Clockwork, tmp_path: Path) -> None:
    layer, table = inspect(net, x).layer("2"), table_of(net, x, tmp_path)
    clock.noise = 0.95
    with pytest.raises(RankfoldError, match=r"too busy to tell the time of layer '2'.*Stop other programs"):
        table.ns(layer, None)
    assert not list(tmp_path.glob("*.json")), "a noisy time is not stored"
    with pytest.raises(RankfoldError, match="too busy to tell the time of the dense model"):
        table_of(net, x)


def test_a_layer_too_small_to_matter_may_be_noisy(net: nn.Module, x: Tensor, clock: Clockwork) -> None:
    """The last layer takes less than a hundredth of the model's time; the middle one most of it."""
    timer = Timer(net, x, Target(runtime="clockwork"))
    table, inventory = timer.layers, inspect(net, x)
    clock.noise = 0.95
    small, large = inventory.layer("8"), inventory.layer("2")
    reading = table.reading(small, None)
    assert reading.noisy
    assert reading.spread * reading.ns < 0.01 * table.whole
    assert table.ns(small, None) == reading.ns
    assert table.reading(large, None).noisy
    with pytest.raises(RankfoldError, match="too busy to tell"):
        table.ns(large, None)


def test_the_table_shows_and_marks(net: nn.Module, x: Tensor, clock: Clockwork, tmp_path: Path) -> None:
    table = layer_times(net, x, target="clockwork", methods="svd,tucker")
    rows = {row.layers: row for row in table.rows if row.method is None}
    assert list(rows) == [("0",), ("2", "4"), ("8",)]
    assert table.blocks == {"Conv2d": BLOCK, "Linear": BLOCK}
    assert {row.method for row in table.rows} == {None, "svd", "tucker"}
    assert LatencyTable.load(table.save(tmp_path / "table.json")) == table
    page = table.to_markdown()
    assert "2 and 1 more" in page
    assert "too noisy" not in page
    noisy = [LatencyTable.from_json(table.to_json().replace('"noisy": false', '"noisy": true'))]
    assert noisy[0].to_markdown().count("too noisy to tell") == len(table.rows)


def test_the_command_shows_the_table(clock: Clockwork, capsys: pytest.CaptureFixture[str]) -> None:
    from rankfold.cli import app

    app(["latency", "lenet5_mnist5k", "--target", "clockwork", "--json"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert '"command": "latency"' in shown
    assert '"target": "clockwork, device=cpu, batch=1' in shown


def test_nothing_to_compress_is_said(clock: Clockwork) -> None:
    with pytest.raises(RankfoldError, match="no layer that can be compressed"):
        layer_times(nn.ReLU(), torch.zeros(1, 2), target="clockwork")
