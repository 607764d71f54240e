"""``rankfold export``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import rankfold as rf
from rankfold import exporters, zoo
from rankfold._options import COUNT, Flag
from rankfold.api.exporting import INT8_TOLERANCE, TOLERANCE
from rankfold.cli._command import Given, command
from rankfold.cli._loading import open_data, open_example, open_model, open_test, pick_device, pick_metric
from rankfold.cli._options import FLAGS, OUTPUT
from rankfold.cli._session import Output
from rankfold.cli._source import artifact_source
from rankfold.errors import ConfigError
from rankfold.records.amounts import either
from rankfold.reporting.terminal import print_record

_FORMATS = exporters.registry.names()


@command(
    "rankfold export small --out small.onnx",
    "artifact", "out", "to", "int8", "artifact_source",
    out=Flag(
        kind=str | None, names=("--out", "-o"), metavar="FILE", panel=OUTPUT, stands_for=("path",),
        help="File to write. By default next to the artifact, with the suffix of --to.",
    ),
    to=Flag(
        kind=str | None, metavar="FORMAT", panel=OUTPUT,
        help=f"Format: {either(_FORMATS)}. By default that of the file's suffix.",
    ),
    int8=Flag(
        kind=bool, default=False, panel=OUTPUT,
        help="Quantize to int8, with ranges from the calibration images; the accuracy is measured before and after.",
    ),
    calibration_images=replace(FLAGS["calibration_images"], default=256, panel=OUTPUT),
    reduce_range=Flag(
        kind=bool | None, names=("--reduce-range/--no-reduce-range",), panel=OUTPUT,
        help="Use 7-bit weights in int8 files. By default only for ONNX Runtime on x86 processors without VNNI, where "
        "sums of 8-bit products saturate.",
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
        kind=float | None, metavar="SHARE", panel=OUTPUT,
        help=f"Largest relative difference of the outputs. By default {TOLERANCE:g}, in int8 {INT8_TOLERANCE:g}.",
    ),
)  # fmt: skip
def export(given: Given, out: Output) -> None:
    """Write a compressed model to a file of another runtime, such as ONNX Runtime.

    The file is loaded and run, and is only kept if its outputs agree with the model's.
    """
    path = _beside(given.artifact, given.to, int8=given.int8) if given.out is None else given.out
    source = artifact_source(given, reads_data=True)
    if given.int8 and source.data is None:
        raise ConfigError("--int8 needs data for the ranges of the activations. Pass --data.")
    zoo.entry(source.model)
    test = open_test(source)
    example = open_example(source, test)
    dense = open_model(source, pick_device(given.device))
    model = rf.load(given.artifact, dense)
    int8 = open_data(source, "calibration", limit=given.calibration_images) if given.int8 else None
    check = None if source.data is None else open_data(source, "test", limit=given.check_images)
    exported = rf.export(
        model, path, example, to=given.to, check=check, dynamic_batch=not given.fixed_batch, int8=int8,
        reduce_range=given.reduce_range, evaluate=pick_metric(test, lambda: dense) if given.int8 else None,
        tolerance=given.tolerance,
    )  # fmt: skip
    out.show(lambda console: print_record(exported, console))
    if given.quiet:
        out.result(exported.headline())
    out.document({"command": "export", **exported.to_dict()})


def _beside(artifact: str, to: str | None, *, int8: bool) -> Path:
    """Return the file of a format next to an artifact, named after it."""
    if to is None:
        raise ConfigError("--out and --to are missing. Pass --out FILE, or --to FORMAT to write next to the artifact.")
    folder = Path(artifact)
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return folder.with_name(folder.name + (".int8" if int8 else "") + exporters.get(to).suffix)
