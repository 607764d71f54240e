"""What runs is what was swapped, however a model reaches its layers; or it is refused before anything is written."""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.errors import InfeasibleBudget, ModelError
from rankfold.records import Choice, Plan
from rankfold.surgery import factored_layers

X = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
PLAN = Plan(layers={name: Choice(method="svd", ranks=(4,)) for name in ("a", "b")})
Pair = namedtuple("Pair", "first second")


@dataclass(frozen=True)
class Frozen:
    a: nn.Module
    b: nn.Module


class Slots:
    __slots__ = ("a", "b")

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        self.a, self.b = a, b


def call(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


class Net(nn.Module):
    """Two layers, reached through what `hold` makes of them."""

    def __init__(self, hold: Callable[[nn.Module, nn.Module], Any], walk: Callable[[Any], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        object.__setattr__(self, "held", hold(self.a, self.b))
        self.walk = walk

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.walk(self.held):
            x = torch.relu(layer(x))
        return x


HOLDERS: dict[str, tuple[Callable[[nn.Module, nn.Module], Any], Callable[[Any], Any]]] = {
    "list": (lambda a, b: [a, b], iter),
    "nested lists": (lambda a, b: [[a], [[b]]], lambda h: (h[0][0], h[1][0][0])),
    "tuple": (lambda a, b: (a, b), iter),
    "named tuple": (lambda a, b: Pair(a, b), lambda h: (h.first, h.second)),
    "dict": (lambda a, b: {"a": a, "b": b}, lambda h: h.values()),
    "keys": (lambda a, b: OrderedDict([(a, 1), (b, 2)]), iter),
    "deque": (lambda a, b: deque([a, b]), iter),
    "set": (lambda a, b: [{a}, frozenset([b])], lambda h: (*h[0], *h[1])),
    "namespace": (lambda a, b: SimpleNamespace(a=a, b=b), lambda h: (h.a, h.b)),
    "frozen dataclass": (lambda a, b: Frozen(a, b), lambda h: (h.a, h.b)),
    "slots": (lambda a, b: Slots(a, b), lambda h: (h.a, h.b)),
    "array": (lambda a, b: np.array([a, b], dtype=object), iter),
    "partial": (lambda a, b: [functools.partial(call, a), functools.partial(call, b)], iter),
    "bound call": (lambda a, b: [a.__call__, b.__call__], iter),
    "module outside": (lambda a, b: [nn.Sequential(a, b)], iter),
    "attribute": (lambda a, b: nn.Sequential(a, b), iter),
}


def calls(model: nn.Module) -> dict[str, int]:
    count = dict.fromkeys(factored_layers(model), 0)

    def hook(name: str) -> Any:
        def called(*_: Any) -> None:
            count[name] += 1

        return called

    for name, layer in factored_layers(model).items():
        layer.register_forward_hook(hook(name))
    model(X)
    return count


@pytest.mark.parametrize("kind", HOLDERS)
def test_a_reference_is_swapped(kind: str, tmp_path: Path) -> None:
    net = Net(*HOLDERS[kind]).eval()
    dense = net(X)
    small = rf.apply(net, PLAN)
    assert calls(small) == {"a": 1, "b": 1}
    assert not torch.allclose(small(X), dense, atol=1e-3)
    assert torch.equal(net(X), dense)
    rf.save(small, tmp_path / "artifact")
    loaded = rf.load(tmp_path / "artifact", Net(*HOLDERS[kind]).eval(), example_input=X)
    assert torch.equal(loaded(X), small(X))
    assert torch.equal(rf.strip(small)(X), small(X))
    in_place = rf.apply_(net, PLAN)
    assert calls(in_place) == {"a": 1, "b": 1}
    torch.testing.assert_close(in_place(X), small(X))


class Chain(nn.Module):
    """The same two layers as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def decorated() -> nn.Module:
    net: Any = Chain()
    net.forward = wrapped(net.forward)
    return net


def autocast() -> nn.Module:
    net: Any = Chain()
    net.forward = torch.autocast("cpu", enabled=False)(net.forward)
    return net


def compiled() -> nn.Module:
    net: Any = Chain()
    net.forward = torch.compile(net.forward, backend="eager")
    return net


def method_with_closure() -> nn.Module:
    net: Any = Chain()
    old = net.forward
    net.forward = MethodType(lambda self, x: old(x), net)
    return net


def block() -> nn.Module:
    net: Any = nn.Sequential(OrderedDict(a=nn.Linear(16, 16), rest=nn.Sequential(nn.ReLU()), b=nn.Linear(16, 16)))
    b = net.b
    net.rest.forward = lambda x: torch.relu(b(x))
    net.b = nn.Sequential()
    net.rest.b = b
    return net


def lambda_attribute() -> nn.Module:
    net: Any = Chain()
    net.head = lambda x: net.b(x)
    type_ = type("Headed", (Chain,), {"forward": lambda self, x: self.head(self.a(x))})
    net.__class__ = type_
    return net


def weak() -> nn.Module:
    return Net(lambda a, b: [weakref.ref(a), weakref.ref(b)], lambda held: [ref() for ref in held])


def proxies() -> nn.Module:
    return Net(lambda a, b: [weakref.proxy(a), weakref.proxy(b)], lambda held: held)


def weak_values() -> nn.Module:
    return Net(lambda a, b: weakref.WeakValueDictionary({0: a, 1: b}), lambda held: [held[0], held[1]])


def frozen_mapping() -> nn.Module:
    return Net(lambda a, b: MappingProxyType({0: a, 1: b}), lambda held: held.values())


def class_attribute() -> nn.Module:
    class Registered(Chain):
        layers: tuple[nn.Module, ...]

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    net = Registered()
    Registered.layers = (net.a, net.b)
    return net


SHUT = [
    decorated, autocast, compiled, method_with_closure, block, lambda_attribute, weak, proxies, weak_values,
    frozen_mapping, class_attribute,
]  # fmt: skip


@pytest.mark.parametrize("make", SHUT)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_swapped_is_refused(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    net = make().eval()
    with torch.no_grad():
        dense = net(X)
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    plan = Plan(layers={name: Choice(method="svd", ranks=(4,)) for name in names})
    with pytest.raises(ModelError, match="original"):
        rf.apply(net, plan)
    with pytest.raises(ModelError, match="original"):
        rf.apply(net, plan, example_input=X)
    folder = rf.save(rf.apply(Chain(), PLAN), tmp_path / "saved")
    if set(names) == {"a", "b"}:
        with pytest.raises(ModelError, match="original"):
            rf.load(folder, make())
    with pytest.raises(ModelError, match="original"):
        rf.compress(net, X, budget="params<=60%", output=tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
    with torch.no_grad():
        assert torch.equal(net(X), dense)


HIDDEN: dict[str, Any] = {}


class Global(Chain):
    """Its layers are attributes, its forward takes them from a global variable."""

    def forward(self, x: Tensor) -> Tensor:
        return hidden("b")(hidden("a")(x))


def hidden(name: str) -> nn.Module:
    return HIDDEN[name]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_route_that_no_search_sees_is_refused_by_the_run(in_place: bool) -> None:
    net = Global().eval()
    HIDDEN.update(a=net.a, b=net.b)
    try:
        apply = rf.apply_ if in_place else rf.apply
        with pytest.raises(ModelError, match=r"layer 'a' ran 0 time\(s\), its original 1"):
            apply(net, PLAN, example_input=X)
    finally:
        HIDDEN.clear()


class Reads(Chain):
    """Its forward computes with a weight that it holds, besides calling the layer."""

    def __init__(self, hold: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.held = hold(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.held["w"] if isinstance(self.held, dict) else self.held[0]
        return super().forward(x) + x @ weight.T


@pytest.mark.parametrize(
    "hold",
    [lambda w: [w], lambda w: (w,), lambda w: {"w": w}, lambda w: [w.detach()], lambda w: (w.data.T.T,)],
    ids=["list", "tuple", "dict", "detached", "view"],
)
def test_a_weight_that_is_held_and_read_is_refused(hold: Callable[[Tensor], Any], tmp_path: Path) -> None:
    net = Reads(hold).eval()
    with pytest.raises(ModelError, match="held by|shares its memory"):
        rf.compress(net, X, overrides={"a": ("svd", 4), "b": ("svd", 4)}, strategy="uniform", output=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_weights_that_are_held_and_not_read_do_no_harm() -> None:
    net: Any = Chain().eval()
    net.everything = list(net.parameters())
    net.optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.views = [parameter.detach() for parameter in net.parameters()]
    for example in (None, X):
        assert calls(rf.apply(net, PLAN, example_input=example)) == {"a": 1, "b": 1}


def test_calibration_data_serves_as_the_example() -> None:
    net = Global().eval()
    HIDDEN.update(a=net.a, b=net.b)
    with pytest.raises(ModelError, match="'a.weight' of the original model is read"):
        rf.apply(net, PLAN, [X])
    HIDDEN.clear()


def test_a_function_that_is_not_run_passes_with_an_example() -> None:
    net: Any = Chain().eval()
    net.debug = lambda: net.a
    with pytest.raises(ModelError, match=r"attribute 'debug'.*variable 'net'"):
        rf.apply(net, PLAN)
    assert calls(rf.apply(net, PLAN, example_input=X)) == {"a": 1, "b": 1}


class Experts(Chain):
    """Which layer runs depends on what the first one puts out."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y) if float(y[0, 0]) > self.limit else y

    limit = 0.0


def test_calls_are_compared_as_the_original_decides() -> None:
    net = Experts().eval()
    plan = Plan(layers={name: Choice(method="svd", ranks=(1,)) for name in ("a", "b")})
    with torch.no_grad():
        value = float(net.a(X)[0, 0])
    small = rf.apply(net, plan)
    with torch.no_grad():
        rough = float(small.get_submodule("a")(X)[0, 0])
    assert value != pytest.approx(rough, abs=1e-3)
    Experts.limit = (value + rough) / 2  # the compressed model takes the other way
    try:
        rf.apply(net, plan, example_input=X)
    finally:
        Experts.limit = 0.0


def test_an_attention_and_tied_layers_are_proved() -> None:
    net = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True).eval()
    net.linear2.weight = net.linear1.weight
    names = ("linear1", "self_attn.q_proj", "self_attn.out_proj")
    plan = Plan(layers={name: Choice(method="svd", ranks=(4,)) for name in names})
    small = rf.apply(net, plan, example_input=torch.randn(2, 5, 16))
    assert set(factored_layers(small)) == {*names, "linear2"}


class Outside(Chain):
    """Does more work the smaller its layers are."""

    def forward(self, x: Tensor) -> Tensor:
        work = 1 if isinstance(self.a, nn.Linear) else 40
        for _ in range(work):
            x = x + 0 * (x @ torch.ones(16, 16))
        return self.b(self.a(x))


def test_a_bound_that_the_built_model_misses_raises(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleBudget, match=r"the compressed model exceeds 'macs<=80%'"):
        rf.compress(Outside().eval(), X, budget="macs<=80%", output=tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
