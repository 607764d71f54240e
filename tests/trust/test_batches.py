"""Batches of every kind: they reach the model as documented, or are refused by name. Nothing is dropped in silence."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rankfold as rf
from rankfold._tensors import copied, to_device
from rankfold.batches import leading, split_batch
from rankfold.errors import DataError, RankfoldWarning

IDS, MASK, LABELS = torch.arange(24).reshape(8, 3), (torch.arange(24).reshape(8, 3) % 2).float(), torch.arange(8) % 4


class Encoder(nn.Module):
    """Takes an optional mask, and counts the calls without one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.a, self.b = nn.Embedding(24, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.unmasked = 0

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        self.unmasked += mask is None
        h = torch.relu(self.a(self.embed(ids)))
        return self.b((h if mask is None else h * mask[..., None]).mean(1))


Three = namedtuple("Three", ["ids", "mask", "labels"])
Two = namedtuple("Two", ["label", "image"])
Plain = namedtuple("Plain", ["first", "second"])


class Encoding(UserDict[str, Any]):
    """As a tokenizer gives it: a mapping with attributes."""

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]


@dataclass
class Sample:
    ids: Tensor
    mask: Tensor


GOOD = [
    ((IDS, MASK), LABELS),
    [(IDS, MASK), LABELS],
    {"ids": IDS, "mask": MASK, "labels": LABELS},
    {"label": LABELS, "mask": MASK, "ids": IDS},
    ({"ids": IDS, "mask": MASK}, LABELS),
    Encoding({"ids": IDS, "mask": MASK, "labels": LABELS}),
    (Encoding({"ids": IDS, "mask": MASK}), LABELS),
    Three(IDS, MASK, LABELS),
    (Plain(IDS, MASK), LABELS),
]


@pytest.mark.parametrize("batch", GOOD, ids=lambda b: type(b).__name__)
def test_the_mask_arrives_everywhere(batch: Any) -> None:
    net = Encoder().eval()
    with torch.no_grad():
        right = net(IDS, MASK).argmax(-1)
    assert split_batch(batch)[1] is LABELS
    LABELS.copy_(right)
    assert rf.evaluate(net, rf.top1([batch])) == 1.0
    plan = rf.plan(net, (IDS[:2], MASK[:2]), budget="params<=90%", calibration=[batch] * 2)
    small = rf.apply(net, plan, [batch])
    rf.finetune(small, rf.FineTune(data=[batch], epochs=1), teacher=net)
    assert net.unmasked == 0


@pytest.mark.parametrize("batch", [(IDS, MASK, LABELS), [IDS, MASK, LABELS], (IDS, LABELS, MASK, None), (None, LABELS)])
def test_refused_by_name(batch: Any) -> None:
    net = Encoder().eval()
    plan = rf.plan(net, (IDS[:2], MASK[:2]), budget="params<=90%")
    for step in (
        lambda: rf.evaluate(net, rf.top1([batch])),
        lambda: rf.evaluate(net, rf.agreement(net, [batch])),
        lambda: rf.plan(net, (IDS[:2], MASK[:2]), budget="params<=90%", calibration=[batch]),
        lambda: rf.compress(net, (IDS[:2], MASK[:2]), budget="params<=90%", calibration=[batch]),
        lambda: rf.apply(net, plan, [batch]),
        lambda: rf.finetune(net, rf.FineTune(data=[batch]), teacher=net),
    ):
        with pytest.raises(DataError, match=r"a batch is a (tuple|list) of [34] elements|inputs of a batch are None"):
            step()


@pytest.mark.parametrize("loader", [[(IDS, MASK)], DataLoader(TensorDataset(IDS, MASK), 4), iter([(IDS, MASK)])])
def test_inputs_that_are_not_wrapped_are_recognized_by_the_example(loader: Any) -> None:
    with pytest.raises(DataError, match="has the structure of the example input"):
        rf.plan(Encoder().eval(), (IDS[:2], MASK[:2]), budget="params<=90%", calibration=loader)


def test_fewer_arguments_than_the_example_has_are_told() -> None:
    for example in ((IDS[:2], MASK[:2]), {"ids": IDS[:2], "mask": MASK[:2]}):
        for batches in ([(IDS, LABELS)] * 2, [IDS], [{"ids": IDS, "labels": LABELS}]):
            with pytest.warns(RankfoldWarning, match="has 2 arguments for the model, the calibration data 1") as caught:
                rf.plan(Encoder().eval(), example, budget="params<=90%", calibration=batches)
            assert len(caught) == 1
    # Labels of each position look like a mask only to those who do not look at their type.
    with pytest.warns(RankfoldWarning, match="second element of a tuple or list is the target"):
        rf.plan(Encoder().eval(), (IDS[:2], MASK[:2]), budget="params<=90%", calibration=[(IDS, IDS)])


def test_more_arguments_than_the_example_has_are_fine() -> None:
    net = Encoder().eval()
    rf.plan(net, IDS[:2], budget="params<=90%", calibration=[((IDS, MASK), LABELS)])
    rf.plan(net, (IDS[:2], None), budget="params<=90%", calibration=[(IDS, LABELS), ((IDS, None), LABELS), (IDS,)])


class Detector(nn.Module):
    """Takes a list of pictures of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, images: list[Tensor]) -> Tensor:
        return torch.stack([self.b(self.a(image[None])).mean((2, 3))[0] for image in images])


def test_lists_of_samples() -> None:
    images = [torch.randn(3, 4, 4), torch.randn(3, 5, 5), torch.randn(3, 6, 6)]
    net = Detector().eval()
    for batch in ((images,), (images, [{"boxes": LABELS}] * 3), (images[:2], None)):
        rf.plan(net, images[:1], budget="params<=90%", calibration=[batch])
        assert rf.evaluate(net, rf.agreement(net, [batch])) == 1.0
    for wrong in (images[:2], images[:1], images):
        with pytest.raises(DataError, match="into a tuple"):
            rf.plan(net, images[:1], budget="params<=90%", calibration=[wrong])


@pytest.mark.parametrize("target", [{"labels": LABELS}, [{"labels": LABELS}], "text", object()])
def test_targets_that_are_no_classes(target: Any) -> None:
    net = Encoder().eval()
    with pytest.raises(DataError, match="targets must be class indices"):
        rf.evaluate(net, rf.top1([(IDS, target)]))
    assert rf.evaluate(net, rf.agreement(net, [(IDS, target)])) == 1.0


class Whole(Encoder):
    """Takes one record."""

    def forward(self, ids: Any, mask: Tensor | None = None) -> Tensor:
        assert mask is None
        return super().forward(ids.ids, ids.mask)


RECORD, ENCODING = Sample(IDS, MASK), Encoding({"ids": IDS, "mask": MASK})


@pytest.mark.parametrize("batch", [RECORD, (RECORD, LABELS), ((ENCODING,), LABELS)])
def test_a_record_is_one_argument(batch: Any) -> None:
    net = Whole().eval()
    example = split_batch(batch)[0]
    rf.plan(net, example, budget="params<=90%", calibration=[batch])
    assert rf.evaluate(net, rf.agreement(net, [batch])) == 1.0
    assert net.unmasked == 0


def test_named_tuples() -> None:
    assert split_batch(Two(LABELS, MASK)) == (MASK, LABELS), "the target is known by its name, wherever it is"
    assert split_batch(Plain(MASK, LABELS)) == (MASK, LABELS)
    for wrong in (namedtuple("Wrong", ["a", "b", "c"])(1, 2, 3), Three(IDS, MASK, LABELS)._replace()[:3]):
        with pytest.raises(DataError, match="3 elements"):
            split_batch(wrong)
    with pytest.raises(DataError, match="several targets"):
        split_batch(namedtuple("Wrong", ["a", "label", "target"])(1, 2, 3))


def parts(value: Any) -> list[Tensor]:
    if isinstance(value, Sample):
        return [value.ids, value.mask]
    return list(value) if isinstance(value, tuple | list) else list(value.values())


@pytest.mark.parametrize("batch", [dict(ENCODING), ENCODING, RECORD, Plain(IDS, MASK), [IDS, MASK], (IDS, MASK)])
def test_tensors_inside_are_copied_moved_and_cut(batch: Any) -> None:
    twin, short, moved = copied(batch), leading((batch,), 2)[0], to_device(batch, "meta")
    assert type(twin) is type(short) is type(moved) is type(batch)
    for part in parts(twin):
        part.zero_()
    assert torch.equal(IDS, torch.arange(24).reshape(8, 3))
    assert [len(part) for part in parts(batch)] == [8, 8]
    assert [part.device.type for part in parts(moved)] == ["meta", "meta"]
    assert [len(part) for part in parts(short)] == ([8, 8] if isinstance(batch, list) else [2, 2])
