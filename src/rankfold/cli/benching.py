"""``rankfold bench``: the time of a forward pass, measured."""

from __future__ import annotations

import torch

import rankfold as rf
from rankfold._options import Flag
from rankfold.cli._command import Given, command
from rankfold.cli._loading import artifact_of, check_name, open_example, open_model, open_test, pick_device, resized
from rankfold.cli._session import Output
from rankfold.evaluation import LatencyResult
from rankfold.reporting.sections import Content, Section
from rankfold.reporting.terminal import draw
from rankfold.reporting.words import milliseconds


@command(
    "rankfold bench small --batch-size 32 --threads 1",
    "artifact", "original", "trust_source", "batch_size", "threads", "repeats", "num_classes", "input_size", "data",
    "device",
    batch_size=Flag(kind=int, default=1, least=1, help="Inputs in one forward pass."),
    threads=Flag(kind=int | None, least=1, help="Threads on the CPU. By default torch's own number."),
    repeats=Flag(kind=int, default=50, least=1, help="Measured runs of each model."),
)  # fmt: skip
def bench(given: Given, out: Output) -> None:
    """Time a compressed model against its original on this machine.

    Both run in turns, in evaluation mode, without gradients. Weights do not matter for the time and are not needed.
    """
    batch = given.batch_size
    sized = Given(**{**vars(given), "batch_size": None})  # the batch of a run is not that of an evaluation
    source = artifact_of(sized, reads_data=given.input_size is None)
    place = pick_device(given.device)
    check_name(source)
    example = open_example(source, open_test(source) if given.input_size is None else None)
    if batch != 1:
        example = resized(example, batch)
    dense = open_model(source, place)
    models = {"dense": dense, "compressed": rf.load(given.artifact, dense)}
    times = rf.compare_latency(models, example, repeats=given.repeats, threads=given.threads)
    ratio = times["dense"].median_ms / times["compressed"].median_ms
    cores = given.threads or torch.get_num_threads()
    where = f"{place}, {cores} thread{'s' if cores > 1 else ''}" if place.type == "cpu" else str(place)
    rows = [(name, milliseconds(r.median_ms), milliseconds(r.iqr_ms)) for name, r in times.items()]
    table = Section(heads=("model", ">median", ">spread (IQR)"), rows=rows)
    out.show(lambda console: draw(Content(sections=[table]), console))
    out.result(f"{_verdict(times, ratio)} (batch {batch}, {where}, {given.repeats} runs each)")
    out.document(
        {
            "command": "bench",
            "batch_size": batch,
            "device": str(place),
            "threads": cores,
            "repeats": given.repeats,
            **{name: {"median_ms": r.median_ms, "iqr_ms": r.iqr_ms} for name, r in times.items()},
            "time_ratio": ratio,
        }
    )


def _verdict(times: dict[str, LatencyResult], ratio: float) -> str:
    """Say what was measured; a difference within the spread is none."""
    dense, small = times["dense"], times["compressed"]
    if abs(dense.median_ms - small.median_ms) <= max(dense.iqr_ms, small.iqr_ms):
        return f"no clear difference in time: dense / compressed = {ratio:.2f}, within the spread of the runs"
    if ratio > 1:
        return f"compressed takes {1 / ratio:.0%} of the dense model's time: {ratio:.2f}x as fast"
    return f"compressed is slower here: it takes {1 / ratio:.2f} times the dense model's time"
