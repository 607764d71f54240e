"""Speech Commands from its WAV files."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from rankfold._progress import track
from rankfold.errors import DataError, MissingExtra
from rankfold.zoo.array_cache import cached
from rankfold.zoo.data_sets import DATA_SETS, find_files
from rankfold.zoo.samples import SampleArray

_RATE = 8000
_LISTS = ("testing_list.txt", "validation_list.txt")


def speech_commands(path: str, split: str) -> SampleArray:
    """Return the int16 waveforms ``(N, 1, 8000)`` and labels of a split of Speech Commands 0.02 (Warden 2018).

    The folder holds the unpacked archive, also in ``speech_commands_v0.02`` or torchaudio's folder. The official lists
    decide the split: ``testing_list.txt`` names the test files; the training files are those in neither list. Labels
    number the 35 words in alphabetical order. Recordings are resampled to 8 kHz, as in Dai et al. 2017, the mean of
    their channels is taken, and they are cut or padded with zeros to one second. Decoded waveforms are cached.
    """
    folders = ("", "speech_commands_v0.02/", "SpeechCommands/speech_commands_v0.02/")
    root = find_files("speechcommands", path, split, *(f"{folder}{_LISTS[0]}" for folder in folders))[0].parent
    names = {f"{file.parent.name}/{file.name}" for file in root.glob("[!_]*/*.wav")}
    words = sorted({name.partition("/")[0] for name in names})
    if len(words) != DATA_SETS["speechcommands"].classes:
        raise DataError(
            f"{str(root)!r} has recordings of {len(words)} words, Speech Commands 0.02 has 35. Unpack it again."
        )
    try:
        testing, validation = (set((root / name).read_text("utf-8").split()) for name in _LISTS)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the lists {' and '.join(_LISTS)} in {str(root)!r} cannot be read: {error}. Unpack them again."
        ) from error
    absent = sorted((testing | validation) - names)
    if absent:
        raise DataError(
            f"{len(absent)} files in the lists of {str(root)!r} are missing, such as {absent[0]!r}. Unpack them again."
        )
    chosen = sorted(testing if split == "test" else names - testing - validation)
    files = [root / name for name in chosen]
    labels = torch.tensor([words.index(file.parent.name) for file in files], dtype=torch.int64, device="cpu")
    return cached(f"speechcommands-{split}", files, lambda: SampleArray(_decode(files), labels))


def _decode(files: list[Path]) -> torch.Tensor:
    from scipy.signal import resample_poly

    soundfile = _soundfile()
    waves = np.zeros((len(files), *DATA_SETS["speechcommands"].shape), np.int16)
    for wave, file in zip(waves, track(files, "waveforms"), strict=True):
        try:
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{str(file)!r} cannot be read as audio: {error}. Unpack it again.") from error
        mono = samples.mean(1)
        mono = (mono if rate == _RATE else resample_poly(mono, _RATE, rate))[: wave.shape[1]]
        wave[0, : len(mono)] = np.clip(np.rint(mono * 32768), -32768, 32767)
    return torch.from_numpy(waves)


def _soundfile() -> ModuleType:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the library libsndfile is missing
        raise MissingExtra("reading audio", "datasets", "soundfile") from error
    return soundfile
