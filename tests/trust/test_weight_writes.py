"""The weight of a factored layer is computed when it is read: writing raises, reading gives plain tensors."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize, prune

import rankfold as rf
from rankfold.errors import ComputedWeightError, GaugeError
from rankfold.records import Choice, Plan
from rankfold.surgery import Factored
from rankfold.surgery.gauged import Gauged

KINDS: dict[str, tuple[Callable[[], nn.Module], Choice, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 8), Choice(method="svd", ranks=(3,)), (2, 12)),
    "conv": (lambda: nn.Conv2d(6, 8, 3), Choice(method="tucker", ranks=(4, 3)), (2, 6, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose1d(6, 8, 3), Choice(method="svd", ranks=(3,)), (2, 6, 5)),
    "tensor train": (lambda: nn.Linear(12, 8), Choice(method="ttm", ranks=(3,)), (2, 12)),
    "gauged": (lambda: nn.Linear(12, 8), Choice(method="svd", ranks=(3,), gauge=True), (2, 12)),
}


def factored(kind: str = "linear") -> Any:
    torch.manual_seed(0)
    make, choice, _ = KINDS[kind]
    model = rf.apply(nn.Sequential(make()), Plan(layers={"0": choice}))
    layer = model.get_submodule("0")
    assert isinstance(layer, Factored)
    return layer


def element(layer: Any) -> None:
    layer.weight[0] = 0


def iadd(layer: Any) -> None:
    weight = layer.weight
    weight += 1


def iadd_data(layer: Any) -> None:
    layer.weight.data += 1


def set_data(layer: Any) -> None:
    layer.weight.data = torch.zeros_like(layer.weight)


def out(layer: Any) -> None:
    torch.mul(torch.zeros(()), 2, out=layer.weight.detach())


def flag(layer: Any) -> None:
    layer.weight.requires_grad = False


def gradient(layer: Any) -> None:
    layer.weight.grad = None


def adamw(layer: Any) -> None:
    weights = [layer.weight.detach()]
    torch._foreach_add_(weights, 1.0)  # pyright: ignore[reportPrivateImportUsage]


WRITES: dict[str, Callable[[Any], object]] = {
    "item": element,
    "+=": iadd,
    "data +=": iadd_data,
    "data =": set_data,
    "out=": out,
    "requires_grad =": flag,
    "grad =": gradient,
    "foreach": adamw,
    "add_": lambda layer: layer.weight.add_(1),
    "copy_": lambda layer: layer.weight.copy_(torch.zeros(())),
    "clamp_": lambda layer: layer.weight.clamp_(-0.1, 0.1),
    "zero_ of data": lambda layer: layer.weight.data.zero_(),
    "detach": lambda layer: layer.weight.detach().mul_(2),
    "view": lambda layer: layer.weight.view(-1).fill_(1),
    "row": lambda layer: layer.weight[0].fill_(1),
    "transposed": lambda layer: layer.weight.transpose(0, 1).fill_(1),
    "unflatten": lambda layer: layer.weight.unflatten(0, (2, -1)).fill_(1),
    "rows": lambda layer: [row.zero_() for row in layer.weight],
    "chunk": lambda layer: layer.weight.chunk(2)[0].fill_(1),
    "no copy": lambda layer: layer.weight.to(torch.float32).contiguous().fill_(1),
    "relu in place": lambda layer: functional.relu(layer.weight, inplace=True),
    "xavier": lambda layer: nn.init.xavier_uniform_(layer.weight),
    "kaiming": lambda layer: nn.init.kaiming_normal_(layer.weight),
    "orthogonal": lambda layer: nn.init.orthogonal_(layer.weight),
    "requires_grad_": lambda layer: layer.weight.requires_grad_(False),
    "hook": lambda layer: layer.weight.register_hook(lambda grad: grad),
    "set_": lambda layer: layer.weight.set_(torch.zeros(3)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", WRITES)
def test_a_write_raises(kind: str, write: str) -> None:
    layer = factored(kind)
    before = [p.clone() for p in layer.parameters()]
    with torch.no_grad(), pytest.raises(ComputedWeightError, match="is factored: its weight is computed"):
        WRITES[write](layer)
    assert all(map(torch.equal, before, layer.parameters()))


@pytest.mark.parametrize("write", ["add_", "+=", "item", "out="])
def test_a_write_in_inference_mode_raises(write: str) -> None:
    with torch.inference_mode(), pytest.raises(ComputedWeightError):
        WRITES[write](factored())


@pytest.mark.parametrize("write", ["add_", "xavier", "data +="])
def test_a_write_to_a_gauged_stage_raises(write: str) -> None:
    stage = next(stage for stage in factored("gauged") if isinstance(stage, Gauged))
    with torch.no_grad(), pytest.raises(ComputedWeightError, match="the gauged stage"):
        WRITES[write](stage)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_gives_plain_tensors(kind: str) -> None:
    layer = factored(kind)
    weight, dense = layer.weight, layer.dense_weight()
    results = (
        weight + 0, 1 * weight, weight.clone(), weight.abs(), weight.norm(), weight.double(), torch.stack([weight] * 2),
        torch.cat([weight, weight]), weight.sum(0), weight.flatten(1) @ weight.flatten(1).mT, weight == dense,
    )  # fmt: skip
    assert {type(result) for result in results} == {Tensor}
    assert torch.equal(weight, dense)
    assert torch.equal(weight.data, dense)
    assert weight.shape == dense.shape
    assert weight.device == dense.device
    assert weight.dtype is torch.float32
    assert weight.tolist() == dense.tolist()
    array = weight.detach().numpy()
    assert (array == dense.detach().numpy()).all()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    assert repr(weight)


def test_a_copy_may_be_written_to() -> None:
    layer = factored()
    dense = layer.dense_weight().detach()
    buffer = io.BytesIO()
    torch.save(layer.weight.detach(), buffer)
    buffer.seek(0)
    copies = [
        layer.weight.clone(), layer.weight.detach().clone(), copy.deepcopy(layer.weight.detach()),
        torch.load(buffer), nn.Parameter(layer.weight), nn.Parameter(layer.weight.detach().clone()),
    ]  # fmt: skip
    for one in copies:
        with torch.no_grad():
            assert torch.equal(one, dense)
            one.mul_(2)
            assert torch.equal(one, 2 * dense)
    assert isinstance(copies[4], nn.Parameter)
    assert type(copies[4]) is nn.Parameter
    assert copies[4].requires_grad
    assert torch.equal(layer.weight, dense)


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_goes_through_a_read_weight(kind: str) -> None:
    layer = factored(kind)
    layer.dense_weight().square().sum().backward()
    want = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    layer.zero_grad()
    layer.weight.square().sum().backward()
    found = [p.grad for p in layer.parameters() if p.grad is not None]
    assert len(want) == len(found) >= 2
    assert all(map(torch.equal, want, found))


class Reader(nn.Module):
    """Uses the weight of a layer beside its output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.layer.weight.norm() + functional.linear(x, self.layer.weight)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_code_that_reads_a_weight_compiles_and_exports() -> None:
    model, x = Reader(factored()).eval(), torch.randn(2, 12)
    want = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), want)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), want)
    torch.testing.assert_close(torch.jit.trace(model, (x,), check_trace=False)(x), want)


def test_function_transforms_go_through() -> None:
    layer, x = factored(), torch.randn(2, 12)
    parameters = dict(layer.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(Reader(layer), {f"layer.{k}": v for k, v in values.items()}, (x,)).sum()

    found = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad)


def tie(layer: Any) -> None:
    nn.Linear(12, 8).weight = layer.weight


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (tie, TypeError),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), ComputedWeightError),
        (lambda layer: parametrize.register_parametrization(layer, "weight", nn.Identity()), ValueError),
        (lambda layer: nn.utils.parametrizations.weight_norm(layer), ValueError),
        (lambda layer: nn.utils.spectral_norm(layer), (KeyError, ValueError)),
    ],
    ids=["tie", "prune", "parametrize", "weight_norm", "spectral_norm"],
)
def test_what_would_take_the_weight_over_raises(change: Callable[[Any], object], error: Any) -> None:
    layer, x = factored(), torch.randn(2, 12)
    want = layer(x)
    with pytest.raises(error):
        change(layer)
    assert torch.equal(layer(x), want)


def test_folding_a_batch_norm_still_works() -> None:
    conv, norm = nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8).eval()
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    model: Any = rf.apply(nn.Sequential(conv, norm).eval(), Plan(layers={"0": KINDS["conv"][1]}))
    x = torch.randn(2, 6, 5, 5)
    want = model(x)
    with torch.no_grad():
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
        layer = model[0]
        layer.weight = nn.Parameter(layer.weight * scale.view(-1, 1, 1, 1))
        layer.bias = nn.Parameter((layer.bias - norm.running_mean) * scale + norm.bias)
    torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("other", [lambda w: nn.Parameter(w), lambda w: w.clone(), lambda w: w.detach()])
def test_a_weight_is_compared_like_any_tensor(other: Callable[[Tensor], Tensor]) -> None:
    layer = factored()
    expected = other(layer.dense_weight())
    torch.testing.assert_close(layer.weight, expected)
    torch.testing.assert_close(expected, layer.weight)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(layer.weight, nn.Parameter(expected.detach() + 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer.weight, "no_decay", True),
        lambda layer: setattr(layer, "weight", None),
        lambda layer: setattr(layer, "weight", 3.0),
    ],
    ids=["mark", "none", "number"],
)
def test_what_would_be_set_on_the_weight_is_refused(change: Callable[[Any], object]) -> None:
    with pytest.raises(ComputedWeightError, match="layer '0'"):
        change(factored())


@pytest.mark.parametrize("kind", ["linear", "conv", "gauged"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_checkpoint_of_the_dense_model_is_refused(kind: str, strict: bool) -> None:
    layer = factored(kind)
    dense = nn.Sequential(KINDS[kind][0]()).state_dict()
    model = nn.Sequential(layer)
    with pytest.raises(ComputedWeightError, match="load_state_dict"):
        model.load_state_dict(dense, strict=strict)
    own = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(own)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in own.items())


@pytest.mark.parametrize("index", [-1, 10**6, None])
def test_an_order_that_is_none_is_refused(index: int | None) -> None:
    layer = factored("gauged")
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    name = next(name for name in state if name.endswith("order"))
    state[name][0] = state[name][1] if index is None else index
    with pytest.raises(GaugeError, match="every channel once"):
        layer.load_state_dict(state)
