"""A run that is interrupted and resumed ends with the same bits as one that is not."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from rankfold.errors import ConfigError, CorruptArtifact, DataError, RankfoldError, RankfoldWarning
from rankfold.tune import FineTune, StepInfo, TuneResult, finetune
from rankfold.tune.checkpoint import checkpoint_file

Same = Callable[[nn.Module, nn.Module], bool]


class Killed(Exception):
    """Stands for the end of the process."""


class Noisy(Dataset[tuple[Tensor, int]]):
    """Draws its augmentation from every global generator there is."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = random.random() + np.random.rand()  # noqa: NPY002
        return torch.full((6,), index / 20) + torch.rand(6) + noise, index % 3


class Changing:
    """An iterable whose order follows `set_epoch`."""

    def __init__(self) -> None:
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.epoch)
        for _ in range(3):
            yield torch.rand(4, 6, generator=generator), torch.tensor([0, 1, 2, 0])


class Drifting(Changing):
    """An iterable whose order nobody can bring back."""

    seed = 100

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        Drifting.seed += 1
        self.epoch = Drifting.seed
        return super().__iter__()


def shuffled() -> DataLoader[Any]:
    return DataLoader(Noisy(), batch_size=6, shuffle=True)


def own_generator() -> DataLoader[Any]:
    return DataLoader(Noisy(), batch_size=6, shuffle=True, generator=torch.Generator())


def workers() -> DataLoader[Any]:
    return DataLoader(Noisy(), batch_size=6, shuffle=True, num_workers=1, persistent_workers=True)


def whole() -> DataLoader[Any]:
    batches = [(x, torch.tensor([0, 1])) for x in torch.rand(3, 2, 6)]
    return DataLoader(batches, batch_size=None, shuffle=True)  # type: ignore[arg-type]


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))


def metric(model: nn.Module) -> float:
    """Draws from the global generators, as a shuffled test loader would."""
    return float(model(torch.rand(4, 6)).sum())


def train(path: Path | None, data: Any, stop_at: int | None = None, **options: Any) -> TuneResult:
    def interrupt(info: StepInfo) -> None:
        if info.step == stop_at:
            raise Killed

    settings: dict[str, Any] = {"epochs": 2, "lr": 0.1, "data": data, "checkpoint": path}
    config = FineTune(**settings | options)
    return finetune(network(), config, teacher=network(), metric=metric, progress=interrupt)


@pytest.mark.parametrize("every", [1, 3, None])
@pytest.mark.parametrize("make", [shuffled, own_generator, whole, Changing])
def test_same_bits(tmp_path: Path, same: Same, make: Callable[[], Any], every: int | None) -> None:
    torch.manual_seed(1)
    data = make()
    wanted = train(None, data)
    points: list[int | None] = [1, 3, 5, wanted.steps]
    for stop in points:
        path = tmp_path / f"{stop}"
        options = {"checkpoint_every": every}
        with pytest.raises(Killed):
            train(path, make() if make is not whole else data, stop, **options)
        random.seed(stop)
        torch.manual_seed(stop or 0)
        result = train(path, make() if make is not whole else data, **options)
        assert same(result.model, wanted.model)
        assert result.resumed_from is not None
        assert 0 <= result.resumed_from < result.steps == wanted.steps
        for a, b in zip(result.history, wanted.history, strict=True):
            assert (a.loss, a.lr, a.metric, a.terms) == (b.loss, b.lr, b.metric, b.terms)


def test_same_bits_with_workers_and_adamw_and_many_interruptions(tmp_path: Path, same: Same) -> None:
    options: dict[str, Any] = {"optimizer": "adamw", "lr": 0.01, "mixed_precision": "bf16"}
    wanted = train(None, workers(), **options)
    for stop in (2, 6):
        with pytest.raises(Killed):
            train(tmp_path, workers(), stop, checkpoint_every=1, **options)
    result = train(tmp_path, workers(), **options)
    assert result.resumed_from == 5
    assert same(result.model, wanted.model)


def test_plateau_and_best_epoch_survive_interruptions(tmp_path: Path, same: Same) -> None:
    options: dict[str, Any] = {
        "epochs": 6, "optimizer": "adam", "lr": 0.1, "schedule": "plateau", "plateau_patience": 0, "warmup": 0,
        "keep": "best", "checkpoint_every": 1,
    }  # fmt: skip
    wanted = train(None, shuffled(), **options | {"checkpoint_every": None})
    assert len({epoch.lr for epoch in wanted.history}) > 2
    metrics = [epoch.metric or 0.0 for epoch in wanted.history]
    assert metrics[wanted.kept_epoch - 1] == max(metrics)
    assert wanted.kept_epoch < 6, "the last epoch is not the best"
    for stop in (5, 14, 22):
        with pytest.raises(Killed):
            train(tmp_path, shuffled(), stop, **options)
    for _ in range(2):  # the second returns the finished run
        result = train(tmp_path, shuffled(), **options)
        assert same(result.model, wanted.model)
        assert result.kept_epoch == wanted.kept_epoch
        assert [(e.lr, e.metric) for e in result.history] == [(e.lr, e.metric) for e in wanted.history]
    last = train(None, shuffled(), **options | {"checkpoint_every": None, "keep": "last"})
    assert last.kept_epoch == 6
    assert last.history[-1].metric == wanted.history[-1].metric
    assert not same(last.model, wanted.model)


def test_other_seeds_give_other_bits(same: Same) -> None:
    data = shuffled()
    assert not same(train(None, data).model, train(None, data, seed=1).model)


def test_every_interruption_matters(tmp_path: Path, same: Same) -> None:
    """Negative control: starting anew from the interrupted weights is not resuming."""
    with pytest.raises(Killed):
        train(tmp_path, shuffled(), 3, checkpoint_every=1)
    halfway = network()
    halfway.load_state_dict(torch.load(tmp_path / "finetune.pt", weights_only=True)["model"])
    restarted = finetune(halfway, FineTune(epochs=2, lr=0.1, data=shuffled()), teacher=network())
    assert not same(restarted.model, train(tmp_path, shuffled()).model)


def test_a_finished_run_returns_at_once(tmp_path: Path, same: Same) -> None:
    first = train(tmp_path / "run.ckpt", shuffled())
    assert (tmp_path / "run.ckpt").is_file()
    again = train(tmp_path / "run.ckpt", shuffled(), stop_at=None)
    assert same(again.model, first.model)
    assert again.history == first.history
    assert again.resumed_from == again.steps == first.steps
    # It was not trained again: a step would have been seen.
    assert train(tmp_path / "run.ckpt", shuffled(), stop_at=1).steps == first.steps
    with pytest.raises(Killed):
        train(tmp_path / "run.ckpt", shuffled(), stop_at=1, resume=False)


def test_an_early_stop_is_remembered(tmp_path: Path) -> None:
    for _ in range(2):
        result = train(tmp_path, shuffled(), target=-1e9)
        assert result.stopped_early
        assert len(result.history) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 0.2}, "lr: 0.1 then, 0.2 now"),
        ({"epochs": 3}, "epochs: 2 then, 3 now"),
        ({"optimizer": "adamw"}, "optimizer: sgd then, adamw now"),
        ({"loss": "distill"}, "loss: auto then, distill now"),
        ({"schedule": "plateau"}, "metric: absent then, metric now"),
        ({"data": [(torch.ones(2, 6), torch.tensor([0, 1]))]}, "steps in all: 8 then, 2 now"),
    ],
)
def test_a_checkpoint_of_other_options_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(Killed):
        train(tmp_path, shuffled(), 3)
    before = (tmp_path / "finetune.pt").read_bytes()
    options = {"data": shuffled(), **change}
    with pytest.raises(ConfigError, match=said):
        train(tmp_path, **options)
    assert (tmp_path / "finetune.pt").read_bytes() == before
    train(tmp_path, resume=False, **options)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    config = FineTune(data=[(torch.ones(2, 6), torch.tensor([0, 1]))], epochs=1, checkpoint=tmp_path)
    model = nn.Linear(6, 3)
    finetune(model, config, teacher=model)
    with pytest.raises(ConfigError, match=r"weight: float32 \[3, 6\] then, float32 \[4, 6\] now"):
        finetune(nn.Linear(6, 4), config, teacher=model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.weight *= 1.5
    with pytest.raises(ConfigError, match="starting weights: weight has other values"):
        finetune(other, config, teacher=model)
    with pytest.raises(ConfigError, match="teacher: weight has other values"):
        finetune(model, config, teacher=other)
    with pytest.raises(ConfigError, match="teacher: given then"):
        finetune(model, config)
    with torch.no_grad():
        other.weight.copy_(model.weight * (1 + 1e-6))  # the same factors, computed elsewhere
    assert finetune(other, config, teacher=model).resumed_from == 1


def test_broken_checkpoints(tmp_path: Path) -> None:
    file = tmp_path / "finetune.pt"
    train(tmp_path, shuffled())
    good = file.read_bytes()
    for bad in (b"", b"junk", good[: len(good) // 2], good[:100]):
        file.write_bytes(bad)
        with pytest.raises(CorruptArtifact, match="resume=False"):
            train(tmp_path, shuffled())
    torch.save({"state_dict": {}}, file)
    with pytest.raises(CorruptArtifact, match="not a checkpoint of rankfold"):
        train(tmp_path, shuffled())
    torch.save({"format": "rankfold-finetune", "version": 99}, file)
    with pytest.raises(CorruptArtifact, match="Upgrade"):
        train(tmp_path, shuffled())
    torch.save({"format": "rankfold-finetune", "version": 1}, file)
    with pytest.raises(CorruptArtifact, match="does not identify its run"):
        train(tmp_path, shuffled())
    file.write_bytes(good)
    assert train(tmp_path, shuffled()).resumed_from == 8


def test_an_error_before_the_first_saved_step_leaves_no_checkpoint(tmp_path: Path) -> None:
    good = (torch.ones(2, 6), torch.tensor([0, 1]))
    wrong = (torch.ones(2, 6), torch.tensor([0, 9]))
    for data, every, left in (([wrong], 1, []), ([good, wrong], None, []), ([good, wrong], 1, ["finetune.pt"])):
        folder = tmp_path / f"{len(data)}-{every}"
        with pytest.raises(DataError, match="9"):
            train(folder, data, checkpoint_every=every)
        assert [path.name for path in folder.iterdir()] == left
    train(tmp_path / "1-1", [good], lr=0.2)  # other options and data are not another run


def test_a_place_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(RankfoldError, match="cannot write"):
        train(blocked / "inside", shuffled(), stop_at=1)


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    stale, other = tmp_path / ".finetune.pt.abc.tmp", tmp_path / ".else.abc.tmp"
    stale.touch()
    other.touch()
    train(tmp_path, shuffled())
    assert sorted(p.name for p in tmp_path.iterdir()) == [".else.abc.tmp", "finetune.pt"]


def test_data_in_another_order_warns(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, Drifting(), 3, checkpoint_every=1)
    with pytest.warns(RankfoldWarning, match="another order"):
        train(tmp_path, Drifting())
    with pytest.raises(Killed):
        train(tmp_path, Changing(), 3, checkpoint_every=1, resume=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path, Changing())


def test_checkpoint_paths(tmp_path: Path) -> None:
    assert checkpoint_file("a/b") == Path("a/b/finetune.pt")
    assert checkpoint_file("a/b.pt") == Path("a/b.pt")
    (tmp_path / "v1.5").mkdir()
    assert checkpoint_file(tmp_path / "v1.5") == tmp_path / "v1.5" / "finetune.pt"


def test_a_checkpoint_holds_plain_tensors(tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(torch.ones(4, 6), torch.zeros(4).long()), batch_size=2)
    train(tmp_path, data)
    content = torch.load(tmp_path / "finetune.pt", weights_only=True)
    assert content["state"]["finished"]
    assert type(content["model"]) is dict
    assert set(content["model"]) == set(network().state_dict())
