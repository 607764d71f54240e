"""The forecast of a search, and the options that it chooses within a time limit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold import _tensors
from rankfold.candidates import estimator
from rankfold.candidates import forecast as forecasts
from rankfold.candidates.forecast import AUTO, GRID, REPLAY, Forecast, time_pass
from rankfold.candidates.proxies import ProxyConfig
from rankfold.errors import ConfigError
from rankfold.inventory import inspect

FORECAST = Forecast(
    sample_s=0.01,
    few_s=0.02,
    gradient_s=0.1,
    after=(1.0, 0.5),
    params=(600, 400),
    priced_s=5.0,
    decomposed_s=2.0,
    moments_s=0.0,
    samples=384,
    methods=(3, 1),
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8)).eval()


def data() -> list[Tensor]:
    return [torch.randn(32, 12, generator=torch.Generator().manual_seed(i)) for i in range(12)]


def planned(**options: Any) -> rf.Plan:
    return rf.plan(network(), data()[0][:1], budget="params<=50%", calibration=data(), methods="svd", **options)


def machine(monkeypatch: pytest.MonkeyPatch, sample_s: float) -> None:
    """Let a forward pass seem to take so long."""
    layers: dict[str, Any] = {"after": (1.0, 0.6, 0.2), "params": (1, 1, 1), "methods": (1, 1, 1)}
    passes = {"sample_s": sample_s, "few_s": sample_s, "gradient_s": 3 * sample_s}
    known = replace(FORECAST, priced_s=2.0, decomposed_s=0.5, **passes, **layers)
    monkeypatch.setattr(Forecast, "of", lambda *args, **kwargs: known)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0.3)


def test_the_passes_of_each_proxy() -> None:
    """100 samples have 64 gradients: in 100 pieces of one sample."""
    assert FORECAST.setting("weight", 256, 8).seconds == 5.0
    ready = 5.0 * (1 + forecasts.VECTORS)
    composed = forecasts.COMPOSED_S * 8 * (3 * 600 + 400)
    estimated = 100 * 0.1 + 100 * 0.01 + composed
    assert FORECAST.setting("fisher", 100, 8).seconds == pytest.approx(ready + estimated)
    replayed = sum(1 + 8 * number * (share + forecasts.REPLAY) for share, number in ((1.0, 3), (0.5, 1)))
    assert FORECAST.setting("network", 100, 8).seconds == pytest.approx(ready + replayed + composed)
    few = sum(1 + 4 * (share + forecasts.REPLAY) for share in (1.0, 0.5)) + forecasts.COMPOSED_S * 4 * 1000
    assert FORECAST.setting("fisher+network", 100, 8).seconds == pytest.approx(ready + estimated + few)


def test_gradients_of_several_samples_and_several_gradients_of_a_sample() -> None:
    def of_gradients(samples: int) -> float:
        return FORECAST.setting("fisher", samples, 8).seconds - FORECAST.setting("fisher", 100, 8).seconds + 11

    assert of_gradients(256) == pytest.approx(64 * 0.1 * (1 + 3 * 0.01 / 0.02) + 2.56), "four samples at a time"
    assert of_gradients(16) == pytest.approx(16 * 0.1 * (1 + forecasts.BACKWARD) + 0.16), "two gradients of each"


def test_the_weights_of_large_layers_take_time() -> None:
    large = replace(FORECAST, params=(6 * 10**7, 10**6))
    composed = forecasts.COMPOSED_S * 8 * (3 * 6 * 10**7 + 10**6)
    forward, backward = 1 - forecasts.BACKWARD, forecasts.BACKWARD
    passes = 100 * 0.1 * (2 * forward + 1.25 * backward)  # one of them for the large layer, in parts
    ready = 5.0 * (1 + forecasts.VECTORS)
    assert large.setting("fisher", 100, 8).seconds == pytest.approx(ready + passes + 1 + composed)
    compared = large.setting("fisher", 100, 8, rivals=["uniform"]).seconds - large.setting("fisher", 100, 8).seconds
    assert compared == pytest.approx(2 * (2.0 + forecasts.COMPOSED_S * 6.1e7) + 3 * 100 * 0.01)


def test_a_network_without_gradients_is_measured() -> None:
    unknown = replace(FORECAST, gradient_s=None)
    whole = [unknown.setting("network", *pair, rivals=["weight"]) for pair in GRID]
    rivals = ["fisher", "weight"]
    assert unknown.choose(ProxyConfig(), None, rivals=rivals) == (whole[0], whole[0])
    assert unknown.choose(ProxyConfig(), whole[2].seconds, rivals=rivals) == (whole[2], whole[0])

    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    for net, known in ((network(), True), (nn.Sequential(network(), Detached()), False)):
        found = Forecast.of(net, inspect(net, data()[0][:1]), data(), [], moments=True)
        assert (found.gradient_s is not None) == known


def test_the_best_setting_within_the_limit() -> None:
    whole = [FORECAST.setting("fisher+network", *pair) for pair in GRID]
    assert [s.seconds for s in whole] == sorted((s.seconds for s in whole), reverse=True)
    given = ProxyConfig(proxy="fisher+network")
    assert FORECAST.choose(given, None) == (whole[0], whole[0])
    for better, worse in itertools.pairwise(whole):
        chosen, best = FORECAST.choose(given, (better.seconds + worse.seconds) / 2)
        assert (chosen, best) == (worse, whole[0])


def test_auto_prefers_samples_to_measurements() -> None:
    whole = [FORECAST.setting(*choice) for choice in AUTO]
    assert FORECAST.choose(ProxyConfig(), None) == (whole[0], whole[0])
    for setting in whole:
        fitting = [other for other in whole if other.seconds * (1 + (other.samples > 128)) <= setting.seconds]
        fitting = fitting or [min(whole, key=lambda other: other.seconds)]
        chosen, best = FORECAST.choose(ProxyConfig(), setting.seconds)
        assert (chosen, best) == (fitting[0], whole[0])
    assert FORECAST.choose(ProxyConfig(), whole[-1].seconds - 0.1)[0].proxy == "weight"
    assert FORECAST.choose(ProxyConfig(), whole[-1].seconds - 0.1, fallback="uniform")[0].proxy == "uniform"


@pytest.mark.parametrize(("proxy", "timed"), [("auto", 1), ("fisher", 1), ("network", 0), ("weight", 0)])
def test_a_backward_pass_is_only_timed_for_gradients(proxy: str, timed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[None]()
    monkeypatch.setattr(forecasts, "_gradient_seconds", lambda *args: calls.append(None) or 0.01)
    planned(strategy=rf.CompressNAS(proxy=proxy))
    assert len(calls) == timed


def test_more_than_128_samples_take_at_most_half_of_the_limit() -> None:
    given = ProxyConfig(proxy="fisher+network")
    whole = [FORECAST.setting("fisher+network", *pair) for pair in GRID[:2]]
    assert FORECAST.choose(given, 2 * whole[0].seconds)[0] == whole[0]
    assert FORECAST.choose(given, 2 * whole[0].seconds - 0.1)[0] == whole[1]
    assert FORECAST.choose(replace(given, samples=256), whole[0].seconds)[0].samples == 256
    few = replace(FORECAST, samples=100)
    seconds = few.setting("fisher+network", 256, 8).seconds
    assert few.choose(given, seconds)[0].samples == 256, "there are 100"


def test_samples_that_the_data_does_not_have_take_no_time() -> None:
    few = replace(FORECAST, samples=100)
    assert few.setting("fisher", 256, 8).seconds == FORECAST.setting("fisher", 100, 8).seconds


@pytest.mark.parametrize("proxy", ["network", "fisher", "fisher+network"])
def test_options_that_are_given_are_kept(proxy: str) -> None:
    for limit in (None, 6.0, 0.1):
        chosen, _ = FORECAST.choose(ProxyConfig(proxy=proxy, samples=77, points=5), limit)
        assert (chosen.proxy, chosen.samples, chosen.points) == (proxy, 77, 5)
    assert FORECAST.choose(ProxyConfig(proxy=proxy), 0.1)[0].samples == 16


def test_second_moments_count_and_take_fewer_samples_before_the_proxy_becomes_cheaper() -> None:
    moments = replace(FORECAST, moments_s=0.1, samples=1000)
    best, whole = (moments.setting("fisher+network", *pair) for pair in GRID[:2])
    assert best.seconds == pytest.approx(FORECAST.setting("fisher+network", *GRID[0]).seconds + 100)
    assert moments.setting("fisher+network", *GRID[0], 64).seconds == pytest.approx(best.seconds - 93.6)
    assert moments.choose(ProxyConfig(), None) == (best, best)
    chosen, best_of_all = moments.choose(ProxyConfig(), whole.seconds - 1)
    assert best_of_all == best
    assert (chosen.proxy, chosen.samples, chosen.points) == ("fisher+network", *GRID[1])
    assert chosen.moment_samples == 256, "the largest power of two within a quarter of the limit"
    assert "second moments of the first 256 samples" in str(chosen)
    assert moments.choose(ProxyConfig(), 0.1)[0].moment_samples == 4
    assert moments.choose(ProxyConfig(moment_samples=500), 0.1)[0].moment_samples == 500


def test_data_without_a_length_is_not_read_to_its_end_within_a_limit() -> None:
    unknown = replace(FORECAST, moments_s=0.1, samples=None)
    assert unknown.choose(ProxyConfig(), 300)[0].moment_samples == 512
    assert unknown.choose(ProxyConfig(), None)[0].moment_samples is None


def test_a_pass_is_timed() -> None:
    class Sleeps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            forecasts.time.sleep(0.05)
            return x

    assert 0.005 <= time_pass(Sleeps(), torch.zeros(10, 2), samples=10, what="a batch") < 0.05


@pytest.mark.parametrize(
    ("each_s", "limit", "runs"),
    [(0.0, None, [2, 2, 32, 32] * 3 + [1, 1, 1]), (0.3, 300, [2, 2, 1, 1, 1]), (0.3, 5, [2, 2])],
)
def test_a_few_batches_are_timed_and_slow_networks_only_briefly(
    each_s: float, limit: float | None, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of different cost count by their mean; the seconds of the timing count, too.

    The last three runs have gradients. They take place only if the limit leaves time for a proxy from gradients.
    """
    sizes, now = list[int](), [0.0]
    for module in (forecasts, _tensors):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Sleeps(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            sizes.append(len(input))
            now[0] += len(input) * (each_s + 0.002 * float(input[0, 0]))
            return super().forward(input)

    net = nn.Sequential(Sleeps(3, 3), nn.Linear(3, 3)).eval()
    batches = [torch.full((32, 3), value) for value in (1.0, 2.0, 3.0)]
    inventory = inspect(net, torch.zeros(1, 3))
    sizes[:], now[:] = [], [0.0]
    found = Forecast.of(net, inventory, batches, [], moments=True, limit=limit)
    assert sizes == runs
    assert found.samples == 96
    assert (found.few_s, found.sample_s) == pytest.approx((0.302, 0.302) if each_s else (0.004, 0.004))
    assert found.gradient_s == pytest.approx(each_s + 0.002 if 1 in runs else 5 * found.few_s)
    assert found.spent_s == pytest.approx(now[0])
    assert found.setting("fisher", 16, 8).seconds > found.spent_s


def test_a_plan_records_what_was_chosen_and_its_options_return_it(
    slow: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = planned(time_limit=300, strategy=rf.CompressNAS(proxy="fisher+network"))
    config = dict(first.provenance.config)
    assert (config["proxy"], config["samples"], config["points"]) == ("fisher+network", 64, 8)
    said = capfd.readouterr().err
    assert "the search takes about" in said
    assert "64 samples" in said
    assert "256 samples, more than time_limit=300" in said
    machine(monkeypatch, 1e-6)
    again = planned(strategy=rf.CompressNAS(**config))
    assert again.layers == first.layers
    assert again.provenance.config == config
    assert again.provenance.search == first.provenance.search
    assert planned().provenance.config["samples"] == 256, "without them, another machine chooses otherwise"
    assert not capfd.readouterr().err, "short searches say nothing"


def test_second_moments_of_fewer_samples_are_recorded_and_given_back(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    known = replace(FORECAST, after=(1.0, 0.6, 0.2), params=(1, 1, 1), methods=(1, 1, 1), moments_s=1.0)
    monkeypatch.setattr(Forecast, "of", lambda *args, **kwargs: known)
    first = planned(time_limit=200)
    config = dict(first.provenance.config)
    assert config["moment_samples"] == 32
    assert "second moments of the first 32 samples, 128 samples;" in capfd.readouterr().err
    machine(monkeypatch, 1e-6)
    again = planned(strategy=rf.CompressNAS(**config))
    assert again.layers == first.layers
    whole = planned(strategy=rf.CompressNAS(**config | {"moment_samples": None}))
    assert errors(whole) != errors(first)


def test_the_remaining_time_of_measurements_follows_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    expected: list[Sequence[float]] = []

    def track(items: list[str], _: str, *, weights: Sequence[float] = ()) -> list[str]:
        if weights:
            expected.append(weights)
        return items

    monkeypatch.setattr(estimator, "track", track)
    planned(strategy=rf.CompressNAS(proxy="network", samples=16, points=4))
    first, second, third = expected[0]
    assert first > second > third > 0
    # 12 -> 16 -> 12 -> 8: the second layer runs 288 of the network's 480 multiply-accumulates, the third 96.
    share, measured = 288 / 480, 4
    assert second / first == pytest.approx((1 + measured * (share + REPLAY)) / (1 + measured * (1 + REPLAY)))


def errors(plan: rf.Plan) -> list[float | None]:
    return [choice.error for choice in plan.layers.values()]


def test_an_unreachable_limit_takes_the_cheapest_and_says_so(slow: None, capfd: pytest.CaptureFixture[str]) -> None:
    plan = planned(time_limit=0.01)
    assert plan.factored
    assert plan.provenance.config["proxy"] == "uniform"
    assert "with proxy uniform, more than time_limit=0.01" in capfd.readouterr().err
    assert plan.factored == planned(strategy="uniform").factored


def test_samples_that_are_spared_are_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    machine(monkeypatch, 0.02)
    plan = planned(time_limit=100)
    assert plan.provenance.config["samples"] == 128
    assert "256 samples, more than 50% of time_limit=100" in capfd.readouterr().err


def test_the_comparison_of_plans_counts() -> None:
    rivals = {"alone": (), "two": ("fisher", "uniform"), "three": ("fisher", "weight", "uniform")}
    seconds = {name: FORECAST.setting("fisher", 100, 8, rivals=others).seconds for name, others in rivals.items()}
    of_plan = FORECAST.decomposed_s + forecasts.COMPOSED_S * 1000 + 100 * 0.01
    assert seconds["two"] - seconds["alone"] == pytest.approx(3 * of_plan + 100 * 0.01)
    assert seconds["three"] - seconds["two"] == pytest.approx(of_plan + 2.5), "priced once more, without data"
    chosen, best = FORECAST.choose(ProxyConfig(), None, rivals=rivals["two"])
    assert chosen == best == FORECAST.setting("fisher+network", *GRID[0], rivals=rivals["two"])
    known = replace(FORECAST, moments_s=0.1)
    compared = known.setting("fisher", 100, 8, rivals=["uniform"]).seconds - known.setting("fisher", 100, 8).seconds
    assert compared == pytest.approx(2 * of_plan + 100 * 0.01 + 100 * 0.1), "second moments of the compared samples"


def test_cheap_gradients_compete_with_plans_without_data(slow: None) -> None:
    plan = planned(time_limit=70)
    assert set(plan.provenance.search["compared"]) == {"fisher", "weight", "uniform"}
    assert planned(strategy=rf.CompressNAS(**plan.provenance.config)).layers == plan.layers


def test_plans_without_data_compete_if_there_is_time_for_nothing_else(slow: None) -> None:
    plan = planned(time_limit=25)
    assert set(plan.provenance.search["compared"]) == {"weight", "uniform"}
    assert planned(strategy=rf.CompressNAS(**plan.provenance.config)).layers == plan.layers
    assert "compared" not in planned(time_limit=5).provenance.search


def test_an_interrupted_search_resumes_with_its_options(
    slow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = planned(cache=tmp_path)
    machine(monkeypatch, 1e-6)
    assert planned(cache=tmp_path) == first
    assert planned(cache=tmp_path, time_limit=None).provenance.config["samples"] == 256


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), True, "5 min"])
def test_limits_that_are_none(limit: Any) -> None:
    with pytest.raises(ConfigError, match="time_limit must be a number of seconds above 0, or None"):
        planned(time_limit=limit)
