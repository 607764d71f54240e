"""Hooks and flags of a layer are those of the module that replaces it, or a warning names what cannot be carried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.errors import ModelError, RankfoldWarning
from rankfold.records import Choice, Plan

PLAN = Plan(layers={"0": Choice(method="svd", ranks=(4,))})


def network() -> Any:
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize(
    "register", ["register_full_backward_hook", "register_full_backward_pre_hook", "register_forward_hook"]
)
def test_a_module_hook_fires_once(register: str) -> None:
    net, fired = network(), []
    getattr(net[0], register)(lambda *_: fired.append(1))
    rf.apply(net, PLAN)(torch.randn(2, 16, requires_grad=True)).sum().backward()
    assert fired == [1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda layer: layer.register_state_dict_post_hook(lambda *_: None), "state-dict hooks"),
        (lambda layer: layer.register_state_dict_pre_hook(lambda *_: None), "state-dict pre-hooks"),
        (lambda layer: layer.register_load_state_dict_pre_hook(lambda *_: None), "load_state_dict pre-hooks"),
        (lambda layer: layer.register_load_state_dict_post_hook(lambda *_: None), "load_state_dict post-hooks"),
    ],
)
def test_what_cannot_be_carried_is_named(change: Callable[[Any], object], words: str) -> None:
    net = network()
    change(net[0])
    with pytest.warns(RankfoldWarning, match=f"layer '0'.*{words}"):
        rf.apply(net, PLAN)


@pytest.mark.parametrize("kind", ["hook", "gradient", "attribute"])
def test_hooks_and_attributes_of_a_parameter_are_named(kind: str) -> None:
    net = network()
    weight = net[0].weight
    if kind == "hook":
        weight.register_hook(lambda gradient: gradient)
    elif kind == "gradient":
        weight.register_post_accumulate_grad_hook(lambda _: None)
    else:
        weight.no_decay = True
    with pytest.warns(RankfoldWarning, match="of the parameter '0.weight'"):
        rf.apply(net, PLAN)
    with pytest.warns(RankfoldWarning, match="of the parameter 'weight'"):
        rf.apply_(net, PLAN)


@pytest.mark.parametrize(("weight", "bias"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("gauge", [False, True])
def test_factors_and_bias_train_as_weight_and_bias_did(weight: bool, bias: bool, gauge: bool) -> None:
    net = network()
    net[0].weight.requires_grad_(weight)
    net[0].bias.requires_grad_(bias)
    plan = Plan(layers={"0": Choice(method="svd", ranks=(4,), gauge=gauge)})
    flags = {n: p.requires_grad for n, p in rf.apply(net, plan).get_submodule("0").named_parameters()}
    assert len(flags) >= 3
    assert flags == {name: bias if name.endswith("bias") else weight for name in flags}


@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.spectral_norm,
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "older spectral_norm"],
)
def test_hooks_of_torchs_own_norms_end_in_the_factors(norm: Callable[[nn.Module], nn.Module]) -> None:
    net = network()
    norm(net[0])
    net.eval()
    x = torch.randn(2, 16)
    small = rf.apply(net, Plan(layers={"0": Choice(method="svd", ranks=(16,))}))  # warnings are errors
    torch.testing.assert_close(small(x), net(x), rtol=1e-4, atol=1e-5)


class Recording(nn.Module):
    """A hook refers to the model by a closure, which a copy shares with the original."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.kept = nn.Linear(16, 32), nn.Linear(32, 4), dict[str, torch.Tensor]()
        self.a.register_forward_hook(lambda _module, _args, output: self.kept.update(a=output))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.a(x)
        return self.b(self.kept["a"].relu())


def test_a_hook_that_writes_to_the_original_is_named(tmp_path: Path) -> None:
    net = Recording().eval()
    with pytest.raises(ModelError, match="refers to the original model"):
        rf.compress(net, torch.randn(2, 16), budget="params<=70%", output=tmp_path / "small")
    assert not (tmp_path / "small").exists()
    assert not net.kept
    net(torch.zeros(2, 16))
    with pytest.warns(RankfoldWarning, match="changes the original's attributes"):
        rf.compress(net, torch.randn(2, 16), budget="params<=70%")


def test_hooks_of_parameters_that_finetuning_or_stripping_loses_are_named() -> None:
    small = rf.apply(network(), PLAN)
    next(small.parameters()).register_hook(lambda grad: grad)
    with pytest.warns(RankfoldWarning, match="hooks of the parameter"):
        rf.strip(small)
    with pytest.warns(RankfoldWarning, match="hooks of the parameter"):
        rf.finetune(small, rf.FineTune(data=[(torch.randn(4, 16), torch.arange(4))], epochs=1))
