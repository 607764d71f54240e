"""What cannot be pruned is refused with the reason, and groups that a graph gets wrong are found by trying them."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.errors import ConfigError, MissingExtra, ModelError
from rankfold.pruning import trial
from rankfold.pruning.trial import Trial
from rankfold.records import Axis, ChannelGroup

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()


def outputs(name: str) -> Axis:
    return Axis(name=name, side="outputs")


def inputs(name: str, **options: Any) -> Axis:
    return Axis(name=name, side="inputs", **options)


def group(name: str, width: int, *axes: Axis) -> ChannelGroup:
    return ChannelGroup(name=name, width=width, axes=axes)


RIGHT = [group("0", 8, outputs("0"), inputs("2")), group("2", 6, outputs("2"), inputs("4"))]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (group("0", 8, outputs("0")), trial.RUNS),
        (group("0", 8, outputs("0"), inputs("2", indices=tuple((7 - i,) for i in range(8)))), trial.VALUES),
        (group("4", 4, outputs("4")), trial.SHAPES),
        (group("0", 9, outputs("0"), inputs("2")), None),  # a channel that does not exist
        (group("1", 8, outputs("1"), inputs("2")), "has no channels that can be removed"),
    ],
)
def test_wrong_groups_are_told_from_right_ones(wrong: ChannelGroup, reason: str | None) -> None:
    right = [one for one in RIGHT if one.name != wrong.name and not (wrong.name == "1" and one.name == "0")]
    failed = Trial(chain(), X).failing([*right, wrong])
    assert set(failed) <= {wrong.name}
    if reason is None:
        assert failed == {} or "index 8" in failed[wrong.name]
    else:
        assert reason in failed[wrong.name]


def test_right_groups_pass() -> None:
    assert Trial(chain(), X).failing(RIGHT) == {}


def test_zero_weights_hide_nothing() -> None:
    """A trial on the trained weights would not see a mistake behind a zero; its copy has random ones."""
    model = chain()
    nn.init.zeros_(model[2].weight)  # type: ignore[arg-type]
    wrong = group("0", 8, outputs("0"), inputs("2", indices=tuple((7 - i,) for i in range(8))))
    assert Trial(model, X).failing([wrong]) == {"0": trial.VALUES}


class Counting(nn.Module):
    """A normalization over channels that the graph does not know, and a product whose cost depends on the width."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.one, self.two, self.kind = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if self.kind == "norm":
            x = x / x.square().mean(1, keepdim=True).sqrt()
        if self.kind == "product":
            flat = x.flatten(2)
            x = x + 1e-3 * (flat.mT @ flat).mean((1, 2))[:, None, None, None]
        if self.kind == "detached":
            x = x.detach()
        return self.two(x)


@pytest.mark.parametrize(("kind", "reason"), [("norm", trial.VALUES), ("product", None), ("plain", "")])
def test_operations_between_channels_keep_the_width(kind: str, reason: str | None) -> None:
    groups = rf.channel_groups(Counting(kind).eval(), X)
    if reason == "":
        assert [g.name for g in groups] == ["one"]
    else:
        assert groups.groups == ()
        assert groups.fixed["one"] in ([reason] if reason else [trial.COSTS, trial.VALUES])


def test_layers_behind_a_detached_tensor_keep_their_width() -> None:
    groups = rf.channel_groups(Counting("detached").eval(), X)
    assert groups.groups == ()
    assert "does not reach it" in groups.fixed["one"]


class NoGradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.conv(x)


def test_a_model_that_cannot_be_traced_is_refused() -> None:
    model = NoGradients()
    with pytest.raises(ModelError, match=r"cannot be traced.*without torch.no_grad"):
        rf.channel_groups(model, X)
    with pytest.raises(ModelError, match="cannot run on the example input, 1x5x8x8"):
        rf.channel_groups(chain(), torch.randn(1, 5, 8, 8))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_and_the_random_state_stay_as_they_were() -> None:
    model = chain().train()
    model[2].weight.requires_grad_(requires_grad=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    rf.channel_groups(model, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not model[2].weight.requires_grad
    with torch.no_grad():
        assert [g.name for g in rf.channel_groups(model, X)] == ["0", "2"]


def test_without_torch_pruning_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingExtra, match=r"rankfold\[prune\]"):
        rf.channel_groups(chain(), X)


def test_a_computed_weight_keeps_its_width() -> None:
    model = chain()
    nn.utils.parametrizations.weight_norm(model[2])
    groups = rf.channel_groups(model, X)
    assert groups.groups == ()
    assert "computed by weight_norm" in groups.fixed["0"]


def test_a_layer_that_must_keep_its_width_is_named() -> None:
    groups = rf.channel_groups(chain(), X)
    with pytest.raises(ConfigError, match="width of layer '4' must stay: it is an output of the model"):
        groups.narrowing({"4": [0]})
