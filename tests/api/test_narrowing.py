"""Plans that remove channels: applying, saving, loading, exporting, reporting and composing them."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rankfold as rf
from rankfold.cost import Pricing
from rankfold.errors import ModelError, PlanMismatch
from rankfold.inventory import static_inventory
from rankfold.records import ChannelGroup, Choice, Narrowing, Plan
from rankfold.reporting import markdown, with_widths
from rankfold.reporting.sections import content
from rankfold.surgery.apply import replaced_layers
from rankfold.surgery.narrowing import narrow_


class Net(nn.Module):
    """A residual block between a stem and a head, with hooks, a tie and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.up, self.deep, self.down = (
            nn.Conv2d(16, 24, 1),
            nn.Conv2d(24, 24, 3, padding=1, groups=24),
            nn.Conv2d(24, 16, 1),
        )
        self.fc, self.out = nn.Linear(16 * 16, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.down(torch.relu(self.deep(torch.relu(self.up(x)))))
        return self.out(torch.relu(self.fc(nn.functional.max_pool2d(x, 2).flatten(1))))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
WIDTHS = {"stem": 16, "up": 24, "fc": 20}


def network(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


MODEL = network()
GROUPS = rf.channel_groups(MODEL, X)
NARROWING = GROUPS.narrowing({"stem": [0, 3, 7, 15], "up": range(0, 24, 2), "fc": [1, 2]})


def plan_for(model: nn.Module, narrowing: Narrowing = NARROWING, **choices: Choice) -> Plan:
    layers = static_inventory(model)
    kept = {layer.name: Choice(reason="not factored") for layer in layers}
    prints = {layer.name: layer.fingerprint for layer in layers}
    return Plan(layers={**kept, **choices}, fingerprint=prints, narrowing=narrowing)


BOTH = plan_for(MODEL, stem=Choice(method="tucker", ranks=(4, 2)), fc=Choice(method="svd", ranks=(6,)))


def test_the_groups_of_the_network() -> None:
    assert {group.name: group.width for group in GROUPS} == WIDTHS


@pytest.mark.parametrize("plan", [plan_for(MODEL), BOTH])
def test_plans_are_applied_saved_and_loaded(plan: Plan, tmp_path: Path) -> None:
    before = copy.deepcopy(MODEL.state_dict())
    small = rf.apply(MODEL, plan, example_input=X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in MODEL.state_dict().items())
    assert small.bn.num_features == small.bn.running_mean.numel() == 12  # type: ignore[union-attr]
    assert (small.deep.in_channels, small.deep.groups) == (12, 12)
    rf.save(small, tmp_path / "small")
    loaded = rf.load(tmp_path / "small", network(1), example_input=X)
    torch.testing.assert_close(loaded(X), small(X), rtol=0, atol=0)
    assert loaded.rankfold_plan.narrowing == plan.narrowing  # type: ignore[union-attr]
    again = Plan.load(tmp_path / "small")
    torch.testing.assert_close(rf.apply(MODEL, again)(X), small(X), rtol=0, atol=0)


@pytest.mark.parametrize("plan", [plan_for(MODEL), BOTH])
def test_applying_in_place_equals_applying_to_a_copy(plan: Plan) -> None:
    model = network()
    weight, grads = model.down.weight, model.up.weight.requires_grad_(requires_grad=False)
    small = rf.apply_(model, plan, example_input=X)
    assert small is model
    torch.testing.assert_close(small(X), rf.apply(MODEL, plan)(X), rtol=0, atol=0)
    assert small.down.weight is weight
    assert small.up.weight is grads
    assert not small.up.weight.requires_grad


def test_costs_and_report_are_those_of_the_reloaded_model(tmp_path: Path) -> None:
    result = rf.realize(MODEL, X, BOTH, output=tmp_path / "out")
    predicted = Pricing.of_plan(rf.inspect(MODEL, X), BOTH).plan_cost(BOTH)
    assert result.report.after == predicted
    assert result.report.after.params == sum(p.numel() for p in result.model.parameters())
    assert {(row.layer, row.before, row.after) for row in result.report.widths} == {
        ("stem", 16, 12), ("up", 24, 12), ("fc", 20, 18),
    }  # fmt: skip
    rows = {row.name: row for row in result.report.layers}
    assert rows["deep"].narrowed == "Conv2d 12->12 3x3 s1 g12"
    assert rows["stem"].narrowed == "Conv2d 3->12 3x3 s1 g1"
    assert rows["down"].after.params < rows["down"].before.params
    assert rows["fc"].measured_error is not None
    assert "Removed channels" in result.report.to_markdown()
    assert rf.Report.load(tmp_path / "out") == result.report


def test_a_printed_plan_lists_the_removed_channels() -> None:
    shown = markdown.draw(content(BOTH, brief=False))
    assert "Removed channels" in shown
    assert "18 of 60 channels removed from 3 groups" in shown
    assert "Removed channels" not in markdown.draw(content(plan_for(MODEL, Narrowing()), brief=False))


def test_a_report_shows_what_the_model_has_and_not_what_the_plan_says() -> None:
    report = rf.realize(MODEL, X, BOTH).report
    lied = with_widths(report, BOTH, rf.inspect(MODEL, X), replaced_layers(MODEL))
    assert all(row.before == row.after for row in lied.widths)


@settings(max_examples=10)
@given(st.data())
def test_any_widths_survive_the_artifact(data: Any) -> None:
    removed = {
        name: data.draw(st.sets(st.integers(0, width - 1), max_size=width - 1)) for name, width in WIDTHS.items()
    }
    plan = plan_for(MODEL, GROUPS.narrowing(removed))
    result = rf.realize(MODEL, X, plan)
    assert result.report.after.params == sum(p.numel() for p in result.model.parameters())
    expected = copy.deepcopy(MODEL)
    narrow_(expected, plan.narrowing)
    torch.testing.assert_close(result.model(X), expected(X), rtol=0, atol=0)


LOAD = """
import importlib.abc, sys, torch

class Refused(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torch_pruning":
            raise ImportError(name)

sys.meta_path.insert(0, Refused())
import rankfold as rf
from torch import nn
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
small = rf.load(sys.argv[1], net)
assert "torch_pruning" not in sys.modules
assert torch.equal(small(torch.ones(1, 3, 8, 8)), torch.load(sys.argv[2]))
try:
    rf.channel_groups(net, torch.ones(1, 3, 8, 8))
except rf.RankfoldError as error:
    print(error)
"""


def test_a_process_without_torch_pruning_loads_the_artifact(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    narrowing = rf.channel_groups(net, torch.ones(1, 3, 8, 8)).narrowing({"0": [1, 2, 5]})
    small = rf.apply(net, plan_for(net, narrowing, **{"0": Choice(method="svd", ranks=(3,))}))
    rf.save(small, tmp_path / "small")
    torch.save(small(torch.ones(1, 3, 8, 8)).detach(), tmp_path / "y.pt")
    run = [sys.executable, "-c", LOAD, str(tmp_path / "small"), str(tmp_path / "y.pt")]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'pip install "rankfold[prune]"' in done.stdout


def test_pruning_composes_with_compression(tmp_path: Path) -> None:
    pruned = rf.realize(MODEL, X, plan_for(MODEL))
    small = rf.compress(pruned.model, X, budget="params<=60%", strategy="uniform")
    both = pruned.plan.then(small.plan)
    once = rf.realize(MODEL, X, both)
    torch.testing.assert_close(once.model(X), small.model(X), rtol=1e-4, atol=1e-5)
    once.save(tmp_path / "both")
    torch.testing.assert_close(rf.load(tmp_path / "both", network(1))(X), once.model(X), rtol=0, atol=0)
    small.save(tmp_path / "second")
    pruned.save(tmp_path / "first")
    chained = rf.load(tmp_path / "second", rf.load(tmp_path / "first", network(1)))
    torch.testing.assert_close(chained(X), small.model(X), rtol=0, atol=0)


def test_a_compressed_plan_can_be_pruned() -> None:
    plan = rf.plan(MODEL, X, budget="params<=60%", strategy="uniform")
    fitting = {
        name: Choice(method=c.method, ranks=(1,) * len(c.ranks), options=c.options) for name, c in plan.factored.items()
    }
    narrow = Plan(layers={**plan.layers, **fitting}, fingerprint=plan.fingerprint, narrowing=NARROWING)
    model = rf.apply(MODEL, narrow, example_input=X)
    assert model(X).shape == (2, 5)


def test_calibration_data_reaches_the_narrowed_layers() -> None:
    for mode in ("data", "sequential"):
        result = rf.realize(MODEL, X, BOTH, calibration=[X], reconstruct=mode)
        assert result.report.provenance.reconstruct == mode
        assert result.report.widths


def test_a_pruned_model_trains_and_is_exported(tmp_path: Path) -> None:
    import onnxruntime

    small = rf.apply(MODEL, BOTH)
    tuned = rf.finetune(small, rf.FineTune(data=[(X, torch.tensor([1, 2]))], epochs=1), teacher=MODEL)
    assert tuned.model.rankfold_plan.narrowing == NARROWING  # type: ignore[union-attr]
    program = torch.onnx.export(small, (X,), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(tmp_path / "small.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    (output,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), small(X), rtol=1e-4, atol=1e-5)


def edited(**changes: Any) -> Plan:
    group = NARROWING.groups[0]
    values = {"name": group.name, "width": group.width, "axes": group.axes, "removed": group.removed, **changes}
    return plan_for(MODEL, Narrowing((ChannelGroup(**values),)))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (edited(axes=NARROWING.groups[0].axes[:1]), "bn|cannot"),
        (edited(width=30, removed=(20,)), "index 20 of the outputs of layer 'stem'"),
    ],
)
def test_a_narrowing_that_does_not_fit_changes_nothing(plan: Plan, message: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    if "index" in message:
        with pytest.raises(PlanMismatch, match=message):
            rf.apply_(model, plan)
    else:  # every index fits, but the group is not whole
        with pytest.raises(ModelError, match="cannot run"):
            rf.apply(model, plan, example_input=X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_model_is_refused(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 16, 3))
    with pytest.raises(PlanMismatch, match="layer 'stem' is not in the model"):
        rf.apply(other, BOTH)
    rf.save(rf.apply(MODEL, BOTH), tmp_path / "small")
    with pytest.raises(PlanMismatch, match="layer 'stem' is not in the model"):
        rf.load(tmp_path / "small", other)
    narrow = rf.apply(MODEL, BOTH)
    with pytest.raises(PlanMismatch, match="layer 'up' is Conv2d 12->12"):
        rf.load(tmp_path / "small", narrow)


@pytest.mark.parametrize("plan", [plan_for(MODEL), BOTH])
def test_a_pruned_model_is_saved_as_part_of_another(plan: Plan, tmp_path: Path) -> None:
    whole = nn.Sequential(rf.apply(MODEL, plan), nn.Linear(5, 2))
    rf.save(whole, tmp_path / "whole")
    loaded = rf.load(tmp_path / "whole", nn.Sequential(network(1), nn.Linear(5, 2)))
    torch.testing.assert_close(loaded(X), whole(X), rtol=0, atol=0)


class Pretrained(nn.Sequential):
    """A model with a method of transformers."""

    def save_pretrained(self, folder: str) -> None:
        raise AssertionError(folder)


def test_stripping_leaves_nothing_of_rankfold() -> None:
    """The modules of a pruned model know the plan that narrowed them, until they are stripped."""
    small = rf.apply(MODEL, BOTH)
    stripped = rf.strip(small)
    names = [name for name, _ in stripped.named_modules() if name]
    assert any("rankfold" in key for name in names for key in vars(small.get_submodule(name)))
    assert not any("rankfold" in key for name in names for key in vars(stripped.get_submodule(name)))


def test_save_pretrained_is_refused() -> None:
    model = Pretrained(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    narrowing = rf.channel_groups(model, X).narrowing({"0": [1]})
    small = rf.apply(model, plan_for(model, narrowing))
    with pytest.raises(ModelError, match="save_pretrained would write weights"):
        small.save_pretrained("folder")  # type: ignore[operator]


def test_ranks_are_those_of_the_narrowed_layers() -> None:
    with pytest.raises(rf.RankfoldError, match="18"):
        rf.apply(MODEL, plan_for(MODEL, fc=Choice(method="svd", ranks=(19,))))


def test_a_forward_that_holds_the_original_is_detected() -> None:
    model = network()
    inner = model.stem

    def forward(x: Tensor) -> Tensor:
        return inner(x)

    model.bn.register_forward_pre_hook(lambda module, args: (forward(X),))
    with pytest.raises(ModelError):
        rf.apply(model, plan_for(model), example_input=X)


def test_removed_channels_count_in_the_losses_of_a_sweep() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).requires_grad_(False)
    x = torch.randn(2, 6)
    swept = rf.sweep(net, x, strategy="prune", resource="params", points=["params<=30%", "params<=70%"])
    for point in swept.points:
        assert point.plan is not None
        (group,) = point.plan.narrowing
        weights = [
            (net[0].weight, net[0].weight[list(group.removed)]),
            (net[2].weight, net[2].weight[:, group.removed]),
        ]
        lost = sum(float(gone.square().sum() / weight.square().sum()) for weight, gone in weights)
        assert point.predicted_loss == pytest.approx(lost, rel=1e-5)
    assert swept.front() == swept.points
    assert swept.plan("params<=90%") == swept.points[1].plan
