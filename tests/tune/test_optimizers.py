"""The schedule, and optimizers rebuilt for a compressed model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn

from rankfold.errors import ConfigError, ModelError
from rankfold.tune import FineTune, rebuild_optimizer
from rankfold.tune.optimizers import build_optimizer, lr_at, plateau_scale

Compress = Callable[..., nn.Module]


def test_the_learning_rate_rises_and_falls() -> None:
    config = FineTune(lr=2.0, warmup=0.2)
    rates = [lr_at(config, step, 10) for step in range(10)]
    assert rates[:3] == pytest.approx([2 / 3, 4 / 3, 2.0])
    for step in range(2, 10):
        assert rates[step] == pytest.approx(1 + math.cos(math.pi * (step - 2) / 8))
    assert lr_at(config, 50, 10) == pytest.approx(0)
    flat = FineTune(lr=2.0, warmup=0, schedule="constant")
    assert {lr_at(flat, step, 10) for step in range(10)} == {2.0}


def test_vectors_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = build_optimizer(model, FineTune(weight_decay=0.3))
    found = {g["weight_decay"]: len(g["params"]) for g in optimizer.param_groups}
    assert found == {0.3: 1, 0.0: 3}
    assert all(g["nesterov"] and g["momentum"] == 0.9 for g in optimizer.param_groups)
    assert isinstance(build_optimizer(model, FineTune(optimizer="adamw")), torch.optim.AdamW)
    assert type(build_optimizer(model, FineTune(optimizer="adam"))) is torch.optim.Adam


@pytest.mark.parametrize("patience", [0, 2])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_plateau_is_torchs(mode: Literal["min", "max"], patience: int, generator: torch.Generator) -> None:
    config = FineTune(schedule="plateau", plateau_patience=patience, plateau_factor=0.25)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.8)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, factor=0.25, patience=patience)
    values = torch.rand(20, generator=generator).tolist()
    scales = set[float]()
    for number, value in enumerate(values, 1):
        schedule.step(value)
        scales.add(plateau_scale(config, values[:number], higher_is_better=mode == "max"))
        assert 0.8 * plateau_scale(config, values[:number], higher_is_better=mode == "max") == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-7
        )
    assert len(scales) > 3
    assert plateau_scale(config, [], higher_is_better=True) == 1.0


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.3, "momentum": 0.8, "nesterov": True}),
        (torch.optim.Adam, {"lr": 0.3, "betas": (0.8, 0.9), "amsgrad": True}),
        (torch.optim.AdamW, {"lr": 0.3, "weight_decay": 0.05}),
        (torch.optim.RMSprop, {"lr": 0.3, "alpha": 0.9}),
        (torch.optim.NAdam, {"lr": 0.3}),
    ],
)
def test_same_class_and_settings(dense: nn.Sequential, compress: Compress, kind: Any, options: dict[str, Any]) -> None:
    old = kind(dense.parameters(), **options)
    small = compress(dense, **{"0": 3})
    new = rebuild_optimizer(old, small)
    assert type(new) is kind
    assert {id(p) for g in new.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}
    settings = [{k: v for k, v in o.param_groups[0].items() if k != "params"} for o in (old, new)]
    assert settings[0] == settings[1]
    small(torch.ones(2, 6)).sum().backward()
    before = [p.detach().clone() for p in small.parameters()]
    old.step()
    assert all(torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))
    new.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))


@pytest.mark.parametrize("named", [True, False])
def test_groups_are_kept(dense: nn.Sequential, compress: Compress, named: bool) -> None:
    def members(model: nn.Module, kind: str) -> Any:
        found = [(n, p) for n, p in model.named_parameters() if n.endswith(kind)]
        return found if named else [p for _, p in found]

    old = torch.optim.SGD(
        [
            {"params": members(dense, "weight"), "weight_decay": 0.1},
            {"params": members(dense, "bias"), "lr": 0.5},
        ],
        lr=0.1,
    )
    small = compress(dense, **{"0": 3, "3": 4})
    new = rebuild_optimizer(old, small, dense=None if named else dense)
    names = {id(p): n for n, p in small.named_parameters()}
    weights, biases = ([names[id(p)] for p in g["params"]] for g in new.param_groups)
    assert len(weights) == 5
    assert all(n.endswith("weight") for n in weights)
    assert len(biases) == 3
    assert all(n.endswith("bias") for n in biases)
    assert [g["weight_decay"] for g in new.param_groups] == [0.1, 0]
    assert [g["lr"] for g in new.param_groups] == [0.1, 0.5]


def test_attention_projections_go_where_the_packed_weight_was(compress: Compress) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    old = torch.optim.SGD(
        [
            {"params": [(n, p) for n, p in model.named_parameters() if p.ndim > 1], "lr": 0.1},
            {"params": [(n, p) for n, p in model.named_parameters() if p.ndim == 1], "lr": 0.2},
        ]
    )
    small = compress(model, **{"self_attn.q_proj": 2})
    new = rebuild_optimizer(old, small)
    for group, dims in zip(new.param_groups, (2, 1), strict=True):
        assert {p.ndim for p in group["params"]} == {dims}
    assert sum(len(g["params"]) for g in new.param_groups) == len(list(small.parameters()))


def test_what_cannot_be_rebuilt(dense: nn.Sequential) -> None:
    groups = [{"params": dense[0].parameters()}, {"params": dense[3].parameters()}]
    old = torch.optim.SGD(groups, lr=0.1)
    with pytest.raises(ConfigError, match="dense="):
        rebuild_optimizer(old, dense)
    with pytest.raises(ConfigError, match="built for"):
        rebuild_optimizer(old, dense, dense=nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"5\.weight"):
        rebuild_optimizer(old, dense, dense=dense)

    class Odd(torch.optim.SGD):
        def __init__(self, params: Any, speed: float) -> None:
            super().__init__(params, lr=speed)

    with pytest.raises(ConfigError, match="Odd"):
        rebuild_optimizer(Odd(dense.parameters(), 0.1), dense)
