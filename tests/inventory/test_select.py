"""Choosing layers by pattern and type, and keeping the first and the last."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankfold.errors import ConfigError, NoMatchingLayer
from rankfold.inventory import inspect


class Net(nn.Module):
    """Defined in another order than executed."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
        self.stem = nn.Conv2d(3, 4, 1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x)).flatten(2).mT
        return self.head(self.attention(x, x, x)[0].mean(1))


X = torch.zeros(1, 3, 2, 2)
ATTENTION = [f"attention.{n}_proj" for n in ("q", "k", "v", "out")]
ALL = ["head", "body.0", "body.1", "stem", *ATTENTION, "unused"]


def left(**options: Any) -> list[str]:
    return [layer.name for layer in inspect(Net(), X, **options).compressible]


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("head", ["head"]),
        ("body.*", ["body.0", "body.1"]),
        ("body", ["body.0", "body.1"]),
        ("*.1", ["body.1"]),
        ("b?dy", ["body.0", "body.1"]),
        ("re:(head|stem)", ["head", "stem"]),
        (r"re:body\.\d", ["body.0", "body.1"]),
        ("attention", ATTENTION),
        (["stem", "*.k_proj"], ["stem", "attention.k_proj"]),
        (nn.Conv2d, ["body.0", "body.1", "stem"]),
        (nn.MultiheadAttention, ATTENTION),
        (nn.Linear, ["head", *ATTENTION, "unused"]),
        ([nn.Conv2d, "head"], ["head", "body.0", "body.1", "stem"]),
        ("*", ALL),
    ],
)
def test_include_and_exclude_are_each_others_opposite(selector: Any, names: list[str]) -> None:
    assert left(include=selector) == names
    assert left(exclude=selector) == [name for name in ALL if name not in names]


def test_without_selectors_every_layer_is_considered() -> None:
    assert left() == ALL


def test_the_reason_names_the_selector() -> None:
    inventory = inspect(Net(), X, include=["body", nn.Linear], exclude="*.1")
    assert inventory.layer("stem").skip == "excluded by include='body', Linear"
    assert inventory.layer("body.1").skip == "excluded by '*.1'"
    assert inventory.layer("body.0").skip is None


def test_aliases_and_ties_answer_too() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    net.again = net[0]
    for name in ("0", "1", "again"):
        assert inspect(net, torch.zeros(1, 2), exclude=name).compressible == ()


def test_a_single_layer_is_selected_by_type_or_star() -> None:
    for selector in ("*", nn.Linear):
        assert inspect(nn.Linear(2, 2), torch.zeros(1, 2), exclude=selector).compressible == ()


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("boby.*", r"'boby.\*' matches no layer. Close matches: 'body\.[01]'"),
        ("Head", "'Head' matches no layer"),
        ("re:hea", "'re:hea' matches no layer"),
        (nn.Conv3d, "Conv3d matches no layer. Available layers: 'head', 'body.0'"),
        (["head", "nothing"], "'nothing' matches no layer"),
    ],
)
def test_what_selects_nothing_is_an_error(option: str, selector: Any, message: str) -> None:
    with pytest.raises(NoMatchingLayer, match=message):
        inspect(Net(), X, **{option: selector})


@pytest.mark.parametrize("selector", [3, ["head", None], "re:("])
def test_malformed_selectors(selector: Any) -> None:
    with pytest.raises(ConfigError):
        inspect(Net(), X, exclude=selector)


def test_first_and_last_are_those_of_the_execution() -> None:
    inventory = inspect(Net(), X, keep_first_last=True)
    assert {layer.name: layer.skip for layer in inventory if layer.skip} == {
        "stem": "kept: first layer",
        "head": "kept: last layer",
    }


def test_without_a_convolution_the_first_layer_is_kept() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    inventory = inspect(net, torch.zeros(1, 2), keep_first_last=True)
    assert [layer.skip is None for layer in inventory] == [False, True, False]
