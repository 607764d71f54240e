"""The weights file of an artefact: safetensors, with checksums of the tensors and of the plan in its header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rankfold._documents import parse_json
from rankfold._files import require_regular
from rankfold._hashing import tensor_hash
from rankfold._printable import quoted
from rankfold.errors import CorruptArtifact

FORMAT = "rankfold"
VERSION = 1

_LONGEST_HEADER = 16 * 2**20
_AGAIN = "Copy or save the artefact again."


def text_hash(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def weights_metadata(
    tensors: Mapping[str, Tensor], aliases: Mapping[str, str], plan_text: str, more: Mapping[str, str]
) -> dict[str, str]:
    """Return what the header of a weights file says besides names and shapes."""
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "plan_sha256": text_hash(plan_text),
        "tensors_sha256": tensor_hash(_with_aliases(tensors, aliases)),
        "aliases": json.dumps(dict(aliases)),
        **more,
    }


def identity_of(metadata: Mapping[str, str]) -> str:
    """Return the checksum of a whole artefact, plan and tensors."""
    return text_hash(f"{metadata.get('plan_sha256', '')} {metadata.get('tensors_sha256', '')}")


def write_weights(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a weights file.

    Raises
    ------
    OSError
        If that fails, also where safetensors has another word for it.
    """
    try:
        save_file(dict(tensors), str(file), metadata=dict(metadata))
    except SafetensorError as error:  # its way to report that a disk is full
        raise OSError(str(error)) from error


class Weights:
    """An open weights file; what is read from it stays that of one artefact, whatever happens to its folder.

    Parameters
    ----------
    file : Path
        The file; it may be renamed meanwhile.

    Attributes
    ----------
    size : int
        Bytes of the file.
    metadata : mapping
        What the header says besides names and shapes.

    Raises
    ------
    FileNotFoundError
        If there is none, or it was replaced or renamed meanwhile.
    CorruptArtifact
        If it is not a regular file, was not written by rankfold, or is damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.size = _checked_size(file)
        # safetensors opens a path twice: for the header and for the tensors. Both must be of one file.
        before = file_state(file)
        try:
            self._handle: Any = safe_open(str(file), framework="pt")
            self.metadata: Mapping[str, str] = self._handle.metadata() or {}
        except Exception as error:
            _require_unmoved(file, before)
            raise self._damaged(error) from error
        _require_unmoved(file, before)
        if self.metadata.get("format") != FORMAT:
            raise CorruptArtifact(f"{str(file)!r} was not written by rankfold.save.")
        version = self.metadata.get("version", "")
        if not (version.isdecimal() and len(version) < 10 and int(version) <= VERSION):
            raise CorruptArtifact(
                f"{str(file)!r} has version {quoted(version)}; this rankfold reads up to {VERSION}. Upgrade rankfold."
            )

    @property
    def plan_hash(self) -> str:
        """The checksum of the plan that the weights belong to."""
        return self.metadata.get("plan_sha256", "")

    @property
    def identity(self) -> str:
        """The checksum of the artefact that the weights belong to."""
        return identity_of(self.metadata)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name, those that are stored under another name included.

        Raises
        ------
        CorruptArtifact
            If the checksum differs or the file is damaged.
        """
        try:
            tensors = {name: self._handle.get_tensor(name) for name in self._handle.keys()}  # noqa: SIM118
            aliases = parse_json(
                self.metadata.get("aliases", "{}"), source=f"the list of aliases in {str(self.file)!r}"
            )
            if not isinstance(aliases, dict) or not all(isinstance(v, str) and v in tensors for v in aliases.values()):
                raise CorruptArtifact(f"{str(self.file)!r} is damaged: its list of aliases is malformed. {_AGAIN}")
            tensors = _with_aliases(tensors, aliases)
            found = tensor_hash(tensors)
        except CorruptArtifact:
            raise
        except Exception as error:  # a damaged file can raise anything in torch
            raise self._damaged(error) from error
        if self.metadata.get("tensors_sha256") != found:
            raise CorruptArtifact(f"{str(self.file)!r} is damaged: its checksum does not match. {_AGAIN}")
        return tensors

    def buffer_owners(self) -> dict[str, str]:
        """Return what the header records of the modules that own the buffers; nothing from an earlier version.

        Raises
        ------
        CorruptArtifact
            If the record is malformed.
        """
        source = f"the record of the buffers in {str(self.file)!r}"
        owners = parse_json(self.metadata.get("buffers", "{}"), source=source)
        if not isinstance(owners, dict) or not all(isinstance(value, str) for value in owners.values()):
            raise CorruptArtifact(f"{str(self.file)!r} is damaged: its record of the buffers is malformed.")
        return owners

    def _damaged(self, error: Exception) -> CorruptArtifact:
        return CorruptArtifact(f"{str(self.file)!r} is damaged: {error}. {_AGAIN}")


def file_state(file: Path) -> tuple[int, int, int] | None:
    """Return what tells a file from one that takes its place; None if there is none."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _require_unmoved(file: Path, before: tuple[int, int, int] | None) -> None:
    if before is None or file_state(file) != before:
        raise FileNotFoundError(f"{str(file)!r} was replaced while it was opened")


def _checked_size(file: Path) -> int:
    """Return a file's size; raise unless it is a regular one with a header of a size that is safe to read."""
    status = os.stat(file)
    require_regular(file, status)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > _LONGEST_HEADER:
        raise CorruptArtifact(
            f"{str(file)!r} is damaged: its header would have {length:,} bytes, more than {_LONGEST_HEADER:,}. {_AGAIN}"
        )
    return status.st_size


def _with_aliases(tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    return {**tensors, **{name: tensors[source] for name, source in aliases.items()}}
