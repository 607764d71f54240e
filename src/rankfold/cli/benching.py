"""``rankfold bench``: the time of a forward pass, measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rankfold.cli import _options as o
from rankfold.cli._session import command, session

if TYPE_CHECKING:
    from rankfold.evaluation import LatencyResult

EXAMPLE = "Example: rankfold bench small --batch-size 32 --threads 1"

BenchBatch = Annotated[int, typer.Option("--batch-size", help="Inputs in one forward pass.", min=1)]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads on the CPU; by default torch's own.", min=1)]
Repeats = Annotated[int, typer.Option("--repeats", help="Measured runs of each model.", min=1)]


@command
def bench(
    artifact: o.Artifact,
    model: o.ModelOption = None,
    trust_source: o.TrustSource = False,
    batch_size: BenchBatch = 1,
    threads: Threads = None,
    repeats: Repeats = 50,
    num_classes: o.Classes = None,
    input_size: o.InputSize = None,
    data: o.Data = None,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Time a compressed model against its original on this machine.

    Both run by turns, in evaluation mode, without gradients. Weights do not matter for the time and are not needed.
    """
    import torch

    import rankfold as rf
    from rankfold.cli._loading import check_name, open_example, open_model, open_test, pick_device, resized
    from rankfold.cli._source import artifact_source
    from rankfold.reporting.sections import Content, Section
    from rankfold.reporting.terminal import draw
    from rankfold.reporting.words import milliseconds

    with session(as_json=as_json, quiet=quiet) as printer:
        source = artifact_source(
            artifact, model=model, num_classes=num_classes, input_size=input_size, data=data,
            trust=trust_source, reads_data=input_size is None,
        )  # fmt: skip
        place = pick_device(device)
        check_name(source)
        example = open_example(source, open_test(source) if input_size is None else None)
        if batch_size != 1:
            example = resized(example, batch_size)
        dense = open_model(source, place)
        small = rf.load(artifact, dense)
        found = rf.compare_latency({"dense": dense, "compressed": small}, example, repeats=repeats, threads=threads)
        ratio = found["dense"].median_ms / found["compressed"].median_ms
        cores = threads or torch.get_num_threads()
        where = f"{place}, {cores} thread{'s' if cores > 1 else ''}" if place.type == "cpu" else str(place)
        rows = [(name, milliseconds(r.median_ms), milliseconds(r.iqr_ms)) for name, r in found.items()]
        table = Section(heads=("model", ">median", ">spread (IQR)"), rows=rows)
        printer.show(lambda console: draw(Content(sections=[table]), console))
        printer.result(f"{_verdict(found, ratio)} (batch {batch_size}, {where}, {repeats} runs each)")
        printer.document(
            {
                "command": "bench",
                "batch_size": batch_size,
                "device": str(place),
                "threads": cores,
                "repeats": repeats,
                **{name: {"median_ms": r.median_ms, "iqr_ms": r.iqr_ms} for name, r in found.items()},
                "time_ratio": ratio,
            }
        )


def _verdict(found: dict[str, LatencyResult], ratio: float) -> str:
    """Say what was measured; a difference within the spread is none."""
    dense, small = found["dense"], found["compressed"]
    if abs(dense.median_ms - small.median_ms) <= max(dense.iqr_ms, small.iqr_ms):
        return f"no clear difference in time: dense / compressed = {ratio:.2f}, within the spread of the runs"
    if ratio > 1:
        return f"compressed takes {1 / ratio:.0%} of the dense model's time: {ratio:.2f}x as fast"
    return f"compressed is slower here: it takes {1 / ratio:.2f} times the dense model's time"
