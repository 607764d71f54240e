"""RENE's layer distillation, against equation 10 written out with plain loops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.errors import ModelError
from rankfold.inventory import layer_weight
from rankfold.surgery import factored_layers
from rankfold.tune import LAYERWISE, FineTune, Step
from rankfold.tune.objective import Objective

Compress = Callable[..., nn.Module]


class Net(nn.Module):
    """Convolutions, one of them used twice, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.twice(self.twice(x).relu())
        return self.head(x.mean((2, 3)))


def outputs(model: nn.Module, names: list[str], x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    handles = [model.get_submodule(n).register_forward_hook(lambda _m, _a, out: found.append(out)) for n in names]
    model(x)
    for handle in handles:
        handle.remove()
    return found


def term(student: nn.Module, teacher: nn.Module, x: Any, **options: Any) -> float:
    config = FineTune(loss="layer", layer_weight=1.0, **options)
    objective = Objective(student, teacher, config)
    loss, parts = objective(Step(inputs=x, samples=x.shape[0], total=x.shape[0]))
    objective.close()
    assert parts == {"layer": loss.detach()}
    return float(loss.detach())


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.randn(5, 3, 6, 6, generator=generator)


def test_the_three_scales_are_the_formula(compress: Compress, images: Tensor) -> None:
    teacher = Net()
    student = compress(teacher, stem=4, twice=3)
    names = list(factored_layers(student))
    assert names == ["stem", "twice"]
    weights = [(layer_weight(teacher, n), layer.weight.detach()) for n, layer in factored_layers(student).items()]
    pairs = list(zip(outputs(teacher, names, images), outputs(student, names, images), strict=True))
    assert len(pairs) == 3

    def squared(t: Tensor) -> float:
        return float(t.detach().double().square().sum())

    raw = sum(squared(w - v) for w, v in weights) + sum(squared(o - d) for o, d in pairs)
    assert raw > 1
    assert term(student, teacher, images, layer_scale="sum") == pytest.approx(raw, rel=1e-4)
    mean = sum(squared(w - v) / w.numel() for w, v in weights)
    mean += sum(squared(o - d) / o.numel() for o, d in pairs)
    assert term(student, teacher, images, layer_scale="mean") == pytest.approx(mean, rel=1e-4)
    first, *second = pairs
    relative = sum(squared(w - v) / squared(w) for w, v in weights)
    relative += squared(first[0] - first[1]) / squared(first[0])
    # Calls of one layer share a scale: the energy of all of them.
    energy = sum(squared(o) for o, _ in second)
    relative += sum(squared(o - d) for o, d in second) / energy
    assert term(student, teacher, images) == pytest.approx(relative, rel=1e-4)
    assert raw != pytest.approx(mean, rel=0.1)
    assert raw != pytest.approx(relative, rel=0.1)


def test_relative_does_not_depend_on_units_or_batch_size(compress: Compress, images: Tensor) -> None:
    teacher = Net()
    student = compress(teacher, stem=4)
    one = term(student, teacher, images)
    assert 0 < one < 2
    twice = torch.cat([images, images])
    assert term(student, teacher, twice) == pytest.approx(one, rel=1e-5)
    raw = term(student, teacher, images, layer_scale="sum")
    assert term(student, teacher, twice, layer_scale="sum") > 1.5 * raw
    with torch.no_grad():
        teacher.stem.weight *= 100
        teacher.stem.bias *= 100  # type: ignore[operator]
        last = list(student.get_submodule("stem").children())[-1]
        last.weight *= 100  # type: ignore[operator]
        last.bias *= 100  # type: ignore[operator]
    assert term(student, teacher, images) == pytest.approx(one, rel=1e-4)


def test_full_rank_has_no_distance(compress: Compress, images: Tensor) -> None:
    teacher = Net()
    assert term(compress(teacher, stem=8), teacher, images) == pytest.approx(0, abs=1e-9)
    assert term(compress(teacher, stem=7), teacher, images) > 1e-4


def test_gradients_reach_the_factors_and_not_the_teacher(compress: Compress, images: Tensor) -> None:
    teacher = Net()
    student = compress(teacher, stem=2)
    objective = Objective(student, teacher, FineTune(loss="layer"))
    objective(Step(inputs=images, samples=5, total=5))[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.get_submodule("stem").parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert student.get_submodule("head").weight.grad is None  # it was kept


def test_dead_layers_give_finite_numbers(compress: Compress, images: Tensor) -> None:
    teacher = Net()
    nn.init.zeros_(teacher.stem.weight)
    nn.init.zeros_(teacher.stem.bias)  # type: ignore[arg-type]
    assert term(compress(teacher, stem=2), teacher, images) == pytest.approx(0, abs=1e-12)


def test_hooks_go_and_a_metric_does_not_feed_them(compress: Compress, images: Tensor) -> None:
    teacher = Net()
    student = compress(teacher, stem=2)
    objective = Objective(student, teacher, FineTune(loss="layer"))
    for model in (teacher, student, student):
        model(images)  # as a metric would
    before = objective(Step(inputs=images, samples=5, total=5))[0].item()
    assert before == objective(Step(inputs=images, samples=5, total=5))[0].item()
    objective.close()
    assert not any(m._forward_hooks for m in [*teacher.modules(), *student.modules()])


def test_attention_projections(compress: Compress, generator: torch.Generator) -> None:
    teacher = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    student = compress(teacher, **{"self_attn.q_proj": 3, "self_attn.out_proj": 3, "linear1": 4})
    x = torch.randn(2, 5, 8, generator=generator)
    assert set(factored_layers(student)) == {"self_attn.q_proj", "self_attn.out_proj", "linear1"}
    before = copy.deepcopy(teacher.state_dict())
    found = term(student, teacher, x)
    assert 0 < found < 6
    full = compress(teacher, **{"self_attn.q_proj": 8, "self_attn.out_proj": 8, "linear1": 8})
    assert term(full, teacher, x) == pytest.approx(0, abs=1e-9)
    assert isinstance(teacher.self_attn, nn.MultiheadAttention), "the teacher is left as it was"
    assert before.keys() == teacher.state_dict().keys()


def test_layers_that_lost_channels_are_compared_in_the_remaining_ones(images: Tensor) -> None:
    teacher = Net().eval()
    plan = rf.plan(teacher, images, strategy=rf.Norton(ratio=0.25, rank=2))
    student, removed = rf.apply(teacher, plan), plan.narrowing.removed()
    assert set(factored_layers(student)) == {"stem", "twice"}
    assert set(removed["twice"]) == {"inputs", "outputs"}
    kept = {name: [i for i in range(8) if i not in removed[name]["outputs"]] for name in ("stem", "twice")}
    weights = {"stem": teacher.stem.weight[kept["stem"]], "twice": teacher.twice.weight[kept["twice"]][:, kept["stem"]]}
    expected = torch.zeros(())
    for name, left in kept.items():
        expected = expected + (weights[name] - student.get_submodule(name).weight).square().sum()
        for ours, theirs in zip(outputs(student, [name], images), outputs(teacher, [name], images), strict=True):
            expected = expected + (ours - theirs[:, left]).square().sum()
    assert term(student, teacher, images, layer_scale="sum") == pytest.approx(float(expected.detach()), rel=1e-5)
    assert 0 < term(student, teacher, images) < 3


def test_misfits_are_named(compress: Compress, images: Tensor) -> None:
    teacher = Net()
    with pytest.raises(ModelError, match="has none"):
        term(copy.deepcopy(teacher), teacher, images)
    other = Net()
    del other.stem
    with pytest.raises(ModelError, match="lacks the layer 'stem'"):
        term(compress(teacher, stem=2), other, images)
    wide = Net()
    wide.stem = nn.Conv2d(3, 16, 3, padding=1)
    with pytest.raises(ModelError, match=r"\(8, 3, 3, 3\) in the model"):
        term(compress(teacher, stem=2), wide, images)

    class Once(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.twice(self.stem(x).relu()).mean((2, 3)))

    with pytest.raises(ModelError, match="'twice' has an output .* none in the teacher"):
        term(compress(teacher, twice=2), Once(), images)
    once = Once()
    with pytest.raises(ModelError, match="'twice' ran more often"):
        term(compress(once, twice=2), teacher, images)


def test_the_recipe_of_the_paper_is_equation_eleven(compress: Compress, images: Tensor) -> None:
    torch.manual_seed(0)
    teacher = Net().eval()
    student = compress(teacher, stem=4, twice=3)
    labels = torch.tensor([0, 1, 2, 3, 0])
    objective = Objective(student, teacher, LAYERWISE)
    total, parts = objective(Step(inputs=images, target=labels, samples=5, total=5))
    objective.close()
    layer = term(student, teacher, images, layer_scale="mean")
    task = nn.functional.cross_entropy(student(images), labels)
    torch.testing.assert_close(total, task + 0.5 * layer)
    assert set(parts) == {"task", "layer"}
    assert (LAYERWISE.peak_lr, LAYERWISE.decay, LAYERWISE.optimizer, LAYERWISE.momentum) == (1e-5, 0, "sgd", 0.9)
