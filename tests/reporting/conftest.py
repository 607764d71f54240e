"""Synthetic reports: 8 layers with everything in them, 200 layers, and one with hostile names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from rankfold.records import (
    Call,
    Choice,
    Cost,
    Inventory,
    LayerInfo,
    OtherModule,
    Plan,
    Provenance,
)
from rankfold.reporting import EpochRow, MetricValue, Report, build_report

HOSTILE = "<script>alert('x')</script>|`[red]"


def conv(name: str, i: int, o: int, k: int = 3, hw: int = 32, **more: object) -> LayerInfo:
    fields: dict[str, object] = {
        "name": name,
        "kind": "conv",
        "in_channels": i,
        "out_channels": o,
        "kernel": (k, k),
        "stride": (1, 1),
        "padding": (k // 2, k // 2),
        "dilation": (1, 1),
        "calls": (Call(batch=1, in_size=(hw, hw), out_size=(hw, hw)),),
        **more,
    }
    return LayerInfo(**fields)  # pyright: ignore[reportArgumentType]


def linear(name: str, i: int, o: int, **more: object) -> LayerInfo:
    fields: dict[str, object] = {
        "name": name,
        "kind": "linear",
        "in_channels": i,
        "out_channels": o,
        "bias": True,
        "calls": (Call(batch=1),),
        **more,
    }
    return LayerInfo(**fields)  # pyright: ignore[reportArgumentType]


def cost_of(layer: LayerInfo, share: float = 1.0) -> Cost:
    params = int(layer.out_channels * layer.group_in * layer.kernel_numel * share)
    size = 1
    for n in layer.calls[0].out_size if layer.calls else (0,):
        size *= n
    return Cost(
        params=params,
        macs=params * size,
        fm=layer.out_channels * size + (100 if share < 1 else 0),
        weight_bytes=4 * params,
    )


def make_inventory(layers: tuple[LayerInfo, ...], others: tuple[OtherModule, ...] = ()) -> Inventory:
    costs = {layer.name: cost_of(layer) for layer in layers}
    rest = sum(other.params for other in others)
    total = sum(costs.values(), Cost(params=rest, weight_bytes=4 * rest))
    return Inventory(
        layers=layers,
        others=others,
        total=total,
        costs=costs,
        example="Tensor (1, 3, 32, 32) float32",
    )


def make_report(inventory: Inventory, shares: dict[str, float], plan: Plan, **more: object) -> Report:
    layer_costs = {n: cost_of(inventory.layer(n), s) for n, s in shares.items()}
    after = inventory.total
    for name, cost in layer_costs.items():
        after = after - inventory.costs[name] + cost
    return build_report(inventory, plan, after, layer_costs, **more)  # pyright: ignore[reportArgumentType]


def make_small() -> tuple[Inventory, Plan, dict[str, float]]:
    names = ("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0")
    shapes = ((16, 32), (32, 32), (32, 64), (64, 64), (64, 128))
    body = tuple(conv(n, i, o, hw=16) for n, (i, o) in zip(names, shapes, strict=True))
    dw = conv("layer3.dw", 128, 128, hw=8, groups=128, skip="depthwise convolution")
    layers = (conv("stem", 3, 16), *body, dw, linear("head", 128, 10, note="called twice"))
    others = tuple(
        OtherModule(name=f"bn{i}", type_name="BatchNorm2d", params=64, reason="normalization") for i in range(6)
    )
    inventory = make_inventory(layers, others)
    choices: dict[str, Choice] = {
        "stem": Choice(reason="no candidate is smaller"),
        **{
            n: Choice(method="tucker", ranks=(o // 4, i // 4), error=0.05 + 0.04 * k)
            for k, (n, (i, o)) in enumerate(zip(names, shapes, strict=True))
        },
        "head": Choice(method="svd", ranks=(4,), error=0.21, reason="VBMF rank 1 raised to 4"),
    }
    provenance = Provenance(
        strategy="energy",
        config={"share": 0.9, "sizes": (1, 2)},
        budget="params<=25%",
        methods=("svd", "tucker"),
        seed=7,
        reconstruct="sequential",
        weights_hash="sha256:3f1c9a",
        versions={"rankfold": "0.1.0", "torch": "2.15.0"},
    )
    plan = Plan(layers=choices, provenance=provenance)
    shares = {n: 0.18 + 0.02 * k for k, n in enumerate(names)} | {"head": 0.42}
    return inventory, plan, shares


def small_report() -> Report:
    inventory, plan, shares = make_small()
    report = make_report(
        inventory,
        shares,
        plan,
        metrics=(
            MetricValue(name="top-1", dense=0.9173, compressed=0.8541, tuned=0.912, reloaded=0.912, samples=10_000),
            MetricValue(name="loss", dense=0.31, compressed=0.52, tuned=0.33, higher_is_better=False),
        ),
        history=[
            EpochRow(epoch=e + 1, loss=1.2 / (e + 1) + 0.2, lr=0.1 / (e + 1), metric=m, seconds=12.3)
            for e, m in enumerate((0.862, 0.889, 0.901, 0.909, 0.912))
        ],
        notes=("BatchNorm statistics re-estimated: accepted (output error 0.31 → 0.24)",),
        disk_bytes=131072,
        measured_errors={n: 0.05 + 0.3 * s for n, s in shares.items()},
        model_name="resnet_demo",
        timings={"inspect": 0.21, "plan": 1.4, "fine-tune": 61.5},
    )
    return replace(report, latency=(4.21, 2.93))


def large_report(blocks: int = 50) -> Report:
    layers: list[LayerInfo] = [conv("features.conv0", 3, 64, 7, 112)]
    choices: dict[str, Choice] = {}
    shares: dict[str, float] = {}
    width, hw = 64, 56
    for b in range(blocks):
        if b in (blocks // 8, blocks // 3, blocks - blocks // 8):
            width, hw = width * 2, hw // 2
        path = f"features.stage{1 + int(width > 64) + int(width > 128) + int(width > 256)}.{b}"
        layers += [
            conv(f"{path}.conv1", width, width // 4, 1, hw),
            conv(f"{path}.conv2", width // 4, width // 4, 3, hw),
            conv(f"{path}.conv3", width // 4, width, 1, hw),
            conv(f"{path}.mix", width, width, 3, hw),
        ]
    layers = [*layers[:199], linear("classifier", 512, 1000)]
    for i, layer in enumerate(layers):
        if i % 5 == 2:
            choices[layer.name] = Choice(reason="no candidate is smaller")
            continue
        ranks = (layer.out_channels // 3, layer.in_channels // 4)
        if layer.kernel_numel == 1:
            ranks = ranks[:1]
        method = "tucker" if len(ranks) == 2 else "svd"
        choices[layer.name] = Choice(method=method, ranks=ranks, error=0.05 + 0.2 * ((i * 37) % 11) / 11)
        shares[layer.name] = 0.1 + 0.5 * ((i * 29) % 13) / 13
    inventory = make_inventory(tuple(layers))
    provenance = Provenance(strategy="uniform", budget="params<=20%, macs<=50%")
    return make_report(
        inventory,
        shares,
        Plan(layers=choices, provenance=provenance),
        model_name="timm/big_net_200",
    )


def hostile_report() -> Report:
    layers = (
        conv(HOSTILE, 8, 8),
        linear("__init__", 8, 8, note=HOSTILE, aliases=(HOSTILE,), skip=HOSTILE),
    )
    others = (OtherModule(name="o", type_name=HOSTILE, params=3, reason=HOSTILE),)
    choices = {HOSTILE: Choice(method="svd", ranks=(2,), reason=HOSTILE)}
    plan = Plan(
        layers=choices,
        provenance=Provenance(strategy=HOSTILE, config={HOSTILE: HOSTILE}, budget=HOSTILE),
    )
    return make_report(
        make_inventory(layers, others),
        {HOSTILE: 0.5},
        plan,
        model_name=HOSTILE,
        notes=(HOSTILE,),
        metrics=(MetricValue(name=HOSTILE, dense=0.5, compressed=0.4),),
    )


@pytest.fixture(scope="session")
def small() -> Report:
    return small_report()


@pytest.fixture(scope="session")
def large() -> Report:
    return large_report()


@pytest.fixture(scope="session")
def hostile() -> Report:
    return hostile_report()


@pytest.fixture
def parts() -> tuple[Inventory, Plan, dict[str, Cost]]:
    inventory, plan, shares = make_small()
    return inventory, plan, {n: cost_of(inventory.layer(n), s) for n, s in shares.items()}


@pytest.fixture(params=[small_report, large_report, hostile_report], ids=lambda f: f.__name__)
def report(request: pytest.FixtureRequest) -> Report:
    make: Callable[[], Report] = request.param
    return make()
