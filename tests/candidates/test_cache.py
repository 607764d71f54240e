"""What is measured is kept: whole, only under its own key, and never trusted where a file is not ours."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.candidates import Estimator
from rankfold.candidates.cache import Cache
from rankfold.candidates.estimator import as_losses
from rankfold.errors import RankfoldError, RankfoldWarning

KEY = {"layer": "fc", "candidates": [["svd", [3], {"modes": (1, 2)}]], "seed": 1}


def test_get_what_was_put(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "cache"
    cache = Cache(folder)
    assert not folder.exists(), "made with the first file"
    assert cache.get(KEY) is None
    cache.put(KEY, [0.1, 2e-300])
    assert Cache(folder).get(KEY) == [0.1, 2e-300]
    assert Cache(folder).get(dict(reversed(KEY.items()))) == [0.1, 2e-300]
    for other in ({"seed": 2}, {"layer": "fc2"}, {"candidates": []}, {"more": None}):
        assert cache.get(KEY | other) is None
    assert [p.suffix for p in folder.iterdir()] == [".json"]
    cache.put(KEY, {"rounds": [{"ranks": [3], "drop": 0.5}], "done": False})
    assert cache.get(KEY) == {"rounds": [{"ranks": [3], "drop": 0.5}], "done": False}


def _edit(**changes: Any) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | changes)


@pytest.mark.parametrize(
    "loss",
    [
        lambda text: text[:-5], lambda text: "", lambda text: "[]", lambda text: "null", lambda text: "\x00\x01",
        _edit(version=1), _edit(key={}), _edit(value=None), _edit(value=[0.1]), _edit(value=[0.1, "0.2"]),
        _edit(value=[0.1, True]), _edit(value=[0.1, float("nan")]), _edit(value=[0.1, float("inf")]),
        _edit(value=[0.1, -1.0]), _edit(value={"0": 0.1, "1": 0.2}),
    ],
)  # fmt: skip
def test_damaged_and_foreign_files_do_not_count(tmp_path: Path, loss: Callable[[str], str]) -> None:
    cache = Cache(tmp_path)
    cache.put(KEY, [0.1, 0.2])
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    file.write_text(loss(text))
    assert as_losses(cache.get(KEY), 2) is None
    cache.put(KEY, [0.3, 0.4])
    assert as_losses(cache.get(KEY), 2) == [0.3, 0.4]
    file.unlink()
    file.mkdir()
    assert as_losses(cache.get(KEY), 2) is None


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RankfoldError, match="cannot write"):
        Cache(tmp_path / "file")


# --- in a search ---


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12), nn.Dropout(0.1), nn.Linear(12, 8)).eval()


MEASURED = rf.CompressNAS(proxy="network", samples=16, points=8)  # nothing is left to choose


class Search:
    """Plans, and counts what was measured on the way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        self.cache, self.judges = cache, []
        start = Estimator.__init__

        def watched(judge: Estimator, *args: Any, **kwargs: Any) -> None:
            start(judge, *args, **kwargs)
            self.judges.append(judge)

        monkeypatch.setattr(Estimator, "__init__", watched)

    def __call__(self, net: nn.Module, data: list[torch.Tensor], budget: str = "params<=60%", **options: Any) -> Any:
        options = {"methods": "svd", "strategy": MEASURED} | options
        plan = rf.plan(net, data[0][:1], budget=budget, calibration=data, cache=self.cache, **options)
        return plan, self.judges[-1].measured


def test_a_second_search_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, net, data = Search(monkeypatch, tmp_path), network(), [torch.randn(8, 12), torch.randn(8, 12)]
    first, measured = search(net, data)
    assert measured >= 3 * 4
    again, nothing = search(copy.deepcopy(net), [batch.clone() for batch in data])
    assert nothing == 0
    assert again == first
    assert again.to_json() == first.to_json()
    assert search(net, data, "params<=40%, macs<=50%")[1] == 0, "another budget needs no more"
    assert search(net, [(batch, torch.zeros(8)) for batch in data])[1] == 0, "nor do labels matter"
    # What was measured in one file is measured again, and only that, if the file is gone.
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    files[0].unlink()
    found, some = search(net, data)
    assert found == first
    assert 0 < some < measured


def test_another_problem_measures_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, net, data = Search(monkeypatch, tmp_path), network(), [torch.randn(8, 12), torch.randn(8, 12)]
    measured = search(net, data)[1]
    other = network()
    with torch.no_grad():
        other[4].bias[0] += 1  # of one layer, but every loss depends on it
    assert search(other, data)[1] == measured
    dropped = network()
    dropped[3] = nn.Identity()
    assert search(dropped, data)[1] == measured, "another architecture with the same weights"
    assert search(net, [data[1], data[0]])[1] == measured
    assert search(net, data, strategy=replace(MEASURED, samples=8))[1] == measured
    with pytest.warns(RankfoldWarning, match="no change of '4' changes the compared outputs"):  # it lies behind the tap
        assert search(net, data, strategy=replace(MEASURED, taps=["2"]))[1] > 0
    assert search(net, data, strategy=replace(MEASURED, points=4))[1] > 0
    assert search(net, data, rank_multiple=2)[1] > 0
    assert search(net, data, data_aware=False)[1] > 0
    assert search(net, data, strategy=replace(MEASURED, proxy="fisher"))[1] > 0
    assert search(net, data)[1] == 0
