"""Artifacts: saved, loaded anywhere, and never silently wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import rankfold as rf
from rankfold.errors import CorruptArtifact, ModelError, PlanMismatch, RankfoldWarning
from rankfold.records import Plan
from rankfold.surgery import factored_layers


class Net(nn.Module):
    """Shared, tied and attention layers, a norm, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, 16), nn.Linear(16, 16)
        self.tied = nn.Linear(16, 16)
        self.tied.weight = self.head.weight
        self.again = self.embed
        self.norm = nn.BatchNorm1d(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(torch.relu(self.again(x) + self.embed(x)))
        h = self.attention(h[None], h[None], h[None])[0][0]
        return self.scale * (self.head(h) + self.tied(h))


X = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


def compressed() -> nn.Module:
    overrides = {"head": ("svd", 4), "embed": ("svd", 5), "attention.q_proj": ("svd", 3)}
    return rf.apply(net(), rf.plan(net(), X, budget="params<=70%", overrides=overrides))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rf.save(compressed(), tmp_path_factory.mktemp("saved") / "artifact")


@pytest.fixture
def artifact(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "artifact"))


def test_round_trip_on_other_weights(artifact: Path) -> None:
    small, fresh = compressed(), net(1)
    expected, own = small(X), fresh(X)
    loaded = rf.load(artifact, fresh)
    assert torch.equal(loaded(X), expected)
    assert not torch.equal(own, expected)
    assert torch.equal(fresh(X), own)
    assert not factored_layers(fresh)
    assert rf.Plan.load(artifact) == loaded.rankfold_plan == small.rankfold_plan
    assert loaded.state_dict().keys() == small.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), small.state_dict().values(), strict=True)
    )


def test_every_tensor_is_stored_once(artifact: Path) -> None:
    file = artifact / "model.safetensors"
    with safe_open(str(file), framework="pt") as handle:
        aliases = json.loads(handle.metadata()["aliases"])
        names = set(handle.keys())
    small = compressed()
    assert len(names) == len({t.data_ptr() for t in small.state_dict().values()})
    assert aliases["tied.input.weight"] == "head.input.weight"
    assert aliases["again.output.bias"] == "embed.output.bias"
    assert names | set(aliases) == set(small.state_dict())
    loaded = rf.load(artifact, net(1))
    assert loaded.again is loaded.embed
    assert loaded.tied.input.weight is loaded.head.input.weight
    assert loaded.tied.output.bias is not loaded.head.output.bias


LOAD = """
import sys, torch, rankfold as rf
sys.path.insert(0, sys.argv[2])
from architecture import net, X
torch.manual_seed(7)
print(rf.load(sys.argv[1], net(3))(X).double().sum().item().hex())
"""


def test_fresh_process(artifact: Path, tmp_path: Path, warm: Any) -> None:
    source = Path(__file__).read_text().split("def compressed()")[0].replace("import pytest\n", "")
    (tmp_path / "architecture.py").write_text(source)
    script = tmp_path / "load.py"
    script.write_text(LOAD)
    done = warm.run(script, artifact, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == compressed()(X).double().sum().item().hex()
    assert done.stdout.strip() != net(3)(X).double().sum().item().hex()


def test_fine_tuned_weights_are_saved(tmp_path: Path) -> None:
    small = compressed()
    with torch.no_grad():
        for parameter in small.parameters():
            parameter += 0.01
        small.norm.running_mean += 1
    assert torch.equal(rf.load(rf.save(small, tmp_path / "a"), net())(X), small(X))
    assert not torch.equal(compressed()(X), small(X))


def test_an_artifact_is_replaced(artifact: Path) -> None:
    other = rf.apply(net(), rf.plan(net(), X, overrides={"head": ("svd", 2)}, strategy="uniform"))
    rf.save(other, artifact)
    assert sorted(f.name for f in artifact.iterdir()) == ["model.safetensors", "plan.json"]
    assert torch.equal(rf.load(artifact, net(1))(X), other(X))


def test_hidden_files_are_in_nobodys_way(tmp_path: Path) -> None:
    """Such as a .gitkeep, or what a killed process has left."""
    for name in (".gitkeep", ".plan.json.x.tmp"):
        (tmp_path / name).touch()
    assert torch.equal(rf.load(rf.save(compressed(), tmp_path), net(1))(X), compressed()(X))
    assert (tmp_path / ".gitkeep").exists()


def test_modes_of_the_architecture_are_kept(artifact: Path) -> None:
    fresh = net(1).train()
    fresh.norm.eval()
    loaded = rf.load(artifact, fresh)
    assert loaded.training
    assert not loaded.norm.training
    assert loaded.head.training
    assert all(module.training for module in loaded.head.children())


# --- wrappers ---


def test_wrapped_models_are_looked_through(tmp_path: Path) -> None:
    small = compressed()
    for number, wrap in enumerate((lambda m: nn.DataParallel(m).cpu(), lambda m: torch.compile(m, backend="eager"))):
        folder = rf.save(wrap(small), tmp_path / str(number))
        assert torch.equal(rf.load(folder, net(1))(X), small(X))
        assert torch.equal(rf.load(folder, wrap(net(1)))(X), small(X))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_prefix_is_stripped_with_a_warning(prefix: str, tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.add_module(prefix.rstrip("."), inner)

    small = compressed()
    folder = rf.save(Wrapper(small) if prefix == "module." else _renamed(small, prefix), tmp_path / "a")
    with pytest.warns(RankfoldWarning, match=f"stripped the wrapper prefix '{prefix}'"):
        loaded = rf.load(folder, net(1))
    assert torch.equal(loaded(X), small(X))


def _renamed(small: nn.Module, prefix: str) -> nn.Module:
    """Return a module whose child has the name that torch.compile gives, but which `save` cannot look through."""

    class Holder(nn.Module):
        def __getattr__(self, name: str) -> Tensor | nn.Module:
            if name == "_orig_mod":
                raise AttributeError(name)
            return super().__getattr__(name)

    holder = Holder()
    holder._modules[prefix.rstrip(".")] = small
    return holder


def test_a_compressed_model_inside_another(tmp_path: Path) -> None:
    inner = compressed()
    whole = nn.Sequential(inner, nn.Linear(16, 3))
    loaded = rf.load(rf.save(whole, tmp_path / "a"), nn.Sequential(net(1), nn.Linear(16, 3)))
    assert torch.equal(loaded(X), whole(X))
    assert set(Plan.load(tmp_path / "a").layers) == {f"0.{name}" for name in factored_layers(inner) if name != "tied"}


# --- what does not fit ---


def test_data_types_are_converted_with_a_warning(artifact: Path) -> None:
    with pytest.warns(RankfoldWarning, match="data types are converted.*torch.float32 -> torch.float64"):
        loaded = rf.load(artifact, net(1).double())
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}
    assert torch.allclose(loaded(X.double()).float(), compressed()(X), atol=1e-5)


def test_every_difference_is_named(artifact: Path) -> None:
    other = net(1)
    other.norm = nn.BatchNorm1d(16, affine=False)
    other.extra = nn.Parameter(torch.zeros(3))
    other.scale = torch.zeros(2)
    with pytest.raises(PlanMismatch) as caught:
        rf.load(artifact, other)
    for difference in ("extra is missing", "norm.weight is not in the model", "scale has shape (), expected (2,)"):
        assert difference in str(caught.value)


def test_meta_models_are_refused(artifact: Path) -> None:
    with pytest.raises(ModelError, match="'embed.weight' of the model is on the meta device"):
        rf.load(artifact, net(1).to("meta"))


def test_an_edited_plan_goes_to_apply(artifact: Path) -> None:
    plan = Plan.load(artifact)
    data = json.loads(plan.to_json())
    data["layers"]["head"] = {"keep": "I want it whole"}
    edited = Plan.from_json(json.dumps(data))
    small = rf.apply(net(), edited)
    assert set(factored_layers(small)) == set(factored_layers(compressed())) - {"head", "tied"}
    (artifact / "plan.json").write_text(edited.to_json())
    with pytest.raises(CorruptArtifact, match="do not belong together"):
        rf.load(artifact, net())


@given(place=st.floats(0, 1), bit=st.integers(0, 7), header=st.booleans(), plan=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_bit_goes_unnoticed(
    saved: Path, tmp_path: Path, place: float, bit: int, header: bool, plan: bool
) -> None:
    """Every flip raises, unless it changes nothing that is loaded (the header's unused parts)."""
    folder = Path(shutil.copytree(saved, tmp_path / "flipped", dirs_exist_ok=True))
    file = folder / ("plan.json" if plan else "model.safetensors")
    data = bytearray(file.read_bytes())
    end = 0 if plan else 8 + int.from_bytes(data[:8], "little")  # of the header, whose entries are in any order
    at = int(place * ((end if header and not plan else len(data)) - 1))
    data[at] ^= 1 << bit
    file.write_bytes(data)
    try:
        loaded = rf.load(folder, net(1))
    except CorruptArtifact:
        return
    assert torch.equal(loaded(X), compressed()(X))
    assert at < end


@given(st.floats(0, 1, exclude_max=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_anywhere(saved: Path, tmp_path: Path, share: float) -> None:
    for name in ("model.safetensors", "plan.json"):
        folder = Path(shutil.copytree(saved, tmp_path / "cut", dirs_exist_ok=True))
        data = (saved / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * (len(data) - 1))])
        with pytest.raises(CorruptArtifact):
            rf.load(folder, net(1))


def test_weights_of_another_artifact(artifact: Path, tmp_path: Path) -> None:
    other = rf.save(rf.apply(net(), rf.plan(net(), X, budget="params<=50%")), tmp_path / "other")
    shutil.copy(other / "model.safetensors", artifact)
    with pytest.raises(CorruptArtifact, match="do not belong together"):
        rf.load(artifact, net())


def test_no_pickle_is_ever_read(artifact: Path) -> None:
    assert set(load_file(artifact / "model.safetensors"))  # any reader of the format can open it
    assert sorted(f.suffix for f in artifact.iterdir()) == [".json", ".safetensors"]
