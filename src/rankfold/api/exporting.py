"""Export: write a model to a file of another runtime, and show that the file computes the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from operator import length_hint
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rankfold import exporters
from rankfold._config import is_number, require, spelled
from rankfold._files import check_writable, to_disk, write_atomic, write_folder
from rankfold._progress import track
from rankfold._tensors import tensors_of
from rankfold._turns import in_turn
from rankfold._version import __version__
from rankfold.api.ram import peak_ram
from rankfold.api.realizing import metric_value
from rankfold.batches import MatchedBatches, batch_size, leading, pieces, split_batch
from rankfold.errors import ConfigError, DataError, ModelError, RankfoldError
from rankfold.evaluation import Metric, as_metric
from rankfold.evaluation import evaluate as measure
from rankfold.inventory import call_example, check_model, describe, evaluating
from rankfold.inventory.sharing import unique
from rankfold.outputs import squared_distance
from rankfold.reporting.export import Export

TOLERANCE = 1e-4
"""Largest relative difference of the outputs by default: float32 sums in another order differ by about 1e-6."""
ROUNDING = 1e-3
"""Outputs whose norm is below this share of that of all outputs are compared with all: they may be rounding errors."""
INT8_TOLERANCE = 0.3
"""The same in int8: small networks differ by 0.02 to 0.1; a file that differs by more than this is broken."""


@in_turn
def export(
    model: nn.Module,
    path: str | Path,
    example_input: Any,
    *,
    to: str | None = None,
    check: Iterable[Any] | None = None,
    dynamic_batch: bool = True,
    int8: Iterable[Any] | None = None,
    reduce_range: bool | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    tolerance: float | None = None,
) -> Export:
    """Write a model to a file of another runtime, and compare the file's outputs with the model's.

    The file is first written under a temporary name, loaded by its runtime on the CPU and run. It gets its name only if
    its outputs agree. A Core ML model is only compared on macOS; elsewhere the record says that it is not checked.

    Parameters
    ----------
    model : Module
        Any model, compressed or not; it is exported in evaluation mode and left unchanged.
    path : path
        The file. An existing file is replaced. OpenVINO's format has a second one with the suffix ``.bin``; a Core ML
        model is a folder.
    example_input : object
        A tuple of positional arguments, a mapping of keyword arguments, or a single argument.
    to : str or None
        Format: ``"onnx"``, ``"torch-export"``, ``"openvino"``, ``"executorch"``, ``"litert"`` or ``"coreml"``; None is
        that of the path's suffix.
    check : iterable of batches, optional
        Inputs on which the outputs are compared; by default the data of `int8`, else the example input and, if the
        batch is dynamic, a batch of another size.
    dynamic_batch : bool
        Whether the file runs on batches of any size; otherwise on the example's only. ExecuTorch and Core ML
        need a bound: the size of the example. LiteRT files always have the example's size.
    int8 : iterable of batches, optional
        Calibration data for static quantization to int8 (ONNX and ExecuTorch): weights per output channel, activations
        per tensor. None keeps the model's data type.
    reduce_range : bool or None
        Whether int8 weights use 7 bits. In ONNX Runtime on x86 processors without VNNI instructions, sums of 8-bit
        products saturate. None decides for the runtime and this machine.
    evaluate : callable, optional
        A metric, as for `rankfold.evaluate`: measured on the model and on the file.
    tolerance : float or None
        Largest relative difference of the outputs, ``||file - model|| / ||model||``, of any output and batch. None is
        1e-4, and 0.3 with `int8`.

    Returns
    -------
    Export

    Raises
    ------
    ConfigError
        If the format is unknown.
    MissingExtra
        If a package that the format needs is not installed.
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
    limit = (TOLERANCE if int8 is None else INT8_TOLERANCE) if tolerance is None else tolerance
    require(is_number(limit) and limit > 0, "tolerance", tolerance, "a number above 0")
    require(isinstance(dynamic_batch, bool), "dynamic_batch", dynamic_batch, "true or false")
    require(reduce_range is None or isinstance(reduce_range, bool), "reduce_range", reduce_range, "true, false or None")
    if reduce_range is not None and int8 is None:
        raise ConfigError(f"{spelled('reduce_range')} only affects int8 files. Set {spelled('int8')}, or remove it.")
    if int8 is not None and check is None and isinstance(int8, Iterator):
        raise DataError(
            "int8 is an iterator, but its batches are needed twice: for calibration, and to compare the outputs. Pass "
            "a list or a DataLoader, or other batches as check."
        )
    check_model(model)
    check_writable(path.parent)
    metric = None if evaluate is None else as_metric(evaluate)
    if metric is not None and (reason := exporter.unchecked()):
        raise ConfigError(f"{spelled('evaluate')} runs the file, but {reason}. Remove it.")
    with evaluating(model):
        call_example(model, example_input)  # torch.export's own errors about inputs say less
    largest = None if dynamic_batch and exporter.batch_sizes == "any" else batch_size(example_input)
    dynamic_batch = dynamic_batch and exporter.batch_sizes != "fixed" and largest != 1
    batches: dict[str, Any] = {"dynamic_batch": dynamic_batch, "largest": largest}
    program = exporters.captured(model, example_input, **batches)
    facts: dict[str, Any] = {"unchecked": exporter.unchecked()}

    def write(temporary: Path) -> None:
        exporter.write(program, temporary)
        if int8 is not None:
            facts["float_bytes"] = temporary.stat().st_size
            calibration = _inputs(example_input, int8, "calibration", **batches)
            narrow = exporter.saturates() if reduce_range is None else reduce_range
            capture = partial(exporters.recaptured, example_input=example_input, **batches)
            facts["int8"] = exporter.quantize(program, temporary, calibration, capture, reduce_range=narrow)
        if facts["unchecked"] is None:
            data = int8 if check is None else check  # int8 is only valid on data like that of its calibration
            inputs = _inputs(example_input, data, "check", **batches)
            facts.update(_checked(model, exporter.open(temporary), inputs, limit, metric, largest))

    files = _write_files(path, exporter, write)
    tools = () if int8 is None else exporter.int8_packages
    stored = unique((*model.parameters(), *model.buffers()))
    return Export(
        path=str(path),
        file_format=exporter.name,
        bytes=sum(file.stat().st_size for file in files),
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in stored),
        inputs=describe(example_input),
        ram=_ram(model, example_input, None if int8 is None else "int8"),
        dynamic_batch=dynamic_batch,
        largest_batch=largest,
        versions={"rankfold": __version__, **{n: version(n) for n in ("torch", *exporter.packages, *tools)}},
        **facts,
    )


def _checked(
    model: nn.Module, runner: exporters.Runner, inputs: Iterable[Any], limit: float, metric: Metric | None,
    largest: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Return the comparison for the record; raise `RankfoldError` if the outputs differ by more than allowed."""
    samples, difference = _compare(model, runner, inputs)
    if not difference <= limit:
        raise RankfoldError(
            f"the outputs of the exported file differ from the model's by {difference:.1e} (relative), more than "
            f"{spelled('tolerance', limit)}. The file was not kept. Raise the tolerance, or use another format."
        )
    facts: dict[str, Any] = {"samples": samples, "difference": difference}
    if metric is not None:
        values = {"dense": measure(model, metric), "reloaded": measure(exporters.Exported(runner, largest), metric)}
        facts["metric"] = metric_value(metric, values)
    return facts


def _write_files(path: Path, exporter: exporters.Exporter, write: Callable[[Path], object]) -> list[Path]:
    """Let `write` fill temporary files, give them their names, and return those; if it raises, no file is left."""
    if exporter.folder:
        if path.suffix != exporter.suffix:
            raise ConfigError(
                f"{str(path)!r} is a folder in the format {exporter.name!r}. Use the suffix {exporter.suffix!r}."
            )
        write_folder(path, write)
        return [file for file in path.rglob("*") if file.is_file()]
    final = exporter.weights_file(path)
    if final == path:
        raise ConfigError(
            f"{str(path)!r} is the name of the file with the weights. Use the suffix {exporter.suffix!r}."
        )

    def write_all(temporary: Path) -> None:
        weights = exporter.weights_file(temporary)
        if weights is None or final is None:
            write(temporary)
            return
        try:
            write(temporary)
            to_disk(weights)
            weights.replace(final)  # the other file gets its name next
        finally:
            weights.unlink(missing_ok=True)

    write_atomic(path, write_all)
    return [path] if final is None else [path, final]


def _ram(model: nn.Module, example_input: Any, deploy_dtype: str | None) -> int | None:
    """Return the planner's estimate of peak RAM; None if it depends on the data."""
    try:
        return peak_ram(model, example_input, deploy_dtype)
    except ModelError:
        return None


def _inputs(
    example_input: Any, data: Iterable[Any] | None, purpose: str, *, dynamic_batch: bool, largest: int | None
) -> Iterator[Any]:
    """Yield inputs that the file can run, of the sizes that it accepts; without data, the example.

    Raises
    ------
    DataError
        If no batch has as many samples as the example.
    """
    if data is None:
        yield example_input
        if dynamic_batch:
            yield leading(example_input, 1) if batch_size(example_input) > 1 else exporters.several(example_input)
        return
    size, some = batch_size(example_input), False
    batches = MatchedBatches(data, example_input, purpose)
    for batch in track(batches, f"running {purpose} data", length_hint(data) or None):
        inputs, _ = split_batch(batch)
        if isinstance(inputs, Mapping) and isinstance(example_input, Mapping):
            inputs = {key: inputs[key] for key in example_input if key in inputs}  # files have their inputs in order
        for piece in [inputs] if largest is None else pieces(inputs, largest):
            if dynamic_batch or batch_size(piece) == size:
                some = True
                yield piece
    if not some:
        raise DataError(
            f"no batch of the {purpose} data has the {size} samples of the example input, which the file needs without "
            "a dynamic batch. Pass larger batches."
        )


def _compare(model: nn.Module, runner: exporters.Runner, batches: Iterable[Any]) -> tuple[int, float]:
    """Return the number of samples, and the largest relative difference of an output of a batch."""
    samples, worst = 0, 0.0
    for inputs in batches:
        with evaluating(model):
            reference = _numbers(tensors_of(call_example(model, inputs)))
        try:
            outputs = runner(inputs)
        except Exception as error:
            raise RankfoldError(
                f"the runtime cannot run the exported file. It raised {type(error).__name__}: {error}\n"
                "The file was not kept. Use another format."
            ) from error
        samples, worst = samples + batch_size(inputs), max(worst, _difference(_numbers(outputs), reference))
    return samples, worst


def _difference(outputs: list[Tensor], reference: list[Tensor]) -> float:
    """Return the largest relative difference of an output: a large output must not hide a wrong small one."""
    energy = squared_distance(outputs, reference)[1]
    parts = [squared_distance(ours, theirs) for ours, theirs in zip(outputs, reference, strict=True)]
    return max(math.sqrt(d / ((own if own > ROUNDING**2 * energy else energy) or 1.0)) for d, own in parts)


def _numbers(outputs: list[Tensor]) -> list[Tensor]:
    """Return integers and truth values, such as predicted classes, as float32, which can be compared."""
    return [tensor if tensor.is_floating_point() else tensor.float() for tensor in outputs]
