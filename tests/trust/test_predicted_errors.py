"""What a plan predicts of CP factors is close to what the factors have, and never less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold import methods
from rankfold.inventory import static_inventory


def seeded(seed: int, kind: type[nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    torch.manual_seed(seed)
    return kind(*args, **kwargs)


SHAPES = {
    "3->1": seeded(0, nn.Conv2d, 3, 1, (4, 2)),
    "2->1": seeded(1, nn.Conv2d, 2, 1, (7, 3)),
    "8->1": seeded(2, nn.Conv2d, 8, 1, 3),
    "1->8": seeded(3, nn.Conv2d, 1, 8, 3),
    "one axis": seeded(4, nn.Conv2d, 4, 4, (3, 1)),
    "square": seeded(5, nn.Conv2d, 6, 6, 3),
    "grouped": seeded(6, nn.Conv2d, 8, 6, 3, groups=2),
    "1-D": seeded(7, nn.Conv1d, 6, 5, 4),
    "3-D": seeded(8, nn.Conv3d, 2, 3, (2, 2, 3)),
    "transposed": seeded(9, nn.ConvTranspose2d, 3, 4, (3, 2)),
}


def prepared_of(conv: nn.Module, method: str, **options: Any) -> tuple[methods.Prepared, list[int], Tensor]:
    """Return the prepared layer, all its ranks and its weight."""
    info, chosen, weight = static_inventory(conv)[0], methods.get(method, options), conv.weight.detach()
    return methods.prepare(chosen, weight, info), list(range(1, chosen.max_ranks(info)[0] + 1)), weight


def measured(conv: nn.Module, method: str, rank: int, **options: Any) -> float:
    made = rf.factorize(conv, method, rank, options=options).weight.detach()
    return float((made - conv.weight.detach()).norm() / conv.weight.detach().norm())


@pytest.mark.parametrize("method", ["cp", "filterwise_cp"])
@pytest.mark.parametrize("conv", SHAPES.values(), ids=SHAPES)
def test_predictions_of_small_weights(conv: nn.Module, method: str) -> None:
    prepared, ranks, _ = prepared_of(conv, method)
    predicted = {rank: prepared.error((rank,)) for rank in ranks}
    assert list(predicted.values()) == sorted(predicted.values(), reverse=True)
    for rank in {ranks[len(ranks) // 5], ranks[len(ranks) // 3], ranks[-1]}:
        error = measured(conv, method, rank)
        assert error - 1e-4 <= predicted[rank] <= error + 0.05


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel"), [(16, 16, 3), (8, 8, (4, 7)), (12, 12, 5), (24, 32, 3)], ids=str
)
def test_predictions_of_larger_weights(inputs: int, outputs: int, kernel: Any) -> None:
    """The slices alone promise up to 0.4 more than the factors have."""
    conv = seeded(0, nn.Conv2d, inputs, outputs, kernel)
    prepared, ranks, _ = prepared_of(conv, "cp")
    parameters = inputs + outputs + sum(conv.weight.shape[2:])
    for share in (0.25, 0.6):
        rank = int(share * conv.weight.numel() / parameters)
        assert rank in ranks
        error = measured(conv, "cp", rank)
        assert error - 1e-4 <= prepared.error((rank,)) <= error + 0.12


def test_a_matrix_in_disguise_has_the_error_of_its_svd() -> None:
    """All modes but two are of size 1."""
    conv = seeded(0, nn.Conv2d, 1, 7, (1, 5))
    prepared, _, weight = prepared_of(conv, "cp")
    values = torch.linalg.svdvals(weight.reshape(7, 5).double())
    for rank in range(1, 5):
        assert prepared.error((rank,)) == pytest.approx(float(values[rank:].norm() / values.norm()), abs=1e-6)


@pytest.mark.parametrize(
    "options", [{"iterations": 0}, {"iterations": 1}, {"target": 0.4}, {"norm_limit": 1.0}], ids=str
)
def test_nothing_is_promised_that_the_options_forbid(options: dict[str, float]) -> None:
    conv = seeded(0, nn.Conv2d, 5, 4, (3, 2))
    prepared, _, _ = prepared_of(conv, "cp", **options)
    for rank in (2, 6, 10):
        assert measured(conv, "cp", rank, **options) <= prepared.error((rank,)) + 1e-4
    # Otherwise this says nothing: with the default options it is lower.
    assert prepared_of(conv, "cp")[0].error((6,)) < prepared.error((6,)) - 1e-3


def test_predictions_are_the_same_every_time_and_terms_stay_bounded() -> None:
    conv = SHAPES["square"]
    first, second = (prepared_of(conv, "cp", norm_limit=2.5)[0] for _ in range(2))
    for rank in (3, 11, 17):
        assert first.error((rank,)) == second.error((rank,))
        factors = first.factorize((rank,))
        energy = torch.stack([f.flatten(1).square().sum(1) for f in factors[1:-1]]).prod(0)
        energy = energy * factors[0].flatten(2).square().sum(2)[0] * factors[-1].flatten(2).square().sum(1)[0]
        scale = float(conv.weight.detach().abs().max())  # factors of the weight divided by it
        assert float(energy.sum()) <= 2.51 * float(conv.weight.detach().square().sum()) / min(1.0, scale) ** 2
