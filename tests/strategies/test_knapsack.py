"""The exact solver against brute force in whole numbers, its ties, its bound and its errors."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from rankfold.errors import RankfoldError
from rankfold.strategies import _knapsack
from rankfold.strategies._knapsack import TIE, Options, Solution, solve

SLACK = 1 + 1e-12  # rounding of float sums
RESOLUTION = Fraction(1, 100)  # of a sum of cost shares, for each resource


def options(loss: list[float], costs: list[list[int]] | list[int]) -> Options:
    table = np.array(costs, dtype=np.int64)
    return Options(loss=np.array(loss, dtype=np.float64), costs=table.reshape(len(loss), -1))


@dataclass(frozen=True)
class Choice:
    selection: tuple[int, ...]
    loss: Fraction
    share: Fraction


def choices(layers: list[Options], limits: list[int]) -> list[Choice]:
    """Every choice of options that are not dominated within the limits, counted without rounding."""
    found = []
    for selection in itertools.product(*(undominated(layer) for layer in layers)):
        sums = [sum(int(x.costs[i, k]) for x, i in zip(layers, selection, strict=True)) for k in range(len(limits))]
        if all(s <= most for s, most in zip(sums, limits, strict=True)):
            loss = sum((Fraction(float(x.loss[i])) for x, i in zip(layers, selection, strict=True)), Fraction(0))
            share = sum((Fraction(s, max(most, 1)) for s, most in zip(sums, limits, strict=True)), Fraction(0))
            found.append(Choice(selection, loss, share))
    return found


def undominated(layer: Options) -> list[int]:
    rows = [(float(d), *map(int, c)) for d, c in zip(layer.loss, layer.costs, strict=True)]
    return [
        j
        for j, b in enumerate(rows)
        if not any(
            all(x <= y for x, y in zip(a, b, strict=True)) and (a != b or i < j) for i, a in enumerate(rows) if i != j
        )
    ]


def check(layers: list[Options], limits: list[int]) -> Solution | None:
    """Solve, and compare with brute force: loss, limits, ties, bound."""
    got, found = solve(layers, limits), choices(layers, limits)
    if not found:
        assert got is None
        return None
    assert got is not None
    mine = [choice for choice in found if choice.selection == got.selection]
    assert mine  # within the limits, and nothing dominated
    least = min(choice.loss for choice in found)
    assert mine[0].loss <= least * (1 + Fraction(TIE))
    share = min(choice.share for choice in found if choice.loss <= mine[0].loss)
    assert mine[0].share <= share + RESOLUTION * len(limits)
    assert got.loss == pytest.approx(float(mine[0].loss), rel=1e-14)
    assert got.bound <= float(least) * SLACK
    assert got.bound <= got.loss
    assert got.gap == 0
    return got


DAMAGES = {
    "fine": st.floats(0, 1, allow_subnormal=False),
    "coarse": st.integers(0, 3).map(float),
    "wide": st.floats(-12, 0).map(lambda x: 10**x),
    "very wide": st.floats(-100, 100).map(lambda x: 10**x),
    "wide or none": st.one_of(st.just(0.0), st.floats(-6, 6).map(lambda x: 10**x)),
    "none": st.just(0.0),
}
COSTS = {
    "few": st.integers(0, 4),
    "thousands": st.integers(0, 10**3),
    "macs": st.integers(0, 10**10),
    "huge": st.integers(10**13, 10**14),
}


@st.composite
def problems(draw: st.DrawFn, most_layers: int = 6) -> tuple[list[Options], list[int]]:
    """Tables of up to 6 layers whose limits some choice meets to the last unit, or misses by one."""
    losses = DAMAGES[draw(st.sampled_from(sorted(DAMAGES)))]
    resources = [COSTS[draw(st.sampled_from(sorted(COSTS)))] for _ in range(draw(st.integers(1, 3)))]
    option = st.tuples(losses, st.tuples(*resources))
    rows = draw(st.lists(st.lists(option, min_size=1, max_size=4), min_size=1, max_size=most_layers))
    layers = [options([d for d, _ in row], [list(c) for _, c in row]) for row in rows]
    met = [draw(st.integers(0, len(row) - 1)) for row in rows]
    short = draw(st.sampled_from([0, 0, 0, 1]))
    sums = sum(layer.costs[i] for layer, i in zip(layers, met, strict=True))
    return layers, [max(int(x) - short, 0) for x in np.asarray(sums)]


@given(problems())
def test_equals_brute_force(problem: tuple[list[Options], list[int]]) -> None:
    check(*problem)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("resources", [1, 2])
def test_equals_brute_force_on_six_layers(seed: int, resources: int) -> None:
    random = np.random.default_rng(seed)
    scale = 10 ** np.array([10, 3])[:resources]
    layers = [options(random.random(5).tolist(), random.integers(0, scale, (5, resources)).tolist()) for _ in range(6)]
    limits = [int(x) for x in np.sum([layer.costs.mean(0) for layer in layers], 0) * 0.7]
    got = check(layers, limits)
    tight = solve(layers, [int(sum(layer.costs[:, k].min() for layer in layers)) for k in range(resources)])
    assert tight is None or (got is not None and tight.loss > got.loss)  # the limits decide what is taken


def test_a_limit_is_never_passed_by_one_unit_of_1e10() -> None:
    # HiGHS' own tolerance, 1e-6 of the limit, would let 10,000 units through.
    layers = [options([1.0, 0.0], [1, 5 * 10**9]), options([1.0, 0.0], [1, 5 * 10**9])]
    over, within = solve(layers, [10**10 - 1]), solve(layers, [10**10])
    assert over is not None
    assert within is not None
    assert (over.loss, within.loss) == (1.0, 0.0)


def test_an_answer_over_the_limit_by_tolerance_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    # One unit of 1e17 is below every tolerance, so HiGHS proposes what only whole numbers refuse.
    cuts: list[bool] = []
    counts = _knapsack._counts
    monkeypatch.setattr(_knapsack, "_counts", lambda *args: cuts.append(counts(*args)) or cuts[-1])
    big = 10**17
    layers = [options([3.0, 0.0], [0, big]), options([2.0, 0.0], [0, big]), options([4.0, 1.0], [0, big + 1])]
    got = check(layers, [2 * big])
    assert got is not None
    assert got.selection == (1, 1, 0)
    assert False in cuts
    monkeypatch.setattr(_knapsack, "_counts", lambda *args: True)
    careless = solve(layers, [2 * big])
    assert careless is not None
    assert careless.selection == (1, 0, 1)  # the negative control: better, and over by one


def test_endless_cuts_end_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_knapsack, "_counts", lambda *args: False)
    monkeypatch.setattr(_knapsack, "CUTS", 3)
    with pytest.raises(RankfoldError, match="The limits are 9"):
        solve([options([1.0, 0.0], [0, 5]), options([1.0, 0.0], [0, 5])], [9])


def test_equal_damage_takes_the_least_share() -> None:
    layers = [options([1.0, 1.0], [[10, 0], [0, 10]]), options([1.0, 0.0], [[0, 0], [1, 1]])]
    first, second = check(layers, [20, 100]), check(layers, [100, 20])
    assert first is not None
    assert second is not None
    assert first.selection == (1, 1)  # 0.1 of the second resource, not 0.5 of the first
    assert second.selection == (0, 1)


def test_damage_within_the_tolerance_is_equal_and_beyond_is_not() -> None:
    def two(difference: float) -> Solution | None:
        return check([options([1.0, 1.0 + difference], [[9, 9], [9, 1]])], [10, 10])

    equal, worse = two(1e-10), two(1e-8)
    assert equal is not None
    assert worse is not None
    assert (equal.selection, worse.selection) == ((1,), (0,))  # a worse loss never buys shares
    assert equal.bound <= 1.0
    assert equal.gap == 0


def test_many_equal_layers() -> None:
    # 20 equal layers, 10 of which can be kept: 184,756 equal choices, and always the same of them.
    layers = [options([2.0, 1.5, 0.0], [0, 3, 4])] * 20
    got = solve(layers, [40])
    assert got is not None
    assert got.loss == 20
    assert got == solve(layers, [40])


def test_small_damages_beside_huge_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    # The optimum is 1e-12 of the largest losses, and the linear relaxation says nothing: each layer can keep its
    # option of no loss for a part, and none wholly. HiGHS' tolerance on one scale would not see it.
    layers = [options([1.0, 3e-12, 1e-12], [0, 2, 3]), options([1.0, 5e-12, 4e-12], [0, 1, 3])]
    got = check(layers, [4])
    assert got is not None
    assert got.selection == (2, 1)
    hidden = [options([1.0, 3e-12, 2e-12, 0.0], [0, 2, 3, 5])] * 2
    scales: list[float] = []
    minimize = _knapsack._minimize

    def watched(*args: object) -> object:
        found = minimize(*args)  # type: ignore[arg-type]
        assert found is not None
        scales.append(found[1])
        return found

    monkeypatch.setattr(_knapsack, "_minimize", watched)
    found = check(hidden, [5])
    assert found is not None
    assert found.loss == pytest.approx(5e-12)
    assert len(scales) > 1
    assert scales[0] > 1e-4
    assert scales[-1] <= 2 * found.loss


@pytest.mark.parametrize("exponent", [-250, -30, 30, 250])
def test_the_unit_of_damage_changes_nothing(exponent: int) -> None:
    layers, limits = table_of(4, 6, 1)
    scaled = [Options(loss=layer.loss * 2.0**exponent, costs=layer.costs) for layer in layers]
    plain, got = solve(layers, limits), check(scaled, limits)
    assert plain is not None
    assert got is not None
    assert got.loss == plain.loss * 2.0**exponent


def test_a_large_part_that_every_choice_has_is_no_excuse() -> None:
    # A relative 1e-9 of the whole loss is what counts: 1e-8 of it is seen beside a constant 1.
    layers = [options([1.0, 1 + 1e-8, 1 + 3e-8], [5, 3, 0]), options([1.0, 1 + 2e-8], [4, 0])]
    got = check(layers, [7])
    assert got is not None
    assert got.selection == (1, 0)


def test_dominated_options_are_never_taken() -> None:
    def kept(*rows: tuple[float, list[int]]) -> list[int]:
        return _knapsack._undominated(options([d for d, _ in rows], [c for _, c in rows])).tolist()

    assert kept((1.0, [1, 1]), (1.0, [1, 1]), (2.0, [1, 2]), (0.0, [9, 9])) == [0, 3]
    # What lies above the lower hull of loss over cost may still be optimal, and stays.
    assert kept((1.0, [0]), (0.9, [5]), (0.0, [6])) == [0, 1, 2]
    got = check([options([1.0, 0.9, 0.0], [0, 5, 6])], [5])
    assert got is not None
    assert got.selection == (1,)


def test_nothing_fits() -> None:
    layers = [options([0.0, 1.0], [[3, 1], [1, 3]]), options([0.0, 1.0], [[3, 1], [1, 3]])]
    assert solve(layers, [3, 3]) is None  # each limit alone can be met, and not both
    assert solve(layers, [1, 100]) is None
    assert solve(layers, [-1, 100]) is None
    got = check(layers, [4, 4])
    assert got is not None
    assert sorted(got.selection) == [0, 1]


def test_no_layers_and_no_limits() -> None:
    empty = solve([], [5])
    assert empty == Solution(selection=(), loss=0.0, bound=0.0)
    free = solve([Options(loss=np.array([2.0, 1.0]), costs=np.zeros((2, 0), dtype=np.int64))], [])
    assert free is not None
    assert free.selection == (1,)


def table_of(count: int, size: int, seed: int) -> tuple[list[Options], list[int]]:
    """A network's table: parameters and MACs, loss that falls off with the rank, unevenly."""
    random = np.random.default_rng(seed)
    layers, dense = [], np.zeros(2)
    for _ in range(count):
        full, positions = int(10 ** random.uniform(3, 6)), int(random.choice([7, 14, 28, 56])) ** 2
        share = np.linspace(0, 1, size) * random.uniform(0.8, 1, size)
        params = (full * share).astype(np.int64)
        macs = params * positions * random.integers(9, 12, size) // 10
        loss = 10 ** random.uniform(-3, 0) * np.exp(-random.uniform(1, 6) * share) * (1 - share)
        layers.append(Options(loss=loss, costs=np.stack([params, macs], 1)))
        dense += [full, full * positions]
    return layers, [int(x) for x in dense * 0.5]


def test_a_network_sized_table_is_solved_to_the_bound() -> None:
    layers, limits = table_of(20, 60, 0)
    start = time.process_time()
    got = solve(layers, limits)
    seconds = time.process_time() - start
    assert got is not None
    assert got.gap == 0
    taken = sum(layer.costs[i] for layer, i in zip(layers, got.selection, strict=True))
    assert (np.asarray(taken) <= limits).all()
    assert got == solve(layers, limits)
    assert seconds < 10  # 0.05 s of one core


@given(
    st.lists(st.tuples(st.integers(0, 3).map(float), st.lists(st.integers(0, 3), min_size=2, max_size=2)), min_size=1)
)
def test_dominance_by_definition(rows: list[tuple[float, list[int]]]) -> None:
    layer = options([d for d, _ in rows], [c for _, c in rows])
    assert _knapsack._undominated(layer).tolist() == undominated(layer)


def test_the_gap_is_what_is_missing() -> None:
    assert Solution(selection=(0,), loss=2.0, bound=1.5).gap == 0.25
    assert Solution(selection=(0,), loss=2.0, bound=2.0).gap == 0
    assert Solution(selection=(0,), loss=0.0, bound=0.0).gap == 0


def test_a_proof_that_takes_too_many_nodes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    curve = np.sort(generator.random(40))[::-1]
    costs = np.arange(40)[:, None] * 37 + generator.integers(0, 30, (40, 1))
    layers = [Options(loss=curve * (1 + 1e-4 * i), costs=costs) for i in range(30)]
    monkeypatch.setattr(_knapsack, "NODES", 20)
    solution = solve(layers, [15_001])
    assert solution is not None
    assert sum(int(costs[i, 0]) for i in solution.selection) <= 15_001
    assert 0 < solution.gap < 0.05
    assert solve(layers, [15_001]) == solution


def test_highs_out_of_time_is_an_error() -> None:
    layers, limits = table_of(20, 60, 0)
    with pytest.raises(RankfoldError, match="HiGHS found no proven best plan of 20 layers.*status 1"):
        solve(layers, limits, time_limit_s=1e-4)


def test_highs_giving_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = scipy.optimize.OptimizeResult(status=4, message="numerical trouble", x=None)
    monkeypatch.setattr(scipy.optimize, "milp", lambda *args, **kwargs: failed)
    with pytest.raises(RankfoldError, match="numerical trouble"):
        solve([options([1.0, 0.0], [0, 5]), options([1.0, 0.0], [0, 5])], [9])


PRINTS = """
import contextlib, ctypes, sys
sys.path.insert(0, sys.argv[1])
from test_knapsack import table_of
from rankfold.strategies import _knapsack

c = ctypes.CDLL(None)
_knapsack.solve(*table_of(10, 20, 2))
c.fflush(None)
print("control", flush=True)
_knapsack.prints_to_stderr = contextlib.nullcontext
_knapsack.solve(*table_of(10, 20, 2))
c.fflush(None)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="empties the C library's buffer")
def test_what_highs_prints_is_not_on_standard_output() -> None:
    command = [sys.executable, "-c", PRINTS, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    clean, control = done.stdout.split("control\n")
    assert clean == ""
    if not control:
        pytest.skip("this HiGHS prints nothing on the table")
    assert control in done.stderr


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_bad_damages_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        options([0.0, bad], [1, 2])


def test_bad_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="not be negative"):
        options([0.0], [-1])
    with pytest.raises(ValueError, match="int64"):
        Options(loss=np.zeros(2), costs=np.zeros((2, 1)))
    with pytest.raises(ValueError, match="2 rows"):
        Options(loss=np.zeros(2), costs=np.zeros((3, 1), dtype=np.int64))
    with pytest.raises(ValueError, match="float64"):
        Options(loss=np.zeros(0), costs=np.zeros((0, 1), dtype=np.int64))
    with pytest.raises(ValueError, match="2 resources"):
        solve([options([0.0], [1])], [1, 2])
    with pytest.raises(ValueError, match="too large"):
        solve([options([0.0], [2**61]), options([0.0], [2**61])], [1])
    with pytest.raises(ValueError, match="not finite"):
        solve([options([1e308], [1]), options([1e308], [1])], [5])


@settings(max_examples=40)
@given(problems(most_layers=4), st.integers(0, 3))
def test_more_room_never_does_more_damage(problem: tuple[list[Options], list[int]], more: int) -> None:
    layers, limits = problem
    small, large = solve(layers, limits), solve(layers, [limit + more for limit in limits])
    if small is not None:
        assert large is not None
        assert large.bound <= small.loss
        assert large.loss <= small.loss * (1 + 2 * TIE)
