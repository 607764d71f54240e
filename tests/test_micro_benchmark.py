"""The benchmark against TensorLy: fair rows, and a run of it."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rankfold import methods

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.micro._shapes")


def test_shapes_are_those_of_the_paper_and_of_resnet18(shapes: ModuleType) -> None:
    names = [shape.name for shape in shapes.SHAPES]
    assert len(set(names)) == len(names) == 18
    assert {"3x512x1024", "3x3x512x512", "3x3x3x32x32", "400x120", "7x7x3x64", "1x1x256x512"} <= set(names)


@pytest.mark.parametrize("name", ["tucker", "tt", "svd", "qr"])
def test_ranks_are_the_largest_that_meet_the_reduction(shapes: ModuleType, name: str) -> None:
    method = methods.get(name)
    for shape in shapes.SHAPES:
        if method.supports(shape.layer) is not None:
            continue
        dense, limits = math.prod(shape.layer.weight_shape), method.max_ranks(shape.layer)
        for reduction in shapes.REDUCTIONS:
            for equal in (False, True):
                ranks = shapes.ranks_for(method, shape.layer, reduction, equal=equal)
                methods.check_ranks(method, shape.layer, ranks)
                params = method.blueprint(shape.layer, ranks).params
                assert params <= (1 - reduction) * dense or min(ranks) == 1
                more = tuple(min(rank + 1 + limit // 16, limit) for rank, limit in zip(ranks, limits, strict=True))
                assert method.blueprint(shape.layer, more).params > (1 - reduction) * dense


def test_weights_are_seeded(shapes: ModuleType) -> None:
    shape = shapes.SHAPES[5]
    one, again, other = (shapes.weight(shape, "decaying", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    torch.testing.assert_close(one.double(), shapes.weight(shape, "decaying", seed=0, dtype=torch.float64))


def test_it_runs(tmp_path: Path) -> None:
    arguments = ["--quick", "--methods", "tucker", "tt", "svd", "--shapes", "3x3x3x32x32", "--reductions", "0.6"]
    command = [sys.executable, "-m", "benchmarks.micro", *arguments, "--threads", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("tucker", "tt", "svd"):
        record = json.loads((tmp_path / f"micro_{name}.json").read_text(encoding="utf-8"))
        assert [row["weight"] for row in record["results"]] == ["gaussian", "decaying"]
        for row in record["results"]:
            (peer,) = row["peers"]
            assert 0 < row["error"] <= peer["error"] + 1e-3
            assert row["seconds"] > 0
            assert peer["ratio"] == pytest.approx(peer["seconds"] / row["seconds"])
