"""Where an artefact comes from: ``source.json`` beside it, so that later commands need not be told again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rankfold._files import write_text
from rankfold.errors import ConfigError, CorruptArtifact, RankfoldError

FILE = "source.json"
FORMAT = "rankfold-source"
VERSION = 1
BATCH_SIZE = 128

_TYPES: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "weights": (str, type(None)),
    "num_classes": (int, type(None)),
    "data": (str, type(None)),
    "input_size": (list, type(None)),
    "batch_size": (int,),
    "limit_test": (int, type(None)),
    "seed": (int,),
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

    def save(self, folder: str | Path) -> Path:
        """Write ``source.json`` into an artefact's folder, whole or not at all."""
        data = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return write_text(Path(folder) / FILE, json.dumps(data, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Source | None:
        """Read ``source.json``; None if the folder has none.

        Raises
        ------
        CorruptArtifact
            If it is damaged, or of a newer version.
        """
        file = Path(folder) / FILE
        advice = "Delete it and say --model (and --data) yourself."
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CorruptArtifact(f"{str(file)!r} cannot be read: {error}. {advice}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
            raise CorruptArtifact(f"{str(file)!r} is no version {VERSION} of {FORMAT!r}. {advice}")
        known: dict[str, Any] = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        wrong = [k for k, v in known.items() if not isinstance(v, _TYPES[k]) or isinstance(v, bool)]
        if wrong or "model" not in known:
            raise CorruptArtifact(f"{str(file)!r}: {(wrong or ['model'])[0]!r} is missing or of a wrong type. {advice}")
        if known.get("input_size") is not None:
            known["input_size"] = tuple(known["input_size"])
        return cls(**known)


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
) -> Source:
    """Return an artefact's source, with the options that are given in the place of what it remembers.

    Raises
    ------
    RankfoldError
        If there is no such folder, or neither `model` nor the artefact says what the network is.
    """
    if not Path(folder).is_dir():
        what = "is a file, not a folder" if Path(folder).exists() else "does not exist"
        raise RankfoldError(f"the artefact {folder!r} {what}. Give a folder that compress, apply or finetune wrote.")
    remembered = Source.load(folder)
    if remembered is None and model is None:
        raise ConfigError(f"{folder!r} has no {FILE} that names its network. Say it with --model.")
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


def parse_sizes(text: str | None) -> tuple[int, ...] | None:
    """Return the shape in ``"1,3,224,224"`` (``x`` separates too)."""
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if not all(p.strip().isdecimal() and int(p) > 0 for p in parts):
        raise ConfigError(f"--input-size must be positive integers such as 1,3,224,224. Got {text!r} instead.")
    return tuple(int(p) for p in parts)


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
