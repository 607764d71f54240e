"""The losses of outputs, against formulas written out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rankfold.errors import DataError, ModelError
from rankfold.outputs import class_scores
from rankfold.tune.losses import cross_entropy, distillation


class Outputs(NamedTuple):
    logits: Tensor
    aux: Tensor


def by_hand(student: list[float], teacher: list[float], temperature: float) -> float:
    """T^2 * sum p log(p / q), in plain Python."""

    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(v / temperature) for v in values]
        return [p / sum(powers) for p in powers]

    q, p = softmax(student), softmax(teacher)
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_divergence_is_the_formula() -> None:
    student, teacher = [[1.0, -0.5, 2.0], [0.1, 0.2, 0.3]], [[0.5, 0.5, 1.0], [3.0, -2.0, 0.0]]
    for temperature in (1.0, 4.0):
        wanted = sum(by_hand(s, t, temperature) for s, t in zip(student, teacher, strict=True)) / 2
        args = torch.tensor(student), torch.tensor(teacher)
        found = distillation(*args, kind="kl", temperature=temperature)
        assert found.item() == pytest.approx(wanted, rel=1e-5)
        assert found.item() != pytest.approx(wanted / temperature**2 * 1.01, rel=1e-3)


def test_divergence_of_equal_outputs_is_zero(generator: torch.Generator) -> None:
    x = torch.randn(5, 4, generator=generator)
    assert distillation(x, x, kind="kl", temperature=4.0).item() == pytest.approx(0, abs=1e-6)
    # A shift of all logits is the same distribution, but not the same outputs.
    assert distillation(x + 3, x, kind="kl", temperature=4.0).item() == pytest.approx(0, abs=1e-5)
    assert distillation(x + 3, x, kind="mse", temperature=4.0).item() == pytest.approx(9, rel=1e-5)


def test_dense_predictions_average_over_pixels(generator: torch.Generator) -> None:
    s, t = torch.randn(2, 2, 4, 3, 3, generator=generator)
    pixels = distillation(s.movedim(1, -1).reshape(-1, 4), t.movedim(1, -1).reshape(-1, 4), kind="kl", temperature=2.0)
    assert torch.allclose(distillation(s, t, kind="kl", temperature=2.0), pixels)


def test_classes_of_tokens_need_a_task_of_their_own() -> None:
    with pytest.raises(DataError, match="classes last, one row per position.*FineTune"):
        cross_entropy(torch.zeros(2, 5, 7), torch.zeros(2, 5).long())
    assert cross_entropy(torch.zeros(2, 7, 5), torch.zeros(2, 5).long()).item() == pytest.approx(math.log(7))
    assert cross_entropy(torch.zeros(2, 5, 5), torch.zeros(2, 5).long()).item() == pytest.approx(math.log(5))


def test_sequences_average_over_positions(generator: torch.Generator) -> None:
    s, t = torch.randn(2, 2, 5, 4, generator=generator)  # (batch, positions, classes), as language models have it
    positions = distillation(s.reshape(-1, 4), t.reshape(-1, 4), kind="kl", temperature=2.0)
    assert torch.allclose(distillation(s, t, kind="kl", temperature=2.0), positions)
    assert not torch.allclose(distillation(s.mT, t.mT, kind="kl", temperature=2.0), positions)


def test_the_gradient_does_not_shrink_with_the_temperature() -> None:
    teacher = torch.tensor([[0.3, -0.2, 0.1]])

    def gradient(temperature: float) -> float:
        student = torch.zeros(1, 3, requires_grad=True)
        distillation(student, teacher, kind="kl", temperature=temperature).backward()
        assert student.grad is not None
        return float(student.grad.norm())

    assert gradient(20.0) == pytest.approx(gradient(2.0), rel=0.1)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: {"logits": x, "loss": 1},
        lambda x: Outputs(x, x + 1),
        lambda x: SimpleNamespace(logits=x),
        lambda x: (x, x + 1),
        lambda x: [x],
        lambda x: {"out": x, "aux": x + 1},
        lambda x: SimpleNamespace(out=x),
    ],
)
def test_class_scores_are_found(wrap: Any) -> None:
    x = torch.ones(2, 3)
    assert class_scores(wrap(x)) is x


@pytest.mark.parametrize("outputs", [{"boxes": torch.ones(2)}, "x", (), torch.ones(2).long()])
def test_no_class_scores(outputs: Any) -> None:
    with pytest.raises(ModelError, match="no class scores"):
        class_scores(outputs)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ModelError, match=r"\(2, 3\), the teacher's \(2, 4\)"):
        distillation(torch.ones(2, 3), torch.ones(2, 4), kind="kl", temperature=1.0)


def test_cross_entropy(generator: torch.Generator) -> None:
    x, y = torch.randn(4, 3, generator=generator), torch.tensor([0, 2, 1, 1])
    wanted = -torch.log_softmax(x, 1)[range(4), y].mean()
    assert torch.allclose(cross_entropy(x, y), wanted)
    assert torch.allclose(cross_entropy(x, y.int()), wanted)
    assert torch.allclose(cross_entropy(x, y[:, None]), wanted)
    assert torch.allclose(cross_entropy(x, torch.eye(3)[y].double()), wanted)
    assert not torch.allclose(cross_entropy(x, y.flip(0)), wanted)
    ignored = torch.tensor([0, -100, -100, -100])
    assert torch.allclose(cross_entropy(x, ignored), -torch.log_softmax(x, 1)[0, 0])


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (torch.tensor([0, 3]), "target 3 is out of range"),
        (torch.tensor([-1, 0]), "target -1 is out of range"),
        (torch.tensor([0, 1, 2]), "cannot compare"),
        ([{"boxes": 1}], "one tensor"),
    ],
)
def test_cross_entropy_refuses(target: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        cross_entropy(torch.ones(2, 3), target)
