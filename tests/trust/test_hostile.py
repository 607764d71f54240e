"""Hostile input ends in one clear error, quickly: documents without end, files that are none, paths that cannot be."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold._documents import Limits, json_text, parse_json
from rankfold.candidates.cache import Cache
from rankfold.errors import CorruptArtifact, RankfoldError, UnknownNameError
from rankfold.records import Choice
from rankfold.reporting import Report


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"trust_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fuzz = _script("fuzz")

TEXTS = {
    "brackets": "[" * 100_000, "braces": '{"a":' * 100_000, "closing": "]" * 1_000_000, "digits": "9" * 5000,
    "an infinite number": '{"a": [1e999]}', "NaN": '{"a": NaN}', "minus infinity": "[-Infinity]",
    "negative digits": f'{{"a": -{"9" * 101}}}', "long text": f'["{"x" * 100_001}"]', "entries": f"[{'1,' * 300_001}1]",
    "twice": '{"a": 1, "b": 2, "a": 3}', "twice inside": '[{"x": {"\\u0061": 1, "a": 1}}]', "surrogate": '"\\ud800"',
    "surrogate key": '{"\\udc00": 1}', "depth": "[" * 65 + "]" * 65, "empty": "", "quote": '"', "NUL": '"\x00"',
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_refused_quickly(name: str) -> None:
    start = time.process_time()
    with pytest.raises(CorruptArtifact, match=r"^here (has|is|holds) ") as caught:
        parse_json(TEXTS[name], source="here")
    assert time.process_time() - start < 1.5
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2.5, null, true, "\\ud83d\\ude00"]}', "[" * 64 + "]" * 64, "9" * 100, '"\\\\ud800"']
)
def test_texts_within_the_limits_are_read(text: str) -> None:
    """The control."""
    assert parse_json(text, source="here") == json.loads(text)


def test_limits_are_exact() -> None:
    limits = Limits(size=12, entries=4, depth=2, digits=3, text=5)
    assert parse_json("[[1,234,5]]", source="x", limits=limits) == [[1, 234, 5]]
    for text in ("[[1,2345]]", "[[[1]]]", "[1,2,3,4,5]", '["abcdef"]', " " * 13):
        with pytest.raises(CorruptArtifact):
            parse_json(text, source="x", limits=limits)


def test_json_is_written_without_control_characters_and_without_loss() -> None:
    value = {"\x1b[2J": "\u202e\x7f\x9b\u2028 é \U0001f600 \n", "b": [1, None]}
    text = json_text(value, indent=1)
    assert fuzz.printable(text)
    assert parse_json(text, source="x") == value
    assert parse_json(json_text("\ud800"), source="x") == "\\ud800"


READERS: dict[str, Callable[[Path], object]] = {
    "plan": rf.Plan.load, "report": Report.load, "artifact": lambda path: rf.load(path, nn.Linear(2, 2)),
    "weights": lambda path: rf.zoo.create("lenet5_mnist5k", weights=path),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "device", "NUL", "long", "huge", "missing", "surrogate"])
def test_what_is_no_file_of_data(tmp_path: Path, reader: str, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        (place / "plan.json").mkdir(parents=True)
        (place / "report.json").mkdir()
    elif kind in ("loop", "device"):
        place.symlink_to("place" if kind == "loop" else "/dev/zero")
    elif kind == "huge":
        with place.open("wb") as stream:
            stream.truncate(5 * 2**30)
    path = {"NUL": Path("a\0b"), "long": Path("x" * 5000), "surrogate": Path("\ud800")}.get(kind, place)
    start = time.process_time()
    with pytest.raises(RankfoldError) as caught:
        READERS[reader](path)
    assert time.process_time() - start < 1
    assert len(str(caught.value)) <= 2000


IMPOSSIBLE = {
    "NUL": Path("a\0b"), "long": Path("x" * 5000), "surrogate": Path("\ud800"), "NUL above": Path("a\0b/c"),
    "long above": Path("y" * 300, "c"),
}  # fmt: skip


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_paths_that_cannot_be_written(tmp_path: Path, kind: str) -> None:
    path, plan = tmp_path / IMPOSSIBLE[kind], rf.Plan(layers={})
    for write in (plan.save, Cache, lambda path: rf.save(fuzz.net(), path, plan=plan), checkpoint):
        with pytest.raises(RankfoldError, match="cannot write"):
            write(path)
    assert not list(tmp_path.iterdir())


def checkpoint(path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    recipe = rf.FineTune(data=[(torch.zeros(1, 4), torch.tensor([0]))], epochs=1, checkpoint=path)
    rf.finetune(rf.apply(net, rf.Plan(layers={"0": Choice(method="svd", ranks=(1,))})), recipe)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_checkpoints_that_are_no_files(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "finetune.pt"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    else:
        (place / "finetune.pt").mkdir(parents=True)  # the name of a folder is that of the file's folder
    with pytest.raises(RankfoldError, match="not a regular file"):
        checkpoint(place)


@pytest.mark.parametrize("kind", IMPOSSIBLE)
@pytest.mark.parametrize("data", ["npz", "imagefolder", "cifar10"])
def test_data_at_paths_that_cannot_be(tmp_path: Path, data: str, kind: str) -> None:
    with pytest.raises(RankfoldError) as caught:
        rf.zoo.data(f"{data}:{tmp_path / IMPOSSIBLE[kind]}", split="test")
    assert len(str(caught.value)) <= 2000


def test_a_symbolic_link_to_a_file_is_fine(tmp_path: Path) -> None:
    rf.Plan(layers={"a": Choice(reason="kept")}).save(tmp_path / "real.json")
    (tmp_path / "link.json").symlink_to("real.json")
    assert rf.Plan.load(tmp_path / "link.json").kept == {"a": "kept"}


CHOICES: dict[str, Choice] = {
    "cores": Choice(method="ttm", ranks=(1,), options={"cores": 10**9}),
    "rank": Choice(method="svd", ranks=(10**30,)),
    "ranks": Choice(method="svd", ranks=(1,) * 100_000),
    "starts": Choice(method="cp", ranks=(1,), options={"starts": 10**9}),
    "method": Choice(method="x" * 300_000, ranks=(1,)),
    "option": Choice(method="svd", ranks=(1,), options={"y" * 300_000: 1}),
    "shape": Choice(method="ttm", ranks=(1,), options={"out_shape": (10**9,) * 3, "in_shape": (1, 1, 1), "cores": 3}),
}


@pytest.mark.parametrize("name", CHOICES)
def test_sizes_in_plans_are_limited(name: str) -> None:
    start = time.process_time()
    with pytest.raises(RankfoldError) as caught:
        rf.apply(nn.Sequential(nn.Linear(24, 32)), rf.Plan(layers={"0": CHOICES[name]}))
    assert time.process_time() - start < 1
    assert len(str(caught.value)) <= 2000


def test_names_without_end_are_compared_quickly() -> None:
    start = time.process_time()
    message = str(UnknownNameError("method", "ab" * 200_000, [f"name{i}" for i in range(500)]))
    assert time.process_time() - start < 1
    assert len(message) <= 2000
    assert message.endswith("name499.")


def test_classes_are_limited() -> None:
    with pytest.raises(RankfoldError, match="num_classes"):
        rf.zoo.create("lenet5_mnist5k", num_classes=10**9)


def test_a_dead_worker_is_named() -> None:
    class Dies(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> torch.Tensor:
            if torch.utils.data.get_worker_info() is not None:
                os._exit(1)
            return torch.zeros(24)

    loader = torch.utils.data.DataLoader(Dies(), num_workers=1)
    model = nn.Sequential(nn.Linear(24, 32))
    plan = rf.Plan(layers={"0": Choice(method="svd", ranks=(4,))})
    with pytest.raises(rf.DataError if hasattr(rf, "DataError") else RankfoldError, match="worker"):
        rf.apply(model, plan, calibration=loader)
    small = rf.apply(model, plan)
    with pytest.raises(RankfoldError, match="worker process of the training data's loader died"):
        rf.finetune(small, rf.FineTune(data=loader, epochs=1), teacher=model)
    with pytest.raises(RankfoldError, match="worker process of the evaluation data's loader died"):
        rf.evaluate(small, rf.top1(loader))


@pytest.mark.slow
def test_a_seeded_sample_of_attacks() -> None:
    counts, faults = fuzz.run(120, seed=random.Random(0).randrange(100))
    assert faults == []
    assert len(counts) > 10, "kinds of outcomes"
    assert any("right" in found for found in counts)
