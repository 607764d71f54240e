"""Factored layers: any blueprint as a module made of stock ``torch.nn`` layers."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.factor.gauge import Gauge
from rankfold.factor.linalg import double
from rankfold.methods import without_autocast
from rankfold.records import (
    BiasSpec,
    Blueprint,
    Choice,
    ConvSpec,
    GaugedSpec,
    LayerInfo,
    LinearSpec,
    ReshapeSpec,
    Stage,
)
from rankfold.surgery.composed import guarded, refuse_computed, refuse_write
from rankfold.surgery.gauged import Gauged, GaugedInput, GaugedOutput
from rankfold.surgery.gauging import check_gauge, gauge_factors
from rankfold.surgery.rescaling import output_scales, scale_outputs_, set_bias_
from rankfold.surgery.stock import uninitialised, uninitialised_conv


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
    stages : OrderedDict of str to Module
        The stages, by name.
    info : LayerInfo
        The layer that was replaced.
    choice : Choice
        Method, ranks and options.
    """

    def __init__(self, stages: OrderedDict[str, nn.Module], info: LayerInfo, choice: Choice) -> None:
        super().__init__(stages)
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
        with without_autocast(self.device.type):
            return self._composed()

    def _composed(self) -> Tensor:
        raise NotImplementedError

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


class FactoredLinear(Factored):
    """A factored ``nn.Linear``, for any number of leading dimensions."""

    def _composed(self) -> Tensor:
        """Return the image of the identity, ``(out, in)``."""
        identity = torch.eye(self.in_features, dtype=self.dtype, device=self.device)
        out = identity
        for stage in self:
            if isinstance(stage, (nn.Linear, Gauged)):  # torch 2.6 compiles no union
                out = nn.functional.linear(out, stage_weight(stage))
            elif not isinstance(stage, Bias):
                out = stage(out)
        return out.reshape(self.in_features, self.out_features).mT.contiguous()

    @property
    def in_features(self) -> int:
        """Input features."""
        return self.info.in_channels

    @property
    def out_features(self) -> int:
        """Output features."""
        return self.info.out_channels


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

    @property
    def nx(self) -> int:
        """Input features."""
        return self.info.in_channels

    @property
    def nf(self) -> int:
        """Output features."""
        return self.info.out_channels


class FactoredConv1D(_InputFirst, FactoredLinear):
    """A factored ``Conv1D`` of transformers, which is a linear layer."""


class FactoredTensorConv1D(_InputFirst, FactoredTensorLinear):
    """A factored ``Conv1D`` of transformers whose stages reshape their input."""


class FactoredConv(Factored):
    """A factored convolution, transposed or not, of one to three dimensions."""

    def _composed(self) -> Tensor:
        """Return the kernels of the stages, composed (each axis belongs to one stage)."""
        info, total = self.info, None
        for stage in self:
            part = _canonical(stage)  # (groups, out / groups, in / groups, *kernel)
            if total is None:
                total = part.flatten(0, 1)
                continue
            groups, dims = part.shape[0], part.ndim - 3
            before = total.unflatten(0, (groups, -1))
            # Kernel axes to the front: matmul broadcasts over them and contracts the inner channels.
            front = [d + 3 for d in range(dims)]
            product = part.permute(*front, 0, 1, 2) @ before.permute(*front, 0, 1, 2)
            total = product.permute(dims, dims + 1, dims + 2, *range(dims)).flatten(0, 1)
        assert total is not None
        if not info.transposed:
            return total.contiguous()  # code that reads a weight views it
        grouped = total.unflatten(0, (info.groups, info.group_out))
        return grouped.movedim(2, 1).flatten(0, 1).contiguous()

    @property
    def in_channels(self) -> int:
        """Input channels."""
        return self.info.in_channels

    @property
    def out_channels(self) -> int:
        """Output channels."""
        return self.info.out_channels

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Kernel sizes of the replaced layer."""
        return self.info.kernel

    @property
    def stride(self) -> tuple[int, ...]:
        """Strides of the replaced layer."""
        return self.info.stride

    @property
    def padding(self) -> tuple[int, ...] | str:
        """Padding of the replaced layer."""
        return self.info.padding

    @property
    def dilation(self) -> tuple[int, ...]:
        """Dilations of the replaced layer."""
        return self.info.dilation

    @property
    def groups(self) -> int:
        """Groups of the replaced layer."""
        return self.info.groups

    @property
    def padding_mode(self) -> str:
        """Padding mode of the replaced layer."""
        return self.info.padding_mode


def _canonical(stage: nn.Module) -> Tensor:
    assert isinstance(stage, (nn.modules.conv._ConvNd, Gauged))
    weight = stage_weight(stage)
    if isinstance(stage, nn.modules.conv._ConvNd) and stage.transposed:
        return weight.unflatten(0, (stage.groups, -1)).movedim(2, 1)
    return weight.unflatten(0, (stage.groups, -1))


def stage_weight(stage: nn.Linear | nn.modules.conv._ConvNd | Gauged) -> Tensor:
    """Return the weight of a stage: a parameter, or what its gauged factors compose to."""
    return stage.dense_weight() if isinstance(stage, Gauged) else stage.weight


def stage_factors(module: Factored) -> list[Tensor]:
    """Return the factors of a layer as `build` takes them: canonical, of the stages that have any, in their order."""
    stages = [stage for stage in module if isinstance(stage, nn.Linear | nn.modules.conv._ConvNd | Gauged)]
    linear = [isinstance(stage, nn.Linear) or (isinstance(stage, Gauged) and stage.linear) for stage in stages]
    return [stage_weight(s) if flat else _canonical(s) for s, flat in zip(stages, linear, strict=True)]


@singledispatch
def build_stage(spec: Stage, dtype: torch.dtype, device: torch.device) -> nn.Module:  # noqa: ARG001 - for the builders
    """Return the module of one stage, its weights uninitialised."""
    raise TypeError(f"no builder for stage {type(spec).__name__}")


@build_stage.register
def _(spec: ConvSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    return uninitialised_conv(spec, bias=spec.bias, dtype=dtype, device=device)


@build_stage.register
def _(spec: LinearSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    return uninitialised(
        nn.Linear,
        dtype=dtype,
        device=device,
        in_features=spec.in_features,
        out_features=spec.out_features,
        bias=spec.bias,
    )


@build_stage.register
def _(spec: GaugedSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    return (GaugedInput if spec.side == "input" else GaugedOutput)(spec, dtype=dtype, device=device)


@build_stage.register
def _(spec: ReshapeSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:  # noqa: ARG001 - it holds no tensor
    return Reshape(spec.tail)


@build_stage.register
def _(spec: BiasSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
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
    stages = OrderedDict((spec.name, build_stage(spec, dtype, device)) for spec in blueprint.stages)
    kind: type[Factored] = FactoredConv
    if info.kind == "linear":
        reshaped = any(isinstance(spec, ReshapeSpec) for spec in blueprint.stages)
        kinds = (FactoredTensorLinear, FactoredTensorConv1D) if reshaped else (FactoredLinear, FactoredConv1D)
        kind = kinds[info.input_first]
    module = kind(stages, info.static(), choice)
    if factors is None:
        return module
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        if not blueprint.gauged:
            _fill(module, blueprint, factors, bias)
            return module
        exact = [double(factor) for factor in factors]
        place = exact[0].device
        plain = build(blueprint.plain, info, choice, dtype=torch.float64, device=place, factors=exact, bias=bias)
        made = gauge_factors(blueprint, exact)
        _fill(module, blueprint, made.factors, bias)
        rounded = copy.deepcopy(module).to(place, torch.float64)
        check_gauge(rounded.dense_weight(), plain.dense_weight(), made.condition, info, choice, dtype)
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
