"""Options and result of sequential reconstruction."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from rankfold._config import is_integer, is_number, require


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequential:
    """Options of sequential reconstruction.

    Parameters
    ----------
    ridge : float or None
        Pull of the fitted weights towards the original ones, as a share of the mean second moment of the layer's input.
        None chooses it for each layer by twofold cross-validation: little with much data, much with little.
    refit_kept : bool
        Fit the layers that the plan keeps, too: their weights change, their shapes do not.
    shortcuts : bool
        Where a layer's output is added to something that is final already (the shortcut of a residual block), let the
        layer make up for the error of that, too.
    max_patch, max_positions : int
        As for `collect_moments`: the largest patch moment, and the positions taken of each sample.
    max_inputs : int
        Layers with more input channels (of a group) are not fitted, and factored by their weights alone: memory grows
        with the square of the channels, time with the cube.
    """

    ridge: float | None = None
    refit_kept: bool = True
    shortcuts: bool = True
    max_patch: int = 2304
    max_positions: int = 1024
    max_inputs: int = 4096

    def __post_init__(self) -> None:
        fine = self.ridge is None or (is_number(self.ridge) and 0 < self.ridge < float("inf"))
        require(fine, "ridge", self.ridge, "a number above 0, or None")
        for option in ("refit_kept", "shortcuts"):
            require(isinstance(getattr(self, option), bool), option, getattr(self, option), "True or False")
        for option, least in (("max_patch", 0), ("max_positions", 1), ("max_inputs", 1)):
            value = getattr(self, option)
            require(is_integer(value) and value >= least, option, value, f"an integer >= {least}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """What `reconstruct_sequentially` returns.

    Parameters
    ----------
    model : Module
        The compressed model.
    errors : dict of str to float
        Relative error of each fitted layer's output, 0..1, given what it gets in the compressed network, against what
        it was fitted to.
    notes : dict of str to str
        Why layers were not fitted.
    """

    model: nn.Module = field(repr=False)
    errors: dict[str, float]
    notes: dict[str, str]
