"""`compress`, `plan`, `apply`, `factorize`: what they promise about inputs, results and reports."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.inventory import inspect
from rankfold.records import Budget
from rankfold.surgery import Factored, factored_layers


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 24),
        nn.Dropout(0.5),
        nn.Linear(24, 5),
    ).eval()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator))
        for _ in range(count)
    ]


def bits(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def identity(net: nn.Module) -> tuple[object, ...]:
    """Return everything of a model that nobody may change: bits, modes, gradients, objects, hooks."""
    modules = [(n, id(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in net.named_modules()]
    parameters = [(n, id(p), p.requires_grad, p.grad is None, p._version) for n, p in net.named_parameters()]
    return bits(net), modules, parameters, set(vars(net))


EVERYTHING = {"budget": "params<=60%", "calibration": batches(), "evaluate": rf.top1(batches())}


@pytest.mark.parametrize("training", [False, True])
def test_compress_leaves_its_input_alone(training: bool) -> None:
    net = cnn().train(training)
    net[7].eval()
    net[9].requires_grad_(False)
    before, state = identity(net), torch.get_rng_state()
    tune = rf.FineTune(epochs=1, data=batches(), lr=0.01)
    result = rf.compress(net, X, **EVERYTHING, finetune=tune)
    assert identity(net) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert bits(result.model) != before[0]
    assert result.model.training is training
    assert not result.model[7].training
    assert not any(p.requires_grad for p in result.model[9].parameters())
    assert all(p.requires_grad for p in result.model[7].parameters())


@pytest.mark.parametrize(
    ("options", "measured"), [({}, False), ({"schedule": "plateau"}, True), ({"keep": "best"}, True)]
)
def test_recipes_that_use_the_metric_get_it(options: dict[str, Any], measured: bool) -> None:
    tune = rf.FineTune(epochs=2, data=batches(), lr=0.01, **options)
    history = rf.compress(cnn(), X, **EVERYTHING, finetune=tune).report.history
    assert [epoch.metric is not None for epoch in history] == [measured] * 2


def test_identity_notices_changes() -> None:
    """The negative control."""
    net = cnn()
    before = identity(net)
    for change in (
        lambda n: n.train(),
        lambda n: n[0].weight.data.add_(1),
        lambda n: n[0].requires_grad_(False),
        lambda n: n[0].register_forward_hook(print),
        lambda n: setattr(n, "extra", 1),
        lambda n: n.append(nn.ReLU()),
    ):
        changed = cnn()
        assert bits(changed) == before[0]
        same = identity(changed)
        change(changed)
        assert identity(changed) != same


def test_compress_is_reproducible() -> None:
    tune = rf.FineTune(epochs=2, data=batches(), lr=0.01, seed=1)
    first = rf.compress(cnn(), X, **EVERYTHING, finetune=tune)
    torch.rand(7)  # the global generator has no say
    second = rf.compress(cnn(), X, **EVERYTHING, finetune=tune)
    assert bits(first.model) == bits(second.model)
    assert first.plan == second.plan
    assert first.plan.to_json() == second.plan.to_json()
    other = rf.compress(cnn(), X, **EVERYTHING, finetune=rf.FineTune(epochs=2, data=batches(), lr=0.01, seed=2))
    assert bits(other.model) != bits(first.model)


def test_apply_copies_and_apply_in_place_does_not() -> None:
    net = cnn()
    plan = rf.plan(net, X, budget="params<=60%")
    before = identity(net)
    small = rf.apply(net, plan)
    assert identity(net) == before
    assert not {id(p) for p in small.parameters()} & {id(p) for p in net.parameters()}
    again = rf.apply_(net, plan)
    assert again is net
    assert bits(net) == bits(small) != before[0]


def test_failed_apply_in_place_changes_nothing() -> None:
    net = cnn()
    plan = rf.plan(net, X, budget="params<=60%")
    nn.init.constant_(net[9].weight, float("nan"))
    plan = plan.override({"9": rf.plan(cnn(), X, overrides={"9": ("svd", 2)}).layers["9"]})
    before = identity(net)
    with pytest.raises(rf.RankfoldError, match="'9'.*NaN"):
        rf.apply_(net, plan)
    assert identity(net) == before


def test_one_layer_in_place_returns_its_replacement() -> None:
    layer, x = nn.Linear(16, 16), torch.randn(1, 16)
    plan = rf.plan(layer, x, budget="params<=60%")
    small = rf.apply_(layer, plan)
    assert isinstance(small, Factored)
    assert type(layer) is nn.Linear


def test_report_counts_what_is_there() -> None:
    tune = rf.FineTune(epochs=1, data=batches(), lr=0.01)
    net = cnn()
    result = rf.compress(net, X, **EVERYTHING, finetune=tune, name="mine")
    report = result.report
    for cost, model in ((report.before, net), (report.after, result.model)):
        total = inspect(model, X).total
        assert (cost.params, cost.macs) == (total.params, total.macs)
        assert cost.params == sum(p.numel() for p in model.parameters())
    (metric,) = report.metrics
    assert metric.name == "top-1"
    assert metric.dense == rf.evaluate(net, EVERYTHING["evaluate"])
    assert metric.tuned == metric.reloaded == rf.evaluate(result.model, EVERYTHING["evaluate"])
    assert result.tuned is not None
    assert len(report.history) == 1
    assert report.model_name == "mine"
    factored = factored_layers(result.model)
    assert set(result.plan.factored) == set(factored)
    by_name = {row.name: row for row in report.layers}
    for name, module in factored.items():
        assert by_name[name].after.params == sum(p.numel() for p in module.parameters())


def test_output_holds_the_artifact_and_the_reports(tmp_path: Path) -> None:
    result = rf.compress(cnn(), X, budget="params<=60%", output=tmp_path / "out")
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["model.safetensors", "plan.json", "report.html", "report.json"]
    assert rf.Report.load(tmp_path / "out") == result.report
    assert rf.Plan.load(tmp_path / "out") == result.plan
    assert torch.equal(rf.load(tmp_path / "out", cnn())(X), result.model(X))
    again = rf.compress(cnn(), X, budget="params<=40%", output=tmp_path / "out")  # an own artifact may be replaced
    assert rf.Plan.load(tmp_path / "out") == again.plan != result.plan


def test_user_hooks_and_attributes_survive() -> None:
    net, seen = cnn(), []
    net[3].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    net[3].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    small = rf.apply(net, rf.plan(net, X, overrides={"3": ("svd", 3)}))
    del seen[:]
    small(X)
    assert seen == [(2, 12, 8, 8), (2, 16, 4, 4)]
    assert (small[3].in_channels, small[3].out_channels, small[3].stride) == (12, 16, (2, 2))
    assert small[3].weight.shape == net[3].weight.shape
    assert torch.equal(small[3].bias, net[3].bias)


def test_compressing_twice() -> None:
    first = rf.compress(cnn(), X, budget="params<=60%")
    second = rf.compress(first.model, X, budget="params<=80%")
    assert second.report.before.params == first.report.after.params
    assert second.report.after.params <= 0.8 * first.report.after.params
    assert second.model(X).shape == (2, 5)
    plain = rf.strip(second.model)
    assert torch.equal(plain(X), second.model(X))


@pytest.mark.parametrize(("method", "again"), [("tucker", "spatial_svd"), ("svd", "tucker"), ("svd", "svd")])
def test_stages_are_factored_again(method: str, again: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=2)).eval()
    x = torch.randn(2, 8, 4, 4)
    first = rf.apply(net, rf.plan(net, x, strategy=rf.Uniform(keep=0.7), methods=method), example_input=x)
    plan = rf.plan(first, x, strategy=rf.Uniform(keep=0.7), methods=again)
    second, layers = rf.apply(first, plan, example_input=x), factored_layers(first)
    assert {name.partition(".")[0] for name in plan.factored} == set(layers) == {"0", "2"}
    for name, layer in layers.items():
        inputs, outer = torch.randn(2, layer.in_channels, 5, 5), second.get_submodule(name)
        dense = nn.functional.conv2d(inputs, outer.weight, layer.bias, padding=layer.padding, groups=layer.groups)
        torch.testing.assert_close(outer(inputs), dense, rtol=1e-4, atol=1e-5)
    plain = rf.strip(second)
    assert not any(type(module).__module__.startswith("rankfold") for module in plain.modules())
    assert torch.equal(plain(x), second(x))
    assert torch.equal(rf.load(rf.save(second, tmp_path / "out"), first)(x), second(x))
    gauged = rf.gauge(second)
    assert sum(p.numel() for p in gauged.parameters()) <= sum(p.numel() for p in second.parameters())
    torch.testing.assert_close(gauged(x), second(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_gradient_mode_does_not_matter(context: type) -> None:
    with context():
        small = rf.compress(cnn(), X, **EVERYTHING).model
    assert bits(small) == bits(rf.compress(cnn(), X, **EVERYTHING).model)
    small(X).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_default_dtype_does_not_matter() -> None:
    expected = rf.compress(cnn(), X, **EVERYTHING).model
    net = cnn()
    torch.set_default_dtype(torch.float64)
    try:
        small = rf.compress(net, X, **EVERYTHING).model
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    assert bits(small) == bits(expected)


def test_channels_last_and_frozen_models() -> None:
    net = cnn().to(memory_format=torch.channels_last).requires_grad_(False)
    small = rf.compress(net, X, budget="params<=60%").model
    assert not any(p.requires_grad for p in small.parameters())
    x = X.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(small(x), rf.compress(cnn(), X, budget="params<=60%").model(X), atol=1e-6)


def test_resnet18_meets_its_budgets() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None).eval()
    x = torch.zeros(1, 3, 64, 64)
    before = inspect(net, x).total
    plan = rf.plan(net, x, budget="params<=50%, macs<=60%", strategy="uniform", methods=("svd",), rank_multiple=8)
    after = inspect(rf.apply(net, plan), x).total
    assert not Budget.parse("params<=50%, macs<=60%").exceeded(after, before)
    assert after.params > 0.3 * before.params


# --- factorize ---


def test_factorize_leaves_the_layer_alone() -> None:
    conv = nn.Conv2d(8, 12, 3)
    before = identity(conv)
    small = rf.factorize(conv, "tucker", (4, 3))
    assert identity(conv) == before
    assert small.weight.shape == conv.weight.shape
    assert sum(p.numel() for p in small.parameters()) == 8 * 3 + 9 * 3 * 4 + 4 * 12 + 12


def test_factorize_by_share() -> None:
    conv = nn.Conv2d(16, 16, 3)
    total = sum(p.numel() for p in conv.parameters())
    for share in (0.3, 0.7):
        small = rf.factorize(conv, "svd", share)
        assert sum(p.numel() for p in small.parameters()) <= share * total
        (rank,) = small.choice.ranks
        assert (rank + 1) * (16 * 9 + 16) + 16 > share * total


def test_factorize_takes_ranks_of_any_integer_type() -> None:
    import numpy as np

    conv = nn.Conv2d(8, 12, 3)
    expected = rf.factorize(conv, "tucker", (4, 3))
    for ranks in ([4, 3], (np.int64(4), np.int32(3))):
        found = rf.factorize(conv, "tucker", ranks)
        assert torch.equal(found.weight, expected.weight)
        assert found.choice.to_dict() == expected.choice.to_dict()
    assert rf.factorize(conv, "svd", np.int64(5)).choice.ranks == (5,)


def test_factorize_with_data() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    scale = 0.5 ** torch.arange(16)
    data = [torch.randn(64, 16) * scale for _ in range(4)]
    held_out = torch.randn(64, 16) * scale

    def error(small: nn.Module) -> float:
        with torch.no_grad():
            return float(torch.dist(small(held_out), layer(held_out)))

    assert error(rf.factorize(layer, "svd", 4, calibration=data)) < 0.8 * error(rf.factorize(layer, "svd", 4))


def test_deepcopy_and_state_dict_round_trip(tmp_path: Path) -> None:
    small = rf.compress(cnn(), X, budget="params<=60%").model
    twin = copy.deepcopy(small)
    assert torch.equal(twin(X), small(X))
    torch.save(small.state_dict(), tmp_path / "state.pt")
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not torch.equal(twin(X), small(X))
    twin.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(twin(X), small(X))
