"""What is taken from a cache or a checkpoint is of the same model, data and options: also of what no tensor shows."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rankfold as rf
from rankfold._hashing import content_hash
from rankfold.api.identity import identity
from rankfold.errors import ConfigError, RankfoldWarning
from rankfold.evaluation import output_error

X = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


class Hidden:
    """A batch without a tensor that could be seen."""

    def __init__(self, seed: int) -> None:
        self.pixels = torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)).tolist()


class Net(nn.Module):
    """Has two heads, an option, a closure and a buffer that is not stored, none of which its state dict shows."""

    def __init__(self, head: int = 1, power: float = 1.0, gain: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 8), nn.Linear(24, 8)
        self.head, self.act = head, lambda x: torch.relu(x) ** power
        self.options = {"gain": [gain]}
        self.register_buffer("scale", torch.linspace(1, scale, 8), persistent=False)

    def forward(self, x: Any) -> Tensor:
        if isinstance(x, Hidden):
            x = torch.tensor(x.pixels)
        elif isinstance(x, list):
            x = torch.stack([torch.tensor(one.pixels).mean(0) for one in x])
        elif isinstance(x, dict):
            x = torch.tensor(x["object"].pixels)
        h = self.act(self.a(x))
        y = self.first(h) + self.second(h) if self.head == 1 else self.second(h) * self.first(h)
        return (y.exp() if self.options["gain"][0] > 1 else y) * self.scale


def plan(net: nn.Module, data: Any, cache: Path | None, **options: Any) -> tuple[Any, Any]:
    found = rf.plan(net.eval(), X, budget="params<=55%", methods="svd", calibration=data, cache=cache, **options)
    return found.layers, found.provenance.search


def tensors(seed: int = 1) -> list[Tensor]:
    return [torch.randn(32, 16, generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("proxy", ["network", "fisher"])
@pytest.mark.parametrize("change", [{"head": 2}, {"power": 3.0}, {"gain": 2.0}, {"scale": 9.0}])
def test_what_the_state_dict_does_not_show(change: dict[str, Any], proxy: str, tmp_path: Path) -> None:
    options = {"strategy": rf.CompressNAS(proxy=proxy)}
    first, right = plan(Net(), tensors(), None, **options), plan(Net(**change), tensors(), None, **options)
    assert first != right, "the case tells nothing"
    assert plan(Net(), tensors(), tmp_path, **options) == first
    assert plan(Net(**change), tensors(), tmp_path, **options) == right
    assert plan(Net(), tensors(), tmp_path, **options) == first


@pytest.mark.parametrize("rounds", [0, 1])
@pytest.mark.parametrize("wrap", [lambda h: (h,), lambda h: ([h, h, h],), lambda h: ((({"object": h}),), None)])
def test_batches_that_cannot_be_seen_are_not_cached(wrap: Any, rounds: int, tmp_path: Path) -> None:
    options = {"data_aware": False, "strategy": rf.CompressNAS(rounds=rounds)}
    for seed in (1, 2):
        data = [wrap(Hidden(seed))]
        right = plan(Net(), data, None, **options)
        with pytest.warns(RankfoldWarning, match="the cache is not used") as caught:
            assert plan(Net(), data, tmp_path, **options) == right
        assert len(caught) == 1
    assert not list(tmp_path.glob("*.json"))
    plan(Net(), tensors(), tmp_path, **options)
    assert list(tmp_path.glob("*.json"))


def test_an_object_beside_tensors_is_known_by_the_outputs(tmp_path: Path) -> None:
    class Optioned(Net):
        def forward(self, x: Any, option: Any = None) -> Tensor:
            y = super().forward(x)
            return y if option is None else (y * option.factor).exp()

    class Option:
        def __init__(self, factor: float) -> None:
            self.factor = factor

    found = []
    for factor in (0.1, 4.0):
        data = [((tensors()[0], Option(factor)), None)]
        found.append(plan(Optioned(), data, tmp_path))
        assert found[-1] == plan(Optioned(), data, None)
    assert found[0] != found[1]


def test_hashes_of_contents() -> None:
    x = torch.arange(4.0)
    values: list[Any] = [
        x, x.double(), x.reshape(2, 2), [x], [x, x], {"a": x}, {"b": x}, None, 1, 1.0, True, "1", b"1", (), [], {},
        ["ab", "c"], ["a", "bc"], x.numpy(), x.bfloat16(), torch.view_as_complex(x.reshape(2, 2)), (x, object()),
    ]  # fmt: skip
    hashes = [content_hash(value) for value in values]
    assert None not in hashes
    assert len(set(hashes)) == len(values)
    assert hashes[0] == content_hash(x.clone())
    endless: list[Any] = []
    endless.append(endless)
    for hidden in (object(), [object()], {"a": object()}, (1, "text", object()), endless):
        assert content_hash(hidden) is None


def scored(threshold: float) -> Any:
    def share(model: nn.Module) -> float:
        return float((model(X) > threshold).float().mean())

    return share


class Own:
    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def __call__(self, model: nn.Module) -> float:
        return scored(self.threshold)(model)


@pytest.mark.parametrize(
    "make", [scored, Own, lambda t: functools.partial(lambda t, m: scored(t)(m), t), lambda t: Own(t).__call__]
)
def test_the_metric_of_a_sweep_is_known_by_its_options(make: Any, tmp_path: Path) -> None:
    assert identity(make(0.1)) != identity(make(0.1 + 1e-9))
    assert identity(make(0.1)) == identity(make(0.1))
    assert json.dumps(identity(make(0.1)))

    def metrics(value: float, cache: Path | None) -> Any:
        found = rf.sweep(Net().eval(), X, points=3, methods="svd", evaluate=make(value), cache=cache)
        return [point.metric for point in found.points]

    assert metrics(0.1, tmp_path) == metrics(0.1, None)
    assert metrics(0.3, tmp_path) == metrics(0.3, None)


def test_all_data_of_a_metric_counts(tmp_path: Path) -> None:
    """The first batch is the same."""
    common, values = tensors(3)[0], []
    for seed in (4, 5):
        loader = DataLoader(TensorDataset(torch.cat([common, tensors(seed)[0]])), batch_size=32)
        metric = output_error(Net().eval(), loader)  # 0 for the dense model, whatever the data
        found = [
            rf.sweep(Net().eval(), X, points=["params<=40%"], evaluate=metric, cache=cache).points[0].metric
            for cache in (tmp_path, None)
        ]
        assert found[0] == found[1]
        values.append(found[0])
    assert values[0] != values[1]


class Head(Net):
    def __init__(self, head: int) -> None:
        super().__init__(head)


def tuned(folder: Path, data: Any, teacher: nn.Module, epochs: int = 1) -> Any:
    return rf.finetune(Net(), rf.FineTune(data=data, epochs=epochs, checkpoint=folder), teacher=teacher)


def test_a_checkpoint_of_other_data_or_another_teacher(tmp_path: Path) -> None:
    first = tuned(tmp_path, tensors(), Head(1))
    assert first.resumed_from is None
    assert tuned(tmp_path, tensors(), Head(1)).resumed_from == 1
    with pytest.warns(RankfoldWarning, match="first batch differs"):
        tuned(tmp_path, tensors(2), Head(1))
    with pytest.raises(ConfigError, match=r"outputs of the teacher.*has other outputs"):
        tuned(tmp_path, tensors(), Head(2))
    with pytest.raises(ConfigError, match="outputs of the model"):
        rf.finetune(Net(power=3.0), rf.FineTune(data=tensors(), epochs=1, checkpoint=tmp_path), teacher=Head(1))
