"""The folder of an artefact, written so that at every instant it holds the old artefact or the new one, whole.

An artefact is ``plan.json`` and the ``model.safetensors`` whose header has the checksum of that plan. Saving goes
through a folder inside, ``.rankfold-next``:

1. The weights, what belongs next to them (``source.json``) and the plan are written there, to the disk.
2. ``plan.json`` is replaced by one rename. This is the switch: weights that fit the plan are now those in
   ``.rankfold-next``, where a reader finds them. If both artefacts have the same plan, the switch is step 3.
3. ``model.safetensors`` is replaced by a rename, then what belongs next to it. ``.rankfold-next`` is removed.

A process that is killed before the switch leaves the old artefact, after it the new one. The next save completes or
discards what it left. Writers lock the folder (`rankfold._files.locked`), readers do not: one that finds plan and
weights of different artefacts reads the plan again. Where the file system has no locks, only one process may write.

``source.json`` and ``report.json`` carry the checksum of the artefact that they describe. One that describes another
artefact is not used.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from rankfold._documents import parse_json, read_text
from rankfold._files import as_utf8, check_writable, locked, sweep, to_disk, write_text
from rankfold.errors import CorruptArtifact, RankfoldError
from rankfold.records import Plan
from rankfold.storage.weights import Weights, file_state, identity_of, text_hash, write_weights

PLAN_FILE = "plan.json"
WEIGHTS_FILE = "model.safetensors"
SOURCE_FILE = "source.json"
REPORT_FILES = ("report.html", "report.json")

_STAGE = ".rankfold-next"
_BESIDE = (SOURCE_FILE, *REPORT_FILES)
_MOST_ATTEMPTS = 10_000


Describe = Callable[[str], Mapping[str, str]]
"""Maps an artefact's checksum to the texts of files that describe it, by name."""


def replace_artifact(
    folder: Path,
    plan_text: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    describe: Describe | None = None,
) -> str:
    """Put an artefact into a folder, in the place of one that is there, and return its checksum.

    Parameters
    ----------
    folder : Path
        Made if need be.
    plan_text : str
        The plan.
    tensors, metadata : mapping
        What `write_weights` writes.
    describe : callable, optional
        Returns what belongs next to the artefact.

    Raises
    ------
    RankfoldError
        If the folder cannot be written to; the artefact that was there stays, and nothing else is left.
    """
    with _writing(folder):
        _settle(folder)
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
            if not _is_switched(folder):  # else the staged files are the artefact, and the next save moves them
                with contextlib.suppress(OSError):
                    _discard(stage)
            raise
    return identity


def attach(folder: Path, identity: str, texts: Mapping[str, str]) -> None:
    """Write files that describe an artefact into its folder.

    Parameters
    ----------
    identity : str
        The checksum of the artefact that they describe.
    texts : mapping
        Their texts, by name.

    Raises
    ------
    RankfoldError
        If another process has put another artefact there meanwhile.
    """
    with _writing(folder):
        _settle(folder)
        if artifact_identity(folder) != identity:
            raise RankfoldError(
                f"another process has saved another artefact to {str(folder)!r} meanwhile. "
                "Give each process a folder of its own."
            )
        for name, text in texts.items():
            write_text(folder / name, text)


def find(folder: Path) -> tuple[str, Weights]:
    """Return the text of an artefact's plan and the weights that belong to it.

    Raises
    ------
    CorruptArtifact
        If the folder holds no artefact, or one that is damaged or edited.
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
        if state == seen:  # twice the same: this is not a moment of another process's save
            break
        seen = state
    if not (folder / WEIGHTS_FILE).exists():
        raise CorruptArtifact(f"the artefact in {str(folder)!r} has no {WEIGHTS_FILE}; it is incomplete.")
    raise CorruptArtifact(
        f"{PLAN_FILE} and {WEIGHTS_FILE} in {str(folder)!r} do not belong together; was the plan edited? "
        "An edited plan goes to `apply` with the original model."
    )


def artifact_identity(folder: str | Path) -> str | None:
    """Return the checksum of the artefact in a folder; None if there is none that can be read."""
    try:
        return find(Path(folder))[1].identity
    except CorruptArtifact:
        return None


def artifact_bytes(folder: str | Path) -> int:
    """Return the bytes of an artefact: of its plan and its weights, whatever else the folder holds."""
    text, weights = find(Path(folder))
    return len(text.encode()) + weights.size


def beside_file(folder: str | Path, name: str) -> Path:
    """Return where a file that describes the artefact in a folder is, also in the middle of a save."""
    folder = Path(folder)
    staged = folder / _STAGE / name
    return staged if staged.exists() and _is_switched(folder) else folder / name


def check_output(path: str | Path) -> None:
    """Raise `RankfoldError` unless an artefact can be saved to a folder; nothing is written.

    It may be new, be empty but for hidden files, hold an artefact, or hold what a run that was killed has left: a
    checkpoint and files that describe an artefact.
    """
    path = Path(path)
    if os.path.exists(path) and not os.path.isdir(path):
        raise RankfoldError(f"cannot save to {str(path)!r}: it is a file. Give a folder.")
    check_writable(path)
    if not path.is_dir():
        return
    for name in (WEIGHTS_FILE, *_BESIDE):
        if (path / name).is_dir():
            raise RankfoldError(
                f"cannot save to {str(path)!r}: {name!r} in it is a folder. Give an empty or new folder."
            )
    if not os.path.lexists(path / PLAN_FILE):
        others = sorted(entry.name for entry in path.iterdir() if not _is_left_over(entry))
        if others:
            raise RankfoldError(
                f"cannot save to {str(path)!r}: the folder holds other files ({others[0]!r}). "
                "Give an empty or new folder."
            )
        return
    try:
        Plan.load(path)
    except CorruptArtifact as error:
        raise RankfoldError(f"cannot save to {str(path)!r}: {error} Give an empty or new folder.") from error


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Make a folder if need be and lock it; if the block raises, folders that were made are removed again."""
    made: list[Path] = []
    try:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            yield
    except BaseException as error:
        for place in made:  # the deepest first; one that somebody has put something into stays
            with contextlib.suppress(OSError):
                place.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise RankfoldError(f"cannot write {str(folder)!r}: {reason}. Choose another place.") from error
        raise


def _settle(folder: Path) -> None:
    """Complete or discard what killed processes left of their saves; the folder is locked."""
    stage = folder / _STAGE
    if os.path.lexists(stage):
        if _is_switched(folder):
            weights = _open_whole(stage / WEIGHTS_FILE) or _open_whole(folder / WEIGHTS_FILE)
            _complete(folder, "" if weights is None else weights.identity)
        else:
            _discard(stage)
    sweep(folder, PLAN_FILE, WEIGHTS_FILE, *_BESIDE)


def _is_switched(folder: Path) -> bool:
    """Whether what is staged belongs to the artefact in the folder: its save was beyond the switch."""
    stage = folder / _STAGE
    if not _is_own(stage):
        return False
    try:
        plan = text_hash(_plan_text(folder))
    except CorruptArtifact:
        return False
    staged, current = _open_whole(stage / WEIGHTS_FILE), _open_whole(folder / WEIGHTS_FILE)
    if staged is None:  # not written yet, or in its place already: then only what belongs next to it is left
        return not (stage / WEIGHTS_FILE).exists() and any((stage / name).exists() for name in _BESIDE)
    return staged.plan_hash == plan and (current is None or current.plan_hash != plan)


def _is_own(stage: Path) -> bool:
    """Whether a stage is a folder, as saves make it, and no link, file or FIFO that somebody has put there."""
    return stage.is_dir() and not stage.is_symlink()


def _discard(stage: Path) -> None:
    if _is_own(stage):
        shutil.rmtree(stage)
    else:
        stage.unlink(missing_ok=True)


def _complete(folder: Path, identity: str) -> None:
    """Move staged files into place, the weights first, and remove files that describe another artefact."""
    stage = folder / _STAGE
    for name in (WEIGHTS_FILE, *_BESIDE):
        if (stage / name).exists():
            os.replace(stage / name, folder / name)
    _remove_stale(folder, identity)
    shutil.rmtree(stage)
    with contextlib.suppress(OSError):  # some file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove_stale(folder: Path, identity: str) -> None:
    for name, with_it in ((SOURCE_FILE, ()), ("report.json", ("report.html",))):
        document = _document(folder / name)
        if document is not None and document.get("artifact") != identity:
            for stale in (*with_it, name):  # the page first: it is known by the other one
                (folder / stale).unlink(missing_ok=True)


def _document(file: Path) -> Mapping[str, object] | None:
    """Return the content of a JSON document of rankfold's; None if there is none or it is of somebody else."""
    try:
        data = parse_json(read_text(file, kind="document", hint=""), source=str(file))
    except CorruptArtifact:
        return None
    ours = isinstance(data, dict) and str(data.get("format", "")).startswith("rankfold-")
    return data if ours else None


def _is_left_over(entry: Path) -> bool:
    """Whether a run that was killed may have left a file: then a folder that holds it is free for the next run."""
    if entry.name.startswith(".") or (entry.name.startswith("finetune") and entry.suffix == ".pt"):
        return True
    if entry.name == WEIGHTS_FILE:  # of a version that wrote it before the plan
        return _open_whole(entry) is not None
    if entry.name in (SOURCE_FILE, "report.json"):
        return _document(entry) is not None
    if entry.name == "report.html":
        return _document(entry.with_name("report.json")) is not None
    return entry.is_dir() and not entry.is_symlink() and [e.name for e in entry.iterdir()] == ["finetune.pt"]


def _plan_text(folder: Path) -> str:
    if not os.path.isdir(folder):
        raise CorruptArtifact(
            f"there is no artefact folder at {str(folder)!r}. Give a folder that `rankfold compress` or rf.save wrote."
        )
    hint = f"{str(folder)!r} is not a rankfold artefact."
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
