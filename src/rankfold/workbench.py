"""The workbench of iterative strategies: applies plans; trains, measures and compares the models of one problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cosine_similarity

from rankfold._tensors import float_tensors, model_device, to_device
from rankfold.batches import batch_size, iterate, split_batch
from rankfold.candidates.outputs import check_taps, tapped
from rankfold.errors import ConfigError, DataError
from rankfold.evaluation import as_metric, evaluate
from rankfold.inventory import run_batch, stored_weight, undisturbed
from rankfold.records import Plan
from rankfold.strategies import Batch, Handle, Need, need_text
from rankfold.surgery import copy_model
from rankfold.surgery.approximate import bake_weights_
from rankfold.tune import FineTune, Step, TuneResult, finetune_
from rankfold.tune.losses import Task

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, eq=False)
class CompressedModel:
    """A compressed model, as a handle references it, with the result of its last fine-tuning."""

    model: nn.Module
    tuned: TuneResult | None = None


M = TypeVar("M", bound=CompressedModel)


class Bench(Generic[M]):
    """A `rankfold.strategies.Workbench` for one model.

    `make` applies a plan to a copy of the original, which is left untouched. `batches` is calibration data that can be
    iterated over repeatedly. `kept` is the model that the strategy passed to `keep` last, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        make: Callable[[Plan], M],
        *,
        batches: Iterable[Any] | None = None,
        metric: Callable[[nn.Module], float] | None = None,
        recipe: FineTune | None = None,
    ) -> None:
        self.model = model
        self._make = make
        self._batches = batches
        self._metric = None if metric is None else as_metric(metric)
        self._recipe = recipe
        self._trained = 0
        self.kept: M | None = None

    def apply(self, plan: Plan) -> Handle:
        """Return a copy of the original with a plan applied."""
        return Handle(self._make(plan))

    def finetune(self, model: Handle) -> None:
        """Train a model in place; each training has a separate checkpoint."""
        compressed, self._trained = _compressed(model), self._trained + 1
        recipe = own_checkpoint(_given(self._recipe, "recipe"), f"round-{self._trained}")
        metric = self._metric if recipe.uses_metric else None
        compressed.tuned = finetune_(compressed.model, recipe, teacher=self.model, metric=metric)
        compressed.model = compressed.tuned.model

    def evaluate(self, model: Handle | None = None) -> float:
        """Return the metric of a model, or of the original, which is measured once."""
        return self._dense if model is None else evaluate(_compressed(model).model, _given(self._metric, "metric"))

    def drop(self, model: Handle) -> float:
        """Return by how much the metric of a model is worse than that of the original."""
        return _given(self._metric, "metric").drop(self._dense, self.evaluate(model))

    def similarity(self, model: Handle, modules: Sequence[str]) -> dict[str, float]:
        """Return the mean cosine similarity of each module's outputs in the model and in the original."""
        networks = (_compressed(model).model, self.model)
        for network in networks:
            check_taps(network, modules)
        sums, counts = dict.fromkeys(modules, 0.0), dict.fromkeys(modules, 0)
        for number, batch in enumerate(self.batches(), 1):
            ours, theirs = (_feature_maps(network, batch, modules, number) for network in networks)
            for name in modules:
                for a, b in zip(ours[name], theirs[name], strict=True):
                    values = _cosines(a, b.to(a.device))
                    sums[name] += float(values.sum())
                    counts[name] += len(values)
        unseen = [name for name in modules if not counts[name]]
        if unseen:
            raise DataError(
                f"no calibration sample reaches module {unseen[0]!r}. Use other samples, or omit the module."
            )
        return {name: sums[name] / counts[name] for name in modules}

    def keep(self, model: Handle) -> None:
        """Select the model of the plan that the strategy is going to return."""
        self.kept = cast("M", _compressed(model))

    def batches(self) -> Iterator[Batch]:
        """Yield the calibration data."""
        return cast("Iterator[Batch]", iterate(_given(self._batches, "calibration"), "calibration"))

    def loss(self, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the task loss with some layers' weights replaced: that of the recipe, or the cross-entropy."""
        inputs, target = split_batch(to_device(batch, model_device(self._work)))
        if target is None:
            raise DataError(f"the loss needs {need_text('labels')}")
        call = partial(_call, self._work, self._stored(weights))
        with undisturbed(self._work):
            outputs = run_batch(cast("nn.Module", call), inputs, "calibration data", graph=True)
            step = Step(
                inputs=inputs, target=target, samples=batch_size(inputs), total=batch_size(inputs), outputs=outputs
            )
            return Task.of(self._recipe or FineTune()).loss(step)

    def _stored(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters that hold the weights of some layers, by name, packed or transposed like them."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self._work.named_parameters()}
        stored: dict[str, Tensor] = {}
        for name, weight in weights.items():
            parameter, view = stored_weight(self._work, name)
            whole = stored.setdefault(names[parameter], parameter.detach().clone())
            view(whole).copy_(weight)
        return stored

    @cached_property
    def _dense(self) -> float:
        return evaluate(self.model, _given(self._metric, "metric"))

    @cached_property
    def _work(self) -> nn.Module:
        """A copy of the original whose weights are plain parameters."""
        return bake_weights_(copy_model(self.model)).requires_grad_(False)


def own_checkpoint(recipe: FineTune, label: str) -> FineTune:
    """Return the recipe with a separate checkpoint, for one of several trainings."""
    if recipe.checkpoint is None:
        return recipe
    path, label = Path(recipe.checkpoint), label.replace(".", "_")
    if path.suffix and not path.is_dir():
        return replace(recipe, checkpoint=path.with_name(f"{path.stem}-{label}{path.suffix}"))
    return replace(recipe, checkpoint=path / label)


def _given(value: T | None, need: Need) -> T:
    """Return what the user passed; raise `ConfigError` if it is missing."""
    if value is None:
        raise ConfigError(f"the strategy needs {need_text(need)}")
    return value


def _compressed(model: Handle) -> CompressedModel:
    if not isinstance(model, CompressedModel):
        raise ConfigError(f"a workbench takes the models that it returned. Got {type(model).__name__} instead.")
    return model


def _feature_maps(network: nn.Module, batch: Batch, modules: Sequence[str], number: int) -> dict[str, list[Tensor]]:
    """Return the outputs of some modules for one batch."""
    inputs = to_device(split_batch(batch)[0], model_device(network))
    with ExitStack() as stack:
        stack.enter_context(undisturbed(network))
        taken = {name: stack.enter_context(tapped(network, [name])) for name in modules}
        torch.default_generator.manual_seed(0)  # restored by `undisturbed`; both networks draw the same numbers
        run_batch(network, inputs, f"calibration batch {number}")
    return {name: float_tensors(outputs) for name, outputs in taken.items()}


def _cosines(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the cosine similarity of each sample's values; 1 where both are zero."""
    a, b = ours.detach().float().flatten(1), theirs.detach().float().flatten(1)
    both_zero = ~(a.any(1) | b.any(1))
    return torch.where(both_zero, torch.ones_like(a[:, 0]), cosine_similarity(a, b, eps=0.0))


def _call(network: nn.Module, parameters: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    return functional_call(network, dict(parameters), args, kwargs)
