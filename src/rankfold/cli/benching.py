"""``rankfold bench``."""

from __future__ import annotations

from typing import Any

import torch

import rankfold as rf
from rankfold import zoo
from rankfold._options import COUNT, Flag, integer
from rankfold.cli._command import Given, command
from rankfold.cli._loading import open_example, open_model, open_test, pick_device
from rankfold.cli._session import Output
from rankfold.cli._source import artifact_source
from rankfold.errors import ConfigError
from rankfold.evaluation import LatencyResult
from rankfold.reporting.sections import Content, Section
from rankfold.reporting.terminal import draw
from rankfold.reporting.words import milliseconds


@command(
    "rankfold bench small --batch-size 32 --threads 1",
    "artifact", "original", "trust_source", "batch_size", "threads", "repeats", "num_classes", "input_size", "data",
    "device",
    batch_size=Flag(kind=int, default=1, check=COUNT, help="Inputs per forward pass."),
    threads=Flag(
        kind=int | None, check=integer(1, optional=True), help="Number of CPU threads. By default that of torch."
    ),
    repeats=Flag(kind=int, default=50, check=COUNT, help="Number of timed runs per model."),
)  # fmt: skip
def bench(given: Given, out: Output) -> None:
    """Time a compressed model against its original on this machine.

    The two models are timed alternately, in evaluation mode and without gradients. Weights do not affect the time and
    are not needed.
    """
    batch = given.batch_size
    sized = Given(**{**vars(given), "batch_size": None})  # not the batch size of an evaluation
    source = artifact_source(sized, reads_data=given.input_size is None)
    device = pick_device(given.device)
    zoo.entry(source.model)
    example = open_example(source, open_test(source) if given.input_size is None else None)
    if batch != 1:
        example = _resized(example, batch)
    dense = open_model(source, device)
    models = {"dense": dense, "compressed": rf.load(given.artifact, dense)}
    times = rf.compare_latency(models, example, repeats=given.repeats, threads=given.threads)
    ratio = times["dense"].median_ms / times["compressed"].median_ms
    threads = given.threads or torch.get_num_threads()
    where = f"{device}, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else str(device)
    rows = [(name, milliseconds(r.median_ms), milliseconds(r.iqr_ms)) for name, r in times.items()]
    table = Section(heads=("model", ">median", ">spread (IQR)"), rows=rows)
    out.show(lambda console: draw(Content(sections=[table]), console))
    out.result(f"{_verdict(times, ratio)} (batch {batch}, {where}, {given.repeats} runs each)")
    out.document(
        {
            "command": "bench",
            "batch_size": batch,
            "device": str(device),
            "threads": threads,
            "repeats": given.repeats,
            **{name: {"median_ms": r.median_ms, "iqr_ms": r.iqr_ms} for name, r in times.items()},
            "time_ratio": ratio,
        }
    )


def _resized(example: Any, batch: int) -> Any:
    if not isinstance(example, torch.Tensor):
        raise ConfigError(
            "--batch-size needs a network with a single input tensor. Leave it out, or pass --input-size."
        )
    return example[:1].repeat(batch, *[1] * (example.ndim - 1))


def _verdict(times: dict[str, LatencyResult], ratio: float) -> str:
    dense, small = times["dense"], times["compressed"]
    if abs(dense.median_ms - small.median_ms) <= max(dense.iqr_ms, small.iqr_ms):
        return f"no clear difference in time: dense / compressed = {ratio:.2f}, within the spread of the runs"
    if ratio > 1:
        return f"the compressed model takes {1 / ratio:.0%} of the dense model's time: {ratio:.2f}x as fast"
    return f"the compressed model is slower on this machine: it takes {1 / ratio:.2f} times the dense model's time"
