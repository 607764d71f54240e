"""A transposed convolution with an empty output runs in torch on some paths, its factors on none: it is skipped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.errors import RankfoldError

EMPTY = {
    "1-D": (nn.ConvTranspose1d(8, 8, 3, padding=2), (2, 8, 2)),
    "2-D": (nn.ConvTranspose2d(8, 8, 3, padding=2), (2, 8, 2, 2)),
    "one axis": (nn.ConvTranspose2d(8, 8, 3, padding=(2, 0)), (2, 8, 2, 5)),
    "grouped": (nn.ConvTranspose2d(8, 8, 3, padding=2, groups=2), (2, 8, 2, 2)),
    "3-D": (nn.ConvTranspose3d(8, 8, 3, padding=2), (2, 8, 2, 2, 2)),
}


class Both(nn.Module):
    """An ordinary convolution, and one to be looked at, whose output is not used."""

    def __init__(self, empty: nn.Module) -> None:
        super().__init__()
        self.empty, self.usual = empty, nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.empty(x)
        return self.usual(torch.ones(1, 64))


@pytest.mark.parametrize(("conv", "shape"), EMPTY.values(), ids=EMPTY)
def test_a_layer_with_an_empty_output_is_skipped(conv: nn.Module, shape: tuple[int, ...]) -> None:
    x, net = torch.randn(shape), Both(conv).eval()
    try:
        net(x)
    except RuntimeError:
        pytest.skip("torch refuses this shape here")
    layers = {layer.name: layer for layer in rf.inspect(net, x)}
    assert "output is empty" in (layers["empty"].skip or "")
    assert layers["usual"].skip is None
    plan = rf.plan(net, x, budget="params<=95%", methods=["svd", "tt", "spatial_svd", "tucker"])
    assert plan.layers["empty"].method is None
    with pytest.raises(RankfoldError, match="output is empty"):
        rf.plan(net, x, budget="params<=95%", overrides={"empty": ("tucker", (2, 2))})
    rf.apply(net, plan)(x)


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 3, 3), (1, 8, 4, 4)])
def test_an_empty_batch_or_a_small_output_is_no_reason(shape: tuple[int, ...]) -> None:
    net, x = Both(nn.ConvTranspose2d(8, 8, 3, padding=2)).eval(), torch.randn(shape)
    assert {layer.name: layer.skip for layer in rf.inspect(net, x)}["empty"] is None
