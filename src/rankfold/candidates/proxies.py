"""Proxies: cheap stand-ins for the accuracy that candidates cost."""

from __future__ import annotations

from dataclasses import dataclass

from rankfold._config import is_integer, require

PROXIES = ("auto", "weight", "output", "network", "fisher")
MEASURED = ("network", "fisher")
"""The proxies that run the network: they need calibration data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """How candidates are judged.

    Parameters
    ----------
    proxy : {"auto", "weight", "output", "network", "fisher"}
        The loss of a candidate, added up over layers. "weight": relative squared error of the weight.
        "output": of the layer's output, from second moments. "network": of the network's output when only this layer is
        replaced, measured; the estimator of CompressNAS (Sah et al. 2026). "fisher": the same to second order, from
        gradients. "auto" is "network" with calibration data and "weight" without.
    samples : int or None
        Calibration samples that "network" and "fisher" look at, the first ones. None takes 256 of a
        small network, down to 16 of a large one, so that a search stays a matter of minutes.
    points : int
        Candidates that they measure, of each layer and method; what lies between is read off.
    taps : tuple of str
        Modules whose outputs are compared instead of the network's own.
    """

    proxy: str = "auto"
    samples: int | None = None
    points: int = 8
    taps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.proxy in PROXIES, "proxy", self.proxy, f"one of {', '.join(PROXIES)}")
        fine = self.samples is None or (is_integer(self.samples) and self.samples >= 1)
        require(fine, "samples", self.samples, "an integer >= 1, or None")
        require(is_integer(self.points) and self.points >= 2, "points", self.points, "an integer >= 2")
        listed = isinstance(self.taps, tuple | list) and all(isinstance(tap, str) for tap in self.taps)
        require(listed, "taps", self.taps, "a list of module names")
        object.__setattr__(self, "taps", tuple(self.taps))
