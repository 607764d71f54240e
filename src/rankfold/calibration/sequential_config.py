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
        Strength of the pull of the fitted weights towards the original ones, as a share of the mean second moment of
        the layer's input. With None, it is chosen for each layer by twofold cross-validation: the more data, the
        smaller.
    refit_kept : bool
        Also fit the layers that the plan keeps dense: their weights change, their shapes do not.
    shortcuts : bool
        If a layer's output is added to a tensor that is already final (the shortcut of a residual block), let the layer
        compensate for the error of that tensor as well.
    max_patch, max_positions : int
        As in `collect_moments`: the largest patch moment, and the number of positions per sample.
    max_inputs : int
        Layers with more input channels per group are not fitted but factored by their weights alone: memory grows with
        the square of the channels, time with the cube.
    """

    ridge: float | None = None
    refit_kept: bool = True
    shortcuts: bool = True
    max_patch: int = 2304
    max_positions: int = 1024
    max_inputs: int = 4096

    def __post_init__(self) -> None:
        valid = self.ridge is None or (is_number(self.ridge) and 0 < self.ridge < float("inf"))
        require(valid, "ridge", self.ridge, "a number above 0, or None")
        for option in ("refit_kept", "shortcuts"):
            require(isinstance(getattr(self, option), bool), option, getattr(self, option), "True or False")
        for option, least in (("max_patch", 0), ("max_positions", 1), ("max_inputs", 1)):
            value = getattr(self, option)
            require(is_integer(value) and value >= least, option, value, f"an integer >= {least}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """The result of `reconstruct_sequentially`.

    Parameters
    ----------
    model : Module
        The compressed model.
    errors : dict of str to float
        Relative error, 0..1, of each fitted layer's output against its target, on the layer's input in the compressed
        network.
    notes : dict of str to str
        The reasons why layers were not fitted.
    """

    model: nn.Module = field(repr=False)
    errors: dict[str, float]
    notes: dict[str, str]
