"""``rankfold analyze``."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import rankfold as rf
from rankfold._options import Flag
from rankfold.api.analyzing import resolve
from rankfold.cli._command import Given, command
from rankfold.cli._loading import open_work
from rankfold.cli._options import FLAGS, record_flags
from rankfold.cli._parsing import parse_share
from rankfold.cli._session import Output
from rankfold.cli._source import given_source
from rankfold.cli._writing import check_file
from rankfold.cost.exploration import Exploration
from rankfold.cost.exploration.written import HELP
from rankfold.errors import ConfigError
from rankfold.reporting.exploration import Analysis

_NETWORK_ONLY = ("include", "exclude", "weights", "data", "input_size", "num_classes", "device")


@command(
    "rankfold analyze --layer conv:3x3x512x512 --layer linear:400x120 --html spaces.html",
    "model", "layer", "methods", "steps", "tolerance", "random", "cores", "useful", "time", "html", "weights",
    "include", "exclude", "input_size", "num_classes", "data", "device", "seed",
    model=replace(FLAGS["model"], kind=str | None, default=None),
    layer=Flag(
        kind=list[str] | None, names=("--layer", "-l"), metavar="SHAPE",
        help=f"Shape of a layer, instead of a network: {HELP}; may be repeated.",
    ),
    methods=Flag(
        kind=str | None, metavar="NAMES",
        help="Factorizations such as svd,tucker, or all. By default tucker, cp and tt for convolutions, and svd, qr "
        "and ttm for linear layers and 1x1 convolutions.",
    ),
    steps=Flag(
        kind=str, default="85%,60%,25%", metavar="SHARES",
        help="Shares of the parameters to remove, such as 85%,60%,25%, or every=5%.",
    ),
    tolerance=Flag(
        kind=str, default="0.5%", metavar="SHARE",
        help="Maximum difference between the share that a setting removes and that of its step.",
    ),
    **record_flags(Exploration),
    time=Flag(kind=bool, default=False, help="Also measure decomposition times at each step."),
    html=Flag(kind=str | None, metavar="FILE", help="HTML page for tables and plots."),
)  # fmt: skip
def analyze(given: Given, out: Output) -> None:
    """Count the valid rank settings of each layer and show their costs, for a network or for layers by shape.

    A rank setting is valid if it has fewer parameters and fewer MACs than the layer. For each share to remove
    (--steps), the settings with the fewest MACs, the most MACs, equal ranks and random ranks are shown. Settings are
    counted without listing them, which takes seconds. Weights are only needed for --time.
    """
    layers = given.layer or []
    if (given.model is None) == (not layers):
        raise ConfigError("analyze takes either a network or layers by shape. Pass a network, or --layer.")
    width = parse_share(given.tolerance)
    if width is None or not 0 < width <= Fraction(1, 2):
        raise ConfigError(f"--tolerance must be a share in (0, 50%], such as 0.5%. Got {given.tolerance!r} instead.")
    resolve(given.methods)
    options: dict[str, Any] = {name: getattr(given, name) for name in ("methods", "random", "seed", "cores", "useful")}
    options |= {"steps": parse_steps(given.steps), "tolerance": float(width), "time": given.time}
    file = None if given.html is None else check_file(given.html, (".html",), flag="--html")
    if given.model is None:
        for name in _NETWORK_ONLY:
            if getattr(given, name) not in (None, "auto"):
                raise ConfigError(f"--{name.replace('_', '-')} requires a network. Leave it out with --layer.")
        analysis = rf.analyze(layers, **options, title=", ".join(layers))
    else:
        work = open_work(given_source(given, given.model), given, tests=False)
        analysis = rf.analyze(
            work.dense, work.example, **options, include=given.include or None, exclude=given.exclude or None,
            title=given.model,
        )  # fmt: skip
    out.show(analysis.print)
    if given.quiet:
        out.result(_summary(analysis))
    files: dict[str, str] = {}
    if file is not None:
        analysis.save(file)
        files["page"] = str(file)
        out.say(f"page: {file}")
    out.document({"command": "analyze", "files": files, "analysis": analysis.to_dict()})


def parse_steps(text: str) -> tuple[float, ...]:
    """Return ``(0.85, 0.6)`` for ``"85%,60%"``, and all multiples below 100 % for ``"every=5%"``."""
    every = text.strip().startswith("every=")
    shares = [parse_share(part) or Fraction(0) for part in text.strip().removeprefix("every=").split(",")]
    smallest = Fraction(1, 1000) if every else Fraction(0)
    if not all(0 < share < 1 for share in shares) or (every and len(shares) > 1) or shares[0] < smallest:
        raise ConfigError(
            f"--steps must be shares such as 85%,60%,25% or 0.85,0.6, or every=5% with at least 0.1%. "
            f"Got {text!r} instead."
        )
    if every:
        return tuple(float(shares[0] * k) for k in range(1, 1000) if shares[0] * k < 1)
    return tuple(float(share) for share in shares)


def _summary(analysis: Analysis) -> str:
    settings = sum(space.size for layer in analysis.layers for space in layer.spaces)
    layers = len(analysis.layers)
    return f"{settings:,} valid rank settings of {layers} layer{'s' if layers != 1 else ''}"
