"""Export: write a model to a file of another runtime, and show that the file computes the same."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterable, Iterator, Mapping
from operator import length_hint
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rankfold import exporters
from rankfold._config import is_number, require, spelled
from rankfold._files import check_writable, write_atomic
from rankfold._progress import track
from rankfold._tensors import tensors_of
from rankfold._turns import in_turn
from rankfold._version import __version__
from rankfold.batches import MatchedBatches, batch_size, leading, pieces, split_batch
from rankfold.errors import DataError, RankfoldError
from rankfold.inventory import call_example, check_model, describe, evaluating
from rankfold.outputs import squared_distance
from rankfold.reporting.export import Export

TOLERANCE = 1e-4
"""Largest relative difference of the outputs by default: float32 sums in another order differ by about 1e-6."""


@in_turn
def export(
    model: nn.Module,
    path: str | Path,
    example_input: Any,
    *,
    to: str | None = None,
    check: Iterable[Any] | None = None,
    dynamic_batch: bool = True,
    tolerance: float = TOLERANCE,
) -> Export:
    """Write a model to a file of another runtime, and compare the file's outputs with the model's.

    The file is first written under a temporary name, loaded by its runtime on the CPU and run. It gets its name only if
    its outputs agree.

    Parameters
    ----------
    model : Module
        Any model, compressed or not; it is exported in evaluation mode and left unchanged.
    path : path
        The file. An existing file is replaced.
    example_input : object
        A tuple of positional arguments, a mapping of keyword arguments, or a single argument.
    to : str or None
        Format, such as ``"onnx"`` or ``"torch-export"``; None is that of the path's suffix.
    check : iterable of batches, optional
        Inputs on which the outputs are compared; by default the example input and, if the batch is dynamic, a batch of
        another size.
    dynamic_batch : bool
        Whether the file runs on batches of any size; otherwise on the example's only.
    tolerance : float
        Largest relative difference of the outputs, ``||file - model|| / ||model||``, of any batch.

    Returns
    -------
    Export

    Raises
    ------
    ConfigError
        If the format is unknown, or a package that it needs is not installed.
    ModelError
        If the model cannot be captured, or the format lacks one of its operations.
    RankfoldError
        If the outputs differ by more than the tolerance, or the file cannot be written. No file is left.

    Examples
    --------
    >>> import tempfile, torch, rankfold as rf
    >>> net, x = torch.nn.Linear(8, 4), torch.randn(2, 8)
    >>> exported = rf.export(net, f"{tempfile.mkdtemp()}/net.pt2", x)
    >>> exported.file_format, exported.difference < 1e-6
    ('torch-export', True)
    """
    path = Path(path)
    exporter = exporters.of_path(path) if to is None else exporters.get(to)
    exporter.check()
    require(is_number(tolerance) and tolerance > 0, "tolerance", tolerance, "a number above 0")
    require(isinstance(dynamic_batch, bool), "dynamic_batch", dynamic_batch, "true or false")
    check_model(model)
    check_writable(path.parent)
    program = exporters.captured(model, example_input, dynamic_batch=dynamic_batch)
    compared = list[tuple[int, float]]()

    def write(temporary: Path) -> None:
        exporter.write(program, temporary)
        runner = exporter.open(temporary)
        inputs = _inputs(example_input, check, dynamic_batch=dynamic_batch)
        compared.extend(_differences(model, runner, inputs))
        worst = max((difference for _, difference in compared), default=math.inf)
        if not worst <= tolerance:
            raise RankfoldError(
                f"the outputs of the exported file differ from the model's by {worst:.1e} (relative), more than "
                f"{spelled('tolerance', tolerance)}. The file was not kept. Raise the tolerance, or use another format."
            )

    write_atomic(path, write)
    stored = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return Export(
        path=str(path),
        file_format=exporter.name,
        bytes=path.stat().st_size,
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in stored.values()),
        inputs=describe(example_input),
        dynamic_batch=dynamic_batch,
        samples=sum(samples for samples, _ in compared),
        difference=max(difference for _, difference in compared),
        versions={"rankfold": __version__, **{n: _version(n) for n in ("torch", *exporter.packages)}},
    )


def _inputs(example_input: Any, check: Iterable[Any] | None, *, dynamic_batch: bool) -> Iterator[Any]:
    """Yield the inputs to compare on: batches of any size, or of the example's only.

    Raises
    ------
    DataError
        If no batch has as many samples as the example.
    """
    if check is None:
        yield example_input
        if dynamic_batch:
            yield leading(example_input, 1) if batch_size(example_input) > 1 else exporters.several(example_input)
        return
    size, some = batch_size(example_input), False
    batches = MatchedBatches(check, example_input, "check")
    for batch in track(batches, "comparing outputs", length_hint(check) or None):
        inputs, _ = split_batch(batch)
        if isinstance(inputs, Mapping) and isinstance(example_input, Mapping):
            inputs = {key: inputs[key] for key in example_input if key in inputs}  # files have their inputs in order
        for piece in [inputs] if dynamic_batch else pieces(inputs, size):
            if dynamic_batch or batch_size(piece) == size:
                some = True
                yield piece
    if not some:
        raise DataError(
            f"no batch of the check data has the {size} samples of the example input, which the file needs without a "
            "dynamic batch. Pass larger batches."
        )


def _differences(model: nn.Module, runner: exporters.Runner, batches: Iterable[Any]) -> Iterator[tuple[int, float]]:
    """Yield the number of samples and the relative difference of the outputs of each batch."""
    for inputs in batches:
        with evaluating(model):
            reference: list[Tensor] = tensors_of(call_example(model, inputs))
        distance, energy = squared_distance(runner(inputs), reference)
        yield batch_size(inputs), math.sqrt(distance / energy) if energy > 0 else math.sqrt(distance)


def _version(package: str) -> str:
    return importlib.metadata.version(package)
