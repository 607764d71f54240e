"""Factored layers: any blueprint as a module made of stock ``torch.nn`` layers."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.factor.gauge import Gauge
from rankfold.factor.linalg import double
from rankfold.methods import compose
from rankfold.records import (
    BiasSpec,
    Blueprint,
    Choice,
    ConvSpec,
    GaugedSpec,
    LayerInfo,
    LinearSpec,
    ReshapeSpec,
    Size,
    Stage,
)
from rankfold.surgery.composed import guarded, refuse_computed, refuse_write
from rankfold.surgery.gauged import Gauged, GaugedInput, GaugedOutput
from rankfold.surgery.gauging import check_gauge, gauge_factors
from rankfold.surgery.rescaling import grouped, output_scales, scale_outputs_, set_bias_
from rankfold.surgery.stock import uninitialised


class Reshape(nn.Module):
    """View the input as ``(-1, *tail)``."""

    def __init__(self, tail: Sequence[int]) -> None:
        super().__init__()
        self.tail = tuple(tail)

    def forward(self, x: Tensor) -> Tensor:
        """Return the view."""
        return x.reshape(-1, *self.tail)

    def extra_repr(self) -> str:
        """Show the shape."""
        return f"-1, {', '.join(map(str, self.tail))}"


class Bias(nn.Module):
    """Add a vector along the last dimension."""

    def __init__(self, features: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(features, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        return x + self.bias.to(x.dtype)  # under autocast x has less precision, as the output of nn.Linear has


class Factored(nn.Sequential):
    """A layer replaced by stages that compute a low-rank approximation of it.

    The forward pass is that of ``nn.Sequential`` over stock layers; no dense weight is ever rebuilt in it. For model
    code that looks inside, `weight` and `bias` and the original layer's attributes can be read. A `weight` whose output
    channels are multiples of those before can be assigned, and so can `bias`: that is how batch norms are folded.

    Parameters
    ----------
    blueprint : Blueprint
        The stages.
    info : LayerInfo
        The layer that was replaced.
    choice : Choice
        Method, ranks and options.
    dtype, device : torch.dtype, torch.device
        Of the parameters, which are left uninitialised.
    """

    def __init__(
        self, blueprint: Blueprint, info: LayerInfo, choice: Choice, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(OrderedDict((spec.name, build_stage(spec, dtype, device)) for spec in blueprint.stages))
        self.blueprint = blueprint
        self.info = info
        self.choice = choice

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; `weight` and `bias` on the stages that hold them."""
        if name == "weight" and isinstance(value, Tensor):
            value = value.mT if self.info.input_first else value
            scale_outputs_(self._last, output_scales(self.dense_weight(), value, self.info), self.info)
        elif name == "weight":
            refuse_write(self.info.title, f"weight = {value!r}")
        elif name == "bias" and (value is None or isinstance(value, nn.Parameter)):
            set_bias_(self._last, value, self.info)
        else:
            super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter, but not the weight under another name, which is how ``torch.nn.utils.prune`` starts."""
        refuse_computed(param, name)
        super().register_parameter(name, param)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Refuse a checkpoint of the dense model, which ``strict=False`` would skip without a word."""
        if f"{prefix}weight" in state_dict:
            refuse_write(self.info.title, f"load_state_dict: {prefix}weight")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def _last(self) -> nn.Module:
        return list(self.children())[-1]

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias vector ``(out,)``, on the last stage."""
        return getattr(self._last, "bias", None)

    @property
    def weight(self) -> Tensor:
        """The approximated weight in the original layout, computed from the factors at every read; differentiable.

        Writing to it raises `ComputedWeightError`, for it would be lost.
        """
        return guarded(self.dense_weight(), self.info.title)

    def dense_weight(self) -> Tensor:
        """Return the approximated weight in torch's layout, as `rankfold.inventory.layer_weight` has it."""
        return compose(self.blueprint, self.info, stage_factors(self))

    def extra_repr(self) -> str:
        """Show what was replaced, by what."""
        gauged = ", gauged" if self.choice.gauge else ""
        return f"{self.info.describe()}, {self.choice.method}{list(self.choice.ranks)}{gauged}"

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the factors."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the factors."""
        return next(self.parameters()).device


def _of_info(name: str, doc: str) -> property:
    """Return a property that reads the replaced layer's settings, for model code that looks inside."""
    return property(lambda module: getattr(module.info, name), doc=doc)


class FactoredLinear(Factored):
    """A factored ``nn.Linear``, for any number of leading dimensions."""

    in_features = _of_info("in_channels", "Input features.")
    out_features = _of_info("out_channels", "Output features.")


class FactoredTensorLinear(FactoredLinear):
    """A factored ``nn.Linear`` whose stages reshape their input: leading dimensions are put back at the end."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        # In a way that torch.fx traces and TorchScript compiles; an input of one dimension gets a second one.
        return super().forward(input).unflatten(0, input.unsqueeze(0).shape[:-1]).squeeze(0)


class _InputFirst(FactoredLinear):
    """What the ``Conv1D`` of transformers offers: its names, and its weight as ``(in, out)``."""

    @property
    def weight(self) -> Tensor:
        """The approximated weight, ``(in, out)``."""
        return guarded(self.dense_weight().mT.contiguous(), self.info.title)

    nx = _of_info("in_channels", "Input features.")
    nf = _of_info("out_channels", "Output features.")


class FactoredConv1D(_InputFirst, FactoredLinear):
    """A factored ``Conv1D`` of transformers, which is a linear layer."""


class FactoredTensorConv1D(_InputFirst, FactoredTensorLinear):
    """A factored ``Conv1D`` of transformers whose stages reshape their input."""


class FactoredConv(Factored):
    """A factored convolution, transposed or not, of one to three dimensions."""

    in_channels = _of_info("in_channels", "Input channels.")
    out_channels = _of_info("out_channels", "Output channels.")
    kernel_size = _of_info("kernel", "Kernel sizes of the replaced layer.")
    stride = _of_info("stride", "Strides of the replaced layer.")
    padding = _of_info("padding", "Padding of the replaced layer.")
    dilation = _of_info("dilation", "Dilations of the replaced layer.")
    groups = _of_info("groups", "Groups of the replaced layer.")
    padding_mode = _of_info("padding_mode", "Padding mode of the replaced layer.")


def stage_factors(module: Factored) -> list[Tensor]:
    """Return the factors of a layer as `build` takes them: canonical, of the stages that have any, in their order."""
    stages = zip(module.blueprint.stages, module, strict=True)
    return [_canonical(stage, spec.factor_shape) for spec, stage in stages if spec.factor_shape is not None]


def _canonical(stage: nn.Module, shape: Size) -> Tensor:
    """Return the weight of a stage in canonical form: a parameter, or what its gauged factors compose to."""
    if isinstance(stage, Gauged):
        return stage.dense_weight().reshape(shape)
    if isinstance(stage, nn.modules.conv._ConvNd):
        return grouped(stage)
    if isinstance(stage, nn.Linear):
        return stage.weight
    # An adapter or a quantised layer in the place of a linear one: what it makes of the identity, less its bias.
    like = next(stage.parameters(), torch.empty(0))
    identity = torch.eye(shape[1], dtype=like.dtype, device=like.device)
    return (stage(identity) - stage(torch.zeros_like(identity))).mT


def build_stage(spec: Stage, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return the module of one stage, its weights uninitialised."""
    match spec:
        case ConvSpec() | LinearSpec():
            return uninitialised(spec, bias=spec.bias, dtype=dtype, device=device)
        case GaugedSpec():
            return (GaugedInput if spec.side == "input" else GaugedOutput)(spec, dtype=dtype, device=device)
        case ReshapeSpec():
            return Reshape(spec.tail)
        case BiasSpec():
            return Bias(spec.features, dtype=dtype, device=device)


def build(
    blueprint: Blueprint,
    info: LayerInfo,
    choice: Choice,
    *,
    dtype: torch.dtype,
    device: torch.device,
    factors: Sequence[Tensor] | None = None,
    bias: Tensor | None = None,
) -> Factored:
    """Return the module of a blueprint.

    Parameters
    ----------
    blueprint : Blueprint
        Its stages.
    info, choice : LayerInfo, Choice
        The replaced layer and what was decided; kept on the module.
    dtype, device : torch.dtype, torch.device
        Of the new parameters.
    factors : sequence of Tensor or None
        Canonical factors in the blueprint's order, which a gauged blueprint changes; None leaves the weights
        uninitialised (for loading).
    bias : Tensor or None
        The layer's bias.

    Raises
    ------
    GaugeError
        If gauged factors would not compute the same in this data type.
    """
    kind: type[Factored] = FactoredConv
    if info.kind == "linear":
        reshaped = any(isinstance(spec, ReshapeSpec) for spec in blueprint.stages)
        kinds = (FactoredTensorLinear, FactoredTensorConv1D) if reshaped else (FactoredLinear, FactoredConv1D)
        kind = kinds[info.input_first]
    module = kind(blueprint, info.static(), choice, dtype=dtype, device=device)
    if factors is None:
        return module
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        if not blueprint.gauged:
            _fill(module, blueprint, factors, bias)
            return module
        exact = [double(factor) for factor in factors]
        place = exact[0].device
        gauged, condition = gauge_factors(blueprint, exact)
        _fill(module, blueprint, gauged, bias)
        rounded = copy.deepcopy(module).to(place, torch.float64)
        check_gauge(rounded.dense_weight(), compose(blueprint, info, exact), condition, info, choice, dtype)
    return module


def _fill(module: Factored, blueprint: Blueprint, factors: Sequence[Tensor | Gauge], bias: Tensor | None) -> None:
    pending = list(factors)
    for spec, stage in zip(blueprint.stages, module, strict=True):
        if spec.factor_shape is None:
            continue
        factor = pending.pop(0)
        if isinstance(factor, Gauge):
            assert isinstance(stage, Gauged)
            stage.fill(factor)
            continue
        if tuple(factor.shape) != spec.factor_shape:
            raise AssertionError(
                f"stage {spec.name!r} wants {spec.factor_shape}, the method gave {tuple(factor.shape)}"
            )
        weight = stage.get_parameter("weight")
        if isinstance(spec, ConvSpec):
            factor = (factor.movedim(2, 1) if spec.transposed else factor).flatten(0, 1)
        weight.copy_(factor)
    if pending:
        raise AssertionError(f"{len(pending)} factor(s) without a stage")
    if module.bias is not None:
        assert bias is not None
        module.bias.copy_(bias)
