"""Decoded samples, cached on disk."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from rankfold._files import write_atomic
from rankfold.errors import DataError, RankfoldError, RankfoldWarning
from rankfold.zoo.samples import SampleArray


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/rankfold``, or ``~/.cache/rankfold``; it can be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rankfold"


def cached(name: str, files: Iterable[Path], decode: Callable[[], SampleArray]) -> SampleArray:
    """Return the samples that `decode` returns, from the cache if none of the files has changed.

    The cache is keyed by `name` and the paths, sizes and modification times of the files. If it cannot be read or
    written, a `RankfoldWarning` says so, and the decoded samples are returned all the same.

    Raises
    ------
    DataError
        If one of the files is missing.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    path = cache_folder() / f"{name}-{_key(files)}.safetensors"
    if path.is_file():
        try:
            tensors = load_file(path)
            return SampleArray(tensors["inputs"], tensors["labels"])
        except (SafetensorError, OSError, KeyError) as error:
            _warn(f"the cache file {str(path)!r} is damaged and is rewritten: {error}")
    data = decode()
    tensors = {"inputs": data.inputs, "labels": data.labels}
    try:
        write_atomic(path, lambda temporary: save_file(tensors, temporary))
    except (RankfoldError, SafetensorError) as error:
        _warn(f"decoded samples are not cached; the next run decodes them again: {error}")
    return data


def _key(files: Iterable[Path]) -> str:
    digest = hashlib.sha256(b"2")  # version of the format
    for file in sorted(files):
        try:
            stat = file.stat()
        except OSError as error:
            raise DataError(
                f"{str(file)!r} cannot be read: {error.strerror}. The data set is incomplete: unpack it again."
            ) from error
        digest.update(f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:20]


def _warn(message: str) -> None:
    warnings.warn(message, RankfoldWarning, stacklevel=5)
