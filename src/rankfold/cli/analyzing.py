"""``rankfold analyze``: how many ways there are to make each layer smaller, and what they cost."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankfold.cli import _options as o
from rankfold.cli._session import command, session

if TYPE_CHECKING:
    from rankfold.reporting.exploration import Analysis

EXAMPLE = "Example: rankfold analyze --layer conv:3x3x512x512 --layer linear:400x120 --html spaces.html"

_LAYER_HELP = (
    "Layer by shape instead of a network: conv:K1x...xIxO or linear:IxO, then ,stride=2 ,padding=1 ,dilation=2 "
    ",groups=4 ,size=28 ,bias; may be repeated."
)
AnalyzedModel = Annotated[str | None, typer.Argument(help=o.MODEL_HELP, metavar="MODEL", show_default=False)]
Layers = Annotated[list[str] | None, typer.Option("--layer", "-l", help=_LAYER_HELP, metavar="SHAPE")]
AnalyzedMethods = Annotated[
    str | None,
    typer.Option("--methods", help="Factorizations such as svd,tucker, or all; by default the six of the similarity "
                 "paper: tucker, cp, tt for convolutions, svd, qr, ttm for matrices.", metavar="NAMES"),
]  # fmt: skip
Steps = Annotated[
    str,
    typer.Option("--steps", help="Shares of the parameters to remove, such as 85%,60%,25%, or every=5%.",
                 metavar="SHARES"),
]  # fmt: skip
Tolerance = Annotated[
    str, typer.Option("--tolerance", help="A setting belongs to a step if it removes a share within this of it.",
                      metavar="SHARE"),
]  # fmt: skip
Random = Annotated[int, typer.Option("--random", help="Random solutions of each step.", min=0)]
Cores = Annotated[int, typer.Option("--cores", help="Most cores of the tensor shapes of ttm.", min=2)]
Useful = Annotated[
    bool, typer.Option("--useful", help="Leave out settings with a rank that another one makes useless.")
]
Time = Annotated[bool, typer.Option("--time", help="Also measure decomposition times at each step.")]
Html = Annotated[str | None, typer.Option("--html", help="Write tables and plots to this page.", metavar="FILE")]


@command
def analyze(
    model: AnalyzedModel = None,
    layer: Layers = None,
    methods: AnalyzedMethods = None,
    steps: Steps = "85%,60%,25%",
    tolerance: Tolerance = "0.5%",
    random: Random = 0,
    cores: Cores = 3,
    useful: Useful = False,
    time: Time = False,
    html: Html = None,
    weights: o.Weights = None,
    include: o.Include = None,
    exclude: o.Exclude = None,
    input_size: o.InputSize = None,
    num_classes: o.Classes = None,
    data: o.Data = None,
    device: o.Device = "auto",
    seed: o.Seed = 0,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Count every layer's valid rank settings and show what they cost, of a network or of layers by shape.

    For each factorization: how many rank settings have fewer parameters and fewer MACs than the layer, and for each
    compression step the solutions of fewest MACs, most MACs, equal ranks and some random ones. Nothing is listed or
    built, so this takes seconds. Weights are not needed; they only matter for --time.
    """
    import rankfold as rf
    from rankfold.api.analyzing import resolve
    from rankfold.cli._loading import check_name, open_example, open_model, open_test, pick_device
    from rankfold.cli._source import source_of
    from rankfold.cli._writing import check_file
    from rankfold.errors import ConfigError

    with session(as_json=as_json, quiet=quiet) as printer:
        if (model is None) == (not layer):
            raise ConfigError("analyze takes a network, or layers with --layer: one of the two.")
        shares = parse_steps(steps)
        width = _share(tolerance.strip())
        if width is None or not 0 < width <= Fraction(1, 2):
            raise ConfigError(f"--tolerance must be a share in (0, 50%], such as 0.5%. Got {tolerance!r} instead.")
        resolve(methods)
        file = None if html is None else check_file(html, (".html",), flag="--html")
        options: dict[str, Any] = {
            "methods": methods, "steps": shares, "random": random, "seed": seed, "cores": cores, "time": time,
            "tolerance": float(width), "useful": useful,
        }  # fmt: skip
        if model is None:
            alone = {"--include": include, "--exclude": exclude, "--weights": weights, "--data": data,
                     "--input-size": input_size, "--num-classes": num_classes,
                     "--device": None if device == "auto" else device}  # fmt: skip
            for flag, value in alone.items():
                if value:
                    raise ConfigError(f"{flag} goes with a network. Leave it out with --layer.")
            found = rf.analyze(layer or [], **options, title=", ".join(layer or []))
        else:
            source = source_of(
                model, weights=weights, num_classes=num_classes, data=data, input_size=input_size, seed=seed
            )
            place = pick_device(device)
            check_name(source)
            example = open_example(source, open_test(source))
            found = rf.analyze(
                open_model(source, place), example, **options, include=include or None, exclude=exclude or None,
                title=model,
            )  # fmt: skip
        printer.show(found.print)
        if quiet:
            printer.result(_summary(found))
        files: dict[str, str] = {}
        if file is not None:
            found.save(file)
            files["page"] = str(file)
            printer.say(f"page: {file}")
        printer.document({"command": "analyze", "files": files, "analysis": found.to_dict()})


def parse_steps(text: str) -> tuple[float, ...]:
    """Return ``(0.85, 0.6)`` for ``"85%,60%"``, and every multiple below 100 % for ``"every=5%"``.

    Raises
    ------
    ConfigError
        If the text is neither.
    """
    from rankfold.errors import ConfigError

    wanted = "--steps must be shares such as 85%,60%,25% or 0.85,0.6, or every=5%"
    every = text.strip().removeprefix("every=")
    shares = [_share(part.strip()) for part in ([every] if every != text.strip() else text.split(","))]
    if any(share is None or not 0 < share < 1 for share in shares):
        raise ConfigError(f"{wanted}. Got {text!r} instead.")
    found = [share for share in shares if share is not None]
    if every == text.strip():
        return tuple(float(share) for share in found)
    if found[0] < Fraction(1, 1000):
        raise ConfigError(f"{wanted}, in steps of at least 0.1%. Got {text!r} instead.")
    return tuple(float(found[0] * k) for k in range(1, 1000) if found[0] * k < 1)


def _share(text: str) -> Fraction | None:
    """Return ``"85%"`` or ``"0.85"`` as an exact share."""
    try:
        return Fraction(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        return None


def _summary(found: Analysis) -> str:
    """Say in one line what was counted."""
    settings = sum(space.size for layer in found.layers for space in layer.spaces)
    layers = len(found.layers)
    return f"{settings:,} valid rank settings of {layers} layer{'s' if layers != 1 else ''}"
