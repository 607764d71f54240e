"""Second moments against NumPy loops over explicit patches, and against what they are for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rankfold.calibration import collect_moments
from rankfold.errors import ConfigError, DataError, NoMatchingLayer, RankfoldWarning
from rankfold.factor.moments import Moments
from rankfold.records import LayerInfo

Array = NDArray[np.float64]
CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

# torch's advice on speed.
even_same = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def info(module: nn.Module, name: str = "", ties: tuple[str, ...] = ()) -> LayerInfo:
    """Describe a layer by its own attributes."""
    if isinstance(module, nn.Linear):
        return LayerInfo(
            name=name,
            kind="linear",
            in_channels=module.in_features,
            out_channels=module.out_features,
            ties=ties,
        )
    assert isinstance(module, _ConvNd)
    padding = module.padding
    return LayerInfo(
        name=name,
        kind="conv",
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=padding if isinstance(padding, str) else tuple(padding),
        dilation=tuple(module.dilation),
        groups=module.groups,
        padding_mode=module.padding_mode,
        transposed=isinstance(module, _ConvTransposeNd),
        ties=ties,
    )


def moments_of(module: nn.Module, inputs: Sequence[Any], **options: Any) -> Moments:
    return collect_moments(module, inputs, [info(module)], **options)[""]


def numpy_patches(x: Array, conv: _ConvNd, pads: Sequence[tuple[int, int]]) -> Array:
    """Return all patches ``(groups, count, n)`` with one Python loop per position."""
    mode: Any = {"zeros": "constant", "circular": "wrap", "reflect": "reflect"}[conv.padding_mode]
    x = np.pad(x, [(0, 0), (0, 0), *pads], mode=mode)
    rows: list[list[Array]] = [[] for _ in range(conv.groups)]
    size = conv.in_channels // conv.groups
    reach = [d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    starts = [range(0, n - r + 1, s) for n, r, s in zip(x.shape[2:], reach, conv.stride, strict=True)]
    for sample in x:
        for group in range(conv.groups):
            channels = sample[group * size : (group + 1) * size]
            for corner in itertools.product(*starts):
                window = tuple(slice(c, c + r, d) for c, r, d in zip(corner, reach, conv.dilation, strict=True))
                rows[group].append(channels[(slice(None), *window)].reshape(-1))
    return np.array(rows)


def covariance(vectors: Array) -> Array:
    return np.stack([v.T @ v / len(v) for v in vectors])


def relative(a: Tensor, b: Array | Tensor) -> float:
    other = torch.as_tensor(b)
    assert a.shape == other.shape
    return float((a - other).norm() / other.norm())


@even_same
@pytest.mark.parametrize(
    ("conv", "size", "pads"),
    [
        (nn.Conv2d(3, 4, 3), (7, 6), [(0, 0)] * 2),
        (nn.Conv2d(3, 4, 3, padding=1, stride=2), (7, 6), [(1, 1)] * 2),
        (nn.Conv2d(4, 4, (3, 2), padding=(2, 0), dilation=(2, 1)), (7, 6), [(2, 2), (0, 0)]),
        (nn.Conv2d(4, 6, 3, groups=2, padding=1), (5, 5), [(1, 1)] * 2),
        (nn.Conv2d(4, 4, 3, groups=4), (5, 5), [(0, 0)] * 2),
        (nn.Conv2d(2, 2, 4, padding="same"), (6, 6), [(1, 2)] * 2),
        (nn.Conv2d(2, 2, 3, padding="valid"), (6, 6), [(0, 0)] * 2),
        (nn.Conv2d(2, 2, 3, padding=2, padding_mode="circular"), (6, 6), [(2, 2)] * 2),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), (6, 6), [(1, 1)] * 2),
        (nn.Conv1d(3, 2, 5, stride=3, padding=2), (11,), [(2, 2)]),
        (nn.Conv3d(2, 2, (2, 3, 1), stride=(1, 2, 1)), (4, 5, 3), [(0, 0)] * 3),
    ],
    ids=str,
)
def test_patch_moment_equals_numpy(conv: _ConvNd, size: tuple[int, ...], pads: list[tuple[int, int]]) -> None:
    batches = [torch.randn(n, conv.in_channels, *size) for n in (3, 2)]
    got = moments_of(conv, batches)
    x = torch.cat(batches).double().numpy()
    want = covariance(numpy_patches(x, conv, pads))
    assert got.patch is not None
    assert got.patch.dtype == torch.float64
    assert relative(got.patch, want) < 1e-6
    channels = x.reshape(len(x), conv.groups, -1, math.prod(size))
    vectors = channels.transpose(1, 0, 3, 2).reshape(conv.groups, -1, channels.shape[2])
    assert relative(got.channel, covariance(vectors)) < 1e-6
    assert got.count == vectors.shape[1]
    # Negative control: the patches of other data are told apart.
    assert relative(got.patch, covariance(numpy_patches(x[1:], conv, pads))) > 1e-3


@st.composite
def cases(draw: st.DrawFn) -> tuple[_ConvNd, tuple[int, ...], int]:
    axes = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 4 if axes < 3 else 2)) for _ in range(axes)]
    dilation = [draw(st.integers(1, 2)) for _ in range(axes)]
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = tuple(draw(st.integers(r, r + 3)) for r in reach)
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    stride: Any = [draw(st.integers(1, 3)) for _ in range(axes)]
    padding: Any = draw(st.sampled_from(["same", "valid", "numbers"]))
    if padding == "same":
        stride = 1
    elif padding == "numbers":
        padding = [draw(st.integers(0, min(2, n - 1))) for n in size]
    if padding == "same" and mode == "reflect":
        assume(all(r - 1 < n for r, n in zip(reach, size, strict=True)))
    conv = CONVS[axes](
        groups * draw(st.integers(1, 3)), groups * 2, kernel, stride=stride, padding=padding,
        dilation=dilation, groups=groups, bias=False, padding_mode=mode,
    )  # fmt: skip
    return conv, size, draw(st.integers(1, 3))


@even_same
@given(case=cases(), seed=st.integers(0, 2**16))
def test_mean_squared_output_is_the_trace(case: tuple[_ConvNd, tuple[int, ...], int], seed: int) -> None:
    """What moments are for: ``E ||W x||^2 = trace(W C W^T)``, summed over the groups."""
    conv, size, batch = case
    x = torch.randn(batch, conv.in_channels, *size, generator=torch.Generator().manual_seed(seed))
    got = moments_of(conv, [x])
    matrix = got.channel if math.prod(conv.kernel_size) == 1 else got.patch
    assert matrix is not None
    weight = conv.weight.detach().double()
    w = weight.reshape(conv.groups, -1, matrix.shape[-1])
    predicted = float(torch.einsum("goi,gij,goj->", w, matrix, w))
    with torch.no_grad():
        y = conv.double()(x.double())
    actual = float(y.square().sum()) / (y.shape[0] * math.prod(y.shape[2:]))
    assert predicted == pytest.approx(actual, rel=1e-5, abs=1e-9)
    if actual > 1e-6:
        assert predicted != pytest.approx(1.1 * actual, rel=1e-5)


@pytest.mark.parametrize("size", [(), (5,), (2, 3)])
def test_linear_averages_over_all_leading_dimensions(size: tuple[int, ...]) -> None:
    x = torch.randn(4, *size, 6)
    got = moments_of(nn.Linear(6, 2), [x])
    rows = x.double().reshape(-1, 6)
    assert got.patch is None
    assert got.count == len(rows)
    assert relative(got.channel, (rows.T @ rows / len(rows)).unsqueeze(0)) < 1e-6


def test_one_sample_without_batch_dimension() -> None:
    conv, linear = nn.Conv2d(3, 2, 3), nn.Linear(4, 2)
    x, y = torch.randn(3, 6, 6), torch.randn(4)
    assert relative(moments_of(conv, [x]).channel, moments_of(conv, [x[None]]).channel) == 0
    assert relative(moments_of(linear, [y]).channel, moments_of(linear, [y[None]]).channel) == 0


def test_transposed_convolutions_have_channel_moments_only() -> None:
    conv = nn.ConvTranspose2d(4, 2, 3, stride=2, groups=2)
    x = torch.randn(3, 4, 5, 5)
    got = moments_of(conv, [x])
    rows = x.double().reshape(3, 2, 2, 25).permute(1, 0, 3, 2).reshape(2, 75, 2).numpy()
    assert got.patch is None
    assert relative(got.channel, covariance(rows)) < 1e-6


def test_float32_is_as_good_as_float64() -> None:
    """Many vectors far from zero mean: where short sums lose digits."""
    conv = nn.Conv2d(8, 4, 3, padding=1)
    batches = [torch.rand(64, 8, 32, 32) * 3 + 5 for _ in range(2)]
    exact = moments_of(conv.double(), [b.double() for b in batches])
    conv.float()
    got = moments_of(conv, batches)
    assert got.patch is not None
    assert exact.patch is not None
    assert 0 < relative(got.patch, exact.patch) < 1e-5
    assert 0 < relative(got.channel, exact.channel) < 1e-5
    # Elementwise, too: no entry is off by more than the largest one's share.
    assert float((got.patch - exact.patch).abs().max() / exact.patch.abs().max()) < 1e-5


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_huge_and_tiny_inputs(scale: float) -> None:
    conv = nn.Conv2d(3, 4, 3)
    x = torch.randn(4, 3, 6, 6)
    got, plain = moments_of(conv, [x * scale]), moments_of(conv, [x])
    assert got.patch is not None
    assert plain.patch is not None
    assert relative(got.patch / scale**2, plain.patch) < 1e-5
    assert relative(got.channel / scale**2, plain.channel) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs(dtype: torch.dtype) -> None:
    linear = nn.Linear(6, 2).to(dtype)
    x = (torch.randn(500, 6) * 300).to(dtype)
    rows = x.double()
    got = moments_of(linear, [x])
    assert relative(got.channel, (rows.T @ rows / 500).unsqueeze(0)) < 1e-5


def test_inside_autocast_and_float32_matmul_precision() -> None:
    linear = nn.Linear(32, 2)
    x = torch.randn(100, 32)
    plain = moments_of(linear, [x]).channel
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative(moments_of(linear, [x]).channel, plain) < 1e-6
    torch.set_float32_matmul_precision("medium")
    try:
        assert relative(moments_of(linear, [x]).channel, plain) < 1e-6
    finally:
        torch.set_float32_matmul_precision("highest")


def test_chunks_do_not_change_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(3, 2, 3, padding=1, groups=1)
    x = torch.randn(7, 3, 6, 6)
    whole = moments_of(conv, [x])
    monkeypatch.setattr("rankfold.calibration.gram.CHUNK", 1)
    parts = moments_of(conv, [x])
    assert whole.patch is not None
    assert parts.patch is not None
    assert relative(parts.patch, whole.patch) < 1e-6
    assert parts.count == whole.count == 7 * 36


def test_moments_without_a_part_of_the_data_are_those_of_the_rest() -> None:
    conv = nn.Conv2d(3, 4, 3, stride=2)
    sizes = [(9, 9), (12, 7), (8, 8)]  # the patches per position differ, too
    first, *rest = [torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(size[0])) for size in sizes]
    whole, part, other = (moments_of(conv, data) for data in ([first, *rest], [first], rest))
    left = whole.without(part)
    assert left is not None
    assert (left.count, left.patches) == (other.count, other.patches)
    assert left.patch is not None
    assert other.patch is not None
    assert relative(left.patch, other.patch) < 1e-6
    assert relative(left.channel, other.channel) < 1e-6
    assert relative(whole.channel, other.channel) > 1e-2
    assert whole.without(whole) is None


def test_positions_are_subsampled_evenly() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    x = torch.randn(2, 1, 9, 9)
    got = moments_of(conv, [x], max_positions=10)
    grid = x[:, :, 1::3, 1::3].double()
    assert got.count == 2 * 9
    assert float(got.channel) == pytest.approx(float(grid.square().mean()), rel=1e-6)
    padded = nn.functional.pad(x, [1] * 4).double().numpy()
    kept = [
        padded[b, 0, i : i + 3, j : j + 3].ravel()
        for b in range(2) for i in (1, 4, 7) for j in (1, 4, 7)
    ]  # fmt: skip
    assert got.patch is not None
    assert relative(got.patch, covariance(np.array([kept]))) < 1e-6
    tokens = torch.randn(3, 12, 4)
    assert moments_of(nn.Linear(4, 4), [tokens], max_positions=4).count == 3 * 4


def test_all_positions_of_a_small_image_by_default() -> None:
    conv = nn.Conv2d(3, 2, 3, padding=1)
    assert moments_of(conv, [torch.randn(2, 3, 32, 32)]).count == 2 * 1024
    assert moments_of(conv, [torch.randn(2, 3, 112, 112)]).count == 2 * 784


class Twice(nn.Module):
    """A layer that is called twice, a twin with the same weight, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        torch.rand(3)  # a model that draws random numbers even in evaluation mode
        return self.b(input=self.norm(self.drop(self.a(self.a(x * scale)))))


def test_repeated_tied_and_unused_layers() -> None:
    model = Twice()
    x = torch.randn(8, 4)
    layers = [info(model.a, "a", ties=("b",)), info(model.unused, "unused")]
    with pytest.warns(RankfoldWarning, match="no calibration sample reaches 'unused'") as caught:
        got = collect_moments(model, [(x, None)], layers)
    assert caught[0].filename == __file__
    assert list(got) == ["a"]
    assert got.unreached == ("unused",)
    with torch.no_grad():
        first = model.a(x)
        model.eval()
        third = model.norm(model.a(first))
    rows = torch.cat([x, first, third]).double()
    assert got["a"].count == 24
    assert relative(got["a"].channel, (rows.T @ rows / 24).unsqueeze(0)) < 1e-6
    alone = collect_moments(model, [x], [info(model.a, "a"), info(model.b, "b")])
    assert (alone["a"].count, alone["b"].count) == (16, 8)
    aliases = collect_moments(model, [x], [info(model.a, "a", ties=("b", "b", "a"))])
    assert aliases["a"].count == 24


def test_nothing_is_left_behind() -> None:
    model = Twice()
    model.norm.eval()
    x = torch.randn(8, 4)
    modes = {name: m.training for name, m in model.named_modules()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), 2, shuffle=True)
    fast = torch.backends.mha.get_fastpath_enabled()
    random = torch.get_rng_state()
    collect_moments(model, loader, [info(model.a, "a")])
    with pytest.raises(DataError, match="'a'"):
        collect_moments(model, [x, x / 0], [info(model.a, "a")])
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert modes["drop"]
    assert not modes["norm"]
    assert all(not m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled() == fast
    after = model.state_dict()
    assert all(torch.equal(after[k], state[k]) for k in state)
    torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), random)


def test_every_form_of_batch() -> None:
    model = Twice()
    x = torch.randn(8, 4)
    layers = [info(model.a, "a")]
    forms: list[Any] = [x, (x,), [x, x], ((x, 1.0), 3), {"x": x, "labels": x}, {"x": x, "scale": 1}]
    results = [collect_moments(model, [form], layers)["a"] for form in forms]
    assert all(torch.equal(r.channel, results[0].channel) for r in results)
    other = collect_moments(model, [{"x": x, "scale": 2.0}], layers)["a"]
    assert not torch.equal(other.channel, results[0].channel)


class Attending(nn.Module):
    def __init__(self, block: nn.MultiheadAttention) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.block(*args, **kwargs)[0]


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_projections(batch_first: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=batch_first)
    tensors = {"query": torch.randn(2, 5, 8), "key": torch.randn(2, 7, 6)}
    tensors["value"] = torch.randn(2, 7, 4)
    if not batch_first:
        tensors = {k: v.transpose(0, 1) for k, v in tensors.items()}
    model = Attending(attention)
    layers = [
        LayerInfo(name=f"block.{n}", kind="linear", in_channels=i, out_channels=8)
        for n, i in (("q_proj", 8), ("k_proj", 6), ("v_proj", 4), ("out_proj", 8))
    ]
    for inputs in (tensors, tuple(tensors.values())):
        batch = inputs if isinstance(inputs, dict) else (inputs,)
        got = collect_moments(model, [batch], layers)
        assert list(got) == ["block.q_proj", "block.k_proj", "block.v_proj"]
        for moments, x in zip(got.values(), tensors.values(), strict=True):
            rows = x.double().reshape(-1, x.shape[-1])
            assert relative(moments.channel, (rows.T @ rows / len(rows)).unsqueeze(0)) < 1e-6
    few = collect_moments(model, [tensors], layers, max_positions=4)["block.v_proj"]
    assert few.count == 2 * 4  # of each sample


def test_transformer_layers_do_not_bypass_the_hooks() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    x = torch.randn(2, 5, 8)
    first = encoder.layers[0]
    assert isinstance(first, nn.TransformerEncoderLayer)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 3:] = True
    layers = [
        info(first.linear1, "layers.0.linear1"),
        LayerInfo(name="layers.1.self_attn.q_proj", kind="linear", in_channels=8, out_channels=8),
    ]
    for batch, positions in ((x, 10), ({"src": x, "src_key_padding_mask": mask}, 8)):  # padding is not data
        got = collect_moments(encoder, [batch], layers)
        assert [m.count for m in got.values()] == [positions, positions]


def test_limits() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    layers = [info(model[i], str(i)) for i in (0, 1, 3)]
    x = torch.randn(2, 3, 6, 6)
    full = collect_moments(model, [x], layers)
    assert [full[n].patch is not None for n in "013"] == [True, True, False]
    small = collect_moments(model, [x], layers, max_patch=27)
    assert [small[n].patch is not None for n in "013"] == [True, False, False]
    need = sum(8 * t.numel() for m in full.values() for t in (m.channel, m.patch) if t is not None)
    assert collect_moments(model, [x], layers, memory_limit=need)["1"].patch is not None
    with pytest.warns(RankfoldWarning, match="leaving out patch moments of 1") as caught:
        less = collect_moments(model, [x], layers, memory_limit=need - 1)
    assert caught[0].filename == __file__
    assert [less[n].patch is not None for n in "013"] == [True, False, False]
    with pytest.warns(RankfoldWarning) as caught:
        least = collect_moments(model, [x], layers, memory_limit=8 * (9 + 64))
    assert [str(w.message).split("leaving out ")[1].split(". ")[0] for w in caught] == [
        "patch moments of 1, 0",
        "all moments of 3",
    ]
    assert list(least) == ["0", "1"]


def test_bad_input() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    layers = [info(model[0], "0"), info(model[1], "1")]
    x = torch.randn(3, 4)
    with pytest.raises(DataError, match="calibration data is empty"):
        collect_moments(model, [], layers)
    with pytest.raises(DataError, match="iterable of batches"):
        collect_moments(model, x, layers)
    for bad in (math.nan, math.inf, -math.inf):
        y = x.clone()
        y[1, 2] = bad
        with pytest.raises(DataError, match="layer '0' contains NaN or infinity"):
            collect_moments(model, [x, y], layers)
    with pytest.raises(NoMatchingLayer, match="no layer '7'"):
        collect_moments(model, [x], [info(model[0], "7")])
    for option in ("max_patch", "memory_limit", "max_positions"):
        with pytest.raises(ConfigError, match=option):
            collect_moments(model, [x], layers, **{option: -1})


def test_an_empty_batch_adds_nothing() -> None:
    conv = nn.Conv2d(3, 2, 3)
    x = torch.randn(2, 3, 5, 5)
    assert moments_of(conv, [x, x[:0]]).count == 50
    with pytest.warns(RankfoldWarning, match="no calibration sample reaches"):
        assert collect_moments(conv, [x[:0]], [info(conv)]) == {}
