"""The real runtimes run what they are asked to time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rankfold import methods
from rankfold.inventory import inspect
from rankfold.records import Call
from rankfold.testing.cases import LAYER_ZOO, LayerCase
from rankfold.timing import Target, Timer, alternating, registry

SETTLED = {"device": "cpu", "batch": 1, "threads": 1, "dtype": "float32"}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
@pytest.mark.parametrize("case", LAYER_ZOO, ids=lambda case: case.id)
def test_every_kind_of_layer_runs(case: LayerCase, name: str) -> None:
    pytest.importorskip("onnxruntime")
    runtime, target = registry.get(name), Target(runtime=name, **SETTLED)
    (layer,) = inspect(case.layer().float(), case.input().float())
    call = layer.calls[0] if layer.calls else Call(batch=1)
    blueprints = [None]
    for entry in methods.registry:
        method = entry.plugin()
        if layer.skip is None and method.supports(layer) is None:
            blueprints.append(method.blueprint(layer, tuple(max(1, most // 2) for most in method.max_ranks(layer))))
    for blueprint in blueprints:
        assert runtime.layer(layer, blueprint, call, target)() > 0


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_models_run_at_the_targets_batch_and_threads(
    name: str, net: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(alternating, "NOISY", math.inf)  # the machine may be busy
    threads = torch.get_num_threads()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    timer = Timer(net.train(), x, Target(runtime=name, batch=4, threads=1))
    assert timer.dense.ns > 0
    assert timer.compare(net).ratio > 0
    assert torch.get_num_threads() == threads
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
