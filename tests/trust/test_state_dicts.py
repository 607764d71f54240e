"""An artifact holds what a model computes with, whatever its state dict says; what it cannot hold is refused first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import rankfold as rf
from rankfold._hashing import state_hash
from rankfold.errors import ModelError
from rankfold.inventory import static_inventory

X = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
FACTORED = rf.Plan(layers={"head": rf.Plan.from_json('{"format": "rankfold-plan", "version": 1, "layers": {"head": '
                                                     '{"method": "svd", "ranks": [4]}}}').layers["head"]})  # fmt: skip


class Net(nn.Module):
    """A frozen backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, 16)
        self.backbone.requires_grad_(False)
        self.register_buffer("shift", torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)) + self.shift


class Drops(Net):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if not k.startswith("backbone.")}


class TakesNoArguments(Net):
    def state_dict(self) -> Any:  # type: ignore[override]
        return super().state_dict()


class ReturnsNothing(Net):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return None


class Renames(Net):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {f"net.{k}": v.clone() for k, v in super().state_dict(*args, **kwargs).items()}

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({k.removeprefix("net."): v for k, v in state.items()}, *args, **kwargs)


class LoadsLoosely(Net):
    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict({k: v for k, v in state_dict.items() if "head" not in k}, strict=False)


class LoadsNothingElse(Net):
    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        if "head.weight" not in state:
            raise KeyError("head.weight")
        return super().load_state_dict(state, *args, **kwargs)


class Hooked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(lambda module, state, prefix, meta: state.pop(f"{prefix}shift"))


class Halved(Net):
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}shift"] = destination[f"{prefix}shift"].half()


class Inner(nn.Module):
    """A part that saves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return kwargs.get("destination", {})


class HasAPart(Net):
    def __init__(self) -> None:
        super().__init__()
        self.backbone.append(Inner())


class KeepsMore(Net):
    """What ``get_extra_state`` returns decides, too."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = float(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.scale, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.scale = float(state)


class Derives(Net):
    """A hook after loading keeps what is derived from the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(lambda module, keys: module._derive())
        self._derive()

    def _derive(self) -> None:
        self.total = float(self.shift.sum())

    def forward(self, x: Tensor) -> Tensor:
        return self.total * super().forward(x)


class SetsItsOwn(Derives):
    """Loading is replaced on the instance."""

    def __init__(self) -> None:
        super().__init__()
        self._load_state_dict_post_hooks.clear()
        self.load_state_dict = self._load_and_derive  # type: ignore[method-assign]

    def _load_and_derive(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        found = nn.Module.load_state_dict(self, state, *args, **kwargs)
        self._derive()
        return found


MODELS = [
    Net, Drops, TakesNoArguments, ReturnsNothing, Renames, LoadsLoosely, LoadsNothingElse, Hooked, Halved, HasAPart,
    KeepsMore, Derives, SetsItsOwn,
]  # fmt: skip


@pytest.mark.parametrize("cls", MODELS)
def test_a_new_instance_computes_the_same(cls: type[Net], tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = cls().eval()
    result = rf.compress(model, X, overrides={"head": ("svd", 4)}, strategy="uniform", output=tmp_path / "a")
    torch.manual_seed(2)
    fresh = cls().eval()
    assert not torch.equal(fresh(X), model(X))
    assert torch.equal(rf.load(tmp_path / "a", fresh)(X), result.model(X))
    assert torch.equal(
        rf.load(rf.save(rf.apply(model, FACTORED), tmp_path / "b"), fresh)(X), rf.apply(model, FACTORED)(X)
    )


def buffer(make: Callable[[], Tensor]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = Net().eval()
        model.register_buffer("odd", make())
        return model

    return build


def expanded_parameter() -> nn.Module:
    model = Net().eval()
    model.odd = nn.Parameter(torch.randn(1).expand(5))
    return model


def overlapping() -> nn.Module:
    model, memory = Net().eval(), torch.randn(6)
    model.register_buffer("odd", memory[:4])
    model.register_buffer("other", memory[2:])
    return model


STORED = {
    "bool": buffer(lambda: torch.randn(5) > 0),
    "complex64": buffer(lambda: torch.randn(5, dtype=torch.complex64)),
    "conjugated": buffer(lambda: torch.randn(5, dtype=torch.complex64).conj()),
    "expanded": buffer(lambda: torch.randn(1).expand(5)),
    "expanded parameter": expanded_parameter,
    "overlapping": overlapping,
    "empty": buffer(lambda: torch.randn(0, 3)),
    "scalar": buffer(lambda: torch.randn(())),
    "transposed": buffer(lambda: torch.randn(3, 5).mT),
    "float8": buffer(lambda: torch.randn(5).to(torch.float8_e4m3fn)),
    "nan": buffer(lambda: torch.full((5,), torch.nan)),
}


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("build", STORED.values(), ids=STORED)
def test_odd_tensors_are_stored(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = build()
    if any(b.is_complex() for b in model.buffers()) and torch.complex64 not in safetensors.torch._TYPES.values():
        pytest.skip("this safetensors stores no complex numbers; they are refused by name")
    folder = rf.save(rf.apply(model, FACTORED), tmp_path / "a")
    loaded = rf.load(folder, build())
    for name in ("odd", "other"):
        if hasattr(model, name):
            ours: Any = getattr(loaded, name)
            theirs: Any = getattr(model, name)
            assert torch.equal(bits(ours), bits(theirs))
            assert ours.shape == theirs.shape
    assert isinstance(loaded.odd, nn.Parameter) == isinstance(model.odd, nn.Parameter)


class Subclass(torch.Tensor):
    pass


class KeepsAList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.randn(3)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {**super().state_dict(*args, **kwargs), "memory": self.memory}


class Versioned(Net):
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}version"] = 3


def lazy() -> nn.Module:
    model = Net().eval()
    model.late = nn.LazyLinear(3)
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "coo": (buffer(lambda: torch.eye(5).to_sparse()), "'odd' .*has layout torch.sparse_coo.*persistent=False"),
    "csr": (buffer(lambda: torch.eye(5).to_sparse_csr()), "'odd' .*has layout torch.sparse_csr.*persistent=False"),
    "nested": (buffer(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])), "'odd' .*nested.*padded"),
    "quantized": (
        buffer(lambda: torch.quantize_per_tensor(torch.randn(5), 0.1, 0, torch.qint8)),
        "'odd' .*torch.qint8.*Convert it",
    ),
    "complex128": (buffer(lambda: torch.randn(5, dtype=torch.complex128)), "'odd' .*torch.complex128.*Convert it"),
    "subclass": (buffer(lambda: torch.randn(5).as_subclass(Subclass)), "'odd' .*is of type Subclass.*plain tensor"),
    "lazy": (lazy, "'late.weight' .*not initialized.*Run the model once"),
    "elsewhere": (KeepsAList, "contains 'memory', which is neither a parameter or.*register_buffer"),
    "no tensor": (Versioned, "contains 'version' of type int, which cannot be saved"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_stored_is_refused_before_any_work(
    build: Callable[[], nn.Module], words: str, tmp_path: Path
) -> None:
    def metric(model: nn.Module) -> float:
        pytest.fail("work was done before the model was looked at")

    model = build().eval()
    options: dict[str, Any] = {"budget": "params<=80%", "evaluate": metric, "output": tmp_path / "a"}
    with pytest.raises(ModelError, match=words):
        rf.compress(model, X, **options)
    with pytest.raises(ModelError, match=words):
        rf.sweep(model, X, points=2, evaluate=metric, output=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    if "lazy" not in words:
        with pytest.raises(ModelError, match=words):
            rf.save(rf.apply_(model, FACTORED), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_buffers_that_are_built_and_not_saved_are_no_matter(tmp_path: Path) -> None:
    class Graph(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("odd", torch.eye(6).to_sparse(), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.odd @ super().forward(x)

    model = Graph().eval()
    small = rf.apply(model, FACTORED)
    assert torch.equal(rf.load(rf.save(small, tmp_path / "a"), Graph().eval())(X), small(X))


def test_a_hash_is_of_what_the_model_computes_with() -> None:
    one, other = Drops(), Drops()
    other.load_state_dict(one.state_dict(), strict=False)
    assert state_hash(one) != state_hash(other)
    other.backbone.load_state_dict(one.backbone.state_dict())
    other.shift.copy_(one.shift)
    assert state_hash(one) == state_hash(other)


# --- wrappers ---


def named(name: str, attribute: str) -> Callable[[nn.Module], nn.Module]:
    """Return a wrapper as other libraries have them."""

    def wrap(model: nn.Module) -> nn.Module:
        wrapper = type(name, (nn.Module,), {"forward": lambda self, *args: getattr(self, attribute)(*args)})()
        setattr(wrapper, attribute, model)
        return wrapper

    return wrap


WRAPPERS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "averaged": (AveragedModel, "in AveragedModel.*`model.module`"),
    "averaged twice": (lambda m: AveragedModel(nn.DataParallel(m).cpu()), "in AveragedModel.*`model.module`"),
    "subclass": (lambda m: type("Mine", (AveragedModel,), {})(m), "in Mine.*`model.module`"),
    "compiled": (lambda m: torch.compile(m, backend="eager"), "by torch.compile.*`model._orig_mod`"),
    "timm": (named("ModelEmaV3", "module"), "in ModelEmaV3.*`model.module`"),
    "deepspeed": (named("DeepSpeedEngine", "module"), "in DeepSpeedEngine.*`model.module`"),
}


@pytest.mark.parametrize(("wrap", "words"), WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_are_named_or_looked_through(
    wrap: Callable[[nn.Module], nn.Module], words: str, tmp_path: Path
) -> None:
    model = Net().eval()
    for act in (
        lambda m: rf.compress(m, X, budget="params<=80%", output=tmp_path / "refused"),
        lambda m: rf.plan(m, X, budget="params<=80%"),
        lambda m: rf.inspect(m, X),
        static_inventory,
    ):
        with pytest.raises(ModelError, match=words):
            act(wrap(model))
        with pytest.raises(ModelError, match=f"module '0' is wrapped {words[:5]}"):
            act(nn.Sequential(wrap(model)))
    assert not (tmp_path / "refused").exists()
    small = rf.apply(model, FACTORED)
    folder = rf.save(wrap(small), tmp_path / "a")
    assert torch.equal(rf.load(folder, Net().eval())(X), small(X))
    assert torch.equal(rf.load(folder, wrap(Net().eval()))(X), small(X))


@pytest.mark.parametrize("name", ["FullyShardedDataParallel", "FSDPModule"])
def test_sharded_models_are_refused(name: str, tmp_path: Path) -> None:
    small = rf.apply(Net().eval(), FACTORED)
    small.__class__ = type("FSDPNet", (type(name, (), {}), Net), {})  # as `fully_shard` does
    for act in (lambda: rf.inspect(small, X), lambda: rf.save(small, tmp_path / "a"), lambda: rf.load(tmp_path, small)):
        with pytest.raises(ModelError, match="the model is sharded by .*full weights"):
            act()


def test_a_class_of_the_same_name_that_wraps_nothing_is_a_model() -> None:
    class EMA(Net):
        pass

    assert rf.inspect(EMA().eval(), X).layer("head").calls
