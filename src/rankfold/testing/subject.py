"""The subject of a check: one layer inside a model, inspected and factored as in the library; and tolerances."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from rankfold import methods
from rankfold.factor.moments import Moments
from rankfold.inventory import OperationCounter, inspect, layer_bias, layer_weight
from rankfold.methods import Method
from rankfold.records import Blueprint, Choice, LayerInfo, Ranks
from rankfold.surgery import Factored, build
from rankfold.surgery.gauged import Gauged
from rankfold.testing.cases import SEED, LayerCase

NAME = "block.layer"
"""The name of the layer in the model around it."""

OUTPUT_TOLERANCE: dict[torch.dtype, float] = {
    # Factors are computed in float64, with rounding errors of about 1e-15; un-whitening multiplies them by the
    # condition number of the root (<= 1e3), and five stages add up.
    torch.float64: 1e-10,
    # Factors and the outputs of up to five stages are rounded to 24 bits (6e-8 each); a sum of a few hundred products
    # adds its square root. The project's promise is 1e-4.
    torch.float32: 1e-5,
    # 11 bits (5e-4) for each of five factors and five outputs.
    torch.float16: 1e-2,
    # 8 bits (4e-3) for each of five factors and five outputs.
    torch.bfloat16: 6e-2,
}
"""Maximum relative Frobenius error of outputs and weights that should be equal, by the layer's data type."""

ERROR_SLACK = 1e-6
"""Absolute tolerance between predicted and achieved relative errors. Predictions come from Gram matrices, whose
eigenvalues are accurate to 1e-16 of the largest one, so errors are accurate to its root, 1e-8, times sums over a few
hundred of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A layer inside a model.

    Parameters
    ----------
    model : Module
        The model around the layer.
    info : LayerInfo
        The layer in the inventory, including its calls.
    input : Tensor
        The model's input.
    case : LayerCase
        Where it comes from.
    """

    model: nn.Module
    info: LayerInfo
    input: Tensor
    case: LayerCase

    @classmethod
    def of(cls, case: LayerCase) -> Subject:
        """Build and inspect one case."""
        return cls(model=_around(case.layer()), info=layer_info(case), input=case.input(), case=case)

    @property
    def module(self) -> nn.Module:
        """The layer itself."""
        return self.model.get_submodule(NAME)

    @property
    def weight(self) -> Tensor:
        """The layer's weight, detached; it shares memory with the parameter."""
        return layer_weight(self.model, NAME)

    def exact_output(self) -> Tensor:
        """Return the layer's output, computed in float64 from the same weights."""
        twin = type(self.module)(**_arguments(self.module)).double()
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                twin.get_parameter(name).copy_(parameter)
            return twin(self.input.double())

    def set_weight(self, values: Tensor) -> None:
        """Overwrite the layer's weight."""
        with torch.no_grad():
            self.module.get_parameter("weight").copy_(values)

    def factored(self, method: Method, ranks: Ranks, *, moments: Moments | None = None) -> Factored:
        """Return the layer factored by a method, in the layer's data type."""
        return self.built(method, ranks, methods.prepare(method, self.weight, self.info, moments).factorize(ranks))

    def built(
        self, method: Method, ranks: Ranks, factors: tuple[Tensor, ...] | None, *, dtype: torch.dtype | None = None
    ) -> Factored:
        """Return the module of a method's blueprint in the case's memory format; without factors, uninitialized."""
        module = build(
            method.blueprint(self.info, ranks),
            self.info,
            Choice(method=method.name, ranks=ranks),
            dtype=dtype or self.weight.dtype,
            device=self.weight.device,
            factors=factors,
            bias=layer_bias(self.model, NAME),
        )
        return module.to(memory_format=self.case.memory_format).eval()

    def random(self, method: Method, ranks: Ranks, *, dtype: torch.dtype | None = None) -> Factored:
        """Return the module of a method's blueprint with random weights (and pivots), for when they do not matter."""
        module = self.built(method, ranks, None, dtype=dtype)
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            for stage in (m for m in module.modules() if isinstance(m, Gauged)):
                rows = torch.stack([torch.randperm(stage.size, generator=generator) for _ in range(stage.groups)])
                pivots, others = (part.sort(1).values for part in rows.tensor_split([stage.rank], 1))
                stage.order.copy_(stage.order_of(pivots, others))
        return module


@lru_cache(maxsize=256)
def layer_info(case: LayerCase) -> LayerInfo:
    """Return what `inspect` returns for a case, computed once for all checks."""
    return inspect(_around(case.layer()), case.input()).layer(NAME)


def _around(layer: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(block=nn.Sequential(OrderedDict(layer=layer)))).eval()


def _arguments(module: nn.Module) -> dict[str, Any]:
    """Return the constructor arguments of a layer."""
    bias = "bias" in dict(module.named_parameters())
    if isinstance(module, nn.Linear):
        return {"in_features": module.in_features, "out_features": module.out_features, "bias": bias}
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        names.append("output_padding")
    return {name: getattr(module, name) for name in names} | {"bias": bias}


def sample_ranks(method: Method, info: LayerInfo, *, count: int) -> list[Ranks]:
    """Return `count` ranks that a planner might choose, evenly spread over the method's grid; one is its middle."""
    grid = list(method.rank_grid(info, points=8))
    if count == 1:
        return [grid[len(grid) // 2]]
    return list(dict.fromkeys(grid[k * (len(grid) - 1) // (count - 1)] for k in range(count)))


def random_factors(blueprint: Blueprint) -> tuple[Tensor, ...]:
    """Return canonical factors with random entries, in float64."""
    generator = torch.Generator().manual_seed(SEED)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in blueprint.factor_shapes)


def random_ranks(method: Method, info: LayerInfo, generator: torch.Generator, *, count: int) -> list[Ranks]:
    """Return random ranks within the limits."""
    limits = method.max_ranks(info)
    return [tuple(int(torch.randint(1, limit + 1, (), generator=generator)) for limit in limits) for _ in range(count)]


def neighbors(method: Method, info: LayerInfo, *, most: int = 64) -> list[tuple[Ranks, Ranks]]:
    """Return pairs of ranks that differ by one step in one position, over a lattice of the whole range."""
    limits = method.max_ranks(info)
    side = max(2, int(most ** (1 / len(limits))))
    axes = [sorted({1 + (limit - 1) * k // (side - 1) for k in range(side)}) for limit in limits]
    pairs: list[tuple[Ranks, Ranks]] = []
    for lower in product(*axes):
        for position, axis in enumerate(axes):
            after = axis.index(lower[position]) + 1
            if after < len(axis):
                pairs.append((lower, (*lower[:position], axis[after], *lower[position + 1 :])))
    return pairs


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the Frobenius norm of the difference relative to that of `expected`, in float64; infinity if not finite.

    Both are first divided by the largest magnitude of `expected`, so that squares neither overflow nor underflow.
    """
    if tuple(actual.shape) != tuple(expected.shape):
        raise AssertionError(f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    actual, expected = actual.detach().double(), expected.detach().double()
    if expected.numel() == 0:
        return 0.0
    if not (bool(actual.isfinite().all()) and bool(expected.isfinite().all())):
        return float("inf")
    scale = float(expected.abs().max())
    if scale == 0:
        return 0.0 if not bool(actual.any()) else float("inf")
    return float((actual / scale - expected / scale).norm() / (expected / scale).norm())


def count_macs(module: nn.Module, x: Tensor) -> int:
    """Return the multiply-accumulates of one forward pass, operation by operation."""
    with torch.no_grad(), OperationCounter() as counter:
        module(x)
    if counter.uncounted:
        raise AssertionError(f"operations without a formula: {', '.join(sorted(counter.uncounted))}")
    return counter.macs


def expect(condition: bool, message: str) -> None:
    """Raise ``AssertionError`` with the message unless the condition holds, under ``python -O`` as well."""
    if not condition:
        raise AssertionError(message)


def run_all(checks: Iterator[tuple[str, Callable[[], None]]]) -> int:
    """Run all checks; return their number, or raise ``AssertionError`` with the message of each that failed."""
    failures: list[str] = []
    count = 0
    for name, check in checks:
        count += 1
        try:
            check()
        except Exception as error:  # a crash is also a failure
            failures.append(f"{name}: {type(error).__name__}: {error}")
    if failures:
        raise AssertionError(f"{len(failures)} of {count} checks failed:\n  " + "\n  ".join(failures))
    return count
