"""Linear layers of other libraries: the ``Conv1D`` of transformers, whose weight is stored as ``(in, out)``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D as TransformersConv1D

import rankfold as rf
from rankfold.api.applying import measured_errors
from rankfold.errors import PlanMismatch
from rankfold.inventory import layer_bias, layer_weight, static_inventory
from rankfold.records import Choice


class Conv1D(nn.Module):
    """A copy of the class in a model's own code, without `nx`."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.1)
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Renamed(TransformersConv1D):
    """A subclass that changes nothing of the computation."""


def make_net(kind: Any = TransformersConv1D) -> nn.Sequential:
    net = nn.Sequential(kind(48, 24), nn.ReLU(), kind(16, 48)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    return net


def low_rank_(layer: Any, rank: int) -> None:
    with torch.no_grad():
        rows, columns = layer.weight.shape
        layer.weight.copy_(torch.randn(rows, rank) @ torch.randn(rank, columns))


KINDS = [TransformersConv1D, Conv1D, Renamed]


@pytest.mark.parametrize("kind", KINDS)
def test_a_conv1d_is_a_linear_layer(kind: Any) -> None:
    net, x = make_net(kind), torch.randn(5, 7, 24)
    inventory = rf.inspect(net, x)
    assert [layer.describe() for layer in inventory] == ["Conv1D 24->48", "Conv1D 48->16"]
    assert inventory.coverage == (1.0, 1.0)
    assert inventory.costs["0"].params == 24 * 48 + 48
    assert inventory.costs["0"].macs == 35 * 24 * 48
    assert torch.equal(layer_weight(net, "0"), net[0].weight.T)
    assert torch.equal(layer_bias(net, "0"), net[0].bias)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "gauge"), [("svd", False), ("svd", True), ("qr", False), ("ttm", False)])
def test_full_rank_reproduces_the_layer(kind: Any, method: str, gauge: bool) -> None:
    net = make_net(kind)
    info = static_inventory(net)[0]
    ranks = rf.methods.get(method).max_ranks(info)
    small = rf.apply(net, rf.Plan(layers={"0": Choice(method=method, ranks=ranks, gauge=gauge)}))
    x = torch.randn(4, 3, 24)
    with torch.no_grad():
        torch.testing.assert_close(small(x), net(x), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(small[0](x[0, 0]), net[0](x)[0, 0], rtol=1e-3, atol=1e-4)
        # In the layout of the module that was replaced.
        torch.testing.assert_close(small[0].weight, net[0].weight, rtol=1e-3, atol=1e-4)
    assert (small[0].nx, small[0].nf) == (24, 48)
    assert small[0].bias is not None


@pytest.mark.parametrize("reconstruct", ["weights", "data", "sequential"])
def test_a_planted_rank_is_found(reconstruct: str) -> None:
    net = make_net()
    low_rank_(net[0], 4)
    data = [torch.randn(64, 24) for _ in range(4)]
    plan = rf.Plan(layers={"0": Choice(method="svd", ranks=(4,)), "2": Choice(reason="by hand")})
    small = rf.apply(net, plan, None if reconstruct == "weights" else data, reconstruct=reconstruct)
    with torch.no_grad():
        torch.testing.assert_close(small(data[0]), net(data[0]), rtol=1e-3, atol=1e-2)
    assert measured_errors(small, net)["0"] < 1e-3
    worse = rf.apply(net, rf.Plan(layers={"0": Choice(method="svd", ranks=(2,))}))
    assert measured_errors(worse, net)["0"] > 0.1


def test_data_decides_over_conv1d_as_over_linear() -> None:
    net = make_net()
    twin = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 16)).eval()
    with torch.no_grad():
        for i in (0, 2):
            twin[i].weight.copy_(net[i].weight.T)
            twin[i].bias.copy_(net[i].bias)
    data = [torch.randn(32, 24) * torch.linspace(0.1, 3, 24) for _ in range(3)]
    for options in (
        {"reconstruct": "data"},
        {"reconstruct": "sequential"},
        {"strategy": rf.CompressNAS(proxy="network")},
        {"strategy": rf.CompressNAS(proxy="fisher")},
    ):
        ours, theirs = (
            rf.compress(model, data[0], budget="params<=50%", calibration=data, **options) for model in (net, twin)
        )
        assert {n: c.ranks for n, c in ours.plan.factored.items()} == {
            n: c.ranks for n, c in theirs.plan.factored.items()
        }
        with torch.no_grad():
            torch.testing.assert_close(ours.model(data[1]), theirs.model(data[1]), rtol=1e-3, atol=1e-3)


class Scaled(TransformersConv1D):
    """A forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _another(name: str, forward: Any) -> type[nn.Module]:
    """Return a class that is called Conv1D and computes something else."""
    return type("Conv1D", (Conv1D,), {"forward": forward, "__qualname__": name})


def test_a_subclass_with_its_own_forward_is_kept_with_the_reason() -> None:
    (layer,) = static_inventory(nn.Sequential(Scaled(8, 4)))
    assert layer.skip == "Scaled has its own forward"


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: torch.relu(x @ self.weight + self.bias),
        lambda self, x: x @ self.weight,
        lambda self, x: x @ self.weight + self.bias if self.training else x,
    ],
)
def test_what_is_only_called_conv1d_is_kept(forward: Any) -> None:
    layers = static_inventory(nn.Sequential(_another("Other", forward)(8, 4)))
    assert all(layer.skip is not None for layer in layers)


def test_a_convolution_called_conv1d_is_no_linear_layer() -> None:
    net = nn.Sequential(type("Conv1D", (nn.Conv1d,), {})(4, 8, 3))
    (layer,) = static_inventory(net)
    assert (layer.kind, layer.skip) == ("conv", None)


def test_layers_that_share_a_weight_share_the_decision() -> None:
    net = nn.Sequential(TransformersConv1D(24, 24), nn.ReLU(), TransformersConv1D(24, 24)).eval()
    net[2].weight = net[0].weight
    (layer,) = static_inventory(net)
    assert layer.ties == ("2",)
    small = rf.apply(net, rf.Plan(layers={"0": Choice(method="svd", ranks=(24,))}))
    assert small[0][0].weight is small[2][0].weight
    x = torch.randn(3, 24)
    torch.testing.assert_close(small(x), net(x), rtol=1e-3, atol=1e-4)


def test_a_linear_layer_that_reads_the_same_memory_is_another_weight() -> None:
    net = nn.Sequential(TransformersConv1D(24, 24), nn.Linear(24, 24)).eval()
    net[1].weight = net[0].weight  # (in, out) of one, (out, in) of the other
    assert all("shared" in (layer.skip or "") for layer in static_inventory(net))


def test_a_plan_of_conv1d_does_not_fit_linear_layers() -> None:
    net = make_net()
    plain = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 16))
    plan = rf.plan(net, torch.randn(2, 24), budget="params<=50%")
    with pytest.raises(PlanMismatch, match="Conv1D 24->48"):
        rf.apply(plain, plan)


def test_weight_norm_is_folded() -> None:
    net = make_net()
    nn.utils.parametrizations.weight_norm(net[0])
    assert torch.equal(layer_weight(net, "0"), net[0].weight.T)
    small = rf.apply(net, rf.Plan(layers={"0": Choice(method="svd", ranks=(24,))}))
    x = torch.randn(3, 24)
    torch.testing.assert_close(small(x), net(x), rtol=1e-3, atol=1e-4)


def test_types_select_what_they_are() -> None:
    net = nn.Sequential(TransformersConv1D(24, 24), nn.Linear(24, 24))
    x = torch.randn(2, 24)
    assert [i.name for i in rf.inspect(net, x, exclude=TransformersConv1D).compressible] == ["1"]
    assert [i.name for i in rf.inspect(net, x, exclude=nn.Linear).compressible] == ["0"]


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=101, n_positions=16, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def test_gpt2(gpt2: GPT2LMHeadModel, tmp_path: Path) -> None:
    ids = {"input_ids": torch.randint(0, 101, (2, 8))}
    data = [{"input_ids": torch.randint(0, 101, (4, 8))} for _ in range(2)]
    state = copy.deepcopy(gpt2.state_dict())
    inventory = rf.inspect(gpt2, ids)
    assert {layer.describe().split()[0] for layer in inventory.compressible} == {"Conv1D"}
    assert len(inventory.compressible) == 8
    assert "'transformer.wte'" in inventory.layer("lm_head").skip
    result = rf.compress(gpt2, ids, budget="params<=75%", calibration=data, reconstruct="sequential", gauge=True)
    small = result.model
    assert sum(p.numel() for p in small.parameters()) <= 0.75 * sum(p.numel() for p in gpt2.parameters())
    assert small.lm_head.weight is small.transformer.wte.weight
    assert all(torch.equal(state[name], tensor) for name, tensor in gpt2.state_dict().items())

    rf.save(small, tmp_path / "small")
    loaded = rf.load(tmp_path / "small", copy.deepcopy(gpt2))
    plain = rf.strip(small)
    with torch.no_grad():
        wanted = small(**ids).logits
        for model in (loaded, plain):
            torch.testing.assert_close(model(**ids).logits, wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(wanted, gpt2(**ids).logits, atol=1e-3)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_factors_of_a_conv1d_are_trained() -> None:
    net = make_net()
    small = rf.apply(
        net, rf.Plan(layers={"0": Choice(method="svd", ranks=(6,)), "2": Choice(method="svd", ranks=(6,))})
    )
    data = [(x, net(x).detach()) for x in (torch.randn(32, 24) for _ in range(4))]

    def loss() -> float:
        with torch.no_grad():
            return sum(float((small(x) - y).square().mean()) for x, y in data)

    before = loss()
    recipe = rf.FineTune(data=data, epochs=8, lr=1e-2, optimizer="adamw", distill="mse", loss="distill+layer")
    small = rf.finetune(small, recipe, teacher=net).model
    assert loss() < 0.9 * before
