"""Padded positions are not data: the sums of padded batches are those of the sequences, run one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import rankfold as rf
from rankfold.calibration import Sequential, collect_moments, reconstruct_sequentially
from rankfold.calibration.flow import Use
from rankfold.calibration.sequential_sums import collect_pairs
from rankfold.candidates.fisher import FisherProxy
from rankfold.candidates.network import NetworkProxy
from rankfold.evaluation import output_error
from rankfold.inventory import Padding, inspect, static_inventory
from rankfold.inventory.padding import COUNTED
from rankfold.records import Choice
from rankfold.surgery import plan_of

LENGTHS = (7, 4, 2, 6, 5)


class Encoder(nn.Module):
    """A transformer block as transformers' models are called; the head sees one vector per sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(12, 24), nn.Linear(24, 12), nn.Linear(12, 3)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        hidden = None if attention_mask is None else attention_mask == 0
        x = x + self.attention(x, x, x, key_padding_mask=hidden, need_weights=False)[0]
        x = x + self.down(self.up(x).relu())
        return self.head(x[:, 0])


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder().eval()


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 20, (n,), generator=generator) for n in LENGTHS]


def padded(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the sequences as one batch, and 1 where it has data."""
    batch = nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(p), dtype=torch.long) for p in parts], batch_first=True)
    return batch, mask


def batches(form: Callable[[Tensor, Tensor], Any]) -> list[Any]:
    """Return two padded batches."""
    parts = sequences()
    return [form(*padded(parts[:2])), form(*padded(parts[2:]))]


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "keywords": lambda ids, mask: {"ids": ids, "attention_mask": mask},
    "positions": lambda ids, mask: ((ids, mask), torch.zeros(len(ids))),
    "booleans": lambda ids, mask: {"ids": ids, "attention_mask": mask.bool()},
    "floats": lambda ids, mask: {"ids": ids, "attention_mask": mask.float()},
}

UP = next(layer for layer in static_inventory(Encoder()) if layer.name == "up")
NAMES = ["attention.q_proj", "attention.k_proj", "attention.v_proj", "up", "down", "head"]


@pytest.mark.parametrize("form", FORMS)
def test_moments_are_those_of_the_sequences_one_by_one(form: str) -> None:
    net = encoder().double()  # kernels for batches of other sizes round differently
    layers = [layer for layer in static_inventory(net) if layer.name in NAMES]
    found = collect_moments(net, batches(FORMS[form]), layers)
    expected = collect_moments(net, [(one[None],) for one in sequences()], layers)
    assert found.padded == ()
    for name in NAMES:
        assert found[name].count == expected[name].count == (len(LENGTHS) if name == "head" else sum(LENGTHS))
        torch.testing.assert_close(found[name].channel, expected[name].channel, rtol=1e-5, atol=1e-7)


def test_without_a_mask_padding_counts() -> None:
    """The negative control: the same tokens, with a mask that says that all of them are data."""
    net = encoder()
    layers = [layer for layer in static_inventory(net) if layer.name in NAMES]
    found = collect_moments(net, batches(lambda ids, mask: {"ids": ids, "attention_mask": mask}), layers)
    other = collect_moments(net, batches(lambda ids, mask: {"ids": ids, "attention_mask": mask + 1}), layers)
    assert other["up"].count == 2 * 7 + 3 * 6 > found["up"].count
    assert float((other["up"].channel - found["up"].channel).norm() / found["up"].channel.norm()) > 0.05


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("square", [False, True])  # as many sequences as positions: only the model's layout tells
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_masks_of_torch(batch_first: bool, floats: bool, square: bool) -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first), 2).eval()
    lengths = (4, 2, 1, 3) if square else (4, 2, 1)
    parts = [torch.randn(n, 8) for n in lengths]
    batch, mask = nn.utils.rnn.pad_sequence(parts, batch_first=batch_first), torch.zeros(len(parts), 4)
    for row, n in zip(mask, lengths, strict=True):
        row[n:] = -torch.inf
    layers = [layer for layer in static_inventory(net) if not layer.name.endswith("out_proj")]
    inputs = {"src": batch, "src_key_padding_mask": mask if floats else mask.isinf()}
    found = collect_moments(net, [inputs], layers)
    expected = collect_moments(net, [(p[None] if batch_first else p[:, None],) for p in parts], layers)
    assert found.padded == ()
    for layer in layers:
        assert found[layer.name].count == expected[layer.name].count == sum(lengths)
        torch.testing.assert_close(found[layer.name].channel, expected[layer.name].channel, rtol=1e-5, atol=1e-6)


class Tokens(Encoder):
    """Its outputs are vectors of the positions."""

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        hidden = None if attention_mask is None else attention_mask == 0
        x = x + self.attention(x, x, x, key_padding_mask=hidden, need_weights=False)[0]
        return x + self.down(self.up(x).relu())


def with_padding(token: int, data: int) -> dict[str, Tensor]:
    """Return a batch padded with a token; `data` is added to the mask."""
    ids, mask = padded(sequences())
    return {"ids": torch.where(mask == 1, ids, token), "attention_mask": mask + data}


@pytest.mark.parametrize("proxy", [NetworkProxy, lambda net, data: FisherProxy(net, data, [UP])])
def test_proxies_compare_no_padded_position(proxy: Callable[..., NetworkProxy | FisherProxy]) -> None:
    torch.manual_seed(0)
    net = Tokens().eval()
    changes = [net.up.weight.detach() * scale for scale in (0.9, 0.5)]

    def losses(token: int, data: int = 0) -> list[float]:
        return proxy(net, [with_padding(token, data)]).losses(UP, changes)

    assert losses(0) == pytest.approx(losses(7), rel=1e-5)
    assert losses(0, 1) != pytest.approx(losses(7, 1), rel=1e-2), "the negative control: all positions are data"


def test_the_measured_loss_is_that_of_the_sequences_one_by_one() -> None:
    torch.manual_seed(0)
    net = Tokens().eval()
    changes = [net.up.weight.detach() * scale for scale in (0.9, 0.5)]
    found = NetworkProxy(net, [with_padding(0, 0)]).losses(UP, changes)
    expected = NetworkProxy(net, [(one[None],) for one in sequences()]).losses(UP, changes)
    assert found == pytest.approx(expected, rel=1e-4)


def test_long_sequences_are_sampled_on_the_grid_of_the_batch() -> None:
    net = encoder()
    ids, mask = torch.ones(2, 3000, dtype=torch.long), torch.ones(2, 3000, dtype=torch.long)
    mask[1, 1500:] = 0
    layers = [layer for layer in static_inventory(net) if layer.name == "up"]
    found = collect_moments(net, [{"ids": ids, "attention_mask": mask}], layers, max_positions=100)
    assert found["up"].count == 100 + 50


def test_padded_positions_may_be_anything() -> None:
    class Divided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.fc(x / attention_mask[..., None])  # NaN at padded positions

    torch.manual_seed(0)
    net, x = Divided(), torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    x = x * mask[..., None]
    data = [{"x": x, "attention_mask": mask}]
    found = collect_moments(net, data, static_inventory(net))
    rows = torch.cat([x[0, :3], x[1, :2]]).double()
    torch.testing.assert_close(found["fc"].channel[0], rows.mT @ rows / 5, rtol=1e-5, atol=1e-7)
    plan = rf.Plan(layers={"fc": Choice(method="svd", ranks=(1,))})
    assert all(p.isfinite().all() for p in reconstruct_sequentially(net, plan, data).model.parameters())


def test_layers_without_the_dimensions_of_the_mask_are_named() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.up = nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 16)
            self.flat, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            x = self.up(self.conv(x.mT).mT)
            x = self.flat(x.flatten(0, 1)).unflatten(0, attention_mask.shape)
            return self.head((x * attention_mask[..., None]).sum(1))

    torch.manual_seed(0)
    net, x = Mixed(), torch.randn(3, 5, 8)
    mask = torch.ones(3, 5)
    mask[0, 2:] = 0
    found = collect_moments(net, [{"x": x, "attention_mask": mask}], static_inventory(net))
    assert found.padded == ("conv", "flat")
    assert [found[name].count for name in ("conv", "up", "flat", "head")] == [15, 12, 15, 3]
    data = [{"x": x, "attention_mask": mask}]
    plan = rf.plan(net, (x, mask), budget="params<=50%", calibration=data, strategy="uniform")
    noted = {name for name, choice in plan.factored.items() if COUNTED in (choice.reason or "")}
    assert noted == {"conv", "flat"} & set(plan.factored)
    assert noted
    small = rf.apply(net, plan, data, reconstruct="sequential")
    reasons = {name: choice.reason or "" for name, choice in plan_of(small).factored.items()}
    assert {name for name, reason in reasons.items() if reason.count(COUNTED) == 1} == noted
    full = rf.plan(net, (x, mask), budget="params<=50%", calibration=[{"x": x, "attention_mask": mask * 0 + 1}])
    assert not any(COUNTED in (choice.reason or "") for choice in full.factored.values())


def pairs(net: Encoder, data: list[Any]) -> Any:
    """Return the sums of one layer between a network and one that is slightly different before this layer."""
    torch.manual_seed(2)
    other = encoder()
    with torch.no_grad():
        other.up.weight += 0.1 * torch.randn_like(other.up.weight)
    layer = inspect(net, data[0]).layer("down")
    uses = {"down": Use(calls=1, norm=None, joins=False, sibling=None)}
    sums = collect_pairs(net, other, {"down": layer}, uses, data, Sequential())["down"]
    assert sums is not None
    return sums.moments()


def test_the_sums_of_the_sequential_fit_are_those_of_the_sequences() -> None:
    net = encoder()
    found = pairs(net, batches(FORMS["keywords"]))
    expected = pairs(net, [{"ids": one[None]} for one in sequences()])
    assert found.count == expected.count == sum(LENGTHS)
    for name in ("second", "cross", "lacking", "given"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6)
    assert found.energy == pytest.approx(expected.energy, rel=1e-4)
    control = pairs(net, batches(lambda ids, mask: {"ids": ids, "attention_mask": mask + 1}))
    assert control.count > found.count


def test_the_sequential_fit_is_that_of_the_sequences() -> None:
    net = encoder()
    plan = rf.Plan(layers={n: Choice(method="svd", ranks=(4,)) for n in ("attention.v_proj", "up", "down")})

    def fitted(data: list[Any]) -> dict[str, Tensor]:
        made = reconstruct_sequentially(net, plan, data)
        return {name: made.model.get_submodule(name).weight.detach() for name in plan.layers}

    found = fitted(batches(FORMS["keywords"]))
    expected = fitted([{"ids": one[None]} for one in sequences()])
    control = fitted(batches(lambda ids, mask: {"ids": ids, "attention_mask": mask + 1}))
    for name in plan.layers:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    assert max(float((control[name] - found[name]).abs().max()) for name in plan.layers) > 1e-2


def test_a_mask_is_an_argument_of_the_model_by_its_name() -> None:
    net, (ids, mask) = encoder(), padded(sequences())
    assert Padding.of(net, (ids,)) is None
    assert Padding.of(net, {"ids": ids, "attention_mask": torch.ones_like(mask)}) is None
    assert Padding.of(net, {"ids": ids, "attention_mask": mask[:, None]}) is None  # not (batch, length)
    assert Padding.of(net, {"ids": ids, "token_type_ids": mask}) is None
    found = Padding.of(net, (ids, mask))
    assert found is not None
    assert torch.equal(found.masks[0], mask.bool())
    twins = Padding.of(net, {"attention_mask": mask, "decoder_attention_mask": torch.ones_like(mask)})
    assert twins is not None
    data = twins.data(torch.zeros(5, 7, 3))
    assert data is not None
    assert bool(data[0].all())  # which mask it is cannot be told, so all positions may be data


def test_transformers_models() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    net = BertModel(BertConfig(vocab_size=20, **sizes)).eval()
    layers = static_inventory(net)
    data = batches(lambda ids, mask: {"input_ids": ids, "attention_mask": mask})
    found = collect_moments(net, data, layers)
    expected = collect_moments(net, [{"input_ids": one[None]} for one in sequences()], layers)
    assert found.padded == ()
    assert {moments.count for moments in found.values()} == {sum(LENGTHS), len(LENGTHS)}  # one vector for the pooler
    for name, moments in found.items():
        assert moments.count == expected[name].count
        torch.testing.assert_close(moments.channel, expected[name].channel, rtol=1e-4, atol=1e-6)


def test_output_errors_leave_padding_out() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc = nn.Embedding(20, 12), nn.Linear(12, 8)

        def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
            del attention_mask
            return self.fc(self.embed(ids))

    torch.manual_seed(0)
    net, other = Tokens(), Tokens()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        other.embed.weight[0] += 1  # the token of the padding
    data = batches(FORMS["keywords"])
    assert output_error(net, data)(other) == 0
    control = [{**batch, "attention_mask": batch["attention_mask"] + 1} for batch in data]
    assert output_error(net, control)(other) > 0.1
    with torch.no_grad():
        other.fc.bias += 0.1
        values = torch.cat([net(**batch)[batch["attention_mask"] != 0].flatten() for batch in data])
    assert output_error(net, data)(other) == pytest.approx(0.01 * len(values) / float(values.square().sum()), rel=1e-4)
