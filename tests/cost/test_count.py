"""The formulas of the literature against the blueprints' counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankfold import methods
from rankfold.cost import blueprint_cost
from rankfold.inventory import inspect
from rankfold.records import BiasSpec, Blueprint, LayerInfo, LinearSpec, ReshapeSpec


def info(layer: nn.Module, *shape: int) -> LayerInfo:
    return inspect(layer, torch.zeros(shape)).layer("")


I, O, H, W = 6, 8, 10, 12


def conv() -> LayerInfo:
    """A 5x3 convolution, stride (2, 1), of one input: Nin = 120, N1 = 60, Nout = 60."""
    return info(nn.Conv2d(I, O, (5, 3), stride=(2, 1), padding=(2, 1)), 1, I, H, W)


NIN, N1, NOUT = H * W, (H // 2) * W, (H // 2) * W


@pytest.mark.parametrize(
    ("method", "ranks", "params", "macs"),
    [
        ("svd", (3,), 3 * (I * 15 + O), 3 * (I * 15 + O) * NOUT),
        ("tucker", (4, 3), I * 3 + 15 * 3 * 4 + 4 * O, I * 3 * NIN + 15 * 3 * 4 * NOUT + 4 * O * NOUT),
        ("tucker", (O, 3), I * 3 + 15 * 3 * O, I * 3 * NIN + 15 * 3 * O * NOUT),
        ("tucker", (4, I), 15 * I * 4 + 4 * O, (15 * I * 4 + 4 * O) * NOUT),
        ("tt3", (4, 3), I * 3 + 15 * 3 * 4 + 4 * O, I * 3 * NIN + 15 * 3 * 4 * NOUT + 4 * O * NOUT),
        ("cp", (5,), 5 * (I + 8 + O), I * 5 * NIN + 5 * 5 * N1 + 3 * 5 * NOUT + 5 * O * NOUT),
        (
            "tt",
            (2, 5, 4),
            I * 2 + 5 * 2 * 5 + 3 * 5 * 4 + 4 * O,
            I * 2 * NIN + 5 * 2 * 5 * N1 + 3 * 5 * 4 * NOUT + 4 * O * NOUT,
        ),
        ("spatial_svd", (4,), 4 * (I * 5 + O * 3), I * 5 * 4 * N1 + 4 * O * 3 * NOUT),
        ("filterwise_cp", (2,), 2 * O * (I + 8), I * 2 * O * NIN + (5 * N1 + 3 * NOUT) * 2 * O),
    ],
)
def test_convolutions_cost_what_the_formulas_say(method: str, ranks: tuple[int, ...], params: int, macs: int) -> None:
    """P and M of the table of factorizations; the bias adds O parameters."""
    cost = blueprint_cost(methods.get(method).blueprint(conv(), ranks), conv())
    assert (cost.params, cost.macs) == (params + O, macs)
    assert cost.weight_bytes == 4 * cost.params


@pytest.mark.parametrize("method", ["svd", "qr"])
def test_linear_layers_cost_what_the_formulas_say(method: str) -> None:
    layer = info(nn.Linear(20, 30), 7, 20)
    cost = blueprint_cost(methods.get(method).blueprint(layer, (4,)), layer)
    assert (cost.params, cost.macs, cost.fm) == (4 * 50 + 30, 7 * 4 * 50, 7 * 34)


def test_a_tt_matrix_costs_what_the_formula_says() -> None:
    """M = sum over j of (product of o_l before j) r_{j-1} i_j o_j r_j (product of i_l after j)."""
    layer = info(nn.Linear(24, 30, bias=False), 1, 24)
    options = {"cores": 3, "out_shape": (5, 3, 2), "in_shape": (4, 3, 2)}
    cost = blueprint_cost(methods.get("ttm", options).blueprint(layer, (6, 4)), layer)
    assert cost.params == 5 * 4 * 6 + 6 * 3 * 3 * 4 + 4 * 2 * 2
    assert cost.macs == 4 * 5 * 6 * (3 * 2) + 5 * (6 * 3 * 3 * 4) * 2 + (5 * 3) * (4 * 2 * 2)


def test_calls_add_up() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(self.conv(x))[..., ::2, ::2])

    layer = inspect(Twice(), torch.zeros(2, 4, 8, 8)).layer("conv")
    cost = blueprint_cost(methods.get("svd").blueprint(layer, (2,)), layer)
    one = info(nn.Conv2d(4, 4, 3, padding=1), 1, 4, 8, 8)
    single = blueprint_cost(methods.get("svd").blueprint(one, (2,)), one)
    assert cost.params == single.params
    assert cost.macs == 2 * (2 + 0.25) * single.macs
    assert cost.fm == 2 * (2 + 0.25) * single.fm


def test_a_layer_that_never_runs_has_parameters_only() -> None:
    layer = conv().static()
    cost = blueprint_cost(methods.get("cp").blueprint(layer, (2,)), layer)
    assert (cost.macs, cost.fm) == (0, 0)
    assert cost.params > 0


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float64, 8), (torch.float32, 4), (torch.float16, 2), (torch.bfloat16, 2)]
)
def test_bytes_follow_the_data_type(dtype: torch.dtype, size: int) -> None:
    layer = inspect(nn.Linear(6, 5).to(dtype), torch.zeros(1, 6, dtype=dtype)).layer("")
    cost = blueprint_cost(methods.get("svd").blueprint(layer, (2,)), layer)
    assert cost.weight_bytes == size * cost.params


def test_reshapes_and_biases_are_free_of_macs() -> None:
    layer = info(nn.Linear(6, 5), 3, 6)
    plain = Blueprint((LinearSpec(name="a", in_features=6, out_features=5),))
    more = Blueprint((*plain.stages, ReshapeSpec(name="v", tail=(5,)), BiasSpec(name="b", features=5)))
    assert blueprint_cost(plain, layer).macs == blueprint_cost(more, layer).macs == 90
    assert blueprint_cost(plain, layer).fm == blueprint_cost(more, layer).fm == 15
    assert blueprint_cost(more, layer).params == 35
