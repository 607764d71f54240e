"""Peak RAM: liveness by hand and by brute force, and the prediction for a plan against the compressed model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import rankfold as rf
from rankfold import methods
from rankfold.cost import activation_profile, layer_ram, liveness
from rankfold.cost.liveness import Step, timeline
from rankfold.errors import ModelError, UnknownNameError
from rankfold.inventory import export_graph, inspect
from rankfold.records import ActivationProfile, Blueprint, Choice, Inventory, LayerInfo, Plan, gauge_blueprint


def profile_of(model: nn.Module, x: Any, *, deploy_dtype: str | None = None) -> tuple[Inventory, ActivationProfile]:
    found, graph = inspect(model, x), export_graph(model, x)
    profile = activation_profile(
        graph.graph, graph.constants, graph.users, found.compressible, deploy_dtype=deploy_dtype
    )
    return found, profile


def peak_of(model: nn.Module, x: Any, *, deploy_dtype: str | None = None) -> int:
    return profile_of(model, x, deploy_dtype=deploy_dtype)[1].peak


# ---- the accounting, on numbered memory

A, B, C, D = range(4)


def test_a_chain_keeps_what_it_reads_and_what_it_writes() -> None:
    steps = [Step(writes=(A,)), Step(reads=(A,), writes=(B,)), Step(reads=(B,), writes=(C,)), Step(reads=(C,))]
    made = timeline(steps, {A: 5, B: 7, C: 2})
    assert made.total == (5, 12, 9, 2)
    assert made.peak == 12


def test_a_later_reader_keeps_a_buffer_alive() -> None:
    steps = [Step(writes=(A,)), Step(reads=(A,), writes=(B,)), Step(reads=(B,), writes=(C,)), Step(reads=(C, A))]
    assert timeline(steps, {A: 5, B: 7, C: 2}).total == (5, 12, 14, 7)


def test_elementwise_takes_over_the_operand_that_nothing_reads_later() -> None:
    def total(*later: int, elementwise: bool = True, size: int = 5) -> tuple[int, ...]:
        steps = [Step(writes=(A,)), Step(reads=(A,), writes=(B,), elementwise=elementwise), Step(reads=(B, *later))]
        return timeline(steps, {A: 5, B: size}).total

    assert total() == (5, 5, 5)
    assert total(elementwise=False) == (5, 10, 5)
    assert total(A) == (5, 10, 10)
    assert total(size=6) == (5, 11, 6)


def test_a_sum_takes_over_one_of_its_two_operands() -> None:
    steps = [Step(writes=(A, B)), Step(reads=(A, B), writes=(C,), elementwise=True), Step(reads=(C,))]
    made = timeline(steps, {A: 5, B: 5, C: 5})
    assert made.total == (10, 10, 5)
    assert made.buffer[C] == A


def test_memory_read_in_two_orders_is_not_overwritten() -> None:
    steps = [Step(writes=(A,)), Step(reads=(A, A), writes=(B,), elementwise=True), Step(reads=(B,))]
    assert timeline(steps, {A: 5, B: 5}).peak == 10


def test_views_and_writes_in_place_add_nothing() -> None:
    steps = [Step(writes=(A,)), Step(reads=(A,), writes=(A,)), Step(reads=(A,), writes=(B,)), Step(reads=(B,))]
    assert timeline(steps, {A: 5, B: 2}).total == (5, 5, 7, 2)


def test_a_result_that_nothing_reads_is_alive_while_it_is_written() -> None:
    assert timeline([Step(writes=(A,)), Step(reads=(A,), writes=(B, C))], {A: 1, B: 2, C: 4}).total == (1, 7)


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Step], dict[int, int]]:
    """Random programs: each step reads some of what there is and writes new memory, or a view."""
    sizes = {0: draw(st.integers(1, 4))}
    steps = [Step(writes=(0,))]
    for _ in range(draw(st.integers(1, 9))):
        reads = tuple(draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, max_size=3)))
        kind = draw(st.sampled_from(["new", "new", "elementwise", "view", "two"]))
        fresh = range(len(sizes), len(sizes) + (2 if kind == "two" else 1))
        if kind == "view":
            steps.append(Step(reads=reads, writes=reads[:1]))
            continue
        sizes |= {piece: draw(st.integers(1, 4)) for piece in fresh}
        steps.append(Step(reads=reads, writes=tuple(fresh), elementwise=kind == "elementwise"))
    steps.append(Step(reads=tuple(draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, max_size=3)))))
    return steps, sizes


def simulated(steps: Sequence[Step], sizes: Mapping[int, int]) -> list[int]:
    """Run a program with an allocator: the brute force."""
    place: dict[int, int] = {}  # memory -> address
    held: dict[int, int] = {}  # address -> bytes
    total, addresses = [], iter(range(1000))
    for i, step in enumerate(steps):
        later = {piece for s in steps[i + 1 :] for piece in (*s.reads, *s.writes)}
        for piece in step.writes:
            if piece in place:
                continue
            free = [r for r in step.reads if r not in later and sizes[r] == sizes[piece] and step.reads.count(r) == 1]
            if step.elementwise and free:
                place[piece] = place[free[0]]
            else:
                place[piece] = next(addresses)
                held[place[piece]] = sizes[piece]
        total.append(sum(held.values()))
        needed = {place[piece] for piece in later if piece in place}
        held = {address: size for address, size in held.items() if address in needed}
    return total


@given(programs())
def test_the_timeline_is_that_of_an_allocator(program: tuple[list[Step], dict[int, int]]) -> None:
    steps, sizes = program
    made = timeline(steps, sizes)
    assert list(made.total) == simulated(steps, sizes)
    assert made.peak >= max(sizes.values())


# ---- graphs by hand

X = torch.zeros(1, 3, 8, 8)  # 768 bytes


class Residual(nn.Module):
    """A block with a shortcut, BatchNorm and activations."""

    def __init__(self, channels: int = 8, *, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.head(self.relu(x + y).mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads all results before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3 + 6 * i, 6, 3, padding=1) for i in range(4)])
        self.fuse = nn.Conv2d(27, 12, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, functional.gelu(layer(x))], 1)
        return self.fuse(x)


def test_a_chain_by_hand() -> None:
    """Convolution to 8 maps of 36, which norm and relu overwrite; pooled to 9; linear."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)
    ).eval()
    found, profile = profile_of(net, X)
    x, conv, pool, out = 4 * 192, 4 * 8 * 36, 4 * 8 * 9, 4 * 10
    assert profile.peak == x + conv
    assert profile.floor == conv + pool
    assert layer_ram(profile, found.layer("0")) == x + conv
    assert layer_ram(profile, found.layer("5")) == pool + out


@pytest.mark.parametrize("inplace", [False, True])
def test_a_residual_block_by_hand(inplace: bool) -> None:
    """While the second convolution runs: the shortcut, its input and its output; so for the first one."""
    found, profile = profile_of(Residual(inplace=inplace).eval(), X)
    each = 4 * 8 * 64
    assert profile.peak == 3 * each
    assert layer_ram(profile, found.layer("stem")) == 4 * 192 + each
    assert layer_ram(profile, found.layer("conv1")) == 2 * each
    assert layer_ram(profile, found.layer("conv2")) == 3 * each
    assert profile.floor == 2 * each


def test_a_dense_block_by_hand() -> None:
    """The last concatenation reads 21 and 6 maps and writes 27; the gelu before it works in place."""
    found, profile = profile_of(Dense().eval(), X)
    each = 4 * 64
    assert profile.peak == profile.floor == (21 + 6 + 27) * each
    assert layer_ram(profile, found.layer("layers.3")) == (21 + 6) * each
    assert layer_ram(profile, found.layer("fuse")) == 27 * each + 4 * 12 * 16


def test_the_type_of_activations() -> None:
    net = Residual().eval()
    assert peak_of(net, X, deploy_dtype="int8") * 4 == peak_of(net, X, deploy_dtype="float16") * 2 == peak_of(net, X)
    assert peak_of(Residual().eval().to(torch.bfloat16), X.to(torch.bfloat16)) == peak_of(
        net, X, deploy_dtype="bfloat16"
    )
    with pytest.raises(UnknownNameError):
        peak_of(net, X, deploy_dtype="int4")


def test_integers_keep_their_size() -> None:
    net = nn.Sequential(nn.Embedding(50, 6), nn.Linear(6, 6))
    tokens = torch.zeros(1, 16, dtype=torch.int64)
    # The tokens, eight bytes each, are gone when the linear layer runs.
    assert peak_of(net, tokens) == max(16 * 8 + 16 * 6 * 4, 2 * 16 * 6 * 4)
    assert peak_of(net, tokens, deploy_dtype="int8") == max(16 * 8 + 16 * 6, 2 * 16 * 6)


def test_the_batch_is_the_example_s() -> None:
    net = Residual().eval()
    assert peak_of(net, X.repeat(3, 1, 1, 1)) == 3 * peak_of(net, X)


class Constants(nn.Module):
    """Positions, a mask and a normalized weight: none of them depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 4)
        self.linear = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.embed(torch.arange(500))[:2]
        return self.linear(y) * torch.ones(2, 4).tril()


def test_constants_are_not_in_ram() -> None:
    found, profile = profile_of(Constants().eval(), torch.zeros(2, 4))
    assert profile.peak == 2 * 4 * 8
    assert layer_ram(profile, found.layer("linear")) == 2 * 4 * 8


def test_what_no_result_depends_on_is_not_computed() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 400)

        def forward(self, x: Tensor) -> Tensor:
            self.idle(x)
            return self.used(x)

    found, profile = profile_of(Idle(), torch.zeros(1, 4))
    assert profile.peak == 32
    assert layer_ram(profile, found.layer("idle")) == 0


def test_a_second_reader_outside_the_layer_keeps_its_cost() -> None:
    """A tied embedding is no run of the linear layer."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x))

    graph = export_graph(Tied(), torch.zeros(1, 3, dtype=torch.int64))
    assert list(graph.users.values()) == [("head",)]


def test_tied_layers_are_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(self.a(x)))

    found, profile = profile_of(Twice(), torch.zeros(1, 6))
    assert [len(runs) for runs in profile.layers.values()] == [3]
    assert found.compressible[0].ties == ("b",)


def test_a_profile_as_json() -> None:
    _, profile = profile_of(Residual().eval(), X)
    assert ActivationProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


def test_the_model_is_left_as_it_was() -> None:
    net = Residual()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    export_graph(net, X)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert {type(p) for p in net.parameters()} == {nn.Parameter}


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else x


class Selecting(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[x[:, 0] > 0])


def test_a_model_that_cannot_be_exported() -> None:
    with pytest.raises(ModelError, match=r"cannot be exported.*1x4 float32(.|\n)*bound on ram needs"):
        export_graph(Branching(), torch.zeros(1, 4))


def test_a_size_that_depends_on_the_data() -> None:
    graph = export_graph(Selecting(), torch.ones(3, 4))
    with pytest.raises(ModelError, match="depends on the data"):
        activation_profile(graph.graph, graph.constants, graph.users, ())


# ---- the prediction for a plan


class Attention(nn.Module):
    """Projections that are layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 48), nn.Linear(48, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (f(y).unflatten(2, (2, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        heads = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(x)))


class Packed(nn.Module):
    """Torch's own attention, whose projections are packed."""

    def __init__(self, *, shortcut: bool) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.last = nn.Linear(16, 8)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.last(x + y if self.shortcut else y)


class Mixed(nn.Module):
    """Strides, dilation, groups, a transposed convolution, one layer used twice, and a linear layer on a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 5, stride=2, padding=2)
        self.b = nn.Conv2d(12, 12, 3, padding="same", dilation=2, groups=2)
        self.c = nn.ConvTranspose2d(12, 8, 3, stride=2)
        self.d = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.a(x))
        x = self.c(functional.relu6(self.b(self.b(x)) * x))
        return self.d(x.permute(0, 2, 3, 1)).sigmoid()


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.SiLU(),
        nn.Conv2d(16, 16, 1), nn.ReLU(True), nn.Dropout(), nn.Flatten(), nn.Linear(64, 24), nn.Linear(24, 10),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "chain": (chain, X),
    "residual": (Residual, X),
    "dense": (Dense, X),
    "mixed": (Mixed, torch.zeros(2, 3, 9, 9)),
    "attention": (Attention, torch.zeros(2, 5, 16)),
}


def predicted(found: Inventory, profile: ActivationProfile, plan: Plan) -> int:
    """Return the peak of a plan: nothing but the largest of the floor and of each layer's own."""
    peak = profile.floor
    for layer in found.compressible:
        peak = max(peak, layer_ram(profile, layer, blueprint_of(layer, plan)))
    return peak


def blueprint_of(layer: LayerInfo, plan: Plan) -> Blueprint | None:
    choice = plan.layers[layer.name]
    return None if choice.method is None else methods.chosen_blueprint(layer, choice)


def random_plans(found: Inventory, seed: int, count: int) -> Iterator[Plan]:
    """Yield plans with any method and ranks for each layer, gauged or not, or none."""
    draw = torch.Generator().manual_seed(seed)

    def pick(options: Sequence[Any]) -> Any:
        return options[int(torch.randint(len(options), (), generator=draw))]

    choices: dict[str, list[Choice]] = {}
    for layer in found.compressible:
        options = choices[layer.name] = [Choice(reason="by hand")]
        for name in methods.registry.names():
            method = methods.get(name)
            if method.supports(layer) is None:
                for _ in range(3):
                    ranks = pick(method.rank_grid(layer, points=4))
                    options.append(Choice(method=name, ranks=ranks))
                    if gauge_blueprint(method.blueprint(layer, ranks)).gauged:
                        options.append(Choice(method=name, ranks=ranks, gauge=True))
    for _ in range(count):
        yield Plan(layers={name: pick(options) for name, options in choices.items()})


def measured(model: nn.Module, x: Any) -> dict[str, int]:
    """Return the peak over the operations inside each module of a model, and of all under the name ``""``."""
    graph = export_graph(model, x)
    fixed = liveness._constant_nodes(graph.graph, graph.constants)
    program = liveness._read(graph.graph, fixed, None)
    total = timeline(program.steps, program.sizes).total
    peaks = {"": max(total)}
    for node, size in zip(program.nodes, total, strict=True):
        for path, _ in (node.meta.get("nn_module_stack") or {}).values() if node is not None else ():
            peaks[path.partition("@")[0]] = max(peaks.get(path.partition("@")[0], 0), size)
    return peaks


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_takes_what_was_predicted(name: str) -> None:
    """The whole peak, and that of each layer by itself."""
    made, x = MODELS[name]
    net = made().eval()
    found, profile = profile_of(net, x)
    peaks = set()
    for plan in random_plans(found, seed=1, count=5):
        inside = measured(rf.apply(net, plan, reconstruct="weights"), x)
        assert inside[""] == predicted(found, profile, plan)
        for layer in found.compressible:
            assert inside[layer.name] == layer_ram(profile, layer, blueprint_of(layer, plan)), plan.layers[layer.name]
        peaks.add(inside[""])
    assert len(peaks) > 1


@pytest.mark.parametrize("shortcut", [False, True])
def test_packed_attention_is_bounded(shortcut: bool) -> None:
    """The dense graph has one product for three projections and a copy of its result, which the factored one has not.

    What the projections take is exact, what follows them is an upper bound.
    """
    net, x = Packed(shortcut=shortcut).eval(), torch.zeros(2, 5, 16)
    found, profile = profile_of(net, x)
    assert set(profile.layers) == {layer.name for layer in found.compressible}
    assert len(profile.layers) == 6
    assert predicted(found, profile, Plan(layers={n: Choice(reason="by hand") for n in profile.layers})) == profile.peak
    for ranks in (2, 7):
        choices = {name: Choice(method="svd", ranks=(ranks,)) for name in profile.layers}
        plan = Plan(layers=choices | {"attention.k_proj": Choice(reason="by hand")})
        small = rf.apply(net, plan, reconstruct="weights")
        assert peak_of(small, x) <= predicted(found, profile, plan) <= profile.peak
        inside = measured(small, x)
        for name in ("attention.k_proj", "attention.v_proj"):
            assert inside[name] == layer_ram(profile, found.layer(name), blueprint_of(found.layer(name), plan))


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_other_padding_than_zeros_is_bounded(mode: str) -> None:
    """In the dense graph the input is padded by an operation of its own."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode), nn.Conv2d(8, 8, 1))
    found, profile = profile_of(net, X)
    for plan in random_plans(found, seed=2, count=4):
        peak, bound = peak_of(rf.apply(net, plan, reconstruct="weights"), X), predicted(found, profile, plan)
        assert peak <= bound <= peak + 4 * 8 * (100 + 64)
