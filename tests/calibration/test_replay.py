"""A replay puts out what the whole network does, and computes nothing before the layer."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankfold._tensors import tensors_of
from rankfold.batches import call_model
from rankfold.calibration.replay import remembering, run_before
from rankfold.errors import ModelError
from rankfold.inventory import fused_attention_off


class Residual(nn.Module):
    """In-place ReLU modules, a functional add in place, blocks in blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(Block(), nn.Sequential(Block(), Block()))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu(self.conv1(x)))
        out += x
        return self.relu(out)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(n, 4) for n in (3, 7, 11))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.a(x)], 1)
        x = torch.cat([x, self.b(x)], 1)
        return self.c(x)


class Again(nn.Module):
    """One module called before, inside and after others."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.inner = nn.Sequential(self.shared, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.inner(self.shared(x))).relu()
        return self.shared(self.other(x) + self.shared(x))


class Several(nn.Module):
    """Two inputs, by name and by position, and nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
        a, b = self.left(a), self.right(b)
        return {"pair": (a, self.last(a * b)), "more": [b.sin()]}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0)
        self.second = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


CASES: dict[str, tuple[type[nn.Module] | Any, Any]] = {
    "chain": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Tanh()), (2, 3)),
    "residual": (Residual, (2, 3, 6, 6)),
    "dense": (Dense, (2, 3)),
    "again": (Again, (2, 3)),
    "several": (Several, {"a": (2, 3), "b": (2, 3)}),
    "attention": (Attention, (2, 5, 8)),
}


def setting(name: str) -> tuple[nn.Module, Any]:
    build, shape = CASES[name]
    model = build().eval()
    return model, {k: torch.randn(s) for k, s in shape.items()} if isinstance(shape, dict) else torch.randn(shape)


def forwards(model: nn.Module) -> list[Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return [("forward" in vars(m), *(len(getattr(m, h)) for h in hooks)) for m in model.modules()]


@fused_attention_off()
@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_replays_equal_the_whole_run(name: str) -> None:
    model, x = setting(name)
    clean = forwards(model)
    before = tensors_of(call_model(model, x))
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.MultiheadAttention)]
    for layer in [m for m in layers if type(m) in (nn.Linear, nn.Conv2d, nn.MultiheadAttention)]:
        memory = run_before(model, {layer}, x, "x")
        for factor in (1.0, 0.5):
            weight = layer.in_proj_weight if isinstance(layer, nn.MultiheadAttention) else layer.weight
            weight.mul_(factor)
            whole = tensors_of(call_model(model, x))
            with remembering(model, memory):
                replayed = tensors_of(call_model(model, x))
            weight.div_(factor)
            assert len(whole) == len(replayed) == len(before)
            assert all(torch.equal(a, b) for a, b in zip(whole, replayed, strict=True))
            changed = not all(torch.equal(a, b) for a, b in zip(before, replayed, strict=True))
            assert changed == (factor != 1), "the weight of the layer counts"
        assert forwards(model) == clean


@torch.no_grad()
def test_what_lies_before_is_not_computed() -> None:
    model, x = setting("residual")
    calls: Counter[str] = Counter()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, a, out, name=name: calls.update([name]))
    computed: Counter[str] = Counter()
    weights = {id(m.weight): n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.conv2d:
                computed.update([weights[id(args[1])]])
            return func(*args, **(kwargs or {}))

    layer = model.blocks[1][0].conv2
    with Watch():
        memory = run_before(model, {layer}, x, "x")
    assert computed == Counter(["stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.0.conv1"])
    computed.clear()
    calls.clear()
    with Watch(), remembering(model, memory):
        model(x)
    assert computed == Counter(["blocks.1.0.conv2", "blocks.1.1.conv1", "blocks.1.1.conv2"])
    assert calls["blocks.0"] == calls["stem"] == calls["blocks.1.0"] == calls["head"] == 1, "hooks run once"
    assert calls["blocks.0.conv1"] == 0
    computed.clear()
    with Watch():
        model(x)
    assert len(computed) == 7, "outside of the block everything is computed"


@torch.no_grad()
def test_watched_modules_are_called_in_a_replay() -> None:
    model, x = setting("residual")
    tap, seen = model.blocks[0].conv1, []
    tap.register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    expected = model(x)
    for watched, times in ((set(), 0), ({tap}, 1)):
        memory = run_before(model, {model.head}, x, "x", watched=watched)
        seen.clear()
        with remembering(model, memory):
            assert torch.equal(model(x), expected)
        assert len(seen) == times


@torch.no_grad()
def test_a_layer_that_is_never_called_leaves_nothing_to_remember() -> None:
    model, x = setting("chain")
    assert run_before(model, {nn.Linear(1, 1)}, x, "x") == {}


def test_nothing_is_left_behind_after_an_exception() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.first(x)
            raise ValueError("on purpose")

    model = Fails()
    own = model.first.forward
    model.first.forward = own  # type: ignore[method-assign]  # an instance's own forward comes back
    clean, x = forwards(model), torch.randn(2, 3)
    with pytest.raises(ModelError, match="on purpose"):
        run_before(model, {model.second}, x, "x")
    assert forwards(model) == clean
    assert vars(model.first)["forward"] is own
    with pytest.raises(ValueError, match="on purpose"), remembering(model, {model.first: [x]}):
        model(x)
    assert forwards(model) == clean
    assert vars(model.first)["forward"] is own
