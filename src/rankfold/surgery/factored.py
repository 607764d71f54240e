"""Factored layers: any blueprint as a module made of stock ``torch.nn`` layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.errors import RankfoldError
from rankfold.factor.gauge import Gauge
from rankfold.factor.linalg import double
from rankfold.methods import compose, to_canonical
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
from rankfold.surgery.stock import uninitialized


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
        self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(features, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum; `x` itself if the bias was removed."""
        if self.bias is None:
            return x
        return x + self.bias.to(x.dtype)  # under autocast x has a lower precision, like the output of nn.Linear


class Factored(nn.Sequential):
    """A layer replaced by stages that compute a low-rank approximation of it.

    The forward pass is that of ``nn.Sequential`` over stock layers and never builds the dense weight. Model code can
    read `weight`, `bias` and the original layer's attributes. To fold batch norms it can assign `bias`, and a `weight`
    whose output channels are multiples of the present ones.

    Parameters
    ----------
    blueprint : Blueprint
        The stages.
    info : LayerInfo
        The layer that was replaced.
    choice : Choice
        Method, ranks and options.
    dtype, device : torch.dtype, torch.device
        Of the parameters, which are uninitialized.
    """

    def __init__(
        self, blueprint: Blueprint, info: LayerInfo, choice: Choice, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(OrderedDict((spec.name, build_stage(spec, dtype, device)) for spec in blueprint.stages))
        self.blueprint = blueprint
        self.info = info
        self.choice = choice

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; `weight` and `bias` are set on the stages that hold them."""
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
        """Register a parameter; raise for the computed weight, which ``torch.nn.utils.prune`` would register."""
        refuse_computed(param, name)
        super().register_parameter(name, param)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Raise for a checkpoint of the dense model, which ``strict=False`` would silently skip.

        The empty weight of an artifact's file, which only keeps the dense model from loading it, is ignored.
        """
        weight = state_dict.pop(f"{prefix}weight", None)
        if weight is not None and weight.numel():
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

        Writing to it raises `ComputedWeightError`, because the value would be lost.
        """
        return guarded(self.dense_weight(), self.info.title)

    def dense_weight(self) -> Tensor:
        """Return the approximated weight in torch's layout, as `rankfold.inventory.layer_weight` does."""
        return compose(self.blueprint, self.info, stage_factors(self))

    def extra_repr(self) -> str:
        """Show the replaced layer, the method and the ranks."""
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


class _Setting(property):
    """A setting of the replaced layer, for model code that expects it."""


def _of_info(name: str, doc: str) -> _Setting:
    return _Setting(lambda module: getattr(module.info, name), doc=doc)


class FactoredLinear(Factored):
    """A factored ``nn.Linear``, for any number of leading dimensions."""

    in_features = _of_info("in_channels", "Input features.")
    out_features = _of_info("out_channels", "Output features.")


class FactoredTensorLinear(FactoredLinear):
    """A factored ``nn.Linear`` whose stages reshape their input; leading dimensions are restored at the end."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        # Written so that torch.fx can trace and TorchScript can compile it; a 1-d input gets a leading dimension.
        return super().forward(input).unflatten(0, input.unsqueeze(0).shape[:-1]).squeeze(0)


class _InputFirst(FactoredLinear):
    """The interface of transformers' ``Conv1D``: its attribute names, and the weight as ``(in, out)``."""

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


def settings(module: Factored) -> dict[str, Any]:
    """Return the settings of the replaced layer that can be read from a factored one, by name."""
    names = [name for cls in type(module).__mro__ for name, value in vars(cls).items() if isinstance(value, _Setting)]
    return {name: getattr(module, name) for name in names}


def stage_factors(module: Factored) -> list[Tensor]:
    """Return the canonical factors of a layer in the order of its stages, as `build` takes them."""
    stages = zip(module.blueprint.stages, module, strict=True)
    return [_canonical(stage, spec.factor_shape) for spec, stage in stages if spec.factor_shape is not None]


def _canonical(stage: nn.Module, shape: Size) -> Tensor:
    """Return the weight of a stage in canonical form."""
    if isinstance(stage, Gauged):
        return stage.dense_weight().reshape(shape)
    if isinstance(stage, Factored):  # a compressed model was compressed again
        return to_canonical(stage.dense_weight(), stage.info).reshape(shape)
    if isinstance(stage, nn.modules.conv._ConvNd):
        return grouped(stage)
    if isinstance(stage, nn.Linear):
        return stage.weight
    # An adapter or a quantized layer has replaced the linear layer: apply it to the identity, and subtract its bias.
    like = next(stage.parameters(), torch.empty(0))
    identity = torch.eye(shape[1], dtype=like.dtype, device=like.device)
    return (stage(identity) - stage(torch.zeros_like(identity))).mT


def build_stage(spec: Stage, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return the module of one stage, with uninitialized weights."""
    match spec:
        case ConvSpec() | LinearSpec():
            return uninitialized(spec, bias=spec.bias, dtype=dtype, device=device)
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
        The stages.
    info, choice : LayerInfo, Choice
        The replaced layer and the choice for it, which the module stores.
    dtype, device : torch.dtype, torch.device
        Of the parameters.
    factors : sequence of Tensor or None
        Canonical factors in the blueprint's order, of the plain stages even if the blueprint is gauged. If None, the
        weights are uninitialized (for loading).
    bias : Tensor or None
        The layer's bias.

    Raises
    ------
    GaugeError
        If the gauged factors would not compute the same in this data type.
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
        rounded = [factor.to(place, torch.float64) for factor in stage_factors(module)]
        weight, reference = (compose(blueprint, info, values) for values in (rounded, exact))
        check_gauge(weight, reference, condition, info, choice, dtype)
    return module


def _fill(module: Factored, blueprint: Blueprint, factors: Sequence[Tensor | Gauge], bias: Tensor | None) -> None:
    stages = zip(blueprint.stages, module, strict=True)
    filled = [(spec, stage) for spec, stage in stages if spec.factor_shape is not None]
    for (spec, stage), factor in zip(filled, factors, strict=True):
        if isinstance(factor, Gauge):
            assert isinstance(stage, Gauged)
            stage.fill(factor)
            continue
        assert isinstance(stage, nn.Linear | nn.modules.conv._ConvNd)
        if tuple(factor.shape) != spec.factor_shape:
            raise RankfoldError(
                f"method {module.choice.method!r} returned a factor of shape {tuple(factor.shape)} for the stage "
                f"{spec.name!r} of {module.info.describe()}, which needs {spec.factor_shape}. Correct the method's "
                "factorize or its blueprint."
            )
        grouped(stage).copy_(factor)
    if module.bias is not None:
        assert bias is not None
        module.bias.copy_(bias)
