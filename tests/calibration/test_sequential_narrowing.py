"""Followers of pruned channels are refitted to the original's outputs, without labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.calibration import reconstruct_sequentially
from rankfold.inventory import static_inventory
from rankfold.records import Axis, ChannelGroup, Choice, Narrowing, Plan
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
    plain, refitted = (rf.apply(model, plan, data, reconstruct=mode) for mode in ("data", "sequential"))
    fresh = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        wanted = model(fresh)
        before, after = ((small(fresh) - wanted).square().mean() for small in (plain, refitted))
    assert after < 0.6 * before
    assert refitted.one.in_channels == 9 if not factored else refitted.one.info.in_channels == 9  # type: ignore[union-attr]


def test_in_place_equals_a_copy() -> None:
    data = [torch.randn(50, 6, generator=torch.Generator().manual_seed(1))]
    model = linears()
    plan = plan_for(model, HIDDEN, **{"2": Choice(method="svd", ranks=(2,))})
    copied = rf.apply(model, plan, data, reconstruct="sequential")
    in_place = rf.apply_(model, plan, data, reconstruct="sequential")
    x = torch.randn(8, 6)
    torch.testing.assert_close(in_place(x), copied(x), rtol=0, atol=0)
    assert in_place.rankfold_plan.narrowing.groups == (HIDDEN,)  # type: ignore[union-attr]


def test_without_a_refit_the_weights_are_only_cut() -> None:
    """The control of the tests above: a plain cut leaves the follower's weights as they were."""
    model = linears()
    small = narrowed_copy(model, Narrowing((HIDDEN,)))
    torch.testing.assert_close(small[2].weight, model[2].weight[:, list(HIDDEN.kept)])  # type: ignore[index]
