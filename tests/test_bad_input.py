"""Bad input, each case with its exact error, a message that helps, and nothing changed afterwards."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold import errors as e
from rankfold import methods, strategies
from rankfold.records import Choice, Plan

Act = Callable[[], object]
CASES: list[Any] = []


class Scene:
    """A small network, its input, a plan for it and an artifact of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        torch.manual_seed(0)
        self.net = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 8, 3, padding=1),
                norm=nn.BatchNorm2d(8),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(8, 12, 3, padding=1),
                relu2=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(1),
                flat=nn.Flatten(),
                fc1=nn.Linear(12, 16),
                relu3=nn.ReLU(),
                fc2=nn.Linear(16, 5),
            )
        )
        self.net.eval()
        self.net.norm.train()  # a mixture of modes that has to survive
        self.x = torch.randn(2, 3, 8, 8)
        self.labeled = [(torch.randn(4, 3, 8, 8), torch.arange(4)) for _ in range(2)]
        self.watched: list[nn.Module] = [self.net]

    def plan(self) -> Plan:
        return rf.plan(self.net, self.x, budget="params<=60%")

    def artifact(self) -> Path:
        return rf.save(rf.apply(self.net, self.plan()), self.folder / "artifact")

    def edited_plan(self, edit: Callable[[dict[str, Any]], object]) -> Path:
        """Return the file of a plan in which a person has changed something."""
        data = json.loads(rf.plan(self.net, self.x, strategy=rf.Manual(layers={"fc1": ("svd", 3)})).to_json())
        edit(data)
        return self.file("plan.json", json.dumps(data))

    def file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path


@dataclass(frozen=True)
class Case:
    error: type[Exception]
    patterns: tuple[str, ...]
    prepare: Callable[[Scene], Act]


def case(name: str, error: type[Exception], *patterns: str) -> Callable[[Callable[[Scene], Act]], None]:
    """Register a case; its function prepares the scene and returns the act that has to fail."""

    def register(prepare: Callable[[Scene], Act]) -> None:
        CASES.append(pytest.param(Case(error, patterns, prepare), id=name.replace(" ", "-")))

    return register


def _state(scene: Scene) -> dict[str, object]:
    """Return everything that a failure may not change."""
    digest = hashlib.sha256()
    for net in scene.watched:
        for name, module in net.named_modules():
            digest.update(f"{name} {id(module)} {type(module)} {module.training} {len(module._forward_hooks)}".encode())
        for name, tensor in net.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device}".encode())
            if not tensor.is_meta:
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, parameter in net.named_parameters():
            digest.update(f"{name} {parameter.requires_grad} {parameter.grad is None}".encode())
    return {"models": digest.hexdigest(), "files": _files(scene.folder), "random": torch.get_rng_state().tolist()}


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


# --- weights ---


def _spoil(scene: Scene, value: float) -> None:
    with torch.no_grad():
        scene.net.conv2.weight[0, 0, 0, 0] = value


@case("NaN weight", e.InvalidWeight, r"'conv2'", r"1 NaN or infinite", r"exclude")
def _(s: Scene) -> Act:
    _spoil(s, math.nan)
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", output=s.folder / "out")


@case("infinite weight", e.InvalidWeight, r"'conv2'", r"1 NaN or infinite", r"Repair")
def _(s: Scene) -> Act:
    plan = s.plan()
    _spoil(s, math.inf)
    return lambda: rf.apply_(s.net, plan)


@case("NaN weight of one layer", e.InvalidWeight, r"NaN", r"Linear 4->4")
def _(s: Scene) -> Act:
    layer = nn.Linear(4, 4)
    nn.init.constant_(layer.weight, math.nan)
    return lambda: rf.factorize(layer, "svd", 2)


# --- budgets ---


@case("budget 0", e.BudgetError, r"params<=0", r"positive", r"such as")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget="params<=0")


@case("budget negative", e.BudgetError, r"'params<=-25%'", r"cannot be read", r"such as")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget="params<=-25%")


@case("budget unreadable", e.BudgetError, r"'a quarter'", r"RESOURCE<=AMOUNT")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget="a quarter")


@case("budget above 100 percent", e.BudgetError, r"params<=250%", r"between 0 and 100 %")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget="params<=250%")


@case("budget infinite", e.BudgetError, r"params<=inf", r"finite")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget="params<=1e999")


@case("budget of a wrong type", e.BudgetError, r"0\.25", r"string, mapping or Budget")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget=0.25)


@case("budget without a percent sign", e.InfeasibleBudget, r"params<=25 is an amount", r"write params<=25%")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget="params<=25, macs<=50%")


@case("budget of a part with a comma", e.BudgetError, r"'params\(conv1, conv2\)<=50%'", r"each part separately")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget="params(conv1, conv2)<=50%")


@case("budget of a part that does not exist", e.NoMatchingLayer, r"part 'cnv\*'", r"'conv[12]'")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget="params(cnv*)<=50%")


@case("budget NaN in a mapping", e.BudgetError, r"nan", r"RESOURCE<=AMOUNT")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget={"params": math.nan})


@case("budget empty", e.BudgetError, r"empty", r"at least one bound")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget={})


@case("budget divisor below 1", e.BudgetError, r"'params/0\.5'", r"at least 1")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget="params/0.5")


@case("budget unit unknown", e.BudgetError, r"'flash<=512KiX'", r"unknown unit 'KiX'", r"KiB")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget="flash<=512KiX")


@case("budget in bytes of a count", e.BudgetError, r"'params<=2KiB'", r"flash")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget="params<=2KiB")


@case("budget resource unknown", e.UnknownNameError, r"budget resource 'parms'", r"Did you mean 'params'")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget="parms<=25%")


@case(
    "budget unreachable",
    e.InfeasibleBudget,
    r"'params<=1%, macs<=1%'",
    r"least reachable",
    r"\n +params +\d+ +\d+",
    r"Loosen",
)
def _(s: Scene) -> Act:
    return lambda: rf.compress(s.net, s.x, budget="params<=1%, macs<=1%", output=s.folder / "out")


@case("budget met already", e.BudgetError, r"'params<=1000000'", r"already meets budget")
def _(s: Scene) -> Act:
    return lambda: rf.compress(s.net, s.x, budget="params<=1M", output=s.folder / "out")


@case("budget exceeded by hand", e.InfeasibleBudget, r"by hand", r"'params<=20%'", r"Lower them")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, budget="params<=20%", strategy=rf.Manual(layers={"fc1": ("svd", 3)}))


# --- names and options ---


@case("strategy unknown", e.UnknownNameError, r"strategy 'enrgy'", r"Did you mean 'energy'", r"uniform")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, strategy="enrgy")


@case("strategy of a wrong type", e.UnknownNameError, r"strategy", r"energy")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, strategy={"energy": 1})


@case("method unknown", e.UnknownNameError, r"method 'tuker'", r"Did you mean 'tucker'")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, methods="svd,tuker")


@case("methods empty", e.ConfigError, r"methods", r"at least one")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, methods=[])


@case("methods of a wrong type", e.ConfigError, r"methods", r"Got 3")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, methods=3)


@case("strategy option unknown", e.UnknownNameError, r"option 'kep' of strategy 'energy'", r"Did you mean 'keep'")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, strategy=strategies.get("energy", {"kep": 0.5}))


@case("strategy option out of range", e.ConfigError, r"keep", r"\[0, 1\]", r"Got 1\.5")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, strategy=rf.Energy(keep=1.5))


@case("strategy option of a wrong type", e.ConfigError, r"keep", r"\[0, 1\]", r"Got '90%'")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, strategy=rf.Energy(keep="90%"))


@case("strategy config of a wrong type", e.ConfigError, r"options of strategy 'energy'", r"mapping", r"float")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, strategy=strategies.get("energy", 0.5))


@case("method option unknown", e.UnknownNameError, r"option 'bogus' of method 'svd'")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, methods=[methods.get("svd", {"bogus": 1})])


@case("options of an unknown method", e.UnknownNameError, r"method 'sdv'", r"Did you mean 'svd'")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, methods=[methods.get("sdv", {})])


@case("a class instead of a method", e.ConfigError, r"method", r"SVD\(\)")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, methods=[rf.SVD])


@case("search option unknown", e.UnknownNameError, r"option 'metods'", r"Did you mean 'methods'")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, metods="svd")


@case("rank multiple 0", e.ConfigError, r"rank_multiple", r"at least 1", r"Got 0")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, rank_multiple=0)


@case("seed of a wrong type", e.ConfigError, r"seed", r"integer", r"Got 'today'")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, seed="today")


@case("seed negative", e.ConfigError, r"seed", r"Got -1")
def _(s: Scene) -> Act:
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", seed=-1)


@case("include matches nothing", e.NoMatchingLayer, r"include 'con1'", r"'conv1'")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, include="con1")


@case("exclude matches nothing", e.NoMatchingLayer, r"exclude 'head\.\*'", r"'conv1'")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, exclude=["fc1", "head.*"])


@case("include of a type that is not there", e.NoMatchingLayer, r"include Conv3d")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, include=nn.Conv3d)


@case("include of a wrong type", e.ConfigError, r"include", r"Got \[3\]")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, include=[3])


@case("exclude a broken expression", e.ConfigError, r"exclude 're:conv\('", r"regular expression")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, exclude="re:conv(")


@case("override matches nothing", e.NoMatchingLayer, r"'fc9'", r"of overrides", r"'conv1'")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, overrides={"fc9": None})


@case("override with too many ranks", e.RankError, r"'fc1' \(Linear 12->16\)", r"one integer", r"Got \[2, 2\]")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, overrides={"fc1": ("svd", (2, 2))})


@case("override with a rank too large", e.RankError, r"'fc1'", r"1\.\.12", r"Got \[13\]")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, overrides={"fc1": ("svd", 13)})


@case("override that is no choice", e.ConfigError, r"'fc1'", r"\(method, ranks\)", r"Got 'svd'")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, overrides={"fc1": "svd"})


@case("override with ranks in words", e.ConfigError, r"'fc1'", r"Got 'four'")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, overrides={"fc1": ("svd", "four")})


@case("override with a share of 0", e.ConfigError, r"'fc1'", r"\(0, 1\]", r"Got 0\.0")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, overrides={"fc1": ("svd", 0.0)})


@case(
    "override with a share that no rank reaches",
    e.ConfigError,
    r"'fc2' \(Linear 16->5\)",
    r"in 1 % of",
    r"larger share",
)
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, overrides={"fc2": ("svd", 0.01)})


@case("override by a method that does not fit", e.UnsupportedLayer, r"'cp'", r"'fc1' \(Linear 12->16\)")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, overrides={"fc1": ("cp", 3)})


@case("overrides of a wrong type", e.ConfigError, r"overrides", r"mapping", r"\['fc1'\]")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, overrides=["fc1"])


@case("override by a number", e.ConfigError, r"layer name in overrides", r"string", r"Got 0")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, overrides={0: None})


@case("manual without layers", e.ConfigError, r"layers", r"file")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, s.x, strategy="manual")


@case("manual with a missing file", e.DataError, r"no rank file", r"ranks\.json")
def _(s: Scene) -> Act:
    file = str(s.folder / "ranks.json")
    return lambda: rf.plan(s.net, s.x, strategy=rf.Manual(file=file))


@case("manual with a broken file", e.DataError, r"ranks\.json", r"not valid JSON")
def _(s: Scene) -> Act:
    file = str(s.file("ranks.json", '{"fc1": ["svd", 3'))
    return lambda: rf.plan(s.net, s.x, strategy=rf.Manual(file=file))


# --- data ---


@case("calibration empty", e.DataError, r"calibration data is empty", r"no batch")
def _(s: Scene) -> Act:
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", calibration=[])


@case("calibration used up", e.DataError, r"calibration data is empty", r"exhausted")
def _(s: Scene) -> Act:
    used = iter([s.x])
    list(used)
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", calibration=used)


@case(
    "calibration of a wrong shape",
    e.ModelError,
    r"calibration batch 2",
    r"2x4x8x8",
    r"inputs alone that the model accepts",
)
def _(s: Scene) -> Act:
    data = [torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)]
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", calibration=data, output=s.folder / "out")


@case("calibration is one batch", e.DataError, r"calibration", r"Got Tensor", r"into a list")
def _(s: Scene) -> Act:
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", calibration=s.x)


@case("calibration is a number", e.DataError, r"calibration", r"Got int")
def _(s: Scene) -> Act:
    plan = s.plan()
    return lambda: rf.apply_(s.net, plan, 5)


@case("calibration holds NaN", e.DataError, r"NaN", r"batch|calibration")
def _(s: Scene) -> Act:
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", calibration=[s.x, s.x * math.nan])


@case("data reconstruction without data", e.ConfigError, r"reconstruct='data'", r"calibration=")
def _(s: Scene) -> Act:
    plan = s.plan()
    return lambda: rf.apply_(s.net, plan, reconstruct="data")


@case("sequential reconstruction without data", e.ConfigError, r"reconstruct='sequential'", r"calibration=")
def _(s: Scene) -> Act:
    plan = s.plan()
    return lambda: rf.apply_(s.net, plan, reconstruct="sequential")


@case("sequential option of a wrong type", e.ConfigError, r"ridge", r"above 0", r"Got '1'")
def _(s: Scene) -> Act:
    return lambda: rf.compress(s.net, s.x, calibration=s.labeled, reconstruct=rf.Sequential(ridge="1"))


@case("sequential data holds NaN", e.DataError, r"NaN", r"layer")
def _(s: Scene) -> Act:
    plan = s.plan()
    return lambda: rf.apply_(s.net, plan, [s.x, s.x * math.nan], reconstruct="sequential")


@case("sequential data of a wrong shape", e.ModelError, r"calibration batch 2", r"2x5x8x8")
def _(s: Scene) -> Act:
    plan, odd = s.plan(), torch.randn(2, 5, 8, 8)
    return lambda: rf.apply_(s.net, plan, [s.x, odd], reconstruct="sequential")


@case("reconstruction unknown", e.UnknownNameError, r"reconstruction 'weight'", r"Did you mean 'weights'")
def _(s: Scene) -> Act:
    plan = s.plan()
    return lambda: rf.apply(s.net, plan, reconstruct="weight")


@case("evaluation data of a wrong shape", e.ModelError, r"evaluation data", r"4x5x8x8 float32", r"3 channels")
def _(s: Scene) -> Act:
    data = [(torch.randn(4, 5, 8, 8), torch.arange(4))]
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", evaluate=rf.top1(data))


@case(
    "calibration data of a wrong shape", e.ModelError, r"calibration batch 2, 4x5x8x8 float32",
    r"runs on the example input, 2x3x8x8", r"3 channels, but got 5",
)  # fmt: skip
def _(s: Scene) -> Act:
    data = [torch.randn(4, 3, 8, 8), torch.randn(4, 5, 8, 8)]
    return lambda: rf.plan(s.net, s.x, budget="params<=50%", calibration=data)


@case(
    "linear layer with wrong features", e.ModelError, r"calibration batch 1, 4x7 float32", r"example input, 1x9",
    r"shapes cannot be multiplied",
)  # fmt: skip
def _(_: Scene) -> Act:
    net, x, data = nn.Sequential(nn.Linear(9, 30), nn.Linear(30, 9)), torch.randn(1, 9), [torch.randn(4, 7)]
    return lambda: rf.plan(net, x, budget="params<=50%", calibration=data)


@case("evaluation data is a number", e.DataError, r"evaluation data", r"Got int")
def _(s: Scene) -> Act:
    return lambda: rf.evaluate(s.net, rf.top1(3))


@case("evaluate no module", e.ModelError, r"torch\.nn\.Module", r"Got int")
def _(s: Scene) -> Act:
    return lambda: rf.evaluate(3, rf.top1(s.labeled))


@case("strip no module", e.ModelError, r"torch\.nn\.Module", r"Got NoneType")
def _(s: Scene) -> Act:
    return lambda: rf.strip(None)


@case("labels missing for top1", e.DataError, r"top-1 needs labels", r"agreement")
def _(s: Scene) -> Act:
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", evaluate=rf.top1([s.x]), output=s.folder / "out")


# --- example inputs and models ---


@case("example of a wrong shape", e.ModelError, r"2x1x8x8 float32", r"3 channels", r"example input")
def _(s: Scene) -> Act:
    x = torch.randn(2, 1, 8, 8)
    return lambda: rf.plan(s.net, x)


@case("example of a wrong type", e.ModelError, r"'an image'", r"TypeError", r"example input")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, "an image")


@case("example of integers", e.ModelError, r"2x3x8x8 int64", r"example input")
def _(s: Scene) -> Act:
    return lambda: rf.plan(s.net, torch.ones(2, 3, 8, 8, dtype=torch.int64))


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left(left) + self.right(right)


@case("example lacks an argument", e.ModelError, r"\{left: 2x8 float32\}", r"'right'")
def _(s: Scene) -> Act:
    net = _TwoInputs()
    s.watched = [net]
    return lambda: rf.compress(net, {"left": torch.ones(2, 8)}, budget="params<=50%")


@case("no module", e.ModelError, r"torch\.nn\.Module", r"Got OrderedDict")
def _(s: Scene) -> Act:
    return lambda: rf.compress(s.net.state_dict(), s.x, budget="params<=50%")


@case("model in DataParallel", e.ModelError, r"DataParallel", r"model\.module")
def _(s: Scene) -> Act:
    wrapped = nn.DataParallel(s.net)
    return lambda: rf.compress(wrapped, s.x, budget="params<=50%")


@case("model in torch.compile", e.ModelError, r"torch\.compile", r"_orig_mod")
def _(s: Scene) -> Act:
    wrapped = torch.compile(s.net, backend="eager")
    return lambda: rf.compress(wrapped, s.x, budget="params<=50%")


@case("model on the meta device", e.ModelError, r"meta device", r"'conv1\.weight'", r"Load")
def _(s: Scene) -> Act:
    net = s.net.to("meta")
    return lambda: rf.compress(net, s.x.to("meta"), budget="params<=50%")


@case("meta model applied", e.InvalidWeight, r"meta device", r"Load")
def _(s: Scene) -> Act:
    plan = s.plan()
    net = s.net.to("meta")
    return lambda: rf.apply(net, plan)


class _Uncopyable(nn.Sequential):
    def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
        raise ValueError("this model holds a socket")


@case("model that cannot be copied", e.ModelError, r"cannot be copied", r"socket", r"in place")
def _(s: Scene) -> Act:
    net = _Uncopyable(s.net)
    s.watched = [net]
    return lambda: rf.compress(net, s.x, budget="params<=50%")


class _Extra(nn.Sequential):
    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: object) -> None:
        pass


@case("state that is no tensor", e.ModelError, r"'_extra_state' of type dict", r"cannot be saved", r"get_extra_state")
def _(s: Scene) -> Act:
    net = _Extra(s.net)
    rf.plan(net, s.x, budget="params<=50%")  # which needs no state
    s.watched = []

    def metric(net: nn.Module) -> float:
        pytest.fail("work was done before the model was looked at")

    return lambda: rf.compress(net, s.x, budget="params<=50%", evaluate=metric)


@case("nothing to compress", e.ModelError, r"no layer", r"compress")
def _(s: Scene) -> Act:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    s.watched = [net]
    return lambda: rf.compress(net, s.x, output=s.folder / "out")


@case("everything excluded", e.ModelError, r"no layer", r"'conv1'", r"excluded by '\*'")
def _(s: Scene) -> Act:
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", exclude="*")


@case("factorize an activation", e.ConfigError, r"Got ReLU", r"compress")
def _(s: Scene) -> Act:
    return lambda: rf.factorize(s.net.relu1, "svd", 2)


@case("factorize a whole network", e.ConfigError, r"Got Sequential", r"compress")
def _(s: Scene) -> Act:
    return lambda: rf.factorize(s.net, "svd", 2)


@case("factorize with rank 0", e.RankError, r"Conv2d 8->12", r"1\.\.12", r"Got \[0\]")
def _(s: Scene) -> Act:
    return lambda: rf.factorize(s.net.conv2, "svd", 0)


@case("factorize with a fractional rank", e.RankError, r"ranks", r"integers", r"Got \[2\.5, 3\]")
def _(s: Scene) -> Act:
    return lambda: rf.factorize(s.net.conv2, "tucker", (2.5, 3))


@case("factorize with ranks in words", e.RankError, r"ranks", r"Got \['ten'\]")
def _(s: Scene) -> Act:
    return lambda: rf.factorize(s.net.conv2, "svd", "ten")


@case("factorize with a share above 1", e.ConfigError, r"share", r"\(0, 1\]", r"Got 1\.5")
def _(s: Scene) -> Act:
    return lambda: rf.factorize(s.net.conv2, "svd", 1.5)


@case("factorize with a method that does not fit", e.UnsupportedLayer, r"'ttm'|'cp'", r"Linear 12->16")
def _(s: Scene) -> Act:
    return lambda: rf.factorize(s.net.fc1, "cp", 2)


# --- plans ---


@case(
    "plan for another model",
    e.PlanMismatch,
    r"'conv1' is not in",
    r"'conv2' is not in",
    r"'fc1' is Linear 12->17",
    r"Make a plan",
)
def _(s: Scene) -> Act:
    plan = s.plan()
    other = nn.Sequential(OrderedDict(fc1=nn.Linear(12, 17), fc2=nn.Linear(16, 5)))
    s.watched.append(other)
    return lambda: rf.apply_(other, plan)


@case("plan with an unknown layer", e.PlanMismatch, r"'fc7' is not in the model")
def _(s: Scene) -> Act:
    plan = Plan.load(s.edited_plan(lambda d: d["layers"].update(fc7={"method": "svd", "ranks": [2]})))
    return lambda: rf.apply_(s.net, plan)


@case("plan with the second name of a layer", e.PlanMismatch, r"'1' shares its weight with '0'", r"use that name")
def _(s: Scene) -> Act:
    layer = nn.Linear(4, 4)
    net = nn.Sequential(layer, layer)
    s.watched = [net]
    plan = Plan(layers={"1": Choice(method="svd", ranks=(2,))})
    return lambda: rf.apply_(net, plan)


@case("plan is a path", e.ConfigError, r"plan", r"Plan\.load", r"Got str")
def _(s: Scene) -> Act:
    path = str(s.plan().save(s.folder / "plan.json"))
    return lambda: rf.apply(s.net, path)


def _edit(**change: Any) -> Callable[[dict[str, Any]], object]:
    return lambda data: data["layers"]["fc1"].update(change)


@case("plan with rank 0", e.RankError, r"'fc1' \(Linear 12->16\)", r"1\.\.12", r"Got \[0\]")
def _(s: Scene) -> Act:
    plan = Plan.load(s.edited_plan(_edit(ranks=[0])))
    return lambda: rf.apply_(s.net, plan)


@case("plan with a negative rank", e.RankError, r"'fc1'", r"1\.\.12", r"Got \[-3\]")
def _(s: Scene) -> Act:
    plan = Plan.load(s.edited_plan(_edit(ranks=[-3])))
    return lambda: rf.apply_(s.net, plan)


@case("plan with a rank too large", e.RankError, r"'fc1'", r"1\.\.12", r"Got \[1000\]")
def _(s: Scene) -> Act:
    plan = Plan.load(s.edited_plan(_edit(ranks=[1000])))
    return lambda: rf.apply_(s.net, plan)


@case("plan with too many ranks", e.RankError, r"'fc1'", r"one integer", r"Got \[2, 2\]")
def _(s: Scene) -> Act:
    plan = Plan.load(s.edited_plan(_edit(ranks=[2, 2])))
    return lambda: rf.apply_(s.net, plan)


@case("plan with an unknown method", e.UnknownNameError, r"method 'svdd'", r"Did you mean 'svd'")
def _(s: Scene) -> Act:
    plan = Plan.load(s.edited_plan(_edit(method="svdd")))
    return lambda: rf.apply_(s.net, plan)


@case("plan with an unknown method option", e.UnknownNameError, r"option 'tol' of method 'svd'")
def _(s: Scene) -> Act:
    plan = Plan.load(s.edited_plan(_edit(options={"tol": 1})))
    return lambda: rf.apply_(s.net, plan)


@case("plan with a fractional rank", e.CorruptArtifact, r"'fc1'", r"integers", r"Got \[3\.5\]")
def _(s: Scene) -> Act:
    file = s.edited_plan(_edit(ranks=[3.5]))
    return lambda: Plan.load(file)


@case("plan with a rank in words", e.CorruptArtifact, r"'fc1'", r"integers", r"Got 'three'")
def _(s: Scene) -> Act:
    file = s.edited_plan(_edit(ranks="three"))
    return lambda: Plan.load(file)


@case("plan with an unknown key", e.CorruptArtifact, r"'fc1'", r"unknown key 'rank'", r"'ranks'")
def _(s: Scene) -> Act:
    file = s.edited_plan(_edit(rank=3))
    return lambda: Plan.load(file)


@case("plan with keep and method", e.CorruptArtifact, r"'fc1'", r"both 'method' and 'keep'")
def _(s: Scene) -> Act:
    file = s.edited_plan(_edit(keep="mine"))
    return lambda: Plan.load(file)


@case("plan with a word for an error", e.CorruptArtifact, r"'fc1'", r"'error'", r"Got 'small'")
def _(s: Scene) -> Act:
    file = s.edited_plan(_edit(error="small"))
    return lambda: Plan.load(file)


@case("plan with a layer twice", e.CorruptArtifact, r"'fc1'", r"twice")
def _(s: Scene) -> Act:
    text = s.edited_plan(lambda _: None).read_text()
    file = s.file("plan.json", text.replace('"layers": {', '"layers": {"fc1": {"keep": "mine"}, ', 1))
    return lambda: Plan.load(file)


@case("plan with a malformed provenance", e.CorruptArtifact, r"'methods'", r"Got 5")
def _(s: Scene) -> Act:
    file = s.edited_plan(lambda d: d["provenance"].update(methods=5))
    return lambda: Plan.load(file)


@case("plan that is no JSON", e.CorruptArtifact, r"plan\.json", r"not valid JSON", r"line 1")
def _(s: Scene) -> Act:
    file = s.file("plan.json", "layers: fc1")
    return lambda: Plan.load(file)


@case("plan truncated", e.CorruptArtifact, r"plan\.json", r"not valid JSON", r"truncated")
def _(s: Scene) -> Act:
    text = s.plan().to_json()
    file = s.file("plan.json", text[: len(text) // 2])
    return lambda: Plan.load(file)


@case("plan nested too deep", e.CorruptArtifact, r"plan\.json", r"nested 100,000 levels deep", r"limit is 64")
def _(s: Scene) -> Act:
    file = s.file("plan.json", "[" * 100_000)
    return lambda: Plan.load(file)


@case("plan of another program", e.CorruptArtifact, r"not a rankfold plan", r"'rankfold-plan'")
def _(s: Scene) -> Act:
    file = s.file("plan.json", '{"layers": {"fc1": 3}}')
    return lambda: Plan.load(file)


@case("plan of a newer version", e.CorruptArtifact, r"version 99", r"Upgrade")
def _(s: Scene) -> Act:
    file = s.edited_plan(lambda d: d.update(version=99))
    return lambda: Plan.load(file)


@case("plan in binary", e.CorruptArtifact, r"plan\.json", r"cannot be read")
def _(s: Scene) -> Act:
    file = s.folder / "plan.json"
    file.write_bytes(b"\xff\xfe\x00\x80")
    return lambda: Plan.load(file)


@case("plan missing", e.CorruptArtifact, r"no plan at", r"nowhere\.json")
def _(s: Scene) -> Act:
    return lambda: Plan.load(s.folder / "nowhere.json")


@case("plan override of an unknown layer", e.NoMatchingLayer, r"'fc11'", r"'fc1'")
def _(s: Scene) -> Act:
    plan = s.plan()
    return lambda: plan.override({"fc11": None})


# --- artifacts ---


def _flip(file: Path, where: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(where * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


@case("artifact truncated", e.CorruptArtifact, r"model\.safetensors", r"damaged", r"again")
def _(s: Scene) -> Act:
    file = s.artifact() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return lambda: rf.load(file.parent, s.net)


@case("artifact empty", e.CorruptArtifact, r"model\.safetensors", r"damaged")
def _(s: Scene) -> Act:
    file = s.artifact() / "model.safetensors"
    file.write_bytes(b"")
    return lambda: rf.load(file.parent, s.net)


@case("artifact with a flipped bit", e.CorruptArtifact, r"model\.safetensors", r"damaged", r"checksum")
def _(s: Scene) -> Act:
    file = s.artifact() / "model.safetensors"
    _flip(file, 0.9)
    return lambda: rf.load(file.parent, s.net)


@case("artifact with a flipped bit in its header", e.CorruptArtifact, r"model\.safetensors", r"damaged")
def _(s: Scene) -> Act:
    file = s.artifact() / "model.safetensors"
    _flip(file, 0.0)
    return lambda: rf.load(file.parent, s.net)


@case("artifact whose plan was edited", e.CorruptArtifact, r"do not belong together", r"`apply`")
def _(s: Scene) -> Act:
    file = s.artifact() / "plan.json"
    file.write_text(file.read_text().replace('"ranks": [', '"ranks": [1', 1))
    return lambda: rf.load(file.parent, s.net)


@case("artifact with foreign weights", e.CorruptArtifact, r"model\.safetensors", r"not written by rankfold")
def _(s: Scene) -> Act:
    from safetensors.torch import save_file

    file = s.artifact() / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, str(file))
    return lambda: rf.load(file.parent, s.net)


@case("artifact with a pickle for weights", e.CorruptArtifact, r"model\.safetensors", r"damaged")
def _(s: Scene) -> Act:
    file = s.artifact() / "model.safetensors"
    torch.save({"weight": torch.zeros(3)}, file)
    return lambda: rf.load(file.parent, s.net)


@case("artifact without weights", e.CorruptArtifact, r"incomplete", r"model\.safetensors is missing")
def _(s: Scene) -> Act:
    folder = s.artifact()
    (folder / "model.safetensors").unlink()
    return lambda: rf.load(folder, s.net)


@case("artifact without a plan", e.CorruptArtifact, r"no plan at .*plan\.json", r"not a rankfold artifact")
def _(s: Scene) -> Act:
    folder = s.artifact()
    (folder / "plan.json").unlink()
    return lambda: rf.load(folder, s.net)


@case("artifact of a newer version", e.CorruptArtifact, r"version '2'", r"Upgrade")
def _(s: Scene) -> Act:
    file = s.artifact() / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"version":"1"', b'"version":"2"'))
    return lambda: rf.load(file.parent, s.net)


@case("artifact folder missing", e.CorruptArtifact, r"no artifact folder", r"nowhere")
def _(s: Scene) -> Act:
    return lambda: rf.load(s.folder / "nowhere", s.net)


@case("artifact is a file", e.CorruptArtifact, r"no artifact folder", r"model\.safetensors")
def _(s: Scene) -> Act:
    file = s.artifact() / "model.safetensors"
    return lambda: rf.load(file, s.net)


@case("artifact of another architecture", e.PlanMismatch, r"'conv1' is not in the model", r"'fc1' is Linear 9->9")
def _(s: Scene) -> Act:
    folder, other = s.artifact(), nn.Sequential(OrderedDict(fc1=nn.Linear(9, 9)))
    s.watched.append(other)
    return lambda: rf.load(folder, other)


@case("artifact for a model with other norms", e.PlanMismatch, r"norm\.running_mean", r"shape \(8,\)", r"architecture")
def _(s: Scene) -> Act:
    folder = s.artifact()
    s.net.norm = nn.BatchNorm2d(7)
    return lambda: rf.load(folder, s.net)


@case("save a dense model", e.RankfoldError, r"no factored layer", r"apply a plan first")
def _(s: Scene) -> Act:
    return lambda: rf.save(s.net, s.folder / "out")


@case("save to a file", e.RankfoldError, r"notes\.txt", r"it is a file", r"Choose a folder")
def _(s: Scene) -> Act:
    small, file = rf.apply(s.net, s.plan()), s.file("notes.txt", "mine")
    return lambda: rf.save(small, file)


@case("save among other files", e.RankfoldError, r"other files", r"empty or new folder")
def _(s: Scene) -> Act:
    small, file = rf.apply(s.net, s.plan()), s.file("notes.txt", "mine")
    return lambda: rf.save(small, file.parent)


@case("save beside a foreign plan", e.RankfoldError, r"plan\.json", r"not.*rankfold plan", r"empty or new folder")
def _(s: Scene) -> Act:
    small, file = rf.apply(s.net, s.plan()), s.file("plan.json", '{"week": 1}')
    return lambda: rf.save(small, file.parent)


@case("save below a file", e.RankfoldError, r"cannot write", r"notes\.txt", r"Choose another location")
def _(s: Scene) -> Act:
    small, file = rf.apply(s.net, s.plan()), s.file("notes.txt", "mine")
    return lambda: rf.save(small, file / "out")


@case(
    "save where nothing can be renamed", e.RankfoldError, r"cannot write", r"Read-only file system", r"another location"
)
def _(s: Scene) -> Act:
    small = rf.apply(s.net, s.plan())

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    s.monkeypatch.setattr("os.replace", refuse)
    return lambda: rf.save(small, s.folder / "deep" / "out")


@case("save to a full disk", e.RankfoldError, r"cannot write", r"No space left", r"another location")
def _(s: Scene) -> Act:
    from safetensors import SafetensorError

    small = rf.apply(s.net, s.plan())

    def refuse(tensors: object, file: str, **_: object) -> None:
        Path(file).write_bytes(b"half of it")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    s.monkeypatch.setattr("rankfold.storage.weights.save_file", refuse)
    return lambda: rf.save(small, s.folder / "out")


@case("save over an artifact to a full disk", e.RankfoldError, r"cannot write", r"No space left")
def _(s: Scene) -> Act:
    s.artifact()
    small = rf.apply(s.net, rf.plan(s.net, s.x, budget="params<=40%"))

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    s.monkeypatch.setattr(Path, "write_bytes", refuse)
    return lambda: rf.save(small, s.folder / "artifact")


@case("output that is a file", e.RankfoldError, r"notes\.txt", r"it is a file")
def _(s: Scene) -> Act:
    file = s.file("notes.txt", "mine")

    def metric(net: nn.Module) -> float:
        pytest.fail("work was done before the output was looked at")

    return lambda: rf.compress(s.net, s.x, budget="params<=50%", output=file, evaluate=metric)


@case("output below a file", e.RankfoldError, r"notes\.txt", r"cannot write")
def _(s: Scene) -> Act:
    file = s.file("notes.txt", "mine")

    def metric(net: nn.Module) -> float:
        pytest.fail("work was done before the output was looked at")

    return lambda: rf.compress(s.net, s.x, budget="params<=50%", output=file / "out", evaluate=metric)


@case("report with a bad suffix", e.ConfigError, r"\.html, \.md, \.json", r"report\.pdf")
def _(s: Scene) -> Act:
    report = rf.compress(s.net, s.x, budget="params<=50%").report
    return lambda: report.save(s.folder / "report.pdf")


@case("report below a file", e.RankfoldError, r"cannot write", r"notes\.txt")
def _(s: Scene) -> Act:
    report, file = rf.compress(s.net, s.x, budget="params<=50%").report, s.file("notes.txt", "mine")
    return lambda: report.save(file / "report.html")


@case("report truncated", e.CorruptArtifact, r"report\.json", r"not valid JSON")
def _(s: Scene) -> Act:
    text = rf.compress(s.net, s.x, budget="params<=50%").report.to_json()
    file = s.file("report.json", text[:-50])
    return lambda: rf.Report.load(file)


# --- metrics and fine-tuning ---


@case("metric NaN", e.MetricError, r"'broken' returned nan", r"finite")
def _(s: Scene) -> Act:
    def broken(net: nn.Module) -> float:
        return math.nan

    return lambda: rf.compress(s.net, s.x, budget="params<=50%", evaluate=broken, output=s.folder / "out")


@case("metric text", e.MetricError, r"'broken' must return a number", r"Got str")
def _(s: Scene) -> Act:
    def broken(net: nn.Module) -> str:
        return "good"

    return lambda: rf.compress(s.net, s.x, budget="params<=50%", evaluate=broken, output=s.folder / "out")


@case("metric that is no callable", e.MetricError, r"callable", r"Got 0\.9")
def _(s: Scene) -> Act:
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", evaluate=0.9)


@case("metric that raises its own error", ZeroDivisionError, r"my own")
def _(s: Scene) -> Act:
    def broken(net: nn.Module) -> float:
        raise ZeroDivisionError("my own")

    return lambda: rf.compress(s.net, s.x, budget="params<=50%", evaluate=broken, output=s.folder / "out")


@case("epochs 0", e.ConfigError, r"epochs", r"at least 1", r"Got 0")
def _(s: Scene) -> Act:
    return lambda: rf.FineTune(epochs=0)


@case("learning rate negative", e.ConfigError, r"lr", r"above 0", r"Got -0\.1")
def _(s: Scene) -> Act:
    return lambda: rf.FineTune(lr=-0.1)


@case("optimizer unknown", e.UnknownNameError, r"optimizer 'adam-w'", r"Did you mean 'adamw'")
def _(s: Scene) -> Act:
    return lambda: rf.FineTune(optimizer="adam-w")


@case("best epoch without a metric", e.ConfigError, r"keep='best'", r"evaluate=")
def _(s: Scene) -> Act:
    tune = rf.FineTune(data=[s.x], keep="best")
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", finetune=tune, output=s.folder / "out")


@case("loss unknown", e.UnknownNameError, r"'destill'", r"Did you mean 'distill'")
def _(s: Scene) -> Act:
    return lambda: rf.FineTune(loss="task+destill")


@case("fine-tuning that is no config", e.ConfigError, r"finetune", r"FineTune", r"Got dict")
def _(s: Scene) -> Act:
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", finetune={"epochs": 1})


@case("fine-tuning without data", e.DataError, r"fine-tuning", r"data")
def _(s: Scene) -> Act:
    def metric(net: nn.Module) -> float:
        pytest.fail("work was done before the options were looked at")

    tune = rf.FineTune(epochs=1)
    return lambda: rf.compress(
        s.net, s.x, budget="params<=50%", finetune=tune, evaluate=metric, output=s.folder / "out"
    )


@case("fine-tuning on no batches", e.DataError, r"fine-tuning", r"no batch|empty")
def _(s: Scene) -> Act:
    tune = rf.FineTune(epochs=1, data=[])
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", finetune=tune, output=s.folder / "out")


@case("labels missing for the task loss", e.DataError, r"task", r"labels", r"distill")
def _(s: Scene) -> Act:
    small, tune = rf.apply(s.net, s.plan()), rf.FineTune(epochs=1, data=[s.x], loss="task")
    s.watched.append(small)
    return lambda: rf.finetune(small, tune)


@case("teacher missing for distillation", e.ConfigError, r"distill", r"teacher")
def _(s: Scene) -> Act:
    small, tune = rf.apply(s.net, s.plan()), rf.FineTune(epochs=1, data=[s.x], loss="distill")
    s.watched.append(small)
    return lambda: rf.finetune(small, tune)


@case("target without a metric", e.ConfigError, r"target", r"metric")
def _(s: Scene) -> Act:
    tune = rf.FineTune(epochs=1, data=s.labeled, target=0.9)
    return lambda: rf.compress(s.net, s.x, budget="params<=50%", finetune=tune, output=s.folder / "out")


@case("loss becomes NaN", e.ModelError, r"loss became (nan|inf)", r"step \d", r"Lower lr")
def _(s: Scene) -> Act:
    small = rf.apply(s.net, s.plan())
    tune = rf.FineTune(epochs=9, data=s.labeled, lr=1e30, max_grad_norm=None, warmup=0, weight_decay=0.0)
    s.watched.append(small)
    return lambda: rf.finetune(small, tune, teacher=s.net)


@case("metric NaN during fine-tuning", e.MetricError, r"'broken' returned nan", r"epoch 1")
def _(s: Scene) -> Act:
    def broken(net: nn.Module) -> float:
        return math.nan

    small, tune = rf.apply(s.net, s.plan()), rf.FineTune(epochs=1, data=s.labeled)
    s.watched.append(small)
    return lambda: rf.finetune(small, tune, metric=broken)


# --- the table ---


@pytest.mark.parametrize("bad", CASES)
def test_bad_input(bad: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch)
    act = bad.prepare(scene)
    before = _state(scene)
    with pytest.raises((e.RankfoldError, ZeroDivisionError)) as caught:
        act()
    monkeypatch.undo()
    error = caught.value
    assert type(error) is bad.error, f"{type(error).__name__}: {error}"
    if issubclass(bad.error, e.RankfoldError):
        assert isinstance(error, e.RankfoldError)
    for pattern in bad.patterns:
        assert re.search(pattern, str(error)), f"no {pattern!r} in: {error}"
    assert _state(scene) == before


def test_table_is_as_long_as_promised() -> None:
    assert len(CASES) >= 30
    assert len({param.id for param in CASES}) == len(CASES)


def test_state_notices_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the table: every kind of change is seen."""
    scene = Scene(tmp_path, monkeypatch)
    seen = [_state(scene)]

    def noticed() -> None:
        seen.append(_state(scene))
        assert seen[-1] != seen[-2]

    with torch.no_grad():
        scene.net.fc1.bias[0] += 1
    noticed()
    scene.net.norm.eval()
    noticed()
    scene.net.relu1 = nn.ReLU()
    noticed()
    scene.net.fc1.requires_grad_(False)
    noticed()
    scene.file("left.tmp", "x")
    noticed()
    scene.file("left.tmp", "y")
    noticed()
    torch.rand(1)
    noticed()


def test_zero_weight_works(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 8))
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(net[3].bias)
    x = torch.randn(1, 4, 3, 3)
    for strategy in ("energy", "uniform", "vbmf"):
        result = rf.compress(net, x, budget="params<=50%", strategy=strategy, output=tmp_path / strategy)
        assert sorted(result.plan.factored) == ["0", "3"]
        assert torch.equal(result.model(x), torch.ones(1, 8))
        assert all(choice.error == 0 for choice in result.plan.factored.values())
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "energy", damaged)
    assert torch.equal(rf.load(damaged, net)(x), torch.ones(1, 8))


def test_plan_choices_may_be_a_choice() -> None:
    net, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(1, 8)
    plan = rf.plan(net, x, overrides={"0": Choice(method="svd", ranks=(2,))})
    assert plan.layers["0"].ranks == (2,)
