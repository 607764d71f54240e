"""A model is after an inspection exactly what it was before, also when it fails."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankfold.errors import ModelError, RankfoldWarning
from rankfold.inventory import OperationCounter, call_example, inspect, static_inventory, survey, undisturbed


class Restless(nn.Module):
    """Changes whatever a forward can change."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout()
        self.embed = nn.Embedding(4, 3, max_norm=0.1)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("cache", None)
        self.register_buffer("other", torch.zeros(2))
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.cache = torch.ones(3)
        self.other = torch.ones(5)
        self.conv.bias.requires_grad_(False)
        self.norm.train()
        x = self.drop(self.norm(self.conv(x))) + torch.rand(1)
        x = x + self.embed(torch.tensor([0, 3])).sum()
        if self.fails:
            raise ValueError("the forward fails on purpose")
        return x


def state(model: nn.Module) -> dict[str, Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs")
    return {
        "tensors": {name: (id(t), t.tolist()) for name, t in (*model.named_parameters(), *model.named_buffers())},
        "buffers": {name: sorted(m._buffers) for name, m in model.named_modules()},
        "training": [module.training for module in model.modules()],
        "gradients": [p.requires_grad for p in model.parameters()],
        "hooks": [list(getattr(m, name)) for m in model.modules() for name in hooks],
        "random": torch.get_rng_state().tolist(),
        "fused": torch.backends.mha.get_fastpath_enabled(),
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_everything_is_restored(fails: bool, training: bool) -> None:
    model = Restless(fails=fails).train(training)
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model.conv.register_forward_hook(lambda *_: None)
    x = torch.randn(2, 2, 4, 4)
    before = state(model)
    if fails:
        with pytest.raises(ModelError, match="on purpose"):
            inspect(model, x)
    else:
        inspect(model, x)
        with undisturbed(model):
            call_example(model, x)
    assert state(model) == before


def test_the_same_run_unguarded_changes_the_model() -> None:
    model = Restless()
    before = state(model)
    with torch.no_grad():
        model(torch.randn(2, 2, 4, 4))
    after = state(model)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"tensors", "gradients", "random"}
    assert before["tensors"]["embed.weight"] != after["tensors"]["embed.weight"]
    assert before["tensors"]["norm.running_mean"] != after["tensors"]["norm.running_mean"]


def test_a_failing_forward_says_what_and_with_which_input() -> None:
    with pytest.raises(ModelError) as caught:
        inspect(nn.Linear(3, 2), torch.zeros(4, 5))
    message = str(caught.value)
    assert "4x5 float32" in message
    assert "RuntimeError: " in message
    assert "shapes cannot be multiplied (4x5 and 3x2)" in message
    assert "a tuple holds positional arguments" in message
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_the_model_runs_in_eval_mode_without_gradients() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, (self.weight * x).requires_grad))
            return x

    seen: list[tuple[bool, bool]] = []
    with undisturbed(model := Seen()):
        call_example(model, torch.zeros(1))
    assert seen == [(False, False)]


def test_user_hooks_run_and_do_not_mislead() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten())
    net[0].register_forward_hook(lambda m, a, out: out[:, :1, :2, :2])
    net[0].register_forward_pre_hook(lambda m, a: (a[0][..., 1:],))
    (layer,) = inspect(net, torch.zeros(1, 2, 4, 5)).layers
    assert [(c.in_size, c.out_size) for c in layer.calls] == [((4, 4), (4, 4))]
    assert len(net[0]._forward_hooks) == len(net[0]._forward_pre_hooks) == 1


def test_a_model_that_cannot_be_counted_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(survey.OperationCounter):
        def __torch_dispatch__(self, *args: Any) -> Any:
            raise RuntimeError("no formula for these shapes")

    monkeypatch.setattr(survey, "OperationCounter", Broken)
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with pytest.warns(RankfoldWarning, match="no formula for these shapes"):
        inventory = inspect(net, torch.zeros(4, 3))
    assert inventory.total.macs == 4 * (6 + 4)
    assert inventory.uncounted == ("all operations outside the layers",)
    assert [call.count for layer in inventory for call in layer.calls] == [1, 1]


@pytest.mark.parametrize(
    ("wrap", "hint"),
    [
        (nn.DataParallel, "wrapped in DataParallel"),
        (lambda m: torch.compile(m), "_orig_mod"),
        (lambda m: nn.ModuleList([torch.compile(m)]), "the module '0' is wrapped by torch.compile"),
        (lambda m: m.to("meta"), "meta device"),
        (lambda _: None, "Got NoneType"),
    ],
)
def test_models_that_cannot_be_inspected(wrap: Any, hint: str) -> None:
    with pytest.raises(ModelError, match=hint):
        inspect(wrap(nn.Linear(2, 2)), torch.zeros(1, 2))


def test_wrapped_models_are_refused_without_a_run_too() -> None:
    with pytest.raises(ModelError, match=r"`model\.module`"):
        static_inventory(nn.DataParallel(nn.Linear(2, 2)))


def test_a_model_compiled_in_place_runs_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.compile(backend=lambda *_: pytest.fail("the model was compiled"))
    compiled = model._compiled_call_impl
    assert inspect(model, torch.zeros(1, 2)).layer("0").calls
    assert model._compiled_call_impl is compiled


def test_an_inspection_does_not_import_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import takes more than a second."""

    class Blocked:
        def find_spec(self, name: str, *_: object) -> None:
            assert name != "torch._dynamo", "the compiler is imported"

    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    counter = OperationCounter()
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Blocked(), *sys.meta_path])
    with counter:
        net(torch.zeros(4, 3))
    assert counter.macs == 4 * (6 + 4)
    assert inspect(net, torch.zeros(4, 3)).total.macs == counter.macs
    with pytest.raises(AssertionError, match="the compiler is imported"):
        importlib.import_module("torch._dynamo")


def test_the_compiler_does_not_trace_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    untraced = []
    monkeypatch.setitem(sys.modules, "torch._dynamo", ModuleType("torch._dynamo"))
    monkeypatch.setattr(torch.compiler, "disable", lambda handle: untraced.append(handle) or handle)

    class Counter(OperationCounter):
        pass

    with Counter():
        nn.Linear(3, 2)(torch.zeros(4, 3))
    assert untraced == [Counter.dispatched]
