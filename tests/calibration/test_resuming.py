"""Resumed passes see what whole passes see, compute each module once per layer, and keep a bounded amount."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.calibration import reconstruct_sequentially, sequential
from rankfold.calibration.resuming import Resuming
from rankfold.errors import RankfoldWarning
from rankfold.records import Choice, Plan


class Block(nn.Module):
    """Functional operations, in place and not, between modules, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu_(self.conv1(x))
        out = self.conv2(out)
        out += x
        return out.relu()


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 4, 3), Block(), nn.Sequential(Block(), nn.Identity(), Block())
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))).mean((2, 3)))


class Branching(nn.Module):
    """Later modules read early outputs, and control flow depends on an output that nothing else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.b, self.c, self.d = (nn.Linear(n, 4) for n in (3, 4, 4, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        large = bool(self.gate(a).sum() > -1e9)
        y = self.b(a) if large else a.new_zeros(a.shape)
        room = y.new_zeros(len(y), 8)
        room[:, :4] = self.c(y)
        room[:, 4:].copy_(a)
        return self.d(room)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        both = (self.left(x), self.right(x))
        return {"more": [both[1].sin()], "last": self.last(both[0] * both[1])}


CASES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "chain": (Chain, (2, 3, 6, 6)),
    "branching": (Branching, (2, 3)),
    "pair": (Pair, (2, 3)),
}


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def seen(model: nn.Module, layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Return a layer's input and the network's outputs."""
    taken: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda m, args: taken.append(args[0].clone()))
    output = model(x)
    handle.remove()
    values = output["more"] + [output["last"]] if isinstance(output, dict) else [output]
    return taken + values


class Watch(torch.overrides.TorchFunctionMode):
    """Counts how often each layer of a network is computed for a batch of some size."""

    def __init__(self, model: nn.Module, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.names = {id(m.weight): n for n, m in layers_of(model).items()}
        self.computed: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = func in (torch.conv2d, torch.nn.functional.linear) and id(args[1]) in self.names
        if known and len(args[0]) == self.batch:
            self.computed.update([self.names[id(args[1])]])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_resumed_passes_equal_whole_ones(name: str) -> None:
    build, shape = CASES[name]
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(shape)
    resuming, left = Resuming(), list(layers_of(model).values())
    first = whole = seen(model, left[0], x)
    while left:
        layer = left[0]
        whole = seen(model, layer, x)
        with resuming.resumed(model, ("net", 1), "content", left):
            resumed = seen(model, layer, x)
        assert len(whole) == len(resumed)
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
        layer.weight.mul_(0.5)  # type: ignore[operator] - the layer is fitted
        left.pop(0)
    assert all("forward" not in vars(m) and not m._forward_pre_hooks for m in model.modules())
    assert not torch.equal(first[-1], whole[-1])


@torch.no_grad()
def test_modules_before_the_last_layer_are_not_computed() -> None:
    model, x = Chain().eval(), torch.randn(2, 3, 6, 6)
    resuming, left, watch = Resuming(), list(layers_of(model).items()), Watch(model, 2)

    class Reached(BaseException):
        pass

    def end(*_: Any) -> None:
        raise Reached

    while left:
        handle = left[0][1].register_forward_hook(end)
        resumed = resuming.resumed(model, ("net", 1), "content", [m for _, m in left])
        with pytest.raises(Reached), watch, resumed:
            model(x)
        handle.remove()
        left.pop(0)
    assert watch.computed == Counter({name: 1 if name == "head" else 2 for name in layers_of(model)})


@torch.no_grad()
def test_only_what_is_used_later_is_kept_and_only_within_the_room() -> None:
    model, x = Chain().eval(), torch.randn(2, 3, 6, 6)
    activation = 4 * 2 * 4 * 4 * 4  # bytes
    layers = layers_of(model)
    last = layers["second.2.conv2"]
    for room, holds in ((10 * activation, True), (activation, False)):
        resuming = Resuming(room)
        with resuming.resumed(model, ("net", 1), "content", [last]):
            model(x)
        points = resuming._points
        assert bool(points) == holds
        if holds:  # of 7: the inputs of the layer, its block (also as an identity's) and the container around it
            assert 2 * activation <= points["net", 1].size <= 4.1 * activation
            assert resuming._room + points["net", 1].size == room


@torch.no_grad()
def test_other_data_starts_at_the_inputs() -> None:
    model, x, y = Chain().eval(), torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6)
    layer = layers_of(model)["head"]
    resuming = Resuming()
    whole: list[Tensor] = []
    for content, inputs in (("x", x), ("y", y), (None, y), ("x", x)):
        whole = seen(model, layer, inputs)
        with resuming.resumed(model, ("net", 1), content, [layer]):
            assert all(torch.equal(a, b) for a, b in zip(whole, seen(model, layer, inputs), strict=True))
    with resuming.resumed(model, ("net", 1), "x", [layer]):  # the hash decides
        assert torch.equal(model(y), whole[-1])


class Rewriting(nn.Module):
    """Writes to outputs of modules, whole or in part, several at once, and past torch."""

    def __init__(self, *, numpy: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.numpy = numpy

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.numpy:
            x.numpy()[...] *= 2
        x[:, 1:].add_(1)
        y = self.b(x.view(-1, 4))
        torch._foreach_mul_([y, x], 0.5)  # pyright: ignore[reportPrivateImportUsage]
        return self.c(y.sin_() + x.mul_(3)) + x


@torch.no_grad()
@pytest.mark.parametrize("ended", ["before the layer", "after the layer"])
def test_what_is_kept_is_copied_before_it_is_written_to(ended: str) -> None:
    torch.manual_seed(0)
    model, x = Rewriting().eval(), torch.randn(2, 3)
    resuming, left = Resuming(), list(layers_of(model).values())
    while left:
        layer = left.pop(0)
        whole = seen(model, layer, x)
        unsettled = [layer, *left] if ended == "before the layer" else left
        last = dict(resuming._points)
        for _ in range(2):
            resuming._points = dict(last)  # the second pass resumes where the first one did
            with resuming.resumed(model, ("net", 1), "content", unsettled) as end:
                handle = layer.register_forward_hook(lambda *_, end=end: end())
                resumed = seen(model, layer, x)
                handle.remove()
            assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_kept_outputs_share_memory_with_the_network() -> None:
    model, x = Chain().eval(), torch.randn(2, 3, 6, 6)
    given: list[Tensor] = []
    layers = layers_of(model)
    model.second[0].register_forward_hook(lambda m, args, output: given.append(output))
    layers["second.2.conv2"].register_forward_pre_hook(lambda m, args: given.append(args[0]))
    resuming = Resuming()
    with torch.no_grad(), resuming.resumed(model, ("net", 1), "content", [layers["second.2.conv2"]]):
        model(x)
    (record,) = resuming._points["net", 1].memory[layers["second.2.conv1"]]
    assert record.value.data_ptr() != given[1].data_ptr()  # relu_ wrote to it
    assert not torch.equal(record.value, given[1])
    (record,) = resuming._points["net", 1].memory[model.second[0]]
    assert record.value.data_ptr() == given[0].data_ptr()
    assert record.value.untyped_storage().nbytes() == 4 * given[0].numel()


PLAN = Plan(layers={n: Choice(method="svd", ranks=(3,)) for n in layers_of(Chain())})


def test_the_original_computes_each_layer_once() -> None:
    torch.manual_seed(0)
    model, data = Chain().eval(), [torch.randn(8, 3, 6, 6) for _ in range(2)]
    with Watch(model, 8) as watch:
        reconstruct_sequentially(model, PLAN, data)
    observed = 2  # on the first batch
    assert watch.computed == Counter(dict.fromkeys(layers_of(model), len(data) + observed))


def test_reconstruction_is_the_same_with_and_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, data = Chain().eval(), [torch.randn(8, 3, 6, 6) for _ in range(3)]
    with_room = reconstruct_sequentially(model, PLAN, data)
    monkeypatch.setattr(sequential, "Resuming", lambda: Resuming(0))
    without = reconstruct_sequentially(model, PLAN, data)
    assert with_room.errors == without.errors
    states = [list(r.model.state_dict().values()) for r in (with_room, without)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_writes_past_torch_are_noticed() -> None:
    torch.manual_seed(0)
    model, data = Rewriting(numpy=True).eval(), [torch.randn(8, 3)]
    plan = Plan(layers={n: Choice(method="svd", ranks=(2,)) for n in layers_of(model)})
    with pytest.warns(RankfoldWarning, match="activations before layer c cannot be kept"):
        resumed = reconstruct_sequentially(model, plan, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequential, "Resuming", lambda: Resuming(0))
        whole = reconstruct_sequentially(model, plan, data)
    assert resumed.errors == whole.errors


def test_networks_that_cannot_resume_are_named() -> None:
    class Counting(nn.Module):
        """Talks to a later part past torch: not a state of the model."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), Scaled(), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(self.a(x))
            return self.c(x * scale[0])

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scale[0] = scale[0] + 1
            return x

    scale = [1.0]
    torch.manual_seed(0)
    plan = Plan(layers={"a": Choice(method="svd", ranks=(3,)), "c": Choice(method="svd", ranks=(2,))})
    with pytest.warns(RankfoldWarning, match="activations before layer c cannot be kept"):
        rf.apply(Counting().eval(), plan, [torch.randn(8, 8)], reconstruct="sequential", batchnorm=False)
