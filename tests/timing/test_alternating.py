"""Turns, medians, and machines that are too busy."""

from __future__ import annotations

import pytest

from rankfold.timing.alternating import FEWEST, MOST, SECONDS, WARMUP, alternately


def test_runs_take_turns_and_the_ratio_ignores_drift() -> None:
    log, factor = list[str](), [1.0]

    def run(name: str, seconds: float) -> float:
        log.append(name)
        factor[0] *= 1.05
        return seconds * factor[0]

    readings = alternately({"dense": lambda: run("dense", 1e-3), "small": lambda: run("small", 5e-4)}, "dense")
    assert log[:4] == ["dense", "small", "small", "dense"]
    assert readings["small"].ratio == pytest.approx(0.5, rel=0.06)
    assert readings["dense"].ratio == 1.0
    assert not readings["small"].noisy


def test_quiet_runs_end_early_and_noisy_ones_late() -> None:
    calls = {"quiet": 0, "noisy": 0}

    def run(name: str, noise: float) -> float:
        calls[name] += 1
        return 1e-3 * (1 + noise * (-1) ** calls[name])

    assert not alternately({"quiet": lambda: run("quiet", 0.0)}, "quiet")["quiet"].noisy
    assert calls["quiet"] == WARMUP + FEWEST
    assert alternately({"noisy": lambda: run("noisy", 0.9)}, "noisy")["noisy"].noisy
    assert calls["noisy"] == WARMUP + MOST


def test_long_runs_end_after_the_time_limit() -> None:
    now, calls = [0.0], [0]

    def run() -> float:
        calls[0] += 1
        now[0] += SECONDS / 4
        return 1.0 + 0.5 * (calls[0] % 2)

    alternately({"slow": run}, "slow", clock=lambda: now[0])
    assert calls[0] == WARMUP + FEWEST


def test_a_known_reference_scales_the_others() -> None:
    readings = alternately({"dense": lambda: 2e-3, "small": lambda: 1e-3}, "dense", reference_ns=3_000_000)
    assert readings["small"].ns == 1_500_000
