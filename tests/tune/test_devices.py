"""Fine-tuning on an accelerator: the model is borrowed, and a metric that stays on the CPU is told so."""

from __future__ import annotations

import pytest
import torch
from accelerate import PartialState
from torch import nn

from rankfold.errors import MetricError
from rankfold.tune import FineTune, finetune

X, LABELS = torch.randn(32, 6, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def test_a_failing_metric_is_named_with_the_device() -> None:
    def broken(model: nn.Module) -> float:
        raise KeyError("accuracy")

    with pytest.raises(MetricError, match=r"'broken' failed after epoch 1 with KeyError: 'accuracy'\n.*on 'cpu'"):
        finetune(net(), FineTune(data=[(X, LABELS)], epochs=1), metric=broken)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_model_trains_on_the_gpu_and_comes_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setattr(PartialState, "_shared_state", {})  # it remembers the device of the first run of a process
    places = []

    def loss(model: nn.Module) -> float:
        device = next(model.parameters()).device
        places.append(device.type)
        return float(nn.functional.cross_entropy(model(X.to(device)), LABELS.to(device)))

    dense = net()
    result = finetune(dense, FineTune(data=[(X, LABELS)], epochs=3, lr=0.1), metric=loss)
    assert set(places) == {"cuda"}
    assert {p.device.type for p in result.model.parameters()} == {"cpu"}
    assert result.history[-1].loss < result.history[0].loss

    def at_home(model: nn.Module) -> float:
        return float(model(X).mean())

    with pytest.raises(MetricError, match="on 'cuda"):
        finetune(dense, FineTune(data=[(X, LABELS)], epochs=1), metric=at_home)
