"""The one convention by which data reaches a model."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankfold._tensors import model_device, tensors_of, to_device
from rankfold.batches import batch_size, call_model, iterate, leading, split_batch
from rankfold.errors import DataError, ModelError
from rankfold.inventory import evaluating
from rankfold.outputs import squared_distance

X, Y, Z = torch.zeros(4, 2), torch.ones(4), torch.full((4, 3), 2.0)


@pytest.mark.parametrize(
    ("batch", "inputs", "target"),
    [
        (X, X, None),
        ((X,), X, None),
        ([X], X, None),
        ((X, Y), X, Y),
        ([X, Y], X, Y),
        (((X, Z), Y), (X, Z), Y),
        (((X, Z),), (X, Z), None),
        (([X, Z], Y), [X, Z], Y),
        (({"a": X}, Y), {"a": X}, Y),
        ({"a": X}, {"a": X}, None),
        ({"a": X, "labels": Y}, {"a": X}, Y),
        ({"a": X, "label": Y}, {"a": X}, Y),
        ({"target": Y, "a": X, "b": Z}, {"a": X, "b": Z}, Y),
        (UserDict({"a": X, "labels": Y}), {"a": X}, Y),
    ],
)
def test_split_batch(batch: Any, inputs: Any, target: Any) -> None:
    got_inputs, got_target = split_batch(batch)
    assert type(got_inputs) is type(inputs)
    assert same(got_inputs, inputs)
    assert same(got_target, target)


def test_same_tells_apart() -> None:
    assert not same(X, Y)
    assert not same((X, Y), (Y, X))
    assert not same({"a": X}, {"b": X})
    assert not same(X, None)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((), "empty tuple or list"),
        ([], "empty tuple or list"),
        ((X, Y, Z), "tuple of 3 elements"),
        ([X, Y, Z, None], "list of 4 elements"),
        ((None, Y), "inputs of a batch are None"),
        ({"labels": Y}, "no inputs"),
        ({"a": X, "labels": Y, "target": Y}, "several targets"),
    ],
)
def test_split_batch_refuses(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_batch(batch)


class Echo(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs


def test_call_model() -> None:
    model = Echo()
    assert same(call_model(model, X), ((X,), {}))
    assert same(call_model(model, (X, Y)), ((X, Y), {}))
    assert same(call_model(model, [X, Y]), (([X, Y],), {}))
    assert same(call_model(model, {"a": X}), ((), {"a": X}))
    assert not same(call_model(model, (X, Y)), ((Y, X), {}))


Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Output:
    logits: Tensor
    extra: dict[str, Tensor]


def test_to_device_reaches_every_tensor_and_nothing_else() -> None:
    nested = {"a": [X, (Y, "text")], "b": Pair(Z, 3)}
    moved = to_device(nested, "meta")
    assert {t.device.type for t in tensors_of(moved)} == {"meta"}
    assert isinstance(moved["b"], Pair)
    assert moved["a"][1][1] == "text"
    assert moved["b"].second == 3
    assert {t.device.type for t in tensors_of(nested)} == {"cpu"}
    assert to_device(nested, None) is nested


def test_tensors_of() -> None:
    assert same(tensors_of({"a": [X, (Y, None)], "b": Output(Z, {"c": X})}), [X, Y, Z, X])
    assert tensors_of("text") == []


def test_batch_size() -> None:
    assert batch_size(X) == 4
    assert batch_size({"a": X, "b": None}) == 4
    assert batch_size((Z, X)) == 4
    assert batch_size([torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)]) == 2
    assert batch_size(([torch.zeros(3, 8, 8)],)) == 1
    assert batch_size(torch.tensor(1.0)) == 1


def test_model_device() -> None:
    assert model_device(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert model_device(nn.BatchNorm1d(2, affine=False)) == torch.device("cpu")
    assert model_device(nn.ReLU()) is None


def test_iterate() -> None:
    assert list(iterate(iter([1, 2]), "test")) == [1, 2]
    with pytest.raises(DataError, match="test data is empty"):
        list(iterate([], "test"))
    for wrong in (X, {"a": X}, "text", 3, None):
        with pytest.raises(DataError, match="must be an iterable of batches"):
            list(iterate(wrong, "test"))  # pyright: ignore[reportArgumentType]


def test_evaluating_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[1].eval()
    random = torch.get_rng_state()
    with evaluating(model), evaluating(model):
        assert not any(m.training for m in model.modules())
        assert not model(torch.rand(1, 2)).requires_grad
        torch.rand(3)
    assert [m.training for m in model.modules()] == [True, True, False]
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.raises(OSError, match="lost"), evaluating(model):
        raise OSError("lost")
    assert model.training


def test_squared_distance() -> None:
    reference = {"a": Y, "n": torch.tensor([1, 2]), "b": [Z]}
    assert squared_distance(reference, reference) == (0.0, 52.0)
    other = {"a": Y.half() + 1, "n": torch.tensor([7, 7]), "b": [Z - 0.5]}
    assert squared_distance(other, reference) == (4 + 12 * 0.25, 52.0)
    for wrong in (Y, [Y, Y], (Y, Z, Z), {"a": Y, "b": Z.T}, None):
        with pytest.raises(ModelError, match="cannot be compared"):
            squared_distance(wrong, reference)
    with pytest.raises(ModelError, match="cannot be compared"):
        squared_distance(torch.tensor(1), torch.tensor(1))


def same(a: Any, b: Any) -> bool:
    """Whether two nested objects hold equal tensors and values in the same places."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_leading_samples() -> None:
    """Lists and tensors of samples are cut; where a tensor counts something else, nothing is."""
    x, mask = torch.arange(12.0).reshape(4, 3), torch.ones(3, 3)
    assert leading(x, 2).equal(x[:2])
    assert leading(x, 9) is x
    cut = leading({"a": x, "b": (x, x)}, 3)
    assert cut["a"].shape == cut["b"][1].shape == (3, 3)
    assert leading((x, mask), 2)[0] is x  # the mask has no samples: positions cannot be told from samples
    assert leading([x[0], x[1], x[2]], 2)[1] is not None
    assert len(leading([x[0], x[1], x[2]], 2)) == 2
