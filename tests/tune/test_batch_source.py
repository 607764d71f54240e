"""Every process gets its share of every batch, and the same one whenever it is asked."""

from __future__ import annotations

import itertools
from collections import namedtuple
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, TensorDataset

from rankfold.errors import DataError
from rankfold.tune.batch_source import BatchSource, Shard, bounds, cut, digest

CPU = torch.device("cpu")


def source(data: Any, rank: int = 0, world: int = 1, seed: int = 0) -> BatchSource:
    return BatchSource(data, seed=seed, rank=rank, world=world, device=CPU)


def values(shares: Iterable[Shard]) -> list[list[int]]:
    return [share.batch[0].flatten().tolist() if share.active else [] for share in shares]


@given(total=st.integers(0, 300), world=st.integers(1, 17))
def test_parts_are_a_balanced_partition(total: int, world: int) -> None:
    parts = [bounds(total, rank, world) for rank in range(world)]
    assert parts[0][0] == 0
    assert parts[-1][1] == total
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    sizes = {stop - start for start, stop in parts}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("kind", ["loader", "list", "subclass"])
def test_shares_make_up_the_batches(kind: str, world: int) -> None:
    class Own(DataLoader[Any]):
        pass

    dataset = TensorDataset(torch.arange(13))
    data: Any = {
        "loader": DataLoader(dataset, batch_size=4, shuffle=True),
        "subclass": Own(dataset, batch_size=4, shuffle=True),
        "list": [(part,) for part in torch.arange(13).split(4)],
    }[kind]
    whole = values(source(data).epoch(1))
    assert sorted(itertools.chain(*whole)) == list(range(13))
    parts = [list(source(data, rank, world).epoch(1)) for rank in range(world)]
    for index, batch in enumerate(whole):
        shares = [part[index] for part in parts]
        assert list(itertools.chain(*values(shares))) == batch
        assert sum(share.weight for share in shares) == pytest.approx(1)
        assert {share.total for share in shares} == {len(batch)}
        for share in shares:
            assert share.batch[0].numel() == share.samples > 0


def test_a_loader_is_read_only_where_needed() -> None:
    class Counting(Dataset[torch.Tensor]):
        def __init__(self) -> None:
            self.read: list[int] = []

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> torch.Tensor:
            self.read.append(index)
            return torch.tensor(index)

    data = Counting()
    list(source(DataLoader(data, batch_size=4), 1, 2).epoch(0))
    assert data.read == [2, 3, 6, 7, 10, 11]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    loader = DataLoader(TensorDataset(torch.arange(50)), batch_size=50, shuffle=True)
    first = values(source(loader).epoch(0))
    torch.manual_seed(5)
    assert values(source(loader).epoch(0)) == first
    assert values(source(loader).epoch(1)) != first
    assert values(source(loader, seed=1).epoch(0)) != first


def test_augmentation_differs_between_processes_but_not_the_order() -> None:
    class Noisy(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.stack([torch.tensor(float(index)), torch.rand(())])

    loader = DataLoader(Noisy(), batch_size=4, shuffle=True)
    parts = [[s.batch for s in source(loader, rank, 2).epoch(0)] for rank in range(2)]
    noise = [torch.cat(part)[:, 1] for part in parts]
    assert not torch.isin(noise[0], noise[1]).any()
    order = torch.cat([torch.cat(part)[:, 0] for part in parts])
    assert sorted(order.tolist()) == list(range(8))


def test_samplers_that_draw_as_they_go() -> None:
    class Drawing(Sampler[int]):
        def __len__(self) -> int:
            return 12

        def __iter__(self) -> Iterator[int]:
            for _ in range(12):
                yield int(torch.randint(100, ()))

    data = TensorDataset(torch.arange(100))
    loader = DataLoader(data, batch_size=5, sampler=Drawing())
    whole = values(source(loader).epoch(0))
    parts = [values(source(loader, rank, 2).epoch(0)) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


Pair = namedtuple("Pair", "left right")


def test_slices_of_all_kinds_of_batches() -> None:
    x, y = torch.arange(4), torch.arange(4) * 10
    image = [torch.full((2,), float(i)) for i in range(4)]
    constant = torch.ones(3)
    cases: list[tuple[Any, Any]] = [
        (x, x[2:]),
        ([x, y], [x[2:], y[2:]]),
        (((x, y), x), ((x[2:], y[2:]), x[2:])),
        ((Pair(x, y), x), (Pair(x[2:], y[2:]), x[2:])),
        ((image, y), (image[2:], y[2:])),
        ({"a": x, "labels": y, "b": constant}, {"a": x[2:], "labels": y[2:], "b": constant}),
        (([x, y],), None),
    ]
    for batch, wanted in cases[:-1]:
        share = cut(batch, 1, 2)
        assert (share.samples, share.total, share.active) == (2, 4, True)
        assert digest(share.batch) == digest(wanted)
        assert type(share.batch) is type(wanted)
        assert digest(cut(batch, 0, 2).batch) != digest(wanted)
        assert cut(batch, 0, 1).batch is batch
    lonely = cut((x[:1], y[:1]), 0, 2)
    assert not lonely.active
    assert lonely.weight == 0
    assert lonely.samples == 1, "it keeps the others company"


def test_digests() -> None:
    x = torch.arange(6.0)
    assert digest((x, x)) == digest([x.clone(), x.clone()])
    others = [x, (x, x + 1), (x, x.long()), (x.reshape(2, 3), x), (x, x.half())]
    found = {digest((x, x)), *(digest(other) for other in others)}
    assert len(found) == 6
    assert digest(x.bfloat16()) != digest(x.bfloat16() + 1)
    assert digest(torch.tensor(1.0)) != digest(torch.tensor(2.0))
    assert digest(torch.eye(2).to_sparse()) != digest(torch.ones(3))


def test_sharded_loaders_are_refused() -> None:
    data = TensorDataset(torch.arange(8))
    sampler = DistributedSampler(data, num_replicas=2, rank=0)
    with pytest.raises(DataError, match="plain DataLoader"):
        source(DataLoader(data, sampler=sampler))


def test_lengths() -> None:
    assert source(DataLoader(TensorDataset(torch.arange(9)), batch_size=4)).length() == 3
    assert source([1, 2]).length() == 2
    assert source(iter([1])).length() is None
    assert source(map(int, "12")).once
    assert not source([1]).once
