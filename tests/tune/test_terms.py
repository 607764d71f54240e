"""Loss terms and whole objectives from outside: registered, handed over as objects, with parameters of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rankfold.errors import ConfigError, DataError, ModelError, UnknownNameError
from rankfold.tune import FineTune, Step, Task, Term, finetune, finetune_, terms

Compress = Callable[..., nn.Module]
Loader = DataLoader[tuple[Tensor, ...]]


class Features(Term):
    """The mean squared difference of two layers' outputs, seen by taps."""

    name = "features"
    needs_teacher = True
    weight = 0.5

    def __init__(self, paths: tuple[str, ...] = ("0", "3")) -> None:
        self.paths, self.calls = paths, list[tuple[str, Tensor]]()

    def start(self, student: nn.Module, teacher: nn.Module | None) -> tuple[str, ...]:
        assert isinstance(teacher, nn.Module)
        return self.paths

    def teacher_ran(self, step: Step, outputs: Any) -> None:
        self.calls = []
        assert [len(outputs[path]) for path in self.paths] == [1] * len(self.paths)

    def compare(self, step: Step, path: str, ours: Tensor, theirs: Tensor) -> None:
        assert ours.requires_grad
        assert not theirs.requires_grad
        self.calls.append((path, (ours - theirs).square().mean()))

    def loss(self, step: Step) -> Tensor:
        assert [path for path, _ in self.calls] == list(self.paths)
        return torch.stack([value for _, value in self.calls]).sum()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms, "_entries", dict(terms._entries))
    terms.register(Features, summary="for this test")


@pytest.mark.usefixtures("registered")
def test_a_registered_term_is_known_by_its_name(dense: nn.Sequential, loader: Loader, compress: Compress) -> None:
    dense[2] = nn.Identity()
    small = compress(dense, **{"0": 2, "3": 2})
    (entry,) = finetune(small, FineTune(data=loader, epochs=1, loss="task+features"), teacher=dense).history
    assert entry.loss == pytest.approx(entry.terms["task"] + 0.5 * entry.terms["features"], rel=1e-5)
    assert entry.terms["features"] > 0
    assert not any(m._forward_hooks for model in (dense, small) for m in model.modules())
    with pytest.raises(ConfigError, match=r"'features' learns from the original network"):
        finetune(small, FineTune(data=loader, loss="features"))
    with pytest.raises(UnknownNameError, match="feature.*Did you mean 'features'"):
        FineTune(loss="feature")
    with pytest.raises(ValueError, match="already registered"):
        terms.register(Features, summary="")


def test_terms_are_forgotten_with_the_registration() -> None:
    with pytest.raises(UnknownNameError, match="Choose from: auto, distill, layer, task"):
        FineTune(loss="features")


def test_a_term_as_an_object(dense: nn.Sequential, loader: Loader, compress: Compress) -> None:
    dense[2] = nn.Identity()
    small = compress(dense, **{"0": 2})
    config = FineTune(data=loader, epochs=15, loss=[Features(("0",))], lr=0.05)
    result = finetune(small, config, teacher=dense)
    assert set(result.history[0].terms) == {"features"}
    assert result.history[-1].loss < result.history[0].loss
    with pytest.raises(ConfigError, match="different terms"):
        FineTune(loss=[Features(), Features()])
    with pytest.raises(ModelError, match="the model has no module 'nowhere'"):
        finetune(small, FineTune(data=loader, loss=[Features(("nowhere",))]), teacher=dense)


def test_a_checkpoint_knows_the_options_of_terms(dense: nn.Sequential, loader: Loader, tmp_path: Path) -> None:
    def run(**options: Any) -> int | None:
        config = FineTune(data=loader, epochs=1, loss=[Task(**options)], checkpoint=tmp_path)
        return finetune(dense, config).resumed_from

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, target)

    assert run(task=loss) is None
    assert run(task=loss) == 4
    with pytest.raises(ConfigError, match="another run.*weight=0.5"):
        run(task=loss, weight=0.5)


class Labels(Term):
    name = "labels"
    needs_labels = True

    def loss(self, step: Step) -> Any:
        return [1.0]


def test_what_a_term_needs_and_returns_is_checked(dense: nn.Sequential, loader: Loader, unlabeled: list[Any]) -> None:
    with pytest.raises(DataError, match="'labels' needs labels, but the first batch has no labels"):
        finetune(dense, FineTune(data=unlabeled, epochs=1, loss=[Labels()]))
    with pytest.raises(ModelError, match="'labels' must return a tensor with one number"):
        finetune(dense, FineTune(data=loader, epochs=1, loss=[Labels()]))


class Gated(nn.Module):
    """An objective with a parameter of its own: the scale of the outputs."""

    def __init__(self, model: nn.Module, teacher: nn.Module | None) -> None:
        super().__init__()
        self.model, self.gate = model, nn.Parameter(torch.ones(1))
        self.steps: list[int] = []

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        self.steps.append(step.samples)
        error = nn.functional.cross_entropy(self.model(step.inputs) * self.gate, step.target)
        return error + 0.1 * self.gate.square().sum(), {"error": error}


def test_any_module_can_be_the_objective(dense: nn.Sequential, loader: Loader, tmp_path: Path) -> None:
    made: list[Gated] = []

    def build(model: nn.Module, teacher: nn.Module | None) -> Gated:
        made.append(Gated(model, teacher))
        return made[-1]

    def groups(objective: Any) -> list[dict[str, Any]]:
        return [{"params": objective.model.parameters()}, {"params": [objective.gate], "lr": 0.5, "weight_decay": 0.0}]

    def config(**options: Any) -> FineTune:
        return FineTune(data=loader, epochs=2, objective=build, groups=groups, max_grad_norm=None, **options)

    whole = finetune(dense, config())
    assert made[0].steps == [12, 12, 12, 4] * 2
    assert set(whole.history[0].terms) == {"error"}
    gate = made[0].gate.item()
    assert abs(gate - 1) > 0.1, "it is trained at its own rate"

    def stop(info: Any) -> None:
        if info.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(dense, config(checkpoint=tmp_path, checkpoint_every=2), progress=stop)
    resumed = finetune(dense, config(checkpoint=tmp_path, checkpoint_every=2))
    assert resumed.resumed_from == 4
    assert made[2].gate.item() == gate
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))


def test_a_slow_group_hardly_moves(dense: nn.Sequential, loader: Loader) -> None:
    before = dense[0].weight.detach().clone()
    finetune_(dense, FineTune(data=loader, epochs=1, groups=lambda o: [{"params": o.parameters(), "lr": 1e-9}]))
    assert torch.allclose(dense[0].weight, before, atol=1e-6)  # type: ignore[arg-type]
    finetune_(dense, FineTune(data=loader, epochs=1))
    assert not torch.allclose(dense[0].weight, before, atol=1e-3)  # type: ignore[arg-type]


class Projected(nn.Module, Term):
    """A term with weights: they are trained along."""

    name = "projected"

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 1, bias=False)

    def loss(self, step: Step) -> Tensor:
        return (self.line(step.outputs) - 1).square().mean()


def test_a_term_that_is_a_module_is_trained(dense: nn.Sequential, loader: Loader) -> None:
    term = Projected()
    before = term.line.weight.detach().clone()
    finetune(dense, FineTune(data=loader, epochs=1, loss=["task", term]))
    assert not torch.equal(term.line.weight, before)


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"objective": lambda m, t: 3}, ConfigError, "must return a torch.nn.Module. Got int"),
        ({"objective": lambda m, t: m}, ModelError, "loss cannot handle the first batch"),
        ({"objective": "text"}, ConfigError, "objective must be a callable"),
        ({"objective": Gated, "loss": "task"}, ConfigError, "objective replaces loss"),
        ({"groups": [{}]}, ConfigError, "groups must be a callable"),
        ({"groups": lambda o: []}, ModelError, "nothing to train"),
        ({"loss": ["task", 3]}, UnknownNameError, "unknown loss term '3'"),
    ],
)
def test_errors(dense: nn.Sequential, loader: Loader, options: dict[str, Any], kind: Any, said: str) -> None:
    with pytest.raises(kind, match=said):
        finetune(dense, FineTune(data=loader, epochs=1, **options))
