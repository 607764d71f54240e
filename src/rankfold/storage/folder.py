"""The folder of an artifact, written so that it contains either the complete old artifact or the complete new one.

An artifact consists of ``plan.json`` and the ``model.safetensors`` whose header has the checksum of that plan. Saving
uses a folder inside it, ``.rankfold-next``:

1. The weights, the files that describe them (such as ``source.json``) and the plan are written there and flushed to
   the disk.
2. ``plan.json`` is replaced by one rename. This is the switch: the weights that match the plan are now those in
   ``.rankfold-next``, where readers look for them. If both artifacts have the same plan, step 3 is the switch.
3. ``model.safetensors`` is replaced by a rename, then the files that describe it. ``.rankfold-next`` is removed.

If a process is killed before the switch, the old artifact remains, otherwise the new one. The next save completes or
discards the staged files. Writers lock the folder (`rankfold._files.locked`), readers do not: a reader that gets plan
and weights of different artifacts reads the plan again. On a file system without locks, only one process may write.

``config.json``, ``source.json`` and ``report.json`` contain the checksum of the artifact that they describe. A file
that describes another artifact is ignored.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from rankfold._documents import parse_json, read_text
from rankfold._files import as_utf8, check_writable, locked, making_folder, sweep, to_disk
from rankfold.errors import CorruptArtifact, RankfoldError
from rankfold.records import Plan
from rankfold.storage.weights import Weights, file_state, identity_of, text_hash, write_weights

PLAN_FILE = "plan.json"
WEIGHTS_FILE = "model.safetensors"
SOURCE_FILE = "source.json"
CONFIG_FILE = "config.json"
REPORT_FILES = ("report.html", "report.json")

_STAGE = ".rankfold-next"
_COMPANIONS = (CONFIG_FILE, SOURCE_FILE, *REPORT_FILES)
_MOST_ATTEMPTS = 10_000

Describe = Callable[[str], Mapping[str, str]]
"""Maps an artifact's checksum to the texts of files that describe it, by name."""


def replace_artifact(
    folder: Path,
    plan_text: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    describe: Describe | None = None,
) -> str:
    """Write an artifact to a folder, replacing an existing one, and return its checksum.

    Parameters
    ----------
    folder : Path
        The folder; it is created if necessary.
    plan_text : str
        The plan.
    tensors, metadata : mapping
        As `write_weights` takes them.
    describe : callable, optional
        Returns the files that describe the artifact.

    Raises
    ------
    RankfoldError
        If the folder cannot be written to; an existing artifact is kept, and nothing else is left.
    """
    with _writing(folder):
        stage, identity = folder / _STAGE, identity_of(metadata)
        try:
            stage.mkdir()
            write_weights(stage / WEIGHTS_FILE, tensors, metadata)
            to_disk(stage / WEIGHTS_FILE)
            texts = describe(identity) if describe is not None else {}
            for name, text in {**texts, PLAN_FILE: plan_text}.items():
                (stage / name).write_bytes(as_utf8(text))
                to_disk(stage / name)
            os.replace(stage / PLAN_FILE, folder / PLAN_FILE)
            _complete(folder, identity)
        except BaseException:
            if not _is_switched(folder):  # otherwise the staged files are the artifact, and the next save moves them
                with contextlib.suppress(OSError):
                    _discard(stage)
            raise
    return identity


def find(folder: Path) -> tuple[str, Weights]:
    """Return the text of an artifact's plan and the weights that belong to it.

    Raises
    ------
    CorruptArtifact
        If the folder contains no artifact, or one that is damaged or edited.
    """
    seen = None
    for _ in range(_MOST_ATTEMPTS):
        text = _plan_text(folder)
        wanted = text_hash(text)
        files = (folder / WEIGHTS_FILE, folder / _STAGE / WEIGHTS_FILE)
        state = (wanted, *map(file_state, files))
        for file in files:
            weights = _open(file)
            if weights is not None and weights.plan_hash == wanted:
                return text, weights
        if state == seen:  # unchanged, so no other process is saving right now
            break
        seen = state
    if not (folder / WEIGHTS_FILE).exists():
        raise CorruptArtifact(
            f"the artifact in {str(folder)!r} is incomplete: {WEIGHTS_FILE} is missing. Copy or save it again."
        )
    raise CorruptArtifact(
        f"{PLAN_FILE} and {WEIGHTS_FILE} in {str(folder)!r} do not belong together; was the plan edited? "
        "To use an edited plan, pass it to `apply` with the original model."
    )


def artifact_identity(folder: str | Path) -> str | None:
    """Return the checksum of the artifact in a folder; None if there is no readable one."""
    try:
        return find(Path(folder))[1].identity
    except CorruptArtifact:
        return None


def artifact_bytes(folder: str | Path) -> int:
    """Return the size of an artifact's plan and weights in bytes; other files in the folder do not count."""
    text, weights = find(Path(folder))
    return len(text.encode()) + weights.size


def companion_file(folder: str | Path, name: str) -> Path:
    """Return the path of a file that describes the artifact in a folder, which may be staged by an unfinished save."""
    folder = Path(folder)
    staged = folder / _STAGE / name
    return staged if staged.exists() and _is_switched(folder) else folder / name


def check_output(path: str | Path, *, shared: bool = False) -> None:
    """Raise `RankfoldError` unless an artifact can be saved to a folder; nothing is written.

    The folder may be new, be empty except for hidden files, contain an artifact, or contain the files of a killed run:
    a checkpoint and files that describe an artifact. A `shared` folder may contain other files, such as those of a
    tokenizer, if their names are not those of an artifact's files.
    """
    path = Path(path)
    if os.path.exists(path) and not os.path.isdir(path):
        raise RankfoldError(f"cannot save to {str(path)!r}: it is a file. Choose a folder.")
    check_writable(path)
    if not path.is_dir():
        return
    for name in (WEIGHTS_FILE, *_COMPANIONS):
        if (path / name).is_dir():
            raise RankfoldError(
                f"cannot save to {str(path)!r}: {name!r} in it is a folder. Choose an empty or new folder."
            )
    config = path / CONFIG_FILE
    if os.path.lexists(config) and not _is_left_over(config):
        raise RankfoldError(
            f"cannot save to {str(path)!r}: {CONFIG_FILE!r} in it was not written by rankfold. Choose another folder."
        )
    if not os.path.lexists(path / PLAN_FILE):
        others = sorted(entry.name for entry in path.iterdir() if not _is_left_over(entry))
        if shared:
            others = [name for name in others if name in (WEIGHTS_FILE, *_COMPANIONS)]
        if others:
            raise RankfoldError(
                f"cannot save to {str(path)!r}: the folder holds other files ({others[0]!r}). "
                "Choose an empty or new folder."
            )
        return
    try:
        Plan.load(path)
    except CorruptArtifact as error:
        raise RankfoldError(f"cannot save to {str(path)!r}: {error} Choose an empty or new folder.") from error


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Create a folder if necessary, lock it, and settle the saves of killed processes."""
    with making_folder(folder, target=folder), locked(folder):
        _settle(folder)
        yield


def _settle(folder: Path) -> None:
    """Complete or discard the saves of killed processes; the folder is locked."""
    stage = folder / _STAGE
    if os.path.lexists(stage):
        if _is_switched(folder):
            weights = _open_whole(stage / WEIGHTS_FILE) or _open_whole(folder / WEIGHTS_FILE)
            _complete(folder, "" if weights is None else weights.identity)
        else:
            _discard(stage)
    sweep(folder, PLAN_FILE, WEIGHTS_FILE, *_COMPANIONS)


def _is_switched(folder: Path) -> bool:
    """Return whether the staged files belong to the artifact in the folder, because its save was past the switch."""
    stage = folder / _STAGE
    if not _is_own(stage):
        return False
    try:
        plan = text_hash(_plan_text(folder))
    except CorruptArtifact:
        return False
    staged, current = _open_whole(stage / WEIGHTS_FILE), _open_whole(folder / WEIGHTS_FILE)
    if staged is None:  # not written yet, or already moved: then only files that describe it can be left
        return not (stage / WEIGHTS_FILE).exists() and any((stage / name).exists() for name in _COMPANIONS)
    return staged.plan_hash == plan and (current is None or current.plan_hash != plan)


def _is_own(stage: Path) -> bool:
    """Return whether a stage is a folder, as saves create it, and not a link, file or FIFO from elsewhere."""
    return stage.is_dir() and not stage.is_symlink()


def _discard(stage: Path) -> None:
    if _is_own(stage):
        shutil.rmtree(stage)
    else:
        stage.unlink(missing_ok=True)


def _complete(folder: Path, identity: str) -> None:
    """Move staged files into place, the weights first, and remove files that describe another artifact."""
    stage = folder / _STAGE
    for name in (WEIGHTS_FILE, *_COMPANIONS):
        if (stage / name).exists():
            os.replace(stage / name, folder / name)
    _remove_stale(folder, identity)
    shutil.rmtree(stage)
    with contextlib.suppress(OSError):  # some file systems cannot flush a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove_stale(folder: Path, identity: str) -> None:
    for name, with_it in ((CONFIG_FILE, ()), (SOURCE_FILE, ()), ("report.json", ("report.html",))):
        document = _document(folder / name)
        if document is not None and document.get("artifact") != identity:
            for stale in (*with_it, name):  # the page first, because only the JSON file identifies it
                (folder / stale).unlink(missing_ok=True)


def _document(file: Path) -> Mapping[str, object] | None:
    """Return the content of a JSON document written by rankfold; None if there is none or it has another origin."""
    try:
        data = parse_json(read_text(file, kind="document", hint=""), source=str(file))
    except CorruptArtifact:
        return None
    ours = isinstance(data, dict) and str(data.get("format", "")).startswith("rankfold-")
    return data if ours else None


def _is_left_over(entry: Path) -> bool:
    """Return whether a killed run may have left this file, so that its folder is free for the next run."""
    if entry.name.startswith(".") or (entry.name.startswith("finetune") and entry.suffix == ".pt"):
        return True
    if entry.name == WEIGHTS_FILE:  # an earlier version wrote it before the plan
        return _open_whole(entry) is not None
    if entry.name in (CONFIG_FILE, SOURCE_FILE, "report.json"):
        return _document(entry) is not None
    if entry.name == "report.html":
        return _document(entry.with_name("report.json")) is not None
    return entry.is_dir() and not entry.is_symlink() and [e.name for e in entry.iterdir()] == ["finetune.pt"]


def _plan_text(folder: Path) -> str:
    if not os.path.isdir(folder):
        raise CorruptArtifact(
            f"there is no artifact folder at {str(folder)!r}. Use a folder written by `rankfold compress` or rf.save."
        )
    hint = f"{str(folder)!r} is not a rankfold artifact."
    return read_text(folder / PLAN_FILE, kind="plan", hint=hint)


def _open(file: Path) -> Weights | None:
    try:
        return Weights(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CorruptArtifact(f"{str(file)!r} cannot be read: {error}.") from error


def _open_whole(file: Path) -> Weights | None:
    try:
        return _open(file)
    except CorruptArtifact:
        return None
