"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from rankfold.errors import RankfoldError


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it into place.

    Parameters
    ----------
    path : str or Path
        The file to appear; its folder is made if need be.
    write : callable
        Called with the temporary path.

    Raises
    ------
    RankfoldError
        If the folder cannot be written to; nothing is left behind.
    """
    path = Path(path)
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        return _write(path, write)
    except BaseException:
        for folder in made:  # the deepest first; one that somebody has put something into stays
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def check_writable(folder: str | Path) -> None:
    """Raise `RankfoldError` unless files can be written to a folder, which need not exist yet; nothing is made."""
    folder = Path(folder)
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(path: Path, error: OSError) -> RankfoldError:
    return RankfoldError(f"cannot write {str(path)!r}: {error.strerror or error}. Choose another place.")


def _write(path: Path, write: Callable[[Path], object]) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; an output is as public as any other
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write text to a file, whole or not at all."""
    return write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
