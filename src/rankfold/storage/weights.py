"""The weights file of an artifact: safetensors, with checksums of its tensors and of the plan in the header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
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
AGAIN = "Copy or save the artifact again."


def text_hash(text: str) -> str:
    """Return the SHA-256 hash of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def weights_metadata(
    tensors: Mapping[str, Tensor], aliases: Mapping[str, str], plan_text: str, more: Mapping[str, str]
) -> dict[str, str]:
    """Return the metadata in the header of a weights file."""
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "plan_sha256": text_hash(plan_text),
        "tensors_sha256": tensor_hash(_with_aliases(tensors, aliases)),
        "aliases": json.dumps(dict(aliases)),
        **more,
    }


def identity_of(metadata: Mapping[str, str]) -> str:
    """Return the checksum of a whole artifact, plan and tensors."""
    return text_hash(f"{metadata.get('plan_sha256', '')} {metadata.get('tensors_sha256', '')}")


def write_weights(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a weights file; raise OSError if that fails."""
    try:
        save_file(dict(tensors), str(file), metadata=dict(metadata))
    except SafetensorError as error:  # raised if the disk is full
        raise OSError(str(error)) from error


class Weights:
    """An open weights file. It may be renamed or replaced afterwards: everything read comes from the file as opened.

    Attributes
    ----------
    size : int
        Size of the file in bytes.
    metadata : mapping
        The metadata in the header.

    Raises
    ------
    FileNotFoundError
        If the file does not exist, or was replaced or renamed while it was opened.
    CorruptArtifact
        If it is not a regular file, was not written by rankfold, or is damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.size = _checked_size(file)
        # safetensors opens the path twice, for the header and for the tensors; both must come from the same file.
        before = file_state(file)
        try:
            self._handle: Any = safe_open(str(file), framework="pt")
            self.metadata: Mapping[str, str] = self._handle.metadata() or {}
        except Exception as error:
            _require_unmoved(file, before)
            raise self._damaged(error) from error
        _require_unmoved(file, before)
        if self.metadata.get("format") != FORMAT:
            raise CorruptArtifact(f"{str(file)!r} was not written by rankfold.save. Pass a folder that was.")
        version = self.metadata.get("version", "")
        if not (version.isdecimal() and len(version) < 10 and int(version) <= VERSION):
            raise CorruptArtifact(
                f"{str(file)!r} has version {quoted(version)}; this version of rankfold reads versions up to "
                f"{VERSION}. Upgrade rankfold."
            )

    @property
    def plan_hash(self) -> str:
        """The checksum of the plan that the weights belong to."""
        return self.metadata.get("plan_sha256", "")

    @property
    def identity(self) -> str:
        """The checksum of the artifact that the weights belong to."""
        return identity_of(self.metadata)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name, including those stored under another name.

        Raises
        ------
        CorruptArtifact
            If the checksum does not match or the file is damaged.
        """
        try:
            tensors = {name: self._handle.get_tensor(name) for name in self._handle.keys()}  # noqa: SIM118
            tensors = _with_aliases(tensors, self._record("aliases", "list of aliases", among=tensors))
            checksum = tensor_hash(tensors)
        except CorruptArtifact:
            raise
        except Exception as error:  # a damaged file can raise anything in torch
            raise self._damaged(error) from error
        if self.metadata.get("tensors_sha256") != checksum:
            raise self._damaged("its checksum does not match")
        return tensors

    def buffer_owners(self) -> dict[str, str]:
        """Return the classes of the modules that own buffers; raise `CorruptArtifact` if the record is malformed."""
        return self._record("buffers", "record of the buffers")

    def _record(self, key: str, what: str, *, among: Collection[str] | None = None) -> dict[str, str]:
        """Return a table of strings in the header; an earlier version may not have written it."""
        table = parse_json(self.metadata.get(key, "{}"), source=f"the {what} in {str(self.file)!r}")
        if not isinstance(table, dict) or not all(
            isinstance(value, str) and (among is None or value in among) for value in table.values()
        ):
            raise self._damaged(f"its {what} is malformed")
        return table

    def _damaged(self, reason: object) -> CorruptArtifact:
        return CorruptArtifact(f"{str(self.file)!r} is damaged: {reason}. {AGAIN}")


def file_state(file: Path) -> tuple[int, int, int] | None:
    """Return what distinguishes a file from one that replaces it; None if it does not exist."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _require_unmoved(file: Path, before: tuple[int, int, int] | None) -> None:
    if before is None or file_state(file) != before:
        raise FileNotFoundError(f"{str(file)!r} was replaced while it was opened")


def _checked_size(file: Path) -> int:
    """Return a file's size; raise unless it is a regular file with a header that is small enough to read safely."""
    status = os.stat(file)
    require_regular(file, status)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > _LONGEST_HEADER:
        raise CorruptArtifact(
            f"{str(file)!r} is damaged: its header claims {length:,} bytes; the limit is {_LONGEST_HEADER:,}. {AGAIN}"
        )
    return status.st_size


def _with_aliases(tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    return {**tensors, **{name: tensors[source] for name, source in aliases.items()}}
