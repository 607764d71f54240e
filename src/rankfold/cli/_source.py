"""The network and data of an artifact: ``source.json`` next to it, so that later commands find them.

Artifacts may come from other people. The content of a ``source.json`` is data: names of networks and data sets, paths,
and numbers within limits. Python code (a factory) that it names is executed only if the user allows it.
"""

from __future__ import annotations

import math
import os
import shlex
import warnings
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rankfold._config import is_integer
from rankfold._documents import json_text, parse_document, read_text
from rankfold._options import SEED
from rankfold._printable import quoted
from rankfold.cli._command import Given
from rankfold.cli._options import FLAGS
from rankfold.errors import ConfigError, CorruptArtifact, RankfoldError, RankfoldWarning
from rankfold.storage import SOURCE_FILE, artifact_identity, companion_file
from rankfold.zoo.loading import KINDS, PATH_KINDS

FORMAT = "rankfold-source"
VERSION = 1

_MOST_DIMENSIONS, _MOST_ELEMENTS = 64, 10**8
_CHECKS = {**{name: FLAGS[name].check for name in ("num_classes", "batch_size", "limit_test")}, "seed": SEED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A network, its weights and its data, as the command line names them.

    Parameters
    ----------
    model : str
        Name for `rankfold.zoo.create`.
    weights : str or None
        An absolute path, or ``"bundled"``; None for random weights.
    num_classes : int or None
        Number of outputs; None for the network's default.
    data : str or None
        Data set for `rankfold.zoo.data`, with an absolute path.
    input_size : tuple of int or None
        Shape of the example input; None if the zoo knows it.
    batch_size : int
        Images per batch. Results are identical only if it is.
    limit_test : int or None
        Number of test images to measure on; None for all.
    seed : int
        Seed of random weights, of the test images if they are limited, and of the calibration images.
    """

    model: str
    weights: str | None = None
    num_classes: int | None = None
    data: str | None = None
    input_size: tuple[int, ...] | None = None
    batch_size: int = 128
    limit_test: int | None = None
    seed: int = 0

    def texts(self, artifact: str) -> dict[str, str]:
        """Return the name and text of the ``source.json`` of the artifact with this checksum."""
        data = {"format": FORMAT, "version": VERSION, **asdict(self), "artifact": artifact}
        return {SOURCE_FILE: json_text(data, indent=2) + "\n"}

    @classmethod
    def load(cls, folder: str | Path) -> Source | None:
        """Read ``source.json``; None if the folder has none that belongs to its artifact.

        Raises
        ------
        CorruptArtifact
            If it is damaged, or of a newer version.
        """
        file = companion_file(folder, SOURCE_FILE)
        if not os.path.lexists(file):
            return None
        advice = "Delete it and pass --model (and --data) explicitly."
        try:
            text = read_text(file, kind="source", hint="")
            data = parse_document(text, kind="source", format=FORMAT, version=VERSION, source=repr(str(file)))
        except CorruptArtifact as error:
            raise CorruptArtifact(f"{error} {advice}") from error
        if "model" not in data:
            raise CorruptArtifact(f"{str(file)!r}: 'model' is missing. {advice}")
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = values[field.name] = data.get(field.name, field.default)
            if not _is_valid(field.name, value, optional=field.default is None):
                raise CorruptArtifact(f"{str(file)!r}: {field.name!r} cannot be {quoted(value)}. {advice}")
        described = data.get("artifact")
        if described not in (None, artifact_identity(folder) or described):
            message = f"{str(file)!r} is ignored: it describes an artifact that is no longer there"
            warnings.warn(message, RankfoldWarning, stacklevel=2)
            return None
        if values["input_size"] is not None:
            values["input_size"] = tuple(values["input_size"])
        return cls(**values)


def given_source(given: Given, model: str) -> Source:
    """Return the source that the flags of a command name, with absolute paths."""
    return Source(model=_absolute_factory(model), seed=getattr(given, "seed", 0), **_given_fields(given))


def artifact_source(given: Given, *, reads_data: bool) -> Source:
    """Return an artifact's source, in which the flags of a command take precedence.

    Parameters
    ----------
    given : Given
        Flags, among them `artifact`, `original` and `trust_source`.
    reads_data : bool
        Whether the command opens the data.

    Raises
    ------
    RankfoldError
        If there is no such folder, if neither the flags nor the artifact name the network, or if the artifact names
        Python code that the user has neither named nor allowed.
    """
    folder, model = given.artifact, given.original
    if not os.path.isdir(folder):
        what = "is a file, not a folder" if os.path.exists(folder) else "does not exist"
        raise RankfoldError(f"the artifact {folder!r} {what}. Pass a folder that compress, apply or finetune wrote.")
    remembered = Source.load(folder)
    if remembered is None and model is None:
        raise ConfigError(
            f"{folder!r} has no {SOURCE_FILE} that names its network. If it is an artifact, pass --model."
        )
    new = _given_fields(given)
    if remembered is not None and not given.trust_source:
        _refuse_code(folder, remembered, named=model is not None, data_named="data" in new or not reads_data)
    source = remembered or Source(model=model or "")
    if model is not None and _absolute_factory(model) != source.model:
        # The weights, shape and number of classes belong to another network.
        source = Source(model=_absolute_factory(model), data=source.data, batch_size=source.batch_size)
    if new.get("data", source.data) != source.data:
        source = replace(source, limit_test=None)
    return replace(source, **new)


def names_code(name: str) -> bool:
    """Return whether a network or data set is named by Python code: by a colon, unless a data set with a path.

    The name alone decides. Looking up the module would already import its parent packages.
    """
    kind, colon, _ = name.partition(":")
    return bool(colon) and kind not in KINDS


def parse_sizes(text: str) -> tuple[int, ...]:
    """Return the shape in ``"1,3,224,224"`` or ``"1x3x224x224"``."""
    parts = text.replace("x", ",").split(",")
    sizes = [int(p) if p.strip().isdecimal() and len(p) < 20 else 0 for p in parts]
    if not _is_shape(sizes):
        raise ConfigError(
            f"--input-size must be positive integers such as 1,3,224,224, of at most {_MOST_ELEMENTS:,} elements. "
            f"Got {quoted(text)} instead."
        )
    return tuple(sizes)


def _is_valid(field: str, value: object, *, optional: bool) -> bool:
    if value is None:
        return optional
    check = _CHECKS.get(field)
    if check is None:
        return _is_shape(value) if field == "input_size" else isinstance(value, str)
    try:
        check(field, value)
    except ConfigError:
        return False
    return True


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= _MOST_DIMENSIONS
        and all(is_integer(n) and n >= 1 for n in value)
        and math.prod(value) <= _MOST_ELEMENTS
    )


def _refuse_code(folder: str, remembered: Source, *, named: bool, data_named: bool) -> None:
    """Raise if an artifact names Python code that the user has not named."""
    code: dict[str, str] = {}
    if not named and names_code(remembered.model):
        code["--model"] = remembered.model
    if not data_named and remembered.data is not None and names_code(remembered.data):
        code["--data"] = remembered.data
    if code:
        options = " ".join(f"{flag} {shlex.quote(name)}" for flag, name in code.items())
        raise ConfigError(
            f"the {SOURCE_FILE} of {folder!r} names Python code: {' and '.join(map(quoted, code.values()))}. "
            f"It was not run. If you know this code, name it yourself ({options}), or pass --trust-source."
        )


def _given_fields(given: Given) -> dict[str, Any]:
    """Return the fields of a source that flags set; `Source` has the defaults of the others."""
    convert = {"weights": _absolute_weights, "data": _absolute_data, "input_size": parse_sizes}
    names = [field.name for field in fields(Source) if field.name not in ("model", "seed")]
    values = {name: getattr(given, name, None) for name in names}
    return {n: convert[n](value) if n in convert else value for n, value in values.items() if value is not None}


def _absolute_weights(weights: str) -> str:
    return weights if weights == "bundled" else str(Path(weights).expanduser().absolute())


def _absolute_factory(name: str) -> str:
    file, colon, function = name.rpartition(":")
    return f"{Path(file).expanduser().absolute()}:{function}" if colon and file.endswith(".py") else name


def _absolute_data(spec: str) -> str:
    kind, _, path = spec.partition(":")
    return f"{kind}:{Path(path).expanduser().absolute()}" if kind in PATH_KINDS and path else _absolute_factory(spec)
