"""Exploration spaces: what is counted and solved equals what listing every rank setting finds."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankfold import methods
from rankfold.cost import blueprint_cost
from rankfold.cost.exploration import Exploration, Space, explore, layer_of, pieces, rows
from rankfold.errors import ConfigError, RankfoldError, UnsupportedLayer
from rankfold.records import Call, Cost, LayerInfo, Ranks
from rankfold.records.dense import dense_cost

STEPS = (0.85, 0.6, 0.25, 0.1)
TOLERANCE = 0.02  # small layers have few settings: wide steps hold some of them

LAYERS = {
    "1-D": layer_of("conv:3x12x10,size=9"),
    "1-D stride": layer_of("conv:5x8x9,stride=2,size=11,padding=0"),
    "2-D": layer_of("conv:3x3x6x8,size=5"),
    "2-D stride": layer_of("conv:3x3x6x8,stride=2,size=7"),
    "2-D groups": layer_of("conv:3x3x12x8,groups=2,size=5,bias"),
    "2-D oblong": layer_of("conv:1x5x6x7,stride=1x2,size=4x9"),
    "2-D one input": layer_of("conv:5x5x1x6,padding=0"),
    "2-D dilated": layer_of("conv:3x3x5x5,dilation=2,size=8"),
    "3-D": layer_of("conv:3x2x2x4x5,size=4,padding=0"),
    "1x1": layer_of("conv:1x1x9x12"),
    "transposed": LayerInfo(
        name="", kind="conv", in_channels=6, out_channels=5, kernel=(3, 3), stride=(2, 2), padding=(1, 1),
        dilation=(1, 1), output_padding=(1, 1), transposed=True, bias=True,
        calls=(Call(batch=2, in_size=(4, 4), out_size=(8, 8)), Call(batch=1, in_size=(3, 3), out_size=(6, 6), count=3)),
    ),
    "linear": layer_of("linear:24x18,bias"),
    "linear of powers": layer_of("linear:32x16"),
}  # fmt: skip
CASES = [
    (name, method)
    for name, layer in LAYERS.items()
    for method in methods.registry.names()
    if methods.get(method).supports(layer) is None
]


@dataclass(frozen=True)
class Listed:
    """One rank setting, found by listing."""

    ranks: Ranks
    options: tuple[tuple[str, Any], ...]
    cost: Cost


def factors(n: int, count: int) -> list[tuple[int, ...]]:
    return [c for c in itertools.product(range(2, n + 1), repeat=count) if math.prod(c) == n]


def variants(method: str, layer: LayerInfo, cores: int) -> list[dict[str, Any]]:
    if method != "ttm":
        return [{}]
    return [
        {"cores": d, "out_shape": outs, "in_shape": ins}
        for d in range(2, cores + 1)
        for outs in factors(layer.out_channels, d)
        for ins in factors(layer.in_channels, d)
    ]


def every(method: str, layer: LayerInfo, cores: int = 3) -> Iterator[Listed]:
    for options in variants(method, layer, cores):
        chosen = methods.get(method, options)
        for ranks in itertools.product(*(range(1, limit + 1) for limit in chosen.max_ranks(layer))):
            cost = blueprint_cost(chosen.blueprint(layer, ranks), layer)
            yield Listed(ranks, tuple(sorted(options.items())), cost)


def valid(listed: Sequence[Listed], layer: LayerInfo) -> list[Listed]:
    dense = dense_cost(layer)
    return [s for s in listed if s.cost.params < dense.params and s.cost.macs < dense.macs]


def in_step(found: Sequence[Listed], layer: LayerInfo, share: float, tolerance: float) -> list[Listed]:
    dense = dense_cost(layer).params
    low, high = (Fraction(str(share)) + sign * Fraction(str(tolerance)) for sign in (-1, 1))
    return [s for s in found if low <= 1 - Fraction(s.cost.params, dense) < high]


def as_listed(solution: Any) -> Listed:
    return Listed(solution.ranks, tuple(sorted(solution.options.items())), solution.cost)


def check(layer: LayerInfo, method: str, space: Space, steps: Sequence[float], tolerance: float) -> None:
    listed = list(every(method, layer))
    fine = valid(listed, layer)
    assert space.settings == len(listed)
    assert space.size == len(fine)
    if not fine:
        assert space.params is None
        assert all(step.count == 0 and not step.solutions for step in space.steps)
        return
    for name in ("params", "macs", "memory"):
        values = [getattr(s.cost, name) for s in fine]
        extent = getattr(space, name)
        assert (extent.least, extent.most) == (min(values), max(values))
        assert extent.coverage == pytest.approx((max(values) - min(values)) / getattr(dense_cost(layer), name))
    for share, step in zip(steps, space.steps, strict=True):
        inside = in_step(fine, layer, share, tolerance)
        assert step.count == len(inside)
        if not inside:
            assert step.solutions == ()
            continue
        assert as_listed(step.fewest_macs) in inside
        assert as_listed(step.most_macs) in inside
        assert step.fewest_macs.cost.macs == min(s.cost.macs for s in inside)
        assert step.most_macs.cost.macs == max(s.cost.macs for s in inside)
        aim = round(dense_cost(layer).params * (1 - Fraction(str(share))))
        keys = {s: (max(s.ranks) - min(s.ranks), abs(s.cost.params - aim)) for s in inside}
        assert keys[as_listed(step.equal_ranks)] == min(keys.values())
        drawn = [as_listed(s) for s in step.random]
        named = {as_listed(s) for s in (step.fewest_macs, step.most_macs, step.equal_ranks)}
        assert len(set(drawn)) == len(drawn) == min(4, len(inside) - len(named))
        assert set(drawn) <= set(inside) - named


@pytest.mark.parametrize(("name", "method"), CASES)
def test_counting_equals_listing(name: str, method: str) -> None:
    layer = LAYERS[name]
    space = explore(layer, method, Exploration(steps=STEPS, tolerance=TOLERANCE, random=4))
    check(layer, method, space, STEPS, TOLERANCE)


def useless(method: str, layer: LayerInfo, listed: Listed) -> bool:
    """Whether a neighbor makes a rank useless, by the definition of each decomposition."""
    ranks, options = listed.ranks, dict(listed.options)
    if method in ("tucker", "tt3"):
        full = (layer.group_out, layer.group_in)
        if full[0] == ranks[0] or full[1] == ranks[1]:
            return False  # a factor of full rank is left out
        return max(ranks) > layer.kernel_numel * min(ranks)
    if method == "tt":
        return any(max(a, b) > k * min(a, b) for a, b, k in zip(ranks, ranks[1:], layer.kernel, strict=False))
    if method == "ttm":
        sizes = [o * i for o, i in zip(options["out_shape"], options["in_shape"], strict=True)]
        return any(max(a, b) > n * min(a, b) for a, b, n in zip(ranks, ranks[1:], sizes[1:], strict=False))
    return False


@pytest.mark.parametrize(("name", "method"), CASES)
def test_useful_settings_are_those_that_listing_finds(name: str, method: str) -> None:
    layer = LAYERS[name]
    space = explore(layer, method, Exploration(steps=STEPS, tolerance=TOLERANCE, random=4, useful=True, bins=6))
    fine = [s for s in valid(list(every(method, layer)), layer) if not useless(method, layer, s)]
    assert space.size == len(fine)
    assert sum(map(sum, space.histogram.counts)) == len(fine)
    for share, step in zip(STEPS, space.steps, strict=True):
        inside = in_step(fine, layer, share, TOLERANCE)
        assert step.count == len(inside)
        assert {as_listed(s) for s in step.solutions} <= set(inside)
        if inside:
            assert step.fewest_macs.cost.macs == min(s.cost.macs for s in inside)


def test_some_settings_are_useless() -> None:
    for name, method in (("2-D", "tt"), ("3-D", "tt"), ("1-D", "tucker"), ("linear of powers", "ttm")):
        assert explore(LAYERS[name], method, Exploration(useful=True)).size < explore(LAYERS[name], method).size


def test_every_method_and_dimension_is_among_the_cases() -> None:
    assert {method for _, method in CASES} == set(methods.registry.names())
    assert {len(LAYERS[name].kernel) for name, _ in CASES} == {0, 1, 2, 3}


@pytest.mark.parametrize(("name", "method"), [("2-D", "tt"), ("2-D stride", "tucker"), ("linear", "ttm")])
def test_a_wrong_count_would_be_noticed(name: str, method: str) -> None:
    layer = LAYERS[name]
    space = explore(layer, method, Exploration(steps=STEPS, tolerance=TOLERANCE, random=4))
    step = next(s for s in space.steps if s.count > 1)
    wrong = [
        replace(space, size=space.size + 1),
        replace(space, params=replace(space.params, most=space.params.most + 1)),
        replace(space, steps=tuple(replace(s, count=s.count - 1) if s is step else s for s in space.steps)),
        replace(space, steps=tuple(replace(s, fewest_macs=s.most_macs) if s is step else s for s in space.steps)),
    ]
    for changed in wrong:
        with pytest.raises(AssertionError):
            check(layer, method, changed, STEPS, TOLERANCE)


@settings(max_examples=40)
@given(
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=3).filter(lambda k: math.prod(k) > 1),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    groups=st.integers(1, 2),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    method=st.sampled_from(["tucker", "tt", "cp", "svd", "filterwise_cp"]),
    share=st.integers(1, 19),
    tolerance=st.sampled_from([0.001, 0.025, 0.1]),
)
def test_any_convolution(
    kernel: list[int], channels: tuple[int, int], groups: int, stride: int, bias: bool, method: str, share: int,
    tolerance: float,
) -> None:  # fmt: skip
    inputs, outputs = (c * groups for c in channels)
    text = f"conv:{'x'.join(map(str, kernel))}x{inputs}x{outputs},groups={groups},stride={stride},size=5"
    layer = layer_of(text + ",bias" * bias)
    if methods.get(method).supports(layer) is not None:
        with pytest.raises(UnsupportedLayer):
            explore(layer, method)
        return
    steps = (share / 20,)
    space = explore(layer, method, Exploration(steps=steps, tolerance=tolerance, random=4))
    check(layer, method, space, steps, tolerance)


@settings(max_examples=25)
@given(inputs=st.integers(2, 18), outputs=st.integers(2, 18), share=st.integers(1, 19))
def test_any_linear_layer(inputs: int, outputs: int, share: int) -> None:
    layer = layer_of(f"linear:{inputs}x{outputs}")
    steps = (share / 20,)
    for method in ("svd", "ttm"):
        if methods.get(method).supports(layer) is None:
            check(
                layer, method, explore(layer, method, Exploration(steps=steps, tolerance=0.025, random=4)), steps, 0.025
            )


def test_steps_of_whole_percents_part_the_space() -> None:
    layer = LAYERS["2-D"]
    space = explore(layer, "tt", Exploration(steps=[k / 100 for k in range(1, 100)]))
    below = [s for s in valid(list(every("tt", layer)), layer) if 1 - s.cost.params / 432 < 0.005]
    assert sum(step.count for step in space.steps) == space.size - len(below)


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = explore(LAYERS["3-D"], "tt", Exploration(steps=STEPS, tolerance=TOLERANCE, random=5, bins=7))
    generator = rows.valid_rows
    chunks: list[int] = []

    def small(*args: Any) -> Iterator[rows.Rows]:
        for part in generator(*args, chunk=5):
            chunks.append(len(part))
            yield part

    monkeypatch.setattr("rankfold.cost.exploration.space.valid_rows", small)
    monkeypatch.setattr("rankfold.cost.exploration.plane.BLOCK", 3)
    assert explore(LAYERS["3-D"], "tt", Exploration(steps=STEPS, tolerance=TOLERANCE, random=5, bins=7)) == whole
    assert len(chunks) > 10


@pytest.mark.parametrize(
    ("name", "method"), [("2-D", "tt"), ("2-D stride", "tucker"), ("linear", "ttm"), ("1x1", "qr")]
)
def test_histogram(name: str, method: str) -> None:
    layer, bins = LAYERS[name], 8
    dense = dense_cost(layer)
    wanted: Counter[tuple[int, int]] = Counter()
    for s in valid(list(every(method, layer)), layer):
        reductions = (1 - Fraction(s.cost.params, dense.params), 1 - Fraction(s.cost.macs, dense.macs))
        across, up = (math.ceil(bins * r) - 1 for r in reductions)
        wanted[across, up] += 1
    found = explore(layer, method, Exploration(bins=bins)).histogram
    table = {(p, m): n for p, line in enumerate(found.counts) for m, n in enumerate(line) if n}
    assert table == dict(wanted)
    assert len(table) > 3


def deviation(counts: Sequence[int]) -> float:
    """Return chi-square against the uniform distribution as a standard normal (Wilson & Hilferty 1931)."""
    expected, freedom = sum(counts) / len(counts), len(counts) - 1
    statistic = sum((n - expected) ** 2 / expected for n in counts)
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


def test_random_solutions_are_uniform() -> None:
    layer = LAYERS["2-D"]
    whole = explore(layer, "tt", Exploration(steps=(0.6,), tolerance=0.01, random=10**6)).steps[0]
    counts = dict.fromkeys((s.ranks for s in whole.random), 0)
    for seed in range(400):
        step = explore(layer, "tt", Exploration(steps=(0.6,), tolerance=0.01, random=5, seed=seed)).steps[0]
        for solution in step.random:
            counts[solution.ranks] += 1
    assert len(counts) > 20
    assert abs(deviation(list(counts.values()))) < 3
    favored = [n + (40 if i < 5 else 0) for i, n in enumerate(counts.values())]
    assert deviation(favored) > 3


def test_random_solutions_are_reproducible() -> None:
    def drawn(seed: int) -> list[Ranks]:
        return [
            s.ranks
            for s in explore(LAYERS["2-D"], "tt", Exploration(steps=(0.6,), random=5, seed=seed)).steps[0].random
        ]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_all_solutions_can_be_drawn() -> None:
    step = explore(LAYERS["2-D"], "tt", Exploration(steps=(0.6,), tolerance=0.005, random=10**6)).steps[0]
    assert len(step.solutions) == step.count > 10


def test_solutions_that_are_the_same_are_listed_once() -> None:
    step = explore(layer_of("linear:400x120"), "svd", Exploration(random=3)).steps[0]
    assert (step.count, len(step.solutions), step.random) == (1, 1, ())


def test_costs_that_are_no_polynomial_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    true_price = pieces.price

    def squared(method: methods.Method, layer: LayerInfo, ranks: Ranks) -> Cost:
        cost = true_price(method, layer, ranks)
        return replace(cost, params=cost.params + ranks[0] ** 2)

    monkeypatch.setattr(pieces, "price", squared)
    with pytest.raises(RankfoldError, match="not affine in each rank"):
        explore(LAYERS["2-D"], "svd")


def test_formulas_show_the_costs() -> None:
    formulas = explore(layer_of("conv:3x3x64x32,size=10"), "tt").formulas
    assert formulas["P"] == "64·r1 + 32·r3 + 3·r1·r2 + 3·r2·r3"
    assert formulas["M"] == "6,400·r1 + 3,200·r3 + 300·r1·r2 + 300·r2·r3"
    assert formulas["FM"] == "3,200 + 100·r1 + 100·r2 + 100·r3"


def test_stages_show_the_chain() -> None:
    def stages(text: str, method: str) -> tuple[str, ...]:
        return explore(layer_of(text), method).stages

    assert stages("conv:3x5x8x6", "tucker") == ("1x1 8→r2", "3x5 r2→r1", "1x1 r1→6")
    assert stages("conv:3x5x8x6", "cp") == ("1x1 8→r", "3x1 depthwise r→r", "1x5 depthwise r→r", "1x1 r→6")
    assert stages("conv:3x5x8x6,groups=2", "svd") == ("3x5 8→2·r", "1x1 2·r→6")
    assert stages("linear:400x120", "qr") == ("400→r", "r→120")


def test_a_given_tensor_shape_is_the_only_one() -> None:
    layer = LAYERS["linear"]
    one = explore(layer, "ttm", options={"cores": 2, "out_shape": (6, 3), "in_shape": (4, 6)})
    assert (one.shapes, one.limits) == (1, (18,))
    assert explore(layer, "ttm").shapes == len(variants("ttm", layer, 3)) > 20
    assert explore(layer, "ttm", Exploration(cores=2)).shapes == len(variants("ttm", layer, 2))


def test_the_papers_layers() -> None:
    """What the text of Kokhazadeh et al. (2025) gives of a strided (3, 3, 256, 512) layer."""
    layer = layer_of("conv:3x3x256x512,stride=2")
    cp = explore(layer, "cp", Exploration(steps=(0.6, 0.25), tolerance=0.0005))
    assert 1 - cp.steps[0].fewest_macs.cost.macs / dense_cost(layer).macs == pytest.approx(0.20, abs=0.005)
    assert cp.steps[1].count == 0
    for shape in ("400x120", "512x512", "512x256"):
        assert explore(layer_of(f"linear:{shape}"), "ttm", Exploration(steps=(0.25,))).steps[0].count == 0


OUT_OF_RANGE: dict[str, Mapping[str, Any]] = {
    "steps": {"steps": (0.5, 1.0)},
    "steps, none": {"steps": ()},
    "steps, twice": {"steps": (0.5, 0.5)},
    "steps, text": {"steps": "85%"},
    "tolerance": {"tolerance": 0},
    "random": {"random": -1},
    "seed": {"seed": 0.5},
    "cores": {"cores": 1},
    "bins": {"bins": 0},
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_options_out_of_range(name: str) -> None:
    with pytest.raises(ConfigError, match=name.split(",")[0]):
        explore(LAYERS["2-D"], "tt", Exploration(**OUT_OF_RANGE[name]))


def test_layers_that_cannot_be_explored() -> None:
    with pytest.raises(UnsupportedLayer, match="only supports convolutions"):
        explore(LAYERS["linear"], "tucker")
    with pytest.raises(ConfigError, match="no calls"):
        explore(LAYERS["2-D"].static(), "tt")
    nothing = explore(layer_of("linear:7x6"), "ttm")
    assert (nothing.size, nothing.shapes, nothing.limits) == (0, 0, ())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("conv:3x3", "one to three kernel sizes"),
        ("conv:3x3x3x3x8x8", "one to three kernel sizes"),
        ("conv:3x3x0x8", "Got"),
        ("linear:400", "Got"),
        ("linear:400x120x3", "Got"),
        ("linear:4x4,stride=2", "stride=2"),
        ("dense:4x4", "Got"),
        ("", "Got"),
        ("conv:3x3x4x4,stride=0", "at least 1"),
        ("conv:3x3x4x4,stride=1,stride=2", "stride=2"),
        ("conv:3x3x4x4,padding=1x1x1", "2 joined by x"),
        ("conv:3x3x6x8,groups=4", "does not divide"),
        ("conv:9x9x3x3,size=4,padding=0", "does not fit"),
    ],
)
def test_bad_layer_texts(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        layer_of(text)


def test_layer_texts() -> None:
    assert layer_of("linear:400x120").weight_shape == (120, 400)
    layer = layer_of("conv:3x5x8x16,stride=2,groups=4,size=20x30,bias")
    assert layer.weight_shape == (16, 2, 3, 5)
    assert (layer.padding, layer.bias) == ((1, 2), True)
    assert layer.calls == (Call(batch=1, in_size=(20, 30), out_size=(10, 15)),)


def test_a_hundred_million_settings_fit_into_little_memory() -> None:
    """The strided counts are those of a loop over all r2 with NumPy arrays; the largest space is the paper's."""
    strided = explore(layer_of("conv:3x3x256x512,stride=2"), "tt")
    assert [step.count for step in strided.steps] == [1_208_775, 1_231_825, 311_619]
    useful = explore(layer_of("conv:3x3x256x512,stride=2"), "tt", Exploration(useful=True))
    assert [step.count for step in useful.steps] == [305_578, 399_335, 38_311]
    tracemalloc.start()
    largest = explore(layer_of("conv:3x3x512x512"), "tt", Exploration(random=7, bins=20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (largest.settings, largest.size) == (512 * 1536 * 512, 331_860_398)
    assert sum(map(sum, largest.histogram.counts)) == largest.size
    assert all(len(step.solutions) == 10 for step in largest.steps)
    assert peak < 2**28
