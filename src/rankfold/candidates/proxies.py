"""Options of the proxies: cheap estimates of the loss of candidates."""

from __future__ import annotations

from dataclasses import dataclass

from rankfold._config import is_integer, require

POINTS = 8
"""Default number of candidates per layer and method for which a proxy is computed."""
COMPARED = 128
"""Number of samples on which finished plans are compared at most."""
MOST_SAMPLES = 256
"""Default number of samples of a proxy that runs the network, if time allows."""
PROXIES = ("auto", "weight", "uniform", "fisher", "network", "fisher+network")
DATA_FREE = ("weight", "uniform")
"""Proxies that do not run the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """Options of the proxy that predicts the loss of candidates.

    Parameters
    ----------
    proxy : {"auto", "weight", "uniform", "fisher", "network", "fisher+network"}
        The predicted loss of a candidate, added up over layers. "weight" is the relative squared error of the weight.
        "uniform" predicts no loss: each layer keeps the same share of its cost, as with the strategy of this name.
        "network" is the measured error of the network's output if only this layer is replaced, the estimator of
        CompressNAS (Sah et al. 2026). "fisher" estimates the same error to second order from gradients.
        "fisher+network" is "fisher", corrected by measuring ``points / 2`` candidates per layer. "auto" is
        "fisher+network" with calibration data ("network" if the network has no gradients), otherwise "weight".
    samples : int or None
        Number of calibration samples for the proxies that run the network, the first ones of the data. By default 256,
        or as many as the search's `time_limit` allows, at least 16.
    points : int or None
        Number of candidates per layer and method for which the proxy is computed; the losses of the others are
        interpolated. By default 8, or 4 if the `time_limit` requires it.
    moment_samples : int or None
        Number of calibration samples for the second moments, by which candidates are priced, the first ones of the
        data. By default all, or as many as the `time_limit` allows, at least 4.
    taps : tuple of str
        Modules whose outputs are compared instead of the network's outputs.
    """

    proxy: str = "auto"
    samples: int | None = None
    points: int | None = None
    moment_samples: int | None = None
    taps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.proxy in PROXIES, "proxy", self.proxy, f"one of {', '.join(PROXIES)}")
        for name in ("samples", "moment_samples"):
            value = getattr(self, name)
            fine = value is None or (is_integer(value) and value >= 1)
            require(fine, name, value, "an integer >= 1, or None")
        fine = self.points is None or (is_integer(self.points) and self.points >= 2)
        require(fine, "points", self.points, "an integer >= 2, or None")
        listed = isinstance(self.taps, tuple | list) and all(isinstance(tap, str) for tap in self.taps)
        require(listed, "taps", self.taps, "a list of module names")
        object.__setattr__(self, "taps", tuple(self.taps))
