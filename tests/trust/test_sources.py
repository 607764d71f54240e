"""Python code that an artifact names is run only if the user names it, too, or trusts the source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import rankfold as rf
from rankfold import zoo
from rankfold.cli import app
from rankfold.cli._command import Given
from rankfold.cli._source import Source, artifact_source, names_code
from rankfold.errors import ConfigError, CorruptArtifact, RankfoldWarning
from rankfold.storage import SOURCE_FILE, artifact_identity

CODE = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from rankfold import zoo
def make(**_):
    return zoo.create("lenet5_mnist5k", weights="bundled")
def batches(split, batch_size):
    import torch
    return [(torch.zeros(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64))]
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "artifact"
    plan = rf.Plan(layers={"fc1": rf.records.Choice(method="svd", ranks=(4,))})
    rf.save(rf.apply(zoo.create("lenet5_mnist5k", weights="bundled"), plan), folder)
    return folder


@pytest.fixture
def artifact(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(good, tmp_path / "artifact"))
    (folder / "evil_module.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    monkeypatch.chdir(folder)  # the folder that a module would be imported from
    return folder


def remember(folder: Path, **fields: Any) -> None:
    fields = {"model": "lenet5_mnist5k", "weights": "bundled", "data": "mnist5k", "limit_test": 16, **fields}
    document = {"format": "rankfold-source", "version": 1, "batch_size": 16, "seed": 0, **fields}
    (folder / "source.json").write_text(json.dumps(document))


def command(*args: object) -> tuple[int, str]:
    done = CliRunner(env={"COLUMNS": "100"}).invoke(app, [str(arg) for arg in args], prog_name="rankfold")
    return done.exit_code, done.output


def given(folder: Path) -> Given:
    return Given(artifact=str(folder), original=None, trust_source=False)


NAMED = {
    "a file": {"model": "{folder}/evil_module.py:make", "weights": None},
    "a relative file": {"model": "evil_module.py:make", "weights": None},
    "a module": {"model": "evil_module:make", "weights": None},
    "a file for data": {"data": "{folder}/evil_module.py:batches", "limit_test": None},
    "a module for data": {"data": "evil_module:batches", "limit_test": None},
    "a dotted module for data": {"data": "evil_module.inner:batches", "limit_test": None},
    "both": {"model": "evil_module:make", "weights": None, "data": "evil_module:batches", "limit_test": None},
}


@pytest.mark.parametrize("verb", ["evaluate", "bench", "finetune"])
@pytest.mark.parametrize("name", NAMED)
def test_code_is_refused(artifact: Path, tmp_path: Path, name: str, verb: str) -> None:
    fields = {k: v.format(folder=artifact) if isinstance(v, str) else v for k, v in NAMED[name].items()}
    remember(artifact, **fields)
    out = ("--out", tmp_path / "out") if verb == "finetune" else ()
    code, said = command(verb, artifact, *out)
    assert code == 2
    assert not (tmp_path / "mark").exists()
    for words in ("names Python code", "was not run", "--trust-source", *(f"--{key}" for key in ("model", "data") if
                  str(fields.get(key, "")).count("evil"))):  # fmt: skip
        assert words in " ".join(said.split()), said


@pytest.mark.parametrize("way", ["named", "trusted"])
def test_code_runs_where_the_user_says_so(artifact: Path, tmp_path: Path, way: str) -> None:
    """Control: both ways that the message names work."""
    file = artifact / "evil_module.py"
    remember(artifact, model=f"{file}:make", weights=None, data=f"{file}:batches", limit_test=None)
    said_so = ("--trust-source",) if way == "trusted" else ("--model", f"{file}:make", "--data", f"{file}:batches")
    code, said = command("evaluate", artifact, *said_so)
    assert code == 0, said
    assert (tmp_path / "mark").exists()


def test_naming_one_of_two_is_not_enough(artifact: Path, tmp_path: Path) -> None:
    remember(artifact, model="evil_module:make", weights=None, data="evil_module:batches", limit_test=None)
    for option in (("--model", "lenet5_mnist5k"), ("--data", "mnist5k")):
        assert command("evaluate", artifact, *option)[0] == 2
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("name", "code"),
    [("lenet5_mnist5k", False), ("torchvision/resnet18", False), ("timm/hf-hub:a/b", True), ("cifar10:/data", False),
     ("npz:x.npz", False), ("imagefolder:a:b", False), ("os:system", True), ("mnist:x", False),
     ("svhn:folder", True), (":", True)],
)  # fmt: skip
def test_what_is_code_is_told_by_the_name(name: str, code: bool) -> None:
    assert names_code(name) is code


BAD: dict[str, dict[str, Any]] = {
    "num_classes": {"num_classes": 10**9}, "no classes": {"num_classes": 0}, "truth": {"num_classes": True},
    "input": {"input_size": [1, 10**6, 10**6]}, "shape": {"input_size": [1, -3]}, "words": {"input_size": ["1"]},
    "batch": {"batch_size": 10**12}, "none": {"batch_size": None}, "limit": {"limit_test": -1},
    "seed": {"seed": 10**30}, "model": {"model": ["a"]}, "data": {"data": 5},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_values_have_limits(artifact: Path, name: str) -> None:
    remember(artifact, **BAD[name])
    with pytest.raises(CorruptArtifact, match="cannot be"):
        artifact_source(given(artifact), reads_data=True)
    assert command("evaluate", artifact)[0] == 2


def test_pickled_weights_are_not_run(artifact: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.write_text, (tmp_path / "mark", "ran")

    torch.save({"a": Evil()}, artifact / "w.pt")
    remember(artifact, weights=str(artifact / "w.pt"))
    code, said = command("bench", artifact)
    assert code == 2
    assert "w.pt" in said
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["plan.json", "model.safetensors"])
def test_a_source_next_to_a_damaged_artifact(artifact: Path, name: str) -> None:
    remember(artifact)
    (artifact / name).write_text("{")
    source = Source.load(artifact)
    assert source is not None
    assert source.model == "lenet5_mnist5k"
    code, said = command("bench", artifact)
    assert code == 2, said
    assert name in said


def test_a_source_of_another_artifact_is_not_used(artifact: Path) -> None:
    source = Source(model="lenet5_mnist5k", weights="bundled")
    identity = artifact_identity(artifact)
    assert identity is not None
    (artifact / SOURCE_FILE).write_text(source.texts(identity)[SOURCE_FILE])
    assert Source.load(artifact) == source
    plan = rf.Plan(layers={"fc2": rf.records.Choice(method="svd", ranks=(4,))})
    text = (artifact / "source.json").read_text()
    rf.save(rf.apply(zoo.create("lenet5_mnist5k", weights="bundled"), plan), artifact)
    assert not (artifact / "source.json").exists()
    (artifact / "source.json").write_text(text)  # as left by a process that was killed in between
    with pytest.warns(RankfoldWarning, match="no longer there"):
        assert Source.load(artifact) is None
    with pytest.warns(RankfoldWarning), pytest.raises(ConfigError, match="--model"):
        artifact_source(given(artifact), reads_data=True)
