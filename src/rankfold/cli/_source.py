"""Where an artefact comes from: ``source.json`` next to it, so that later commands need not be told again.

Artefacts come from other people, too. What a ``source.json`` says is data: names of networks and data sets of the
zoo, paths, numbers within limits. Where it names Python code (a factory), that is run only if the user says so.
"""

from __future__ import annotations

import math
import os
import shlex
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rankfold._config import is_integer
from rankfold._documents import json_text, parse_document, read_text
from rankfold._printable import quoted
from rankfold.errors import ConfigError, CorruptArtifact, RankfoldError, RankfoldWarning
from rankfold.storage import SOURCE_FILE, artifact_identity, attach, beside_file
from rankfold.zoo.loading import KINDS

FORMAT = "rankfold-source"
VERSION = 1
BATCH_SIZE = 128

_MOST_DIMENSIONS = 64
_MOST_CLASSES, _MOST_BATCH, _MOST_IMAGES, _MOST_ELEMENTS, _MOST_SEED = 10**6, 10**6, 10**9, 10**8, 2**63 - 1


def _text(value: object) -> bool:
    return isinstance(value, str)


def _whole(least: int, most: int) -> Callable[[object], bool]:
    return lambda value: is_integer(value) and least <= value <= most


def _shape(value: object) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= _MOST_DIMENSIONS
        and all(is_integer(n) and n >= 1 for n in value)
        and math.prod(value) <= _MOST_ELEMENTS
    )


_CHECKS: dict[str, tuple[Callable[[object], bool], bool]] = {  # and whether it may be null
    "model": (_text, False),
    "weights": (_text, True),
    "num_classes": (_whole(1, _MOST_CLASSES), True),
    "data": (_text, True),
    "input_size": (_shape, True),
    "batch_size": (_whole(1, _MOST_BATCH), False),
    "limit_test": (_whole(1, _MOST_IMAGES), True),
    "seed": (_whole(0, _MOST_SEED), False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A network, its weights and its data, as they are named on the command line.

    Parameters
    ----------
    model : str
        As `rankfold.zoo.create` takes it.
    weights : str or None
        An absolute path, or ``"bundled"``; None for random weights.
    num_classes : int or None
        Where it is not the network's own.
    data : str or None
        As `rankfold.zoo.data` takes it, with an absolute path.
    input_size : tuple of int or None
        Shape of the example input; None where the zoo knows it.
    batch_size : int
        Of evaluation; the same one gives the same digits.
    limit_test : int or None
        Test images that are measured on; None is all.
    seed : int
        Of random weights, the limit's draw and the calibration images.
    """

    model: str
    weights: str | None = None
    num_classes: int | None = None
    data: str | None = None
    input_size: tuple[int, ...] | None = None
    batch_size: int = BATCH_SIZE
    limit_test: int | None = None
    seed: int = 0

    def texts(self, artifact: str) -> dict[str, str]:
        """Return ``source.json`` of the artefact with this checksum, by its name."""
        data = {"format": FORMAT, "version": VERSION, **asdict(self), "artifact": artifact}
        return {SOURCE_FILE: json_text(data, indent=2) + "\n"}

    def attach(self, folder: str | Path, artifact: str | None = None) -> None:
        """Write ``source.json`` next to an artefact, by default the one in the folder."""
        artifact = artifact or artifact_identity(folder)
        if artifact is not None:
            attach(Path(folder), artifact, self.texts(artifact))

    @classmethod
    def load(cls, folder: str | Path) -> Source | None:
        """Read ``source.json``; None if the folder has none of the artefact that it holds.

        Raises
        ------
        CorruptArtifact
            If it is damaged, or of a newer version.
        """
        file = beside_file(folder, SOURCE_FILE)
        if not os.path.lexists(file):
            return None
        advice = "Delete it and pass --model (and --data) explicitly."
        try:
            text = read_text(file, kind="source", hint="")
            data = parse_document(text, kind="source", format=FORMAT, version=VERSION, source=repr(str(file)))
        except CorruptArtifact as error:
            raise CorruptArtifact(f"{error} {advice}") from error
        known: dict[str, Any] = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        for key, value in known.items():
            fits, optional = _CHECKS[key]
            if not (fits(value) or (optional and value is None)):
                raise CorruptArtifact(f"{str(file)!r}: {key!r} cannot be {quoted(value)}. {advice}")
        if "model" not in known:
            raise CorruptArtifact(f"{str(file)!r}: 'model' is missing. {advice}")
        described = data.get("artifact")
        if described not in (None, artifact_identity(folder) or described):
            warnings.warn(
                f"{str(file)!r} describes an artefact that is no longer there, and is not used", RankfoldWarning,
                stacklevel=2,
            )  # fmt: skip
            return None
        if known.get("input_size") is not None:
            known["input_size"] = tuple(known["input_size"])
        return cls(**known)


OPTIONS = ("weights", "num_classes", "data", "input_size", "batch_size", "limit_test")
"""What `source_of` and `artifact_source` take, apart from the network."""


def source_of(
    model: str,
    *,
    weights: str | None = None,
    num_classes: int | None = None,
    data: str | None = None,
    input_size: str | None = None,
    batch_size: int | None = None,
    limit_test: int | None = None,
    seed: int = 0,
) -> Source:
    """Return the source that options name, with absolute paths."""
    return Source(
        model=_absolute_factory(model),
        weights=_absolute_weights(weights),
        num_classes=num_classes,
        data=None if data is None else _absolute_data(data),
        input_size=parse_sizes(input_size),
        batch_size=batch_size or BATCH_SIZE,
        limit_test=limit_test,
        seed=seed,
    )


def artifact_source(
    folder: str,
    *,
    model: str | None = None,
    weights: str | None = None,
    num_classes: int | None = None,
    data: str | None = None,
    input_size: str | None = None,
    batch_size: int | None = None,
    limit_test: int | None = None,
    trust: bool = False,
    reads_data: bool = True,
) -> Source:
    """Return an artefact's source, with the options that are given instead of what it remembers.

    Parameters
    ----------
    trust : bool
        Whether Python code that the artefact names may be run.
    reads_data : bool
        Whether the caller is going to open the data.

    Raises
    ------
    RankfoldError
        If there is no such folder, neither `model` nor the artefact says what the network is, or the artefact names
        Python code that the user has not named or allowed.
    """
    if not os.path.isdir(folder):
        what = "is a file, not a folder" if os.path.exists(folder) else "does not exist"
        raise RankfoldError(f"the artefact {folder!r} {what}. Give a folder that compress, apply or finetune wrote.")
    remembered = Source.load(folder)
    if remembered is None and model is None:
        raise ConfigError(f"{folder!r} has no {SOURCE_FILE} that names its network. Pass --model.")
    if remembered is not None and not trust:
        _refuse_code(folder, remembered, named=model is not None, data_named=data is not None or not reads_data)
    found = remembered or Source(model=model or "")
    if model is not None and _absolute_factory(model) != found.model:
        # Another network: what was remembered of the first one does not hold.
        found = Source(model=_absolute_factory(model), data=found.data, batch_size=found.batch_size)
    new: dict[str, Any] = {
        "weights": _absolute_weights(weights),
        "num_classes": num_classes,
        "data": None if data is None else _absolute_data(data),
        "input_size": parse_sizes(input_size),
        "batch_size": batch_size,
        "limit_test": limit_test,
    }
    if data is not None and new["data"] != found.data:
        found = replace(found, limit_test=None)
    return replace(found, **{k: v for k, v in new.items() if v is not None})


def names_code(name: str) -> bool:
    """Whether a network or data set is named by Python code: anything with a colon that is no data set with a path.

    That is decided by the name alone. Looking for the module would already import the packages that hold it.
    """
    kind, colon, _ = name.partition(":")
    return bool(colon) and kind not in KINDS


def _refuse_code(folder: str, remembered: Source, *, named: bool, data_named: bool) -> None:
    """Raise if an artefact names Python code that the user has not named."""
    found: dict[str, str] = {}
    if not named and names_code(remembered.model):
        found["--model"] = remembered.model
    if not data_named and remembered.data is not None and names_code(remembered.data):
        found["--data"] = remembered.data
    if found:
        code = " and ".join(quoted(name) for name in found.values())
        options = " ".join(f"{flag} {shlex.quote(name)}" for flag, name in found.items())
        raise ConfigError(
            f"the {SOURCE_FILE} of {folder!r} names Python code to run: {code}. It was not run. If you know this code, "
            f"name it yourself ({options}), or pass --trust-source."
        )


def parse_sizes(text: str | None) -> tuple[int, ...] | None:
    """Return the shape in ``"1,3,224,224"`` (``x`` separates too)."""
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    known = all(p.strip().isdecimal() and len(p) < 20 for p in parts) and len(parts) <= _MOST_DIMENSIONS
    sizes = [int(p) for p in parts] if known else [0]
    if not _shape(sizes):
        raise ConfigError(
            f"--input-size must be positive integers such as 1,3,224,224, of at most {_MOST_ELEMENTS:,} elements. "
            f"Got {quoted(text)} instead."
        )
    return tuple(sizes)


def _absolute_weights(weights: str | None) -> str | None:
    return weights if weights in (None, "bundled") else str(Path(weights).expanduser().absolute())


def _absolute_factory(name: str) -> str:
    file, colon, function = name.rpartition(":")
    return f"{Path(file).expanduser().absolute()}:{function}" if colon and file.endswith(".py") else name


def _absolute_data(spec: str) -> str:
    kind, colon, path = spec.partition(":")
    if kind in ("cifar10", "imagefolder", "npz") and path:
        return f"{kind}{colon}{Path(path).expanduser().absolute()}"
    return _absolute_factory(spec)
