"""Files that appear whole or not at all, locks between processes, and files that can be read without waiting."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from rankfold.errors import CorruptArtifact, RankfoldError

try:
    import fcntl
except ImportError:  # a system without POSIX locks: nothing is locked, and nothing of other processes is swept
    fcntl = None

LOCK_S = 120.0
"""How long one process waits for another one that writes to the same folder."""

_KEPT = 150
"""Characters of a file's name in that of its temporary file; a name may have 255 bytes."""

_UNUSABLE = (OSError, ValueError)
"""What a path raises: ValueError for one with a NUL or half a surrogate pair in it."""


def write_atomic(path: str | Path, write: Callable[[Path], object], *, sweeping: bool = True) -> Path:
    """Let `write` fill a temporary file next to `path`, then rename it into place.

    The temporary file is locked while its process lives. One that a killed process left is removed by the next write
    to the same path.

    Parameters
    ----------
    path : str or Path
        The file to appear; its folder is made if need be.
    write : callable
        Called with the temporary path.
    sweeping : bool
        Whether to look for what killed processes left of this file; False for one of many files in a folder, which
        `sweep` looks through once.

    Raises
    ------
    RankfoldError
        If the folder cannot be written to; nothing is left behind.
    """
    path = Path(path)
    require_usable(path)
    made: list[Path] = []
    try:
        _refuse_special(path)
        made = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        if sweeping:
            sweep(path.parent, path.name)
        return _write(path, write)
    except BaseException as error:
        _remove_folders(made)
        if isinstance(error, OSError):
            raise _cannot_write(path, error) from error
        raise


def write_text(path: str | Path, text: str, *, sweeping: bool = True) -> Path:
    """Write text to a file, whole or not at all, as `as_utf8` gives it."""
    data = as_utf8(text)
    return write_atomic(path, lambda temporary: temporary.write_bytes(data), sweeping=sweeping)


def as_utf8(text: str) -> bytes:
    """Return text as a file holds it; half a surrogate pair is written out."""
    return text.encode("utf-8", "backslashreplace")


def check_writable(folder: str | Path) -> None:
    """Raise `RankfoldError` unless files can be written to a folder, which need not exist yet; nothing is made."""
    folder = Path(folder)
    try:
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
        # A name that is too long, or that a system cannot have, is only found out by asking for it.
        with contextlib.suppress(FileNotFoundError):
            folder.absolute().stat()
    except _UNUSABLE as error:
        raise _cannot_write(folder, error) from error


def require_usable(path: Path) -> None:
    """Raise `RankfoldError` for a path that the system cannot have, such as one that is too long or has a NUL."""
    try:
        os.lstat(path)
    except ValueError as error:
        raise _cannot_write(path, error) from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise _cannot_write(path, error) from error


def sweep(folder: Path, *names: str) -> None:
    """Remove what killed processes left of files that they were writing; temporary files of the living are locked.

    Parameters
    ----------
    names : str
        The files' names; ``*`` and ``?`` are placeholders in names that no user gives.
    """
    if fcntl is None:
        return
    patterns = [f".{name[:_KEPT]}.*.tmp" for name in names]
    with contextlib.suppress(*_UNUSABLE), os.scandir(folder) as entries:
        for path in [entry.path for entry in entries if any(fnmatchcase(entry.name, one) for one in patterns)]:
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
                finally:
                    os.close(handle)


@contextlib.contextmanager
def locked(folder: Path, *, timeout: float = LOCK_S) -> Iterator[bool]:
    """Keep other processes and threads that lock a folder out while the block runs.

    The lock is on the folder itself, so that no file stays, and it ends with the process, however that ends. Yielded
    is whether there is a lock: some network file systems have none.

    Raises
    ------
    RankfoldError
        If another process holds the lock for `timeout` seconds.
    """
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _acquired(handle, folder, time.monotonic() + timeout)
    finally:
        os.close(handle)


def _acquired(handle: int, folder: Path, deadline: float) -> bool:
    assert fcntl is not None
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return False
        else:
            return True
        if time.monotonic() > deadline:
            raise RankfoldError(
                f"another process has been writing to {str(folder)!r} for {LOCK_S:.0f} s. Wait for it, end it, or "
                "choose another folder."
            )
        time.sleep(0.005)


def read_bytes(path: Path, *, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes, without ever waiting for one.

    Raises
    ------
    FileNotFoundError
        If there is none.
    OSError
        If the system says so.
    CorruptArtifact
        If it is another kind of file (a FIFO, a device, a socket, a folder), too long, or the path cannot be one.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:
        raise CorruptArtifact(f"{str(path)!r} is not a path of a file: {error}.") from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        require_regular(path, status)
        if status.st_size <= limit:
            data = file.read(limit + 1)  # it may be growing
            if len(data) <= limit:
                return data
    raise CorruptArtifact(
        f"{str(path)!r} is larger than {limit / 2**20:.0f} MiB, the most that is read of such a file."
    )


def require_regular(path: Path, status: os.stat_result) -> None:
    """Raise `CorruptArtifact` unless a file is a regular one: nothing else has an end for certain."""
    if not stat.S_ISREG(status.st_mode):
        raise CorruptArtifact(f"{str(path)!r} is {_kind(status.st_mode)}, not a regular file.")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "a special file")


def _refuse_special(path: Path) -> None:
    """Raise `RankfoldError` if a path is a device, a FIFO or a folder: a rename would put a file in its place."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise RankfoldError(f"cannot write {str(path)!r}: it is {_kind(os.stat(path).st_mode)}. Choose another place.")


def _remove_folders(made: list[Path]) -> None:
    for folder in made:  # the deepest first; one that somebody has put something into stays
        with contextlib.suppress(OSError):
            folder.rmdir()


def _cannot_write(path: Path, error: Exception) -> RankfoldError:
    reason = getattr(error, "strerror", None) or error
    return RankfoldError(f"cannot write {str(path)!r}: {reason}. Choose another place.")


def _write(path: Path, write: Callable[[Path], object]) -> Path:
    temporary, handle = _locked_temporary(path)
    try:
        write(temporary)
        to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)
    return path


def to_disk(file: Path) -> None:
    """Make sure that a finished file is on the disk, and as public as any other output."""
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)  # temporary files are private


def _locked_temporary(path: Path) -> tuple[Path, int | None]:
    """Return a new temporary file and the handle that keeps it locked."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:_KEPT]}.", suffix=".tmp")
        if fcntl is None:
            os.close(handle)
            return Path(name), None
        with contextlib.suppress(OSError):  # no locks here
            fcntl.flock(handle, fcntl.LOCK_EX)
        if Path(name).exists():  # else it was swept before it was locked
            return Path(name), handle
        os.close(handle)
