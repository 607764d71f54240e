"""Analyze: how many ways each method has to make each layer smaller, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from rankfold import methods as factorizations
from rankfold._config import Code, require, spelled
from rankfold._options import options_from
from rankfold._progress import track
from rankfold._tensors import clock
from rankfold._turns import in_turn
from rankfold.api.checks import check_compressible
from rankfold.api.options import chosen_methods
from rankfold.cost.exploration import Exploration, Space, Step, explore, layer_of
from rankfold.errors import DataError, UnsupportedLayer
from rankfold.inventory import inspect, layer_weight
from rankfold.records import LayerInfo
from rankfold.records.dense import dense_cost
from rankfold.reporting.exploration import Analysis, LayerSpaces

PAPER_METHODS = ("tucker", "cp", "tt", "svd", "qr", "ttm")
"""The six of Kokhazadeh et al. (2025): three for convolutions, three for linear layers and 1x1 convolutions."""

BINS = 20

UNUSED = "not called on the example input, so its MACs are not known"

Weights = Callable[[LayerInfo], Tensor]


@in_turn
def analyze(
    model_or_layers: nn.Module | str | LayerInfo | Sequence[str | LayerInfo],
    example_input: Any = None,
    *,
    methods: Any = None,
    time: bool = False,
    include: str | type | Sequence[str | type] | None = None,
    exclude: str | type | Sequence[str | type] | None = None,
    title: str = "",
    **options: Any,
) -> Analysis:
    """Count every layer's valid rank settings for every method, and choose solutions of each compression step.

    Settings are counted without enumeration, and no layer is built (see `rankfold.cost.exploration.explore`): a network
    takes seconds instead of hours.

    Parameters
    ----------
    model_or_layers : Module, str, LayerInfo or sequence of these two
        A model; or layers by shape, such as ``"conv:3x3x512x512"`` (kernel, inputs, outputs), ``"conv:3x512x1024"``,
        ``"conv:3x3x3x32x32,stride=2,padding=1,size=16"`` or ``"linear:400x120,bias"``. Without ``size`` a
        convolution's input has 14 along each axis and without ``padding`` half of the kernel is padded.
    example_input : object, optional
        What the model is called with (a model needs it): MACs and feature maps are those of this input.
    methods : str, Method or sequence of them, optional
        Factorizations by name or with their options, or ``"all"``. By default the six of the paper: tucker, cp and tt
        for convolutions; svd, qr and ttm for linear layers and 1x1 convolutions.
    time : bool
        Also measure the time of counting, preparation and factorization at each step's solution of most equal ranks,
        once per layer shape.
    include, exclude : pattern, type or sequence of them, optional
        Layers of the model to analyze, as in `plan`.
    title : str
        Title of the analysis.
    **options
        The fields of `rankfold.cost.exploration.Exploration`, such as ``steps=(0.5,)`` or ``random=3``. The histogram
        has 20 bins by default.

    Returns
    -------
    Analysis

    Raises
    ------
    ConfigError
        If an option is out of range or a layer's text cannot be read.
    UnsupportedLayer
        If no method fits any of the layers.
    RankfoldError
        For a model that cannot be inspected; see `rankfold.errors`.

    Examples
    --------
    >>> import rankfold as rf
    >>> found = rf.analyze("conv:3x3x512x512", methods="tt")
    >>> found.layers[0].space("tt").size
    331860398
    """
    how = options_from(Exploration, {"bins": BINS, **options})
    names, method_options = resolve(methods)
    layers, kept, weights = _layers(model_or_layers, example_input, include, exclude, how.seed)
    seen: dict[tuple[LayerInfo, str], Space] = {}

    def space(layer: LayerInfo, name: str) -> Space:
        key = replace(layer, name="", aliases=(), ties=(), note=None, type_name=""), name
        if key not in seen:  # networks repeat their layers
            start = perf_counter()
            new = explore(layer, name, how, options=method_options.get(name))
            taken = perf_counter() - start
            seen[key] = _timed(replace(new, seconds=taken), layer, weights(layer)) if time else new
        return seen[key]

    found: list[LayerSpaces] = []
    for layer in track(layers, "exploring layers"):
        verdicts = {name: factorizations.get(name, method_options.get(name)).supports(layer) for name in names}
        reasons = {name: reason for name, reason in verdicts.items() if reason is not None}
        fitting = [name for name in names if name not in reasons and (methods is not None or _meant(name, layer))]
        if not fitting:
            kept[layer.name] = "; ".join(dict.fromkeys(reasons.values()))
            continue
        found.append(
            LayerSpaces(
                name=layer.name,
                layer=layer.describe(),
                group="convolutions" if layer.kernel_numel > 1 else "matrices",
                dense=dense_cost(layer),
                spaces=tuple(space(layer, name) for name in fitting),
                reasons=reasons,
            )
        )
    if not found:
        listed = "".join(f"\n  {name or 'the model'}: {reason}" for name, reason in list(kept.items())[:8])
        raise UnsupportedLayer(
            f"none of the methods {', '.join(names)} supports any of the layers. Choose other methods.{listed}"
        )
    return Analysis(
        layers=tuple(found), methods=names, steps=tuple(how.steps), tolerance=how.tolerance, random=how.random,
        seed=how.seed, cores=how.cores, useful=how.useful, kept=kept, title=title,
    )  # fmt: skip


def resolve(value: Any) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """Return names of methods, the paper's for None, and the options of those that were given as objects."""
    return chosen_methods(PAPER_METHODS if value is None else value)


def _meant(name: str, layer: LayerInfo) -> bool:
    """Whether the paper uses the method for such a layer: svd is for what is a matrix anyway."""
    return name != "svd" or layer.kernel_numel == 1


def _layers(
    given: nn.Module | str | LayerInfo | Sequence[str | LayerInfo],
    example: Any,
    include: str | type | Sequence[str | type] | None,
    exclude: str | type | Sequence[str | type] | None,
    seed: int,
) -> tuple[list[LayerInfo], dict[str, str], Weights]:
    """Return the layers, those that are left out with the reason, and where weights come from."""
    if isinstance(given, nn.Module):
        if example is None:
            raise DataError(f"a model is analyzed on an example input. Pass {spelled('example_input', Code('x'))}.")
        inventory = inspect(given, example, include=include, exclude=exclude)
        check_compressible(inventory)
        kept = {layer.name: layer.skip for layer in inventory if layer.skip is not None}
        kept |= {layer.name: UNUSED for layer in inventory.compressible if not layer.calls}
        used = [layer for layer in inventory.compressible if layer.calls]
        return used, kept, lambda layer: layer_weight(given, layer.name)
    listed = [given] if isinstance(given, str | LayerInfo) else given
    fine = isinstance(listed, Sequence) and all(isinstance(item, str | LayerInfo) for item in listed)
    wanted = "a model, layers as text such as 'conv:3x3x512x512', or LayerInfo records"
    require(fine and len(listed) > 0, "model_or_layers", given, wanted)
    require(include is None and exclude is None, "include and exclude", (include, exclude), "left out without a model")
    generator = torch.Generator().manual_seed(seed)
    layers = [layer_of(item) if isinstance(item, str) else item for item in listed]
    kept = {layer.name: layer.skip for layer in layers if layer.skip is not None}
    fitting = [layer for layer in layers if layer.skip is None]
    return fitting, kept, lambda layer: torch.randn(layer.weight_shape, generator=generator)


def _timed(space: Space, layer: LayerInfo, weight: Tensor) -> Space:
    """Measure preparing and factoring; a method is prepared once for all steps with the same options."""
    prepared: dict[tuple[Any, ...], tuple[factorizations.Prepared, float]] = {}
    steps: list[Step] = []
    for step in space.steps:
        solution = step.equal_ranks
        if solution is None:
            steps.append(step)
            continue
        key = tuple(sorted(solution.options.items()))
        if key not in prepared:
            method = factorizations.get(space.method, solution.options)
            start = clock(weight.device)
            ready = factorizations.prepare(method, weight, layer)
            prepared[key] = ready, clock(weight.device) - start
        ready, seconds = prepared[key]
        start = clock(weight.device)
        ready.factorize(solution.ranks)
        steps.append(replace(step, prepare_s=seconds, factorize_s=clock(weight.device) - start))
    return replace(space, steps=tuple(steps))
