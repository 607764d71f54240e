"""Training with merged factors: the same steps as through the stages, which do not run."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankfold.records import Choice, Plan
from rankfold.surgery import Factored, apply_plan_
from rankfold.surgery.merged import merged
from rankfold.tune import FineTune, finetune


def test_merged_factors_train_the_same_up_to_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumes: Callable[..., None]
) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(288, 4)
    )
    choices = {
        "0": Choice(method="filterwise_cp", ranks=(2,)),
        "3": Choice(method="tucker", ranks=(4, 4)),
        "5": Choice(),
    }
    model = copy.deepcopy(dense)
    apply_plan_(model, Plan(layers=choices))
    data = [(torch.randn(4, 3, 8, 8), torch.randint(0, 4, (4,))) for _ in range(3)]
    options: dict[str, Any] = {"data": data, "epochs": 2, "loss": "task+distill+layer", "lr": 0.1}
    runs: Counter[str] = Counter()
    run = Factored.forward

    def counted(module: Factored, x: torch.Tensor) -> torch.Tensor:
        runs["training" if module.training else "metric"] += 1
        return run(module, x)

    monkeypatch.setattr(Factored, "forward", counted)

    def metric(trained: nn.Module) -> float:
        return float(trained(data[0][0]).detach().sum())

    apart = finetune(model, FineTune(**options), teacher=dense, metric=metric).model
    assert runs == {"training": 12, "metric": 4}
    runs.clear()
    config = FineTune(**options, merge_factors=True, checkpoint=tmp_path / "run.pt", checkpoint_every=1)
    result = finetune(model, config, teacher=dense, metric=metric)
    assert set(runs) == {"metric"}  # which measures the layers as they will run
    for one, other, start in zip(result.model.parameters(), apart.parameters(), model.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)
        assert not torch.equal(one, start)
    resumes(model, replace(config, checkpoint=tmp_path / "again.pt"), result.model, teacher=dense, metric=metric)


@pytest.mark.parametrize("what", ["hook", "adapter", "forward", "forward of a stage"])
def test_stages_that_do_more_than_stock_layers_are_not_merged(what: str, compress: Callable[..., nn.Module]) -> None:
    class Adapter(nn.Linear):
        pass

    dense = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 8))
    model = compress(dense, **{"0": 2, "1": 2})
    layer = model.get_submodule("0")
    if what == "hook":
        layer[0].register_forward_hook(lambda *_: None)  # type: ignore[index]
    elif what == "adapter":
        layer[0].__class__ = Adapter  # type: ignore[index]
    elif what == "forward of a stage":
        layer[0].forward = lambda x: x[:, :2]  # type: ignore[index]
    else:
        layer.forward = lambda x: x[:, :8]  # type: ignore[method-assign]
    expected = model(torch.ones(1, 12))
    with merged(model) as layers:
        assert layers == ["1"]
        assert torch.allclose(model(torch.ones(1, 12)), expected, atol=1e-6)
    assert torch.equal(model(torch.ones(1, 12)), expected)
