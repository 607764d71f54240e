"""Load a compressed network of timm or transformers from its folder alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from rankfold.errors import RankfoldError
from rankfold.storage import Network, load
from rankfold.zoo import recorded


def load_pretrained(path: str | Path, *, example_input: Any = None) -> nn.Module:
    """Build the network that an artifact records, apply its plan and load its weights.

    `save`, and ``save_pretrained`` of compressed models of transformers, record networks of timm and transformers by
    name in ``config.json``. Code in the folder is not run, and nothing is downloaded.

    Parameters
    ----------
    path : str or Path
        A local folder.
    example_input : object, optional
        As in `load`.

    Returns
    -------
    Module
        The compressed model, on the CPU and in eval mode.

    Raises
    ------
    CorruptArtifact
        If files are missing, truncated, edited or written by another program.
    PlanMismatch
        If the network was built with options other than the numbers of classes and of input channels; use `load` with a
        model of the original architecture.
    UnknownNameError
        If the installed library has no network of the recorded name.
    MissingExtra
        If the library is not installed.
    """
    if not os.path.isdir(path):
        raise RankfoldError(
            f"{str(path)!r} is not a local folder. Nothing is downloaded; pass a folder written by rankfold.save."
        )
    return load(path, recorded.build(Network.load(path)), example_input=example_input)
