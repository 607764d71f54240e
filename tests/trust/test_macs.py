"""The multiply-accumulates of a model: every operation counted, as by hand, or the total marked as partial."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import flop_registry, register_flop_formula

import rankfold as rf
from rankfold.errors import BudgetError
from rankfold.inventory import OperationCounter, inspect
from rankfold.inventory.formulas import FORMULAS
from rankfold.reporting import Report, inventory_markdown

GATES: dict[type[nn.Module], int] = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1, nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}
BATCH, STEPS, INPUTS, HIDDEN = 3, 7, 5, 6
LENGTHS = (7, 4, 2)


class Calls(nn.Module):
    """A function of the input and of one square weight, after a layer of 36 multiply-accumulates a row."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(HIDDEN, HIDDEN)
        self.weight = nn.Parameter(torch.eye(HIDDEN) + 0.1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x), self.weight)


class Packed(nn.Module):
    """A recurrent network on sequences of several lengths."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(pack_padded_sequence(x, list(LENGTHS), batch_first=True))[0].data


def counted(model: nn.Module, *inputs: Tensor) -> int:
    inventory = inspect(model, inputs)
    assert inventory.uncounted == ()
    return inventory.total.macs


def recurrent(gates: int, positions: int, *, layers: int = 1, directions: int = 1, projected: int = 0) -> int:
    """Count by hand: each gate has a product with the input and one with the state."""
    total, width = 0, projected or HIDDEN
    for layer in range(layers):
        inputs = INPUTS if layer == 0 else width * directions
        total += directions * (gates * HIDDEN * (inputs + width) + HIDDEN * projected)
    return total * positions


@pytest.mark.parametrize("network", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "batch_first": True},
        {"num_layers": 3},
        {"num_layers": 2, "bidirectional": True},
        {"dtype": torch.float64},
    ],
    ids=str,
)
def test_a_recurrent_network(network: Any, options: dict[str, Any]) -> None:
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=options.get("dtype"))
    shape = {"layers": options.get("num_layers", 1), "directions": 1 + options.get("bidirectional", False)}
    assert counted(network(INPUTS, HIDDEN, **options), x) == recurrent(GATES[network], STEPS * BATCH, **shape)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_an_lstm_with_projections_and_an_rnn_of_relu() -> None:
    x = torch.randn(STEPS, BATCH, INPUTS)
    lstm = nn.LSTM(INPUTS, HIDDEN, 2, bidirectional=True, proj_size=4)
    assert counted(lstm, x) == recurrent(4, STEPS * BATCH, layers=2, directions=2, projected=4)
    assert counted(nn.RNN(INPUTS, HIDDEN, nonlinearity="relu"), x) == recurrent(1, STEPS * BATCH)
    assert counted(nn.LSTM(INPUTS, HIDDEN), x[:, 0]) == recurrent(4, STEPS)  # one sequence, no batch


@pytest.mark.parametrize("network", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("directions", [1, 2])
def test_a_packed_sequence_has_no_padding(network: Any, directions: int) -> None:
    model = Packed(network(INPUTS, HIDDEN, batch_first=True, bidirectional=directions == 2))
    x = torch.randn(BATCH, STEPS, INPUTS)
    assert counted(model, x) == recurrent(GATES[network], sum(LENGTHS), directions=directions)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_recurrent_cell(cell: Any) -> None:
    assert counted(cell(INPUTS, HIDDEN), torch.randn(BATCH, INPUTS)) == recurrent(GATES[cell], BATCH)


def encoder_layer(length: int, width: int, hidden: int) -> int:
    return length * (4 * width * width + 2 * width * hidden) + 2 * length * length * width


def test_an_encoder_layer_at_512_tokens() -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    assert counted(layer, torch.randn(1, 512, 64)) == encoder_layer(512, 64, 128) == 50_331_648
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
    assert counted(encoder, torch.randn(2, 64, 64)) == 4 * encoder_layer(64, 64, 128)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_an_encoder_layer_counts_the_same_however_it_is_set(norm_first: bool, training: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first).train(training)
    assert counted(layer, torch.randn(2, 10, 8)) == 2 * encoder_layer(10, 8, 12)


def test_a_decoder_layer() -> None:
    layer = nn.TransformerDecoderLayer(8, 2, 12, batch_first=True)
    attention = 5 * 8 * 8 * 2 + 9 * 8 * 8 * 2 + 2 * 5 * 9 * 8
    by_hand = encoder_layer(5, 8, 12) + attention
    assert counted(layer, torch.randn(1, 5, 8), torch.randn(1, 9, 8)) == by_hand


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 4, "vdim": 12}], ids=str)
def test_a_cross_attention(need_weights: bool, sizes: dict[str, int]) -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)
    keys, values = sizes.get("kdim", 8), sizes.get("vdim", 8)
    example = {
        "query": torch.randn(3, 5, 8),
        "key": torch.randn(3, 9, keys),
        "value": torch.randn(3, 9, values),
        "need_weights": need_weights,
    }
    by_hand = 3 * (2 * 5 * 8 * 8 + 9 * 8 * (keys + values) + 2 * 5 * 9 * 8)
    assert inspect(model, example).total.macs == by_hand


def test_a_vision_transformer() -> None:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=24, num_classes=10)
    by_hand = 16 * (3 * 8 * 8) * 16 + 2 * encoder_layer(17, 16, 24) + 16 * 10
    assert counted(model, torch.randn(2, 3, 32, 32)) == 2 * by_hand


def forces(x: Tensor, w: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad((x @ w).square().sum(), x)[0]


@torch.inference_mode()
def in_inference_mode(x: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("bti,oi->bto", x.clone(), w)


class Product(torch.autograd.Function):
    """A function of the user's that is made of torch's operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        return x @ w


def grouped_queries(x: Tensor, w: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(
        w.new_ones(1, 8, 10, 4), w.new_ones(1, 2, 12, 4), w.new_ones(1, 2, 12, 4), enable_gqa=True
    )


ROWS = BATCH * STEPS
FUNCTIONS: dict[str, tuple[Callable[[Tensor, Tensor], Any], int]] = {
    "a product": (lambda x, w: x @ w, ROWS * 36),
    "einsum": (lambda x, w: torch.einsum("bti,oi->bto", x, w), ROWS * 36),
    "tensordot": (lambda x, w: torch.tensordot(x, w, dims=1), ROWS * 36),
    "matrix and vector": (lambda x, w: w @ x[0, 0], 36),
    "two vectors": (lambda x, w: w[0] @ x[0, 0], 6),
    "addmm in place": (lambda x, w: x[0].clone().addmm_(x[0], w), STEPS * 36),
    "addmv": (lambda x, w: torch.addmv(x[0, 0], w, x[0, 1]), 36),
    "baddbmm": (lambda x, w: torch.baddbmm(x, x, w.expand(BATCH, -1, -1)), ROWS * 36),
    "addbmm": (lambda x, w: torch.addbmm(x[0], x, w.expand(BATCH, -1, -1)), ROWS * 36),
    "bilinear": (lambda x, w: functional.bilinear(x, x, w.new_ones(2, HIDDEN, HIDDEN)), ROWS * 72),
    "distances": (lambda x, w: torch.cdist(x, x), BATCH * STEPS * STEPS * HIDDEN),
    "convolution": (lambda x, w: functional.conv1d(x, w.new_ones(4, STEPS, 3)), BATCH * 4 * 4 * STEPS * 3),
    "grouped queries": (grouped_queries, 8 * 10 * 12 * (4 + 4)),
    "a transform": (lambda x, w: torch.fft.rfft(w.new_ones(8, 1024)), 8 * 1024 * 10 * 5 // 4),
    "forces": (forces, 2 * ROWS * 36),
    "inference mode": (in_inference_mode, ROWS * 36),
    "a function with a backward pass": (Product.apply, ROWS * 36),
    "elementwise": (lambda x, w: (x * x).sum(-1).softmax(-1).cumsum(0), 0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_outside_of_the_layers(name: str) -> None:
    function, by_hand = FUNCTIONS[name]
    model = Calls(function)
    inventory = inspect(model, torch.randn(BATCH, STEPS, HIDDEN))
    assert inventory.uncounted == ()
    assert inventory.total.macs == ROWS * 36 + by_hand
    assert inventory.coverage[1] == ROWS * 36 / (ROWS * 36 + by_hand)


def test_the_share_is_that_of_the_whole() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(40, 64, 2, batch_first=True)
            self.linear = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.lstm(x)[1][0][-1])

    model, x = Encoder(), torch.randn(4, 50, 40)
    outside = 4 * 50 * 4 * 64 * (40 + 64 + 64 + 64)
    result = rf.compress(model, x, budget="params<=99%")
    report = result.report
    assert report.before.macs == outside + 4 * 64 * 64
    factors = [p for name, p in result.model.named_parameters() if name.startswith("linear") and p.ndim == 2]
    assert report.after.macs == outside + 4 * sum(p.numel() for p in factors)
    assert "0% of MACs" in report.coverage


def test_a_compressed_attention_is_counted_like_the_dense_one() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    result = rf.compress(layer, torch.randn(1, 20, 16), budget="params<=60%", strategy="uniform")
    assert any("attn" in name for name in result.plan.factored)
    weights = sum(p.numel() for p in result.model.parameters() if p.ndim == 2)
    assert result.report.after.macs == 20 * weights + 2 * 20 * 20 * 16


# What cannot be counted


@torch.library.custom_op("rankfold_tests::product", mutates_args=())
def product(x: Tensor, w: Tensor) -> Tensor:
    """An operation whose work torch cannot see."""
    return x @ w


def custom(x: Tensor, w: Tensor) -> Tensor:
    return product(x, w)  # in a function: torch's own object cannot be copied with the model


UNCOUNTED: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "an operation of the user's": (custom, "rankfold_tests::product"),
    "sparse": (lambda x, w: torch.sparse.mm(w.to_sparse(), x[0].T), "aten::_sparse_addmm"),
    "compressed rows": (lambda x, w: w.to_sparse_csr() @ x[0].T, "aten::mm (sparse)"),
    "an inverse": (lambda x, w: torch.linalg.inv(w), "aten::linalg_inv_ex"),
    "singular values": (lambda x, w: torch.linalg.svdvals(w), "aten::_linalg_svd"),
}


@pytest.mark.parametrize("name", UNCOUNTED)
def test_an_operation_that_cannot_be_counted_makes_the_total_partial(name: str) -> None:
    function, operation = UNCOUNTED[name]
    model, x = Calls(function), torch.randn(BATCH, STEPS, HIDDEN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's sparse tensors are in beta
        inventory = inspect(model, x)
        assert inventory.uncounted == (operation,)
        assert inventory.coverage[1] is None
        assert f"MACs counted in part (not counted: {operation})" in inventory.summary()
        assert "% of MACs" not in inventory.summary()
        for refused in (rf.plan, rf.compress):
            with pytest.raises(BudgetError, match="bounds macs.*not counted") as caught:
                refused(model, x, budget="params<=90%, macs<=50%")
            assert operation in str(caught.value)
        assert rf.plan(model, x, budget="params<=90%").factored  # other bounds hold as ever


def test_no_report_shows_a_share_of_macs_that_are_partial() -> None:
    model, x = Calls(custom), torch.randn(BATCH, STEPS, HIDDEN)
    report = rf.compress(model, x, budget="params<=90%").report
    assert report.uncounted == ("rankfold_tests::product",)
    assert Report.from_json(report.to_json()) == report
    stream = io.StringIO()
    report.print(Console(file=stream, width=160))
    for text in (stream.getvalue(), report.to_markdown(), report.to_html()):
        assert "not counted: rankfold_tests::product" in text.replace("\\", "")
        assert "≥ " in text
    (line,) = (line for line in report.to_markdown().splitlines() if line.startswith("| MACs"))
    assert "%" not in line
    assert "x" not in line.replace("MACs", "")
    (total,) = (line for line in inventory_markdown(inspect(model, x)).splitlines() if "**total**" in line)
    assert "≥ 756" in total


def test_a_sweep_over_macs_is_refused_and_one_over_parameters_shows_no_share() -> None:
    model, x = Calls(custom), torch.randn(BATCH, STEPS, HIDDEN)
    for options in ({"resource": "macs"}, {"budget": "macs<=95%"}, {"points": ["params<=90%", "macs<=90%"]}):
        with pytest.raises(BudgetError, match="rankfold_tests::product"):
            rf.sweep(model, x, **({"points": 2} | options))
    found = rf.sweep(model, x, points=2)
    with pytest.raises(BudgetError, match="rankfold_tests::product"):
        found.plan("macs<=90%")
    cells = [line.split("|")[3] for line in found.to_markdown().splitlines() if line.startswith("| params")]
    assert cells
    assert all("≥" in cell and "%" not in cell for cell in cells)


def test_a_formula_that_the_user_registers_is_used() -> None:
    @torch.library.custom_op("rankfold_tests::counted_product", mutates_args=())
    def known(x: Tensor, w: Tensor) -> Tensor:
        return x @ w

    operation = torch.ops.rankfold_tests.counted_product
    model, x = Calls(known), torch.randn(BATCH, STEPS, HIDDEN)
    with pytest.raises(BudgetError, match="register_flop_formula"):
        rf.plan(model, x, budget="macs<=90%")

    def flops(x_shape: Any, w_shape: Any, out_shape: Any = None, **options: Any) -> int:
        return 2 * torch.Size(x_shape).numel() * w_shape[-1]

    register_flop_formula(operation)(flops)
    try:
        assert counted(model, x) == 2 * ROWS * 36
        assert rf.plan(model, x, budget="macs<=90%").factored
    finally:
        del flop_registry[operation]


def test_a_formula_that_fails_makes_the_total_partial(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: Any, out: Any) -> int:
        raise IndexError("an argument is gone")

    monkeypatch.setitem(FORMULAS, "aten::addmm", broken)
    inventory = inspect(nn.Linear(3, 2), torch.zeros(4, 3))
    assert inventory.uncounted == ("aten::addmm",)
    assert inventory.total.macs == 4 * 6  # the sum over the layers


def test_what_torch_knows_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), torch.randn(2, 10, 8)
    known = inspect(layer, x).total.macs
    for operation in list(flop_registry):
        monkeypatch.delitem(flop_registry, operation)
    assert inspect(layer, x).total.macs == known == 2 * encoder_layer(10, 8, 12)


def test_every_formula_is_of_a_known_operation() -> None:
    """A name that is misspelt would never be met; those of other devices and releases may be absent here."""
    present = [name for name in FORMULAS if name.startswith("aten::") and hasattr(torch.ops.aten, name[6:])]
    assert len(present) > 0.8 * len(FORMULAS)


def test_the_counter_leaves_results_as_they_are() -> None:
    model, x = nn.LSTM(INPUTS, HIDDEN, 2, bidirectional=True).eval(), torch.randn(STEPS, BATCH, INPUTS)
    with torch.no_grad():
        expected = model(x)[0]
        with OperationCounter():
            assert torch.equal(model(x)[0], expected)
