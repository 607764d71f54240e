"""Sums of ``x x^T`` over many vectors, accurate enough to be inverted."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rankfold._config import spelled
from rankfold.errors import DataError, ModelError
from rankfold.factor.linalg import NO_DOUBLE, double, single_is_whole

# Elements that are multiplied at once: they fit a CPU's caches, and the sum is short enough for float32.
CHUNK = 2**20
SMALLEST_BLOCK, BLOCKS = 96, 6  # narrower blocks multiply slowly
SAFE = (1e-12, 1e12)  # outside this range, squares overflow or underflow in float32


class GramSum:
    """A sum of ``x x^T`` in float64, over the inputs of the layer called `name`.

    Inputs in float32 or narrower types are multiplied in float32, one chunk at a time, and the products are added up in
    float64.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self._sum: Tensor | None = None

    def add(self, x: Tensor, vectors: Callable[[Tensor], Tensor]) -> None:
        """Add the vectors of a batch.

        Parameters
        ----------
        x : Tensor
            ``(batch, ...)``.
        vectors : callable
            Returns the vectors of a slice of the batch as columns, ``(groups, n, count)``, the same number per sample.

        Raises
        ------
        DataError
            If `x` contains NaN or infinity.
        ModelError
            If `x` belongs to a transform of torch.func, from which nothing may be kept.
        """
        if torch._C._functorch.is_functorch_wrapped_tensor(x):  # pyright: ignore[reportAttributeAccessIssue]
            raise ModelError(
                f"layer {self.name!r} runs inside a transform of torch.func (grad, jacrev, vmap), where its input "
                f"cannot be recorded. Exclude the layer, pass no calibration data, or set "
                f"{spelled('data_aware', False)}. Networks that call torch.autograd.grad are supported."
            )
        if not x.numel():
            return
        x = x.detach()
        largest = magnitude(x, f"the input of layer {self.name!r}")
        with torch.autocast(x.device.type, enabled=False):
            dtype = work_dtype(x)
            exponent = 0 if dtype == torch.float64 else power_of_two(largest)
            step = max(1, CHUNK // max(1, vectors(x[:1].to(dtype)).numel()))
            for chunk in x.split(step):
                columns = vectors(scaled(chunk.to(dtype), exponent))
                product = double(upper_product(columns))
                if exponent:
                    product = product * 2.0**exponent * 2.0**exponent
                self._sum = product if self._sum is None else self._sum.add_(product)
                self.count += columns.shape[-1]

    def mean(self) -> Tensor | None:
        """Return the average, ``(groups, n, n)``, exactly symmetric; None without vectors."""
        if self._sum is None or not self.count:
            return None
        return (self._sum.triu() + self._sum.triu(1).mT) / self.count


def magnitude(x: Tensor, what: str) -> float:
    """Return the largest magnitude; raise `DataError` for NaN or infinity."""
    low, high = (float(v) for v in torch.aminmax(x))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(
            f"{what} contains NaN or infinity on the calibration data. Check the data and the preceding layers."
        )
    return max(-low, high)


def work_dtype(x: Tensor) -> torch.dtype:
    """Return the data type in which products of a tensor are computed."""
    if x.device.type in NO_DOUBLE:
        return torch.float32
    return torch.float64 if x.dtype == torch.float64 or not single_is_whole() else torch.float32


def upper_product(columns: Tensor) -> Tensor:
    """Return ``x x^T`` on and above the diagonal. Blocks below it, nearly half of the work, are left at zero."""
    n = columns.shape[1]
    block = max(SMALLEST_BLOCK, -(-n // BLOCKS))
    product = columns.new_zeros(columns.shape[0], n, n)
    for i in range(0, n, block):
        product[:, i : i + block, i:] = columns[:, i : i + block] @ columns[:, i:].mT
    return product


def power_of_two(largest: float) -> int:
    """Return the exponent of the power of two to divide values by (which is exact); 0 if they are in the safe range."""
    small, large = SAFE
    return 0 if largest == 0 or small < largest < large else math.frexp(largest)[1]


def scaled(x: Tensor, exponent: int) -> Tensor:
    """Return ``x / 2**exponent``, in two steps that stay within the range of float32."""
    if not exponent:
        return x
    half = exponent // 2
    return x * 2.0**-half * 2.0 ** -(exponent - half)
