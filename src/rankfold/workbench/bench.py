"""The workbench of one model: makes, trains, measures and compares its compressed forms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from torch import Tensor, nn
from torch.func import functional_call

from rankfold._tensors import model_device, to_device
from rankfold.batches import batch_size, iterate, split_batch
from rankfold.calibration import Place, compared_places, similarities
from rankfold.errors import ConfigError, DataError
from rankfold.evaluation import as_metric, evaluate
from rankfold.inventory import evaluating, run_batch, static_inventory, stored_weight, undisturbed
from rankfold.records import LayerInfo, Plan
from rankfold.strategies import Batch, Handle, Need, need_text
from rankfold.surgery import copy_model
from rankfold.surgery.approximate import bake_weights_
from rankfold.tune import FineTune, Step, TuneResult, finetune_
from rankfold.tune.losses import Task
from rankfold.workbench.saved_loops import SavedLoops

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, eq=False)
class CompressedModel:
    """A compressed model, as a handle references it, with its last fine-tuning, its metric and the log of its loop."""

    model: nn.Module
    tuned: TuneResult | None = None
    metric: float | None = None
    rounds: Sequence[Mapping[str, Any]] = ()


M = TypeVar("M", bound=CompressedModel)


class Bench(Generic[M]):
    """A `rankfold.strategies.Workbench` for one model.

    ``make(plan, like)`` applies a plan to a copy of the original, which is left untouched; `like` is None or a
    compressed model whose values are carried over. `batches` is calibration data that can be iterated over repeatedly.
    `kept` is the model that the strategy passed to `keep` last, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        make: Callable[[Plan, nn.Module | None], M],
        *,
        batches: Iterable[Any] | None = None,
        metric: Callable[[nn.Module], float] | None = None,
        recipe: FineTune | None = None,
        loops: SavedLoops | None = None,
    ) -> None:
        self.model = model
        self._make = make
        self._batches = batches
        self._metric = None if metric is None else as_metric(metric)
        self._recipe = recipe
        self._loops = loops
        self._trained = 0
        self.kept: M | None = None

    def apply(self, plan: Plan, *, like: Handle | None = None) -> Handle:
        """Return a copy of the original with a plan applied."""
        return Handle(self._make(plan, None if like is None else _compressed(like).model))

    def finetune(self, model: Handle) -> None:
        """Train a model in place; each training has a separate checkpoint."""
        compressed, self._trained = _compressed(model), self._trained + 1
        recipe = own_checkpoint(_given(self._recipe, "recipe"), f"round-{self._trained}")
        metric = self._metric if recipe.uses_metric else None
        compressed.tuned = finetune_(compressed.model, recipe, teacher=self.model, metric=metric)
        compressed.model, compressed.metric = compressed.tuned.model, None

    def evaluate(self, model: Handle | None = None) -> float:
        """Return the metric of a model, or of the original, which is measured once."""
        if model is None:
            return self._dense
        compressed = _compressed(model)
        if compressed.metric is None:
            compressed.metric = evaluate(compressed.model, _given(self._metric, "metric"))
        return compressed.metric

    def drop(self, model: Handle) -> float:
        """Return by how much the metric of a model is worse than that of the original."""
        return _given(self._metric, "metric").drop(self._dense, self.evaluate(model))

    def places(self, layers: Sequence[str]) -> dict[str, Place]:
        """Return where feature maps of layers are compared."""
        missing = [self._layers[name] for name in layers if name not in self._places]
        if missing:
            with evaluating(self.model):  # data may draw from torch's random state
                inputs = split_batch(next(self.batches()))[0]
            self._places |= compared_places(self.model, missing, inputs)
        return {name: self._places[name] for name in layers if name in self._places}

    def similarity(self, model: Handle, layers: Sequence[str], *, samples: int = 1000) -> dict[str, float]:
        """Return the mean cosine similarity of the feature maps of layers with those of the original."""
        places = self.places(layers)
        unseen = [name for name in layers if name not in places]
        if unseen:
            raise DataError(f"no calibration sample reaches layer {unseen[0]!r}. Use other samples, or omit the layer.")
        small = _compressed(model).model
        return similarities(self.model, small, places, self.batches(), samples=samples)

    def keep(self, model: Handle, *, rounds: Sequence[Mapping[str, Any]] = ()) -> None:
        """Select the model of the plan that the strategy is going to return."""
        self.kept = cast("M", _compressed(model))
        self.kept.rounds = rounds

    def remember(self, name: str, state: Mapping[str, Any], model: Handle) -> None:
        """Save a loop with its model, if there is a cache folder."""
        if self._loops is not None:
            compressed = _compressed(model)
            tuned = None if compressed.tuned is None else compressed.tuned.to_dict()
            facts = {"trained": self._trained, "metric": compressed.metric, "tuned": tuned}
            self._loops.write(name, state, compressed.model, facts)

    def recall(self, name: str) -> tuple[dict[str, Any], Handle] | None:
        """Return a loop that was saved, with its model."""
        saved = None if self._loops is None else self._loops.read(name)
        if saved is None:
            return None
        compressed = self._make(saved.plan, None)
        saved.load_(compressed.model)
        compressed.metric, tuned = saved.facts["metric"], saved.facts["tuned"]
        if tuned is not None:
            compressed.tuned = TuneResult.from_dict(compressed.model, tuned)
        self._trained = max(self._trained, saved.facts["trained"])
        return saved.state, Handle(compressed)

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
    def _layers(self) -> dict[str, LayerInfo]:
        return {layer.name: layer for layer in static_inventory(self.model)}

    @cached_property
    def _places(self) -> dict[str, Place]:
        return {}

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


def _call(network: nn.Module, parameters: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    return functional_call(network, dict(parameters), args, kwargs)
