"""``rankfold export``."""

from __future__ import annotations

from typing import Any

import rankfold as rf
from rankfold import exporters, zoo
from rankfold._options import COUNT, Flag
from rankfold.api.exporting import TOLERANCE
from rankfold.cli._command import Given, command
from rankfold.cli._loading import open_data, open_example, open_model, open_test, pick_device
from rankfold.cli._options import OUTPUT, REQUIRED
from rankfold.cli._session import Output
from rankfold.cli._source import Source, artifact_source
from rankfold.records.amounts import either
from rankfold.reporting.terminal import print_record

_FORMATS = exporters.registry.names()


@command(
    "rankfold export small --out small.onnx",
    "artifact", "out", "to", "artefact_source",
    out=Flag(
        kind=str, default=REQUIRED, names=("--out", "-o"), metavar="FILE", panel=OUTPUT, stands_for=("path",),
        help="File to write.",
    ),
    to=Flag(
        kind=str | None, metavar="FORMAT", panel=OUTPUT,
        help=f"Format: {either(_FORMATS)}. By default that of the file's suffix.",
    ),
    fixed_batch=Flag(
        kind=bool, default=False, panel=OUTPUT, stands_for=("dynamic_batch",),
        help="Export for the batch size of the example input only.",
    ),
    check_images=Flag(
        kind=int, default=128, check=COUNT, panel=OUTPUT, stands_for=("check",),
        help="Number of test images on which the file is compared with the model; without data, the example input.",
    ),
    tolerance=Flag(
        kind=float, default=TOLERANCE, metavar="SHARE", panel=OUTPUT,
        help="Largest relative difference of the outputs.",
    ),
)  # fmt: skip
def export(given: Given, out: Output) -> None:
    """Write a compressed model to a file of another runtime, such as ONNX Runtime.

    The file is loaded and run, and is only kept if its outputs agree with the model's.
    """
    source = artifact_source(given, reads_data=True)
    zoo.entry(source.model)
    example = open_example(source, open_test(source) if source.input_size is None else None)
    model = rf.load(given.artifact, open_model(source, pick_device(given.device)))
    exported = rf.export(
        model, given.out, example, to=given.to, check=_check(source, given), dynamic_batch=not given.fixed_batch,
        tolerance=given.tolerance,
    )  # fmt: skip
    out.show(lambda console: print_record(exported, console))
    if given.quiet:
        out.result(exported.headline())
    out.document({"command": "export", **exported.to_dict()})


def _check(source: Source, given: Given) -> Any:
    return None if source.data is None else open_data(source, "test", limit=given.check_images)
