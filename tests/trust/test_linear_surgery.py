"""The work of replacing layers grows with their number, however they are nested or tied."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import pytest
from torch import nn

import rankfold as rf
from rankfold.inventory import static_inventory
from rankfold.records import Choice, Plan
from rankfold.storage.artifact import rebuild


def flat(count: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(count)))


def nested(count: int) -> nn.Module:
    blocks = [nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4)) for _ in range(count // 2)]
    return nn.Sequential(*(nn.Sequential(*blocks[i : i + 5]) for i in range(0, count // 2, 5)))


def encoder(count: int) -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), count // 6)


def tied(count: int) -> nn.Module:
    net = flat(count)
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    for first, second in zip(layers[::2], layers[1::2], strict=True):
        second.weight = first.weight
    return net


def calls(function: Callable[[], object]) -> int:
    count = 0

    def profile(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def planned(net: nn.Module) -> Plan:
    return Plan(layers={layer.name: Choice(method="svd", ranks=(1,)) for layer in static_inventory(net)})


@pytest.mark.parametrize("rebuilt", [False, True], ids=["apply", "load"])
@pytest.mark.parametrize("make", [flat, nested, encoder, tied])
def test_apply_and_load_are_linear(make: Callable[[int], nn.Module], rebuilt: bool) -> None:
    counts = []
    for size in (12, 30, 120):  # the first one warms up
        net = make(size).eval()
        plan = planned(net)
        # Of load, what rankfold does: torch's load_state_dict compares every name with every child.
        work = rebuild if rebuilt else rf.apply
        counts.append(calls(lambda net=net, plan=plan, work=work: work(net, plan)))
    assert counts[2] < 5 * counts[1], f"4 times the layers take {counts[2] / counts[1]:.1f} times the calls"
