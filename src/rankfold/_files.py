"""Atomic writes of files, locks between processes, and reads that never block."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from rankfold.errors import CorruptArtifact, RankfoldError

try:
    import fcntl
except ImportError:  # without POSIX locks, nothing is locked, and files of other processes are not swept
    fcntl = None

LOCK_S = 120.0
"""Seconds that one process waits for another one that writes to the same folder."""

_KEPT = 150  # characters of a file's name in the name of its temporary file; a name may have 255 bytes
_UNUSABLE = (OSError, ValueError)  # what a path raises; ValueError if it contains a NUL or half a surrogate pair


def write_atomic(path: str | Path, write: Callable[[Path], object], *, sweeping: bool = True) -> Path:
    """Let `write` fill a temporary file next to `path`, then rename it into place.

    The temporary file is locked while its process lives. If a process is killed, the next write to the same path
    removes its temporary file.

    Parameters
    ----------
    path : str or Path
        The file; its folder is created if necessary.
    write : callable
        Called with the temporary path.
    sweeping : bool
        Whether to remove temporary files of killed processes; pass False for many files in one folder, and call `sweep`
        once.

    Raises
    ------
    RankfoldError
        If the folder cannot be written to; no files are left.
    """
    path = Path(path)
    require_usable(path)
    with making_folder(path.parent, target=path):
        if os.path.exists(path) and not os.path.isfile(path):  # a rename would replace it
            kind = _kind(os.stat(path).st_mode)
            raise RankfoldError(f"cannot write {str(path)!r}: it is {kind}. Choose another location.")
        if sweeping:
            sweep(path.parent, path.name)
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


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder next to `path` with the same suffix, then rename it into place.

    An existing folder is only replaced if it has the same files at its top. It is moved aside first, and moved back if
    the renaming fails.

    Raises
    ------
    RankfoldError
        If the folder cannot be written, or another one is in its place; nothing is left.
    """
    require_usable(path)
    with making_folder(path.parent, target=path):
        place = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:_KEPT]}.", suffix=".tmp"))
        new, old = place / f"new{path.suffix}", place / f"old{path.suffix}"
        try:
            new.mkdir()
            write(new)
            for file in new.rglob("*"):
                if file.is_file():
                    to_disk(file)
            if os.path.lexists(path):
                if not path.is_dir() or path.is_symlink() or set(os.listdir(path)) != set(os.listdir(new)):
                    raise RankfoldError(
                        f"cannot write {str(path)!r}: something else exists there. Choose another location."
                    )
                path.rename(old)
            try:
                new.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
        finally:
            shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def making_folder(folder: Path, *, target: Path) -> Iterator[None]:
    """Create a folder if necessary; if the block raises, remove the new folders again.

    An OSError becomes a `RankfoldError` that `target` cannot be written.
    """
    created: list[Path] = []
    try:
        created = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for place in created:  # the deepest first; folders that others have written to stay
            with contextlib.suppress(OSError):
                place.rmdir()
        if isinstance(error, OSError):
            raise _cannot_write(target, error) from error
        raise


def write_text(path: str | Path, text: str, *, sweeping: bool = True) -> Path:
    """Write text to a file atomically, encoded by `as_utf8`."""
    data = as_utf8(text)
    return write_atomic(path, lambda temporary: temporary.write_bytes(data), sweeping=sweeping)


def as_utf8(text: str) -> bytes:
    """Return text in UTF-8; half a surrogate pair is escaped."""
    return text.encode("utf-8", "backslashreplace")


def check_writable(folder: str | Path) -> None:
    """Raise `RankfoldError` unless files can be written to a folder, which need not exist yet; nothing is created."""
    folder = Path(folder)
    try:
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
        # Only a lookup reveals a name that is too long or otherwise invalid.
        with contextlib.suppress(FileNotFoundError):
            folder.absolute().stat()
    except _UNUSABLE as error:
        raise _cannot_write(folder, error) from error


def require_usable(path: Path) -> None:
    """Raise `RankfoldError` for a path that is invalid on this system, such as one that is too long or has a NUL."""
    try:
        os.lstat(path)
    except ValueError as error:
        raise _cannot_write(path, error) from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise _cannot_write(path, error) from error


def sweep(folder: Path, *names: str) -> None:
    """Remove temporary files that killed processes left of files with these names; those in use are locked.

    ``*`` and ``?`` in names are wildcards, so do not pass names that come from users with them.
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
    """Lock a folder against other processes and threads while the block runs.

    The lock is on the folder itself, so it leaves no file, and it ends with the process in any case. Yields whether the
    folder is locked: some network file systems have no locks.

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
    """Return the content of a regular file of at most `limit` bytes, without ever blocking.

    Raises
    ------
    OSError
        If the file does not exist or cannot be read.
    CorruptArtifact
        If it is another kind of file (a FIFO, a device, a socket, a folder), too long, or the path is invalid.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:
        raise CorruptArtifact(f"{str(path)!r} is not a valid path: {error}.") from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        require_regular(path, status)
        if status.st_size <= limit:
            data = file.read(limit + 1)  # the file may be growing
            if len(data) <= limit:
                return data
    raise CorruptArtifact(f"{str(path)!r} is larger than {limit / 2**20:.0f} MiB, the limit for such files.")


def require_regular(path: Path, status: os.stat_result) -> None:
    """Raise `CorruptArtifact` unless a file is a regular one; reading from others may never end."""
    if not stat.S_ISREG(status.st_mode):
        raise CorruptArtifact(f"{str(path)!r} is {_kind(status.st_mode)}, not a regular file.")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "a special file")


def _cannot_write(path: Path, error: Exception) -> RankfoldError:
    reason = getattr(error, "strerror", None) or error
    return RankfoldError(f"cannot write {str(path)!r}: {reason}. Choose another location.")


def to_disk(file: Path) -> None:
    """Flush a finished file to the disk, and give it the permissions of ordinary output."""
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
        with contextlib.suppress(OSError):  # this file system has no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if Path(name).exists():  # otherwise it was swept before it was locked
            return Path(name), handle
        os.close(handle)
