"""Metrics against counts made by hand."""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rankfold.api.identity import metric_identity
from rankfold.errors import ConfigError, DataError, MetricError, ModelError, RankfoldError
from rankfold.evaluation import Metric, agreement, as_metric, evaluate, output_error, top1, topk


class Scores(nn.Module):
    """Return the input as the scores, in some form."""

    def __init__(self, form: Any = None) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Any) -> Any:
        return self.form(x) if self.form else x


SCORES = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0], [1.0, 2.0, 3.0], [9.0, 8.0, 7.0]])
TARGET = torch.tensor([0, 2, 2, 2])  # places: first, second, first, third


@pytest.mark.parametrize(("k", "share"), [(1, 0.5), (2, 0.75), (3, 1.0)])
def test_topk_counts(k: int, share: float) -> None:
    loader = [(SCORES[:3], TARGET[:3]), (SCORES[3:], TARGET[3:])]
    metric = topk(loader, k)
    assert metric.samples is None
    assert metric(Scores()) == share
    assert metric(Scores()) == share
    assert metric.samples == 4
    assert metric.name == f"top-{k}"
    assert metric.higher_is_better
    assert isinstance(metric, Metric)


@given(seed=st.integers(0, 2**16), k=st.integers(1, 5), sizes=st.lists(st.integers(1, 7), min_size=1))
def test_topk_equals_numpy(seed: int, k: int, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    loader = [(torch.randn(n, 5, generator=generator), torch.randint(5, (n,), generator=generator)) for n in sizes]
    scores = torch.cat([s for s, _ in loader]).numpy()
    target = torch.cat([t for _, t in loader]).numpy()
    order = np.argsort(-scores, axis=1)[:, :k]
    assert topk(loader, k)(Scores()) == np.mean([t in row for t, row in zip(target, order, strict=True)])


Output = namedtuple("Output", ["hidden", "logits"])


@dataclass
class Data:
    hidden: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    "form",
    [
        None,
        lambda x: (x, x.flip(1)),
        lambda x: {"logits": x},
        lambda x: {"aux": x.flip(1), "out": x},
        lambda x: {"hidden": x.flip(1), "logits": x},
        lambda x: Output(x.flip(1), x),
        lambda x: Data(x.flip(1), x),
    ],
)
def test_scores_are_found_in_the_output(form: Any) -> None:
    assert top1([(SCORES, TARGET)])(Scores(form)) == 0.5
    assert top1([(SCORES, TARGET)])(Scores(lambda x: x.flip(1))) != 0.5


def test_forms_of_batches_and_targets() -> None:
    for target in (TARGET, TARGET.int(), TARGET.numpy(), TARGET.tolist(), TARGET[:, None]):
        assert top1([(SCORES, target)])(Scores()) == 0.5
    for key in ("labels", "label", "target"):
        assert top1([{"x": SCORES, key: TARGET}])(Scores()) == 0.5
    assert top1(iter([(SCORES, TARGET)]))(Scores()) == 0.5


def test_positions_pixels_and_ignored_targets() -> None:
    tokens = SCORES.reshape(2, 2, 3)
    assert top1([(tokens, TARGET.reshape(2, 2))])(Scores()) == 0.5
    pixels = SCORES.T.reshape(1, 3, 2, 2)
    assert top1([(pixels, TARGET.reshape(1, 2, 2))])(Scores()) == 0.5
    ignored = torch.tensor([0, -100, 2, -100])
    assert top1([(SCORES, ignored)])(Scores()) == 1.0
    with pytest.raises(DataError, match="-100"):
        top1([(SCORES, torch.full((4,), -100))])(Scores())


def test_nan_scores_are_misses() -> None:
    broken = SCORES.clone()
    broken[0] = math.nan
    assert top1([(SCORES, TARGET)])(Scores()) == 0.5
    assert top1([(broken, TARGET)])(Scores()) == 0.25
    assert agreement(Scores(lambda x: broken), [SCORES])(Scores(lambda x: broken)) == 0.75


@pytest.mark.parametrize(
    ("loader", "kind", "message"),
    [
        ([], DataError, "evaluation data is empty"),
        (SCORES, DataError, "iterable of batches"),
        ([SCORES], DataError, r"needs labels.*Expected batches \(inputs, target\)"),
        ([{"x": SCORES}], DataError, "'labels', 'label' or 'target'"),
        ([(SCORES, TARGET + 1)], DataError, "target 3 is out of range: the model has 3 classes"),
        ([(SCORES, TARGET - 1)], DataError, "target -1 is out of range"),
        ([(SCORES, TARGET.float())], DataError, "class indices"),
        ([(SCORES, TARGET[:3])], DataError, "do not fit"),
        ([(TARGET, TARGET)], ModelError, "no class scores"),
        ([(SCORES[:, 0], TARGET)], ModelError, "no class scores"),
    ],
)
def test_topk_refuses(loader: Any, kind: type[RankfoldError], message: str) -> None:
    with pytest.raises(kind, match=message):
        top1(loader)(Scores())


def test_k_is_checked() -> None:
    for k in (0, -1, 1.5, None):
        with pytest.raises(ConfigError, match="k of topk"):
            topk([], k)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="number of classes, 3"):
        topk([(SCORES, TARGET)], 4)(Scores())


def test_agreement_needs_no_labels() -> None:
    reference = Scores()
    for loader in ([SCORES], [(SCORES, TARGET)], [{"x": SCORES}]):
        assert agreement(reference, loader)(Scores()) == 1.0
        assert agreement(reference, loader)(Scores(lambda x: x * torch.tensor([-1.0, 1, 1]))) == 0.5
    pixels = SCORES.T.reshape(1, 3, 2, 2)
    swapped = Scores(lambda x: x.roll(1, dims=1))
    assert agreement(reference, [pixels])(swapped) == 0.0
    assert agreement(reference, [pixels])(Scores(lambda x: 2 * x)) == 1.0
    with pytest.raises(DataError, match="solve the same task"):
        agreement(reference, [SCORES])(Scores(lambda x: x[:2]))
    with pytest.raises(DataError, match="empty"):
        agreement(reference, [])(reference)


def test_output_error() -> None:
    loader = [SCORES[:3], SCORES[3:]]
    metric = output_error(Scores(), loader)
    assert metric(Scores()) == 0.0
    assert metric(Scores(lambda x: 1.1 * x)) == pytest.approx(0.01)
    assert not metric.higher_is_better
    assert metric(Scores(lambda x: x + 1)) == pytest.approx(12 / float(SCORES.square().sum()))
    assert output_error(Scores(lambda x: 0 * x), loader)(Scores(lambda x: 0 * x)) == 0.0
    with pytest.raises(MetricError, match="inf"):
        evaluate(Scores(), output_error(Scores(lambda x: 0 * x), loader))
    with pytest.raises(ModelError, match="cannot be compared"):
        metric(Scores(lambda x: x[:, :2]))


def test_metrics_restore_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9), nn.BatchNorm1d(3))
    reference = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9))
    model[1].eval()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(SCORES, TARGET), 2, shuffle=True)
    random, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    for metric in (top1(loader), agreement(reference, loader), output_error(reference, loader)):
        assert evaluate(model, metric) == evaluate(model, metric)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert all(m.training for m in reference.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_what_a_metric_has_counted_is_no_part_of_what_it_is() -> None:
    loader = [(SCORES, TARGET)]
    for metric in (topk(loader, 2), as_metric(topk(loader, 2)), output_error(nn.ReLU(), loader)):
        before = metric_identity(metric.function)
        metric(Scores())
        assert metric.samples == 4
        assert metric_identity(metric.function) == before
    assert metric_identity(topk(loader, 3)) != metric_identity(topk(loader, 2))


def test_agreement_without_samples_is_refused() -> None:
    net = nn.Linear(4, 3)
    with pytest.raises(DataError, match="agreement: the batches have no samples"):
        evaluate(net, agreement(net, [torch.zeros(0, 4)]))
