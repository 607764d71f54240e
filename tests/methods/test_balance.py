"""Un-whitening leaves no trace in the conditioning of the factors: it is that of the low-rank product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rankfold import methods
from rankfold.factor.linalg import Metric
from rankfold.factor.moments import Moments
from rankfold.factor.tensor_train import orthonormalized
from rankfold.inventory import static_inventory
from rankfold.methods import to_canonical
from rankfold.records import Choice, LayerInfo, Ranks
from rankfold.surgery import build

SLACK = 1 + 1e-6

METHODS: dict[str, tuple[str, Ranks]] = {
    "svd linear": ("svd", (6,)),
    "qr": ("qr", (6,)),
    "ttm": ("ttm", (11,)),
    "svd": ("svd", (11,)),
    "spatial_svd": ("spatial_svd", (32,)),
    "tucker": ("tucker", (6, 7)),
    "partial tucker": ("tucker", (12, 7)),
    "tt3": ("tt3", (6, 7)),
    "tt": ("tt", (6, 9, 7)),
}


def layer_of(case: str) -> nn.Module:
    torch.manual_seed(0)
    if METHODS[case][0] in ("qr", "ttm") or "linear" in case:
        return nn.Linear(16, 12, dtype=torch.float64)
    return nn.Conv2d(16, 12, 3, dtype=torch.float64)


def ill_conditioned(info: LayerInfo, *, patch: bool) -> Moments:
    """Return moments over six decades, the first of which the root sees as three."""
    n, k = info.in_channels, info.kernel_numel
    basis = torch.linalg.qr(
        torch.randn(n * k, n * k, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ).Q
    mixing = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(2))).Q
    channel = (mixing * torch.logspace(0, -6, n, dtype=torch.float64)) @ mixing.T
    whole = torch.kron(channel, torch.eye(k, dtype=torch.float64)) + 1e-9 * basis @ basis.T
    return Moments(channel=channel[None], patch=whole[None] if patch and k > 1 else None, count=1)


def condition(matrix: Tensor) -> float:
    """Return the ratio of the extreme singular values, those that are zero left out."""
    values = torch.linalg.svdvals(matrix)
    return float(values[0] / values[values > 1e-9 * values[0]][-1])


def factor_condition(factor: Tensor) -> float:
    """Return that of a factor ``(groups, o, i, *kernel)``, as the product of two bonds sees it."""
    matrix = factor if factor.ndim == 2 else factor.flatten(0, 1)
    rows, columns = matrix.flatten(1), matrix.transpose(0, 1).flatten(1)  # output, and input, against the rest
    return min(condition(rows), condition(columns))


def product_condition(weight: Tensor, info: LayerInfo) -> float:
    """Return the largest of the product's unfoldings."""
    canonical = to_canonical(weight, info)[0]
    unfoldings = [canonical.flatten(1), canonical.transpose(0, 1).flatten(1)]
    if canonical.ndim == 4:
        unfoldings.append(canonical.permute(0, 3, 1, 2).flatten(0, 1).flatten(1))  # (o k2) against (i k1)
    else:  # the TT-matrix' bond
        unfoldings.append(canonical.reshape(4, 3, 4, 4).permute(0, 2, 1, 3).reshape(16, 12))
    return max(condition(m) for m in unfoldings)


@pytest.mark.parametrize("patch", [False, True])
@pytest.mark.parametrize("case", METHODS)
def test_factors_are_conditioned_like_their_product(case: str, patch: bool) -> None:
    layer, (name, ranks) = layer_of(case), METHODS[case]
    (info,) = static_inventory(layer)
    method, weight = methods.get(name), layer.weight.detach()
    assert isinstance(weight, Tensor)
    factors = methods.prepare(method, weight, info, ill_conditioned(info, patch=patch)).factorize(ranks)
    choice = Choice(method=name, ranks=ranks)
    blueprint = methods.chosen_blueprint(info, choice)
    module = build(
        blueprint, info, choice, dtype=weight.dtype, device=weight.device, factors=factors, bias=torch.zeros(12)
    )
    limit = product_condition(module.weight.detach(), info)
    assert max(factor_condition(factor) for factor in factors) <= limit * SLACK


@pytest.mark.parametrize("case", METHODS)
def test_naive_unwhitening_is_worse(case: str) -> None:
    """The same measure, and the whitened weight's factors with the inverse root multiplied into the first of them."""
    layer, (name, ranks) = layer_of(case), METHODS[case]
    (info,) = static_inventory(layer)
    method, moments, weight = methods.get(name), ill_conditioned(info, patch=False), layer.weight.detach()
    assert isinstance(weight, Tensor)
    metric = Metric.of(moments.channel)
    balanced = methods.prepare(method, weight, info, moments).factorize(ranks)
    seen = (weight.movedim(1, -1) @ metric.root[0]).movedim(-1, 1)
    first, *_ = methods.prepare(method, seen, info, None).factorize(ranks)
    if name == "ttm":
        first = first.reshape(1, -1, 4, 1)
        root = Metric.of(moments.channel.reshape(4, 4, 4, 4).diagonal(dim1=1, dim2=3).sum(-1)[None]).inverse
    else:
        root = metric.inverse
    naive = (first.movedim(2, -1) @ root[0]).movedim(-1, 2) if first.ndim > 2 else first @ root[0]
    assert factor_condition(naive) > 1.25 * factor_condition(balanced[0])


def test_orthonormalized_cores_are_the_same_tensor() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 1, 3, 5), (2, 5, 4, 6), (2, 6, 7, 1)]  # the first bond has more rank than its unfolding
    cores = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    cores[1] *= torch.logspace(0, -6, 6, dtype=torch.float64)
    made = orthonormalized(cores)

    def whole(parts: list[Tensor]) -> Tensor:
        return torch.einsum("gaib,gbjc,gckd->gaijkd", *parts)

    torch.testing.assert_close(whole(made), whole(cores))
    assert [core.shape for core in made] == [core.shape for core in cores]
    gram = made[1].flatten(1, 2).mT @ made[1].flatten(1, 2)
    torch.testing.assert_close(gram, torch.eye(6, dtype=torch.float64).expand_as(gram))
    assert condition(cores[1].flatten(1, 2)[0]) > 1e3
