"""Gauged factors as a method, so that every check of the contract runs on them, and a check of the gauge itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankfold import methods
from rankfold.factor.moments import Moments
from rankfold.methods import Method, Prepared
from rankfold.records import Blueprint, LayerInfo, Ranks, gauge_blueprint
from rankfold.surgery.gauged import Gauged
from rankfold.testing.cases import LayerCase
from rankfold.testing.subject import OUTPUT_TOLERANCE, Subject, count_macs, expect, relative_error, sample_ranks


class GaugedMethod(Method):
    """A method like another one, with gauged blueprints wherever possible."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.name = method.name
        self.adaptive = method.adaptive

    def supports(self, layer: LayerInfo) -> str | None:
        """Return the result of the wrapped method."""
        return self.method.supports(layer)

    def max_ranks(self, layer: LayerInfo) -> Ranks:
        """Return the result of the wrapped method."""
        return self.method.max_ranks(layer)

    def rank_grid(self, layer: LayerInfo, *, multiple: int = 1, points: int = 64) -> Sequence[Ranks]:
        """Return the method's ranks for which some bond can be gauged."""
        grid = self.method.rank_grid(layer, multiple=multiple, points=points)
        return [ranks for ranks in grid if self.blueprint(layer, ranks).gauged]

    def blueprint(self, layer: LayerInfo, ranks: Ranks) -> Blueprint:
        """Return the method's blueprint, gauged."""
        return gauge_blueprint(self.method.blueprint(layer, ranks))

    def prepare(self, weight: Tensor, layer: LayerInfo, moments: Moments | None) -> Prepared:
        """Return the result of the wrapped method."""
        return self.method.prepare(weight, layer, moments)


def can_be_gauged(method: Method, info: LayerInfo) -> bool:
    """Return whether some bond can be gauged for some ranks of a method's grid."""
    return len(GaugedMethod(method).rank_grid(info, points=8)) > 0


def gauge_changes_only_the_numbers(method: Method, case: LayerCase) -> None:
    """Gauged factors compute the same as plain ones, with r^2 fewer parameters and fewer MACs at every gauged bond."""
    subject, gauged = Subject.of(case), GaugedMethod(method)
    prepared = methods.prepare(method, subject.weight, subject.info)
    x = subject.input.double()
    for ranks in dict.fromkeys([*sample_ranks(gauged, subject.info, count=4), method.max_ranks(subject.info)]):
        specs = gauged.blueprint(subject.info, ranks).gauged
        factors = prepared.factorize(ranks)
        plain = subject.built(method, ranks, factors, dtype=torch.float64)
        with torch.no_grad():
            expected = plain(x)
            for dtype in (torch.float64, case.dtype):
                module = subject.built(gauged, ranks, factors, dtype=dtype)
                error, tolerance = relative_error(module(x.to(dtype)), expected), OUTPUT_TOLERANCE[dtype]
                expect(error <= tolerance, f"ranks {ranks}: off by {error:.1e} in {dtype}, allowed {tolerance:.0e}")
        saved = sum(spec.groups * spec.rank**2 for spec in specs)
        before, after = (sum(p.numel() for p in m.parameters()) for m in (plain, module))
        expect(before - after == saved, f"ranks {ranks}: {before - after} fewer parameters, expected {saved}")
        stages = [m for m in module.modules() if isinstance(m, Gauged)]
        expect(len(stages) == len(specs), f"ranks {ranks}: {len(stages)} gauged stages, expected {len(specs)}")
        for stage in stages:
            largest = float(stage.weight.detach().abs().max())
            expect(largest <= 2, f"ranks {ranks}: an entry of magnitude {largest:.2f} in a gauged factor")
        if saved and x.numel():
            macs = [count_macs(plain, x), count_macs(module, subject.input)]
            expect(macs[1] < macs[0], f"ranks {ranks}: {macs[1]} MACs gauged, {macs[0]} without")
