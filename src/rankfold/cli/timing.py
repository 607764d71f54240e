"""``rankfold latency``."""

from __future__ import annotations

from rankfold._options import Flag
from rankfold.api import layer_times
from rankfold.api.options import chosen_methods
from rankfold.cli._command import Given, command
from rankfold.cli._loading import open_work
from rankfold.cli._options import OUTPUT
from rankfold.cli._session import Output
from rankfold.cli._source import given_source
from rankfold.cli._writing import check_file
from rankfold.reporting.terminal import print_record
from rankfold.timing import DEFAULT_RUNTIME


@command(
    "rankfold latency torchvision/resnet18 --target 'onnxruntime, threads=1'",
    "model", "target", "methods", "include", "exclude", "cache", "out", "weights", "input_size", "num_classes", "data",
    "device", "seed",
    out=Flag(
        kind=str | None, names=("--out", "-o"), metavar="FILE", panel=OUTPUT,
        help="File for the table: .html, .md or .json.",
    ),
)  # fmt: skip
def latency(given: Given, out: Output) -> None:
    """Time a network's layers on a target, dense and with some ranks of each method.

    Every setting is timed alternately with the dense layer. With --cache, a search with the same target uses the same
    measurements. Weights are not needed.
    """
    chosen_methods(given.methods)
    file = None if given.out is None else check_file(given.out, (".html", ".md", ".json"))
    work = open_work(given_source(given, given.model), given, tests=False)
    table = layer_times(
        work.dense, work.example, target=given.target or DEFAULT_RUNTIME, methods=given.methods,
        include=given.include or None, exclude=given.exclude or None, cache=given.cache,
    )  # fmt: skip
    if file is not None:
        table.save(file)
    if given.quiet:
        out.result(table.headline())
    out.show(lambda console: print_record(table, console))
    out.document({"command": "latency", **table.to_dict()})
