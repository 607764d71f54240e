"""Fine-tuning end to end on tiny networks: it learns, and it disturbs nothing."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from rankfold._tensors import is_channels_last
from rankfold.errors import ConfigError, DataError, MetricError, ModelError, RankfoldError
from rankfold.tune import FineTune, StepInfo, finetune, finetune_
from rankfold.tune.losses import distillation

Compress = Callable[..., nn.Module]
Same = Callable[[nn.Module, nn.Module], bool]
Resumes = Callable[..., None]
Loader = DataLoader[tuple[Tensor, ...]]


class Accuracy:
    """Share of right answers on a loader's samples."""

    name = "top1"
    higher_is_better = True

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        self.modes: list[bool] = []

    def __call__(self, model: nn.Module) -> float:
        self.modes.append(model.training)
        right = [(model(x).argmax(1) == y).float() for x, y in self.batches]
        return float(torch.cat(right).mean())


def trained(dense: nn.Module, loader: Loader) -> nn.Module:
    return finetune(dense, FineTune(data=loader, epochs=30, lr=0.1)).model


def test_labels_teach(dense: nn.Sequential, loader: Loader) -> None:
    metric = Accuracy(loader)
    result = finetune(dense, FineTune(data=loader, epochs=20, lr=0.1), metric=metric)
    assert len(result.history) == 20
    assert result.steps == 80
    first, last = result.history[0], result.history[-1]
    assert (first.epoch, last.epoch) == (1, 20)
    assert last.loss < 0.5 * first.loss
    assert last.metric is not None
    assert first.metric is not None
    assert last.metric > max(0.9, first.metric)
    assert last.metric == Accuracy(loader)(result.model.eval())
    assert set(last.terms) == {"task"}
    assert last.loss == pytest.approx(last.terms["task"])
    assert not any(metric.modes), "metrics see the model in eval mode"
    assert not result.stopped_early
    assert result.resumed_from is None
    assert result.to_dict()["history"][0]["epoch"] == 1


def test_a_compressed_network_recovers_without_labels(
    dense: nn.Sequential, loader: Loader, unlabeled: list[Tensor], compress: Compress
) -> None:
    dense[2] = nn.Identity()  # dropout's noise would be most of so small a distance
    teacher = trained(dense, loader)
    small = compress(teacher, **{"0": 2, "3": 2})

    def distance(model: nn.Module) -> float:
        x = torch.cat(unlabeled)
        with torch.no_grad():
            pair = model.eval()(x), teacher.eval()(x)
            return float(distillation(*pair, kind="kl", temperature=4.0))

    before = distance(copy.deepcopy(small))
    for loss in ("auto", "distill", "layer"):
        config = FineTune(data=unlabeled, epochs=20, loss=loss, lr=0.05)
        result = finetune(small, config, teacher=teacher)
        assert distance(result.model) < 0.6 * before, loss
        assert set(result.history[0].terms) == {"distill" if loss == "auto" else loss}
        assert result.history[-1].loss < result.history[0].loss


def test_a_network_of_another_architecture_learns_from_a_teacher(
    dense: nn.Sequential, loader: Loader, unlabeled: list[Tensor], same: Same
) -> None:
    teacher = trained(dense, loader).eval()
    before = copy.deepcopy(teacher)
    student = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.LayerNorm(12), nn.Linear(12, 3))
    recipe = FineTune(data=unlabeled, loss="distill", epochs=30, lr=0.1)
    agreeing = Accuracy([(x, teacher(x).argmax(1)) for x in unlabeled])
    learned = finetune(student, recipe, teacher=teacher).model.eval()
    assert agreeing(student) < 0.7
    assert agreeing(learned) > 0.9
    assert same(teacher, before)
    with pytest.raises(ModelError, match="compares factored layers, but the model has none"):
        finetune(student, FineTune(data=unlabeled, loss="layer"), teacher=teacher)


def test_terms_add_up_by_their_weights(dense: nn.Sequential, loader: Loader, compress: Compress) -> None:
    small = compress(dense, **{"0": 3})
    config = FineTune(
        data=loader, epochs=1, loss="task+distill+layer",
        task_weight=2.0, distill_weight=3.0, layer_weight=0.25,
    )  # fmt: skip
    (entry,) = finetune(small, config, teacher=dense).history
    terms = entry.terms
    wanted = 2 * terms["task"] + 3 * terms["distill"] + 0.25 * terms["layer"]
    assert entry.loss == pytest.approx(wanted, rel=1e-5)
    assert min(terms.values()) > 0


def test_a_callable_task(dense: nn.Sequential, loader: Loader) -> None:
    def regression(outputs: Tensor, target: Tensor) -> Tensor:
        return (outputs[:, 0] - target).square().mean()

    config = FineTune(data=loader, epochs=15, task=regression, lr=0.02)
    history = finetune(dense, config).history
    assert history[-1].loss < 0.5 * history[0].loss


def test_the_input_is_left_untouched(dense: nn.Sequential, loader: Loader, same: Same) -> None:
    before, teacher = copy.deepcopy(dense), copy.deepcopy(dense)
    dense[0].eval()
    result = finetune(dense, FineTune(data=loader, epochs=1), teacher=teacher)
    assert same(dense, before)
    assert same(teacher, before)
    assert not same(result.model, before)
    for model in (dense, result.model):
        assert [m.training for m in model.children()] == [False] + [True] * 5
    assert all(m.training for m in teacher.modules())
    assert all(p.grad is None for m in (dense, result.model, teacher) for p in m.parameters())
    assert not any(m._forward_hooks for m in result.model.modules())


def test_in_place(dense: nn.Sequential, loader: Loader, same: Same) -> None:
    wanted = finetune(dense, FineTune(data=loader, epochs=1)).model
    for p in dense.parameters():
        p.grad = torch.full_like(p, 100.0)  # left over from the user's own training
    result = finetune_(dense, FineTune(data=loader, epochs=1))
    assert result.model is dense
    assert same(dense, wanted)


def test_global_generators_and_the_loaders_own_are_put_back(dense: nn.Sequential, generator: torch.Generator) -> None:
    from torch.utils.data import RandomSampler

    data = TensorDataset(torch.randn(9, 6), torch.zeros(9).long())
    sampler = RandomSampler(data, generator=generator)
    loader = DataLoader(data, batch_size=4, sampler=sampler)

    def states() -> list[Any]:
        return [
            random.getstate(),
            str(np.random.get_state()),  # noqa: NPY002
            torch.get_rng_state().tolist(),
            generator.get_state().tolist(),
        ]

    before = states()
    finetune(dense, FineTune(data=loader, epochs=1))
    assert states() == before
    torch.rand(1)
    assert states() != before


def test_equal_seeds_give_equal_weights(dense: nn.Sequential, loader: Loader, same: Same) -> None:
    def run(seed: int) -> nn.Module:
        return finetune(dense, FineTune(data=loader, epochs=2, seed=seed)).model

    first = run(0)
    torch.manual_seed(99)
    random.seed(99)
    assert same(first, run(0))
    assert not same(first, run(1))


def test_early_stop_at_the_target(dense: nn.Sequential, loader: Loader) -> None:
    values = iter([0.1, 0.5, 0.9, 0.95])
    config = FineTune(data=loader, epochs=4, target=0.9)
    result = finetune(dense, config, metric=lambda _: next(values))
    assert [e.metric for e in result.history] == [0.1, 0.5, 0.9]
    assert result.stopped_early
    assert result.steps == 12

    class Error:
        higher_is_better = False

        def __call__(self, model: nn.Module) -> float:
            return 0.2

    result = finetune(dense, FineTune(data=loader, epochs=3, target=0.25), metric=Error())
    assert len(result.history) == 1
    result = finetune(dense, FineTune(data=loader, epochs=3, target=0.15), metric=Error())
    assert len(result.history) == 3
    assert not result.stopped_early


@pytest.mark.parametrize("higher", [True, False])
def test_plateau_and_best_epoch_follow_the_metric(dense: nn.Sequential, loader: Loader, higher: bool) -> None:
    states: list[dict[str, Tensor]] = []

    class Scripted:
        higher_is_better = higher

        def __call__(self, model: nn.Module) -> float:
            states.append(copy.deepcopy(model.state_dict()))
            score = [1.0, 3.0, 2.0, 3.0, 2.0, 2.0][len(states) - 1]
            return score if higher else 4.0 - score

    config = FineTune(
        data=loader, epochs=6, lr=0.4, warmup=0, schedule="plateau", plateau_patience=1, plateau_factor=0.5, keep="best"
    )
    result = finetune(dense, config, metric=Scripted())
    assert [epoch.lr for epoch in result.history] == pytest.approx([0.4, 0.4, 0.4, 0.4, 0.2, 0.2])
    assert result.kept_epoch == 2, "the first of equals"
    kept = result.model.state_dict()
    for number, state in enumerate(states, 1):
        assert all(torch.equal(kept[name], state[name]) for name in kept) == (number == 2)


def test_plateau_of_the_training_loss(dense: nn.Sequential, loader: Loader) -> None:
    options: dict[str, Any] = {"epochs": 4, "lr": 1e-12, "optimizer": "adam", "warmup": 0, "plateau_patience": 1}
    still = nn.Sequential(nn.Linear(6, 3))
    rates = [e.lr for e in finetune(still, FineTune(data=loader, schedule="plateau", **options)).history]
    assert rates == pytest.approx([1e-12, 1e-12, 1e-12, 1e-13], rel=1e-6, abs=0)
    options["lr"] = 0.01
    rates = [e.lr for e in finetune(dense, FineTune(data=loader, schedule="plateau", **options)).history]
    assert rates == [0.01] * 4, "the loss falls"


def test_best_epoch_needs_a_metric(dense: nn.Sequential, loader: Loader) -> None:
    with pytest.raises(ConfigError, match=r"keep='best' needs a metric.*metric="):
        finetune(dense, FineTune(data=loader, keep="best"))
    values = iter([0.1, 0.9, 0.5])
    recipe = FineTune(data=loader, epochs=3, keep="best", validate=lambda _: next(values))
    tuned = finetune(dense, recipe, metric=lambda _: pytest.fail("the metric of the test data was used"))
    assert ([entry.metric for entry in tuned.history], tuned.kept_epoch) == ([0.1, 0.9, 0.5], 2)


def test_max_steps_and_the_schedule(dense: nn.Sequential, loader: Loader) -> None:
    seen: list[StepInfo] = []
    config = FineTune(data=loader, epochs=9, max_steps=6, lr=1.0, warmup=2)
    result = finetune(dense, config, progress=seen.append)
    assert result.steps == 6
    assert [e.epoch for e in result.history] == [1, 2]
    assert [i.step for i in seen] == [1, 2, 3, 4, 5, 6]
    assert {i.total for i in seen} == {6}
    assert [i.epoch for i in seen] == [1, 1, 1, 1, 2, 2]
    rates = [i.lr for i in seen]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] < 0.2
    first = sum(i.loss for i in seen[:3]) * 12 + seen[3].loss * 4
    assert result.history[0].loss == pytest.approx(first / 40, rel=1e-6)


def test_batchnorm_statistics(loader: Loader) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    for frozen in (True, False):
        config = FineTune(data=loader, epochs=1, freeze_batchnorm_statistics=frozen)
        norm = finetune(model, config, metric=lambda m: float(not m.training)).model[1]  # type: ignore[index]
        assert torch.equal(norm.running_mean, torch.zeros(8)) == frozen
        assert (norm.num_batches_tracked == 0) == frozen
        assert not torch.equal(norm.weight, torch.ones(8)), "its affine part is trained"


def test_networks_of_length_zero_are_prepared_like_others(dense: nn.Sequential, loader: Loader) -> None:
    class Sized(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def __len__(self) -> int:
            return 0

        def forward(self, x: Tensor) -> Tensor:
            assert self.training == self.trains
            return self.inner(x)

    student, teacher = Sized(copy.deepcopy(dense)), Sized(dense).train()
    student.trains, teacher.trains = True, False  # type: ignore[assignment]
    finetune_(student, FineTune(data=loader, epochs=1, loss="distill"), teacher=teacher)
    assert teacher.training


def test_channels_last_is_the_same_up_to_rounding(tmp_path: Path, resumes: Resumes) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(2))
    teacher = copy.deepcopy(model)
    data = [(torch.randn(4, 3, 8, 8), torch.randint(0, 4, (4, 16))) for _ in range(3)]
    options: dict[str, Any] = {"data": data, "epochs": 2, "loss": "task+distill"}
    seen = set[bool]()

    def metric(trained: nn.Module) -> float:
        seen.add(all(map(is_channels_last, (trained[0].weight, trained[3].weight, teacher[0].weight))))  # type: ignore[index]
        return 0.0

    plain = finetune(model, FineTune(**options), teacher=teacher, metric=metric).model
    assert seen == {False}
    seen.clear()
    config = FineTune(**options, channels_last=True, checkpoint=tmp_path / "run.pt", checkpoint_every=1)
    result = finetune(model, config, teacher=teacher, metric=metric)
    assert seen == {True}
    assert all(p.is_contiguous() for net in (result.model, teacher) for p in net.parameters())
    for one, other, start in zip(result.model.parameters(), plain.parameters(), model.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
        assert not torch.equal(one, start)
    resumes(model, replace(config, checkpoint=tmp_path / "again.pt"), result.model, teacher=teacher, metric=metric)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_bfloat16_and_clipping(dense: nn.Sequential, loader: Loader, optimizer: Any) -> None:
    options: dict[str, Any] = {"data": loader, "epochs": 12, "optimizer": optimizer, "lr": 0.1}
    full = finetune(dense, FineTune(**options))
    half = finetune(dense, FineTune(**options, mixed_precision="bf16"))
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    assert half.history[-1].loss != full.history[-1].loss
    assert half.history[-1].loss < 0.7 * half.history[0].loss
    still = finetune(dense, FineTune(**options | {"weight_decay": 0.0}, max_grad_norm=1e-12))
    moved = [
        float((a - b).abs().max().detach()) for a, b in zip(still.model.parameters(), dense.parameters(), strict=True)
    ]
    if optimizer == "sgd":  # AdamW's step does not depend on the gradient's norm
        assert max(moved) < 1e-9


def test_batches_too_small_for_batchnorm(dense: nn.Sequential) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), dense[1], nn.Linear(8, 3))
    data = [(torch.ones(n, 6), torch.zeros(n).long()) for n in (4, 4, 1)]
    with pytest.raises(DataError, match=r"batch 3 has 1 sample.*drop_last=True"):
        finetune(model, FineTune(data=data, epochs=1))
    config = FineTune(data=data, epochs=1, freeze_batchnorm_statistics=True)
    assert finetune(model, config).steps == 3


def test_a_launchers_gradient_accumulation_changes_nothing(
    dense: nn.Sequential, loader: Loader, same: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = finetune(dense, FineTune(data=loader, epochs=1)).model
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert same(finetune(dense, FineTune(data=loader, epochs=1)).model, wanted)


def test_frozen_parameters_stay(dense: nn.Sequential, loader: Loader) -> None:
    dense[0].requires_grad_(False)
    model = finetune(dense, FineTune(data=loader, epochs=1)).model
    assert torch.equal(model[0].weight, dense[0].weight)  # type: ignore[index]
    assert not torch.equal(model[3].weight, dense[3].weight)  # type: ignore[index]


def test_wrappers_are_taken_off(dense: nn.Sequential, loader: Loader, same: Same) -> None:
    plain = finetune(dense, FineTune(data=loader, epochs=1)).model
    wrapped = finetune(nn.DataParallel(dense).cpu(), FineTune(data=loader, epochs=1)).model
    assert type(wrapped) is nn.Sequential
    assert same(plain, wrapped)


@pytest.mark.parametrize("key", ["logits", "out"])
def test_keyword_batches(loader: Loader, key: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, features: Tensor) -> dict[str, Tensor]:
            return {key: self.linear(features)}

    batches = [{"features": x, "labels": y} for x, y in loader]
    teacher = Named()
    history = finetune(Named(), FineTune(data=batches, epochs=10, lr=0.1), teacher=teacher).history
    assert history[-1].terms["task"] < 0.9 * history[0].terms["task"]
    assert set(history[0].terms) == {"task", "distill"}


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(10):
            yield torch.full((6,), float(i)), torch.tensor(i % 3)


def test_data_without_a_length(dense: nn.Sequential) -> None:
    loader = DataLoader(Stream(), batch_size=4)
    result = finetune(dense, FineTune(data=loader, epochs=2))
    assert result.steps == 6
    assert result.history[-1].lr < 0.01, "the batches were counted, so the cosine ends with them"
    assert finetune(dense, FineTune(data=loader, epochs=2, max_steps=5)).steps == 5
    once = iter([(torch.ones(2, 6), torch.zeros(2).long())] * 3)
    assert finetune(dense, FineTune(data=once, epochs=1, max_steps=2)).steps == 2


def test_an_accelerator_of_the_users_own_survives(dense: nn.Sequential, loader: Loader) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    own = Accelerator(cpu=True, mixed_precision="no")
    finetune(dense, FineTune(data=loader, epochs=1, mixed_precision="bf16"))
    assert own.mixed_precision == "no"
    own.backward(torch.ones((), requires_grad=True) * 2)
    AcceleratorState._reset_state()


def empty() -> DataLoader[tuple[Tensor, ...]]:
    data = TensorDataset(torch.ones(3, 6), torch.zeros(3).long())
    return DataLoader(data, batch_size=4, drop_last=True)


def one(x: Any = None, y: Any = None) -> list[Any]:
    x = torch.ones(4, 6) if x is None else x
    return [x] if y is None else [(x, y)]


class Fading:
    """Gives its batches only once, although it looks like a list."""

    def __init__(self) -> None:
        self.left = one(y=torch.zeros(4).long())

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        while self.left:
            yield self.left.pop()


LABELS = torch.zeros(4).long()


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({}, DataError, "data="),
        ({"data": torch.ones(4, 6)}, DataError, "Got Tensor"),
        ({"data": 3}, DataError, "Got int"),
        ({"data": []}, DataError, "empty"),
        ({"data": empty()}, DataError, "drop_last"),
        ({"data": iter([])}, DataError, "iterator"),
        ({"data": iter([]), "epochs": 1}, DataError, "without a length"),
        ({"data": iter([]), "epochs": 1, "max_steps": 3}, DataError, "empty"),
        ({"data": Fading()}, DataError, "in epoch 2"),
        ({"data": one()}, DataError, "needs labels or a teacher"),
        ({"data": one(), "loss": "task"}, DataError, "needs labels"),
        ({"data": one(), "loss": "task+distill", "teacher": True}, DataError, "loss='distill'"),
        ({"data": [*one(y=LABELS), *one()]}, DataError, "batch 2 of epoch 1 has no labels"),
        ({"data": one(torch.ones(4, 5), LABELS)}, ModelError, "first batch: .*4x5"),
        ({"data": one((torch.ones(4, 6), LABELS), LABELS)}, ModelError, "first batch"),
        ({"data": [*one(y=LABELS), *one(torch.ones(4, 5), LABELS)]}, ModelError, "batch 2 of epoch 1: .*4x5"),
        ({"data": one(torch.ones(0, 6), torch.ones(0).long())}, DataError, "no samples"),
        ({"data": one(y=LABELS + 7)}, DataError, "target 7 is out of range"),
        ({"data": one(y=LABELS), "loss": "distill"}, ConfigError, "teacher="),
        ({"data": one(y=LABELS), "loss": "task+layer"}, ConfigError, "teacher="),
        ({"data": one(y=LABELS), "loss": "layer", "teacher": True}, ModelError, "has none"),
        ({"data": one(y=LABELS), "target": 0.9}, ConfigError, "metric="),
        ({"data": one(y=LABELS), "mixed_precision": "fp16"}, ConfigError, "bf16"),
        ({"data": one(y=LABELS), "task": lambda o, t: o}, ModelError, r"Got shape \(4, 3\)"),
        ({"data": one(y=LABELS), "task": lambda o, t: 1.0}, ModelError, "Got float"),
        ({"data": one(torch.full((4, 6), torch.nan), LABELS)}, ModelError, "inputs of that batch contain NaN"),
        ({"data": one(y=LABELS), "metric": float("nan")}, MetricError, "after epoch 1: .*returned nan"),
        ({"data": one(y=LABELS), "metric": None}, MetricError, "after epoch 1: .*Got NoneType"),
    ],
)
def test_errors(
    dense: nn.Sequential, same: Same, options: dict[str, Any], kind: type[RankfoldError], said: str
) -> None:
    options = dict(options)
    teacher = copy.deepcopy(dense) if options.pop("teacher", False) else None
    value = options.pop("metric", ...)
    metric: Any = None if value is ... else lambda _: value
    before = copy.deepcopy(dense)
    with pytest.raises(kind, match=said):
        finetune(dense, FineTune(**options), teacher=teacher, metric=metric)
    assert same(dense, before)


def test_divergence_names_the_step_and_keeps_the_weights(dense: nn.Sequential) -> None:
    good, bad = torch.ones(4, 6), torch.full((4, 6), 1e30)
    data = [(good, LABELS), (good, LABELS), (bad, LABELS)]
    with pytest.raises(ModelError, match=r"step 3 \(epoch 1, batch 3\).*'?task.*Lower lr"):
        finetune_(dense, FineTune(data=data, task=lambda o, _: o.square().square().sum()))
    assert all(p.isfinite().all() for p in dense.parameters())


def test_models_that_cannot_be_trained(dense: nn.Sequential, loader: Loader) -> None:
    config = FineTune(data=loader, epochs=1)
    with pytest.raises(ModelError, match="share the parameter"):
        finetune_(dense, config, teacher=dense)
    with pytest.raises(ModelError, match="lazy"):
        finetune(nn.Sequential(nn.LazyLinear(3)), config)
    with pytest.raises(ModelError, match="meta"):
        finetune(nn.Linear(6, 3, device="meta"), config)
    with pytest.raises(ModelError, match="nothing to train"):
        finetune(copy.deepcopy(dense).requires_grad_(False), config)
    with pytest.raises(ModelError, match="Got str"):
        finetune("resnet", config)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="teacher's"):
        finetune(dense, config, teacher=nn.Linear(6, 4))


class WithoutGradients(nn.Linear):
    @torch.no_grad()
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


def test_a_loss_without_gradient_is_refused() -> None:
    net = nn.Sequential(nn.Linear(6, 3), WithoutGradients(3, 3))
    with pytest.raises(ModelError, match="the loss has no gradient"):
        finetune(net, FineTune(data=[(torch.randn(4, 6), LABELS)], epochs=1))


def test_a_batch_with_a_graph_is_detached(dense: nn.Sequential) -> None:
    body = nn.Linear(2, 6)
    data = [(body(torch.randn(4, 2)), LABELS) for _ in range(2)]
    result = finetune(dense, FineTune(data=data, epochs=2))
    assert len(result.history) == 2
    assert body.weight.grad is None


def test_a_batch_of_ignored_targets_is_refused(dense: nn.Sequential) -> None:
    with pytest.raises(DataError, match="every target of a batch is -100"):
        finetune(dense, FineTune(data=[(torch.randn(4, 6), torch.full((4,), -100))], epochs=1))
