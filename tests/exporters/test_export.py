"""Exported files compute what the model computes; what does not, is refused and leaves no file."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold import exporters
from rankfold.errors import ConfigError, DataError, MissingExtra, ModelError, RankfoldError, UnknownNameError
from rankfold.exporters import onnx as onnx_exporter
from rankfold.exporters.torch_export import TorchExport
from rankfold.reporting.export import Export


def needs(name: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test where a format's packages are missing."""
    missing = [package for package in exporters.get(name).packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"export to {name!r} needs {', '.join(missing)}")


FORMATS = [
    pytest.param(name, marks=needs(name)) for name in exporters.registry.names() if not exporters.get(name).unchecked()
]
X = torch.randn(3, 4, 12, 12, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """Layers of every kind in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1)
        self.line = nn.Conv1d(16, 24, 3, padding=1)
        self.solid = nn.Conv3d(4, 12, 3, padding=1)
        self.linear = nn.Linear(24, 20)
        self.head = nn.Linear(20 + 12, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).relu()
        y = self.up(self.grouped(y).relu()).relu()
        y = self.line(y.flatten(2)).relu().mean(2)
        z = self.solid(x.unflatten(3, (3, 4))).relu().mean((2, 3, 4))
        return self.head(torch.cat([self.linear(y).relu(), z], 1))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """Return a network of all layer kinds, factored by several methods."""
    torch.manual_seed(0)
    net = Mixed().eval()
    layers = {
        "conv": ("tucker", (6, 3)), "grouped": ("svd", (4,)), "up": ("svd", (6,)), "line": ("cp", (6,)),
        "solid": ("tt", (3, 4, 5, 6)), "linear": ("qr", (5,)), "head": ("svd", (4,)),
    }  # fmt: skip
    return rf.apply(net, rf.plan(net, X, strategy=rf.Manual(layers=layers)))


def without(module: str) -> Callable[[str], object]:
    """Return a `find_spec` that does not find one package."""
    return lambda name: None if name == module else object()


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_keeps_the_outputs(name: str, small: nn.Module, tmp_path: Path) -> None:
    small.train()
    before = copy.deepcopy(small.state_dict())
    path = tmp_path / f"net{exporters.get(name).suffix}"
    sizes = exporters.get(name).batch_sizes
    most = {"any": None, "bounded": 2, "fixed": 1}[sizes]
    done = rf.export(small, path, X[: most or 1])
    assert small.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in small.state_dict().items())
    files = [file for file in (path, exporters.get(name).weights_file(path)) if file is not None]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert done.bytes == sum(file.stat().st_size for file in files) > done.weight_bytes
    samples = 1 if sizes == "fixed" else 3  # otherwise one sample, and two
    assert (done.file_format, done.samples, done.dynamic_batch) == (name, samples, sizes != "fixed")
    assert done.largest_batch == most
    assert done.difference is not None
    assert done.difference < 1e-5
    small.eval()
    run = exporters.get(name).open(path)
    with torch.no_grad():
        for batch in (X[:most], X[:1]):
            (ours,) = run(batch)
            assert torch.dist(ours, small(batch)) < 1e-5 * small(batch).norm()
            assert torch.dist(ours, small(batch + 0.1)) > 1e-3 * small(batch).norm()
    data = [(X, torch.zeros(3)), (X[:2], torch.zeros(2))]
    assert rf.export(small, path, X, to=name, check=data).samples == (3 if sizes == "fixed" else 5)
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_other_outputs_are_refused_and_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(exporters.get("torch-export"))
    opened = kind.open
    path = tmp_path / "net.pt2"
    path.write_bytes(b"old")

    def altered(self: Any, file: Path) -> exporters.Runner:
        run = opened(self, file)
        return lambda inputs: [output * 1.01 for output in run(inputs)]

    monkeypatch.setattr(kind, "open", altered)
    net = nn.Linear(4, 3)
    with pytest.raises(RankfoldError, match=r"differ from the model's by 1\.0e-02 \(relative\), more than tolerance"):
        rf.export(net, path, torch.randn(2, 4))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert rf.export(net, path, torch.randn(2, 4), tolerance=0.02).difference == pytest.approx(0.01, rel=1e-3)


def test_a_large_output_does_not_hide_a_wrong_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = self.a(x)
            return 50 * y, self.b(x), y - y

    kind = type(exporters.get("torch-export"))
    opened = kind.open
    factors = [1.0, 1.0]

    def altered(self: Any, file: Path) -> exporters.Runner:
        run = opened(self, file)
        return lambda inputs: [y * f + d for y, f, d in zip(run(inputs), [1.0, *factors], [0, 0, 1e-6], strict=True)]

    monkeypatch.setattr(kind, "open", altered)
    path = tmp_path / "net.pt2"
    assert rf.export(Two(), path, torch.randn(2, 4)).difference is not None
    factors[0] = 0.0
    with pytest.raises(RankfoldError, match=r"differ from the model's by 1\.0e\+00 \(relative\)"):
        rf.export(Two(), path, torch.randn(2, 4))


class Bounded(TorchExport):
    """A format that needs a bound for the batch, as ExecuTorch's does."""

    name, suffix, batch_sizes = "bounded", ".bounded", "bounded"


def test_a_bounded_batch_has_the_size_of_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters, "get", lambda name: Bounded())
    net, x, path = nn.Linear(4, 3), torch.randn(5, 4), tmp_path / "net.bounded"
    data = [(x, torch.arange(5) % 3)]
    done = rf.export(net, path, x[:2], to="bounded", check=data, evaluate=rf.top1(data))
    assert (done.dynamic_batch, done.largest_batch, done.samples) == (True, 2, 5)
    assert done.metric is not None
    assert done.metric.dense == done.metric.final
    assert "batch size: at most 2" in str(done)
    run = Bounded().open(path)
    assert len(run(x[:1])[0]) == 1
    with pytest.raises(AssertionError, match="2"):
        run(x)
    single = rf.export(net, path, x[:1], to="bounded", check=data)
    assert (single.dynamic_batch, single.largest_batch, single.samples) == (False, 1, 5)


class InTwoFiles(type(exporters.get("torch-export"))):
    """A format like OpenVINO's: the program in the file with the weights, and an empty one."""

    name, suffix, weights_suffix = "two-files", ".two", ".weights"

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        super().write(program, path.with_suffix(".weights"))
        path.touch()

    def open(self, path: Path) -> exporters.Runner:
        return super().open(path.with_suffix(".weights"))


def test_a_format_of_two_files_leaves_both_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters, "get", lambda name: InTwoFiles())
    net, x = nn.Linear(4, 3), torch.randn(2, 4)
    done = rf.export(net, tmp_path / "net.two", x, to="two-files")
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(files) == ["net.two", "net.weights"]
    assert done.bytes == len(files["net.weights"])
    with pytest.raises(RankfoldError, match="differ from the model's"):
        rf.export(nn.Linear(4, 3), tmp_path / "net.two", x, to="two-files", tolerance=1e-30, check=[x * float("nan")])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files
    with pytest.raises(ConfigError, match=r"Use the suffix '\.two'"):
        rf.export(net, tmp_path / "other.weights", x, to="two-files")


class InFolder(TorchExport):
    """A format like Core ML's on other systems: a folder that cannot run on this machine."""

    name, suffix, folder = "folder", ".folder", True

    def unchecked(self) -> str:
        return "it only runs elsewhere"

    def write(self, program: torch.export.ExportedProgram, path: Path) -> None:
        assert path.suffix == ".folder"
        super().write(program, path / "program.pt2")
        if program.example_inputs[0][0].shape[1] == 5:
            raise ModelError("five")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters, "get", lambda name: InFolder())
    path = tmp_path / "deep" / "net.folder"
    with pytest.raises(ModelError, match="five"):
        rf.export(nn.Linear(5, 3), path, torch.randn(2, 5), to="folder")
    assert not list(tmp_path.iterdir())
    done = rf.export(nn.Linear(4, 3), path, torch.randn(2, 4), to="folder")
    files = [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()]
    assert files == ["deep/net.folder/program.pt2"]
    assert done.bytes == (path / "program.pt2").stat().st_size
    before = (path / "program.pt2").read_bytes()
    with pytest.raises(ModelError, match="five"):
        rf.export(nn.Linear(5, 3), path, torch.randn(2, 5), to="folder")
    assert (path / "program.pt2").read_bytes() == before
    rf.export(nn.Linear(4, 30), path, torch.randn(2, 4), to="folder")
    assert len((path / "program.pt2").read_bytes()) > len(before)
    assert [file.name for file in path.parent.iterdir()] == ["net.folder"]
    (path / "mine").touch()
    with pytest.raises(RankfoldError, match="something else exists there"):
        rf.export(nn.Linear(4, 3), path, torch.randn(2, 4), to="folder")
    assert (path / "mine").exists()
    with pytest.raises(ConfigError, match=r"Use the suffix '\.folder'"):
        rf.export(nn.Linear(4, 3), tmp_path / "net.other", torch.randn(2, 4), to="folder")


def test_what_cannot_run_here_is_not_called_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters, "get", lambda name: InFolder())
    net, x, path = nn.Linear(4, 3), torch.randn(2, 4), tmp_path / "net.folder"
    done = rf.export(net, path, x, to="folder", check=[x])
    assert (done.difference, done.samples, done.unchecked) == (None, 0, "it only runs elsewhere")
    assert "relative difference of the outputs: not checked: it only runs elsewhere" in str(done)
    assert Export.load(done.save(tmp_path / "record.json")) == done
    with pytest.raises(ConfigError, match=r"evaluate runs the file, but it only runs elsewhere"):
        rf.export(net, path, x, to="folder", evaluate=rf.top1([(x, torch.zeros(2))]))


@needs("coreml")
@pytest.mark.skipif(sys.platform == "darwin", reason="on macOS the outputs are compared, as in other formats")
def test_coreml_packages_describe_the_model(small: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.mlpackage"
    done = rf.export(small, path, X)
    assert done.bytes == sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) > done.weight_bytes
    assert (done.difference, done.samples, done.largest_batch) == (None, 0, 3)
    assert "not checked: Core ML only runs on macOS" in str(done)
    tools = importlib.import_module("coremltools")
    description = tools.utils.load_spec(str(path)).description
    (taken,), (given,) = description.input, description.output
    ranges = taken.type.multiArrayType.shapeRange.sizeRanges
    assert [(one.lowerBound, one.upperBound) for one in ranges] == [(1, 3), (4, 4), (12, 12), (12, 12)]
    assert given.type.multiArrayType.dataType == taken.type.multiArrayType.dataType
    fixed = rf.export(small, path, X, dynamic_batch=False)
    assert (fixed.dynamic_batch, fixed.largest_batch) == (False, 3)


class Several(nn.Module):
    """Keyword inputs in another order than the signature's; outputs in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, mask: Tensor, x: Tensor) -> dict[str, Any]:
        hidden = self.linear(x) * mask
        return {"scores": hidden.sum(1), "inner": (hidden, mask.sum())}


@pytest.mark.parametrize("name", FORMATS)
def test_keyword_inputs_and_nested_outputs(name: str, tmp_path: Path) -> None:
    x, mask = torch.randn(2, 7, 6), torch.ones(2, 7, 1)
    example = {"x": x, "mask": mask}
    path = tmp_path / f"net{exporters.get(name).suffix}"
    done = rf.export(Several(), path, example, check=[{"mask": mask[:1] * 0.5, "x": x[:1]}, example])
    assert done.samples == (2 if exporters.get(name).batch_sizes == "fixed" else 3)
    assert done.difference is not None
    assert done.difference < 1e-5


def test_onnx_runs_without_torch(small: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    rf.export(small, path, X)
    np.save(tmp_path / "x.npy", X.numpy())
    script = (
        "import json, sys; sys.modules['torch'] = sys.modules['rankfold'] = None\n"
        "import numpy, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])\n"
        f"x = numpy.load({str(tmp_path / 'x.npy')!r})\n"
        "print(json.dumps(session.run(None, {session.get_inputs()[0].name: x})[0].argmax(1).tolist()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    with torch.no_grad():
        assert json.loads(done.stdout) == small(X).argmax(1).tolist()


class Branching(nn.Module):
    """Its path depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class FixedBatch(nn.Module):
    """It only runs on two samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1) @ torch.ones(4, 1)


def test_models_that_cannot_be_captured(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"(?s)cannot be exported on the example input.*dynamic_batch=False"):
        rf.export(FixedBatch(), tmp_path / "net.pt2", torch.randn(2, 4))
    assert rf.export(FixedBatch(), tmp_path / "net.pt2", torch.randn(2, 4), dynamic_batch=False).samples == 2
    (tmp_path / "net.pt2").unlink()
    with pytest.raises(ModelError, match=r"(?s)torch\.export raised.*tensor operations"):
        rf.export(Branching(), tmp_path / "net.pt2", torch.randn(2, 4), dynamic_batch=False)
    assert not list(tmp_path.iterdir())


def test_fixed_batches_are_compared_at_their_size(tmp_path: Path) -> None:
    net, path = nn.Linear(4, 3), tmp_path / "net.pt2"
    done = rf.export(net, path, torch.randn(2, 4), check=[torch.randn(5, 4)], dynamic_batch=False)
    assert (done.samples, done.dynamic_batch) == (4, False)  # two batches of two; the fifth sample is left
    with pytest.raises(DataError, match=r"no batch of the check data has the 2 samples"):
        rf.export(net, path, torch.randn(2, 4), check=[torch.randn(1, 4)], dynamic_batch=False)


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = nn.Linear(4, 3), torch.randn(2, 4)
    with pytest.raises(ConfigError, match=r"suffix '\.bin', which belongs to no export format.*\.onnx \(onnx\)"):
        rf.export(net, tmp_path / "net.bin", x)
    with pytest.raises(ConfigError, match="or name the format with to='onnx'"):
        rf.export(net, tmp_path / "net", x)
    with pytest.raises(UnknownNameError, match=r"unknown export format 'onx'. Did you mean 'onnx'"):
        rf.export(net, tmp_path / "net.onnx", x, to="onx")
    with pytest.raises(ConfigError, match="tolerance"):
        rf.export(net, tmp_path / "net.onnx", x, tolerance=0.0)
    (tmp_path / "file").touch()
    with pytest.raises(RankfoldError, match="cannot write"):
        rf.export(net, tmp_path / "file" / "net.pt2", x)
    monkeypatch.setattr(exporters.contract, "find_spec", without("onnxscript"))
    with pytest.raises(MissingExtra, match=r"needs the package 'onnxscript'.*pip install \"rankfold\[onnx\]\""):
        rf.export(net, tmp_path / "net.onnx", x)
    monkeypatch.setattr(exporters.contract, "find_spec", without("openvino"))
    with pytest.raises(MissingExtra, match=r"export to 'openvino' needs.*pip install \"rankfold\[openvino\]\""):
        rf.export(net, tmp_path / "net.xml", x)
    for name, package in (("executorch", "executorch"), ("litert", "litert_torch"), ("coreml", "coremltools")):
        monkeypatch.setattr(exporters.contract, "find_spec", without(package))
        with pytest.raises(MissingExtra, match=rf"export to '{name}' needs.*pip install \"rankfold\[{name}\]\""):
            rf.export(net, tmp_path / f"net{exporters.get(name).suffix}", x)
    monkeypatch.undo()
    monkeypatch.setattr(onnx_exporter, "LARGEST", 10)
    with pytest.raises(ModelError, match="an ONNX file holds at most 10"):
        rf.export(net, tmp_path / "net.onnx", x)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path) -> None:
    assert rf.export(nn.Linear(4, 3), tmp_path / "net.PT2", torch.randn(2, 4)).file_format == "torch-export"


def test_the_record(tmp_path: Path) -> None:
    done = rf.export(nn.Linear(4, 3), tmp_path / "net.pt2", torch.randn(2, 4))
    assert done.ram == 4 * 2 * (4 + 3)
    assert "peak RAM for these inputs (estimate): 56 B" in str(done)
    assert Export.load(done.save(tmp_path / "record.json")) == done
    assert "weights of the model: 60 B" in str(done)
    assert repr(done).startswith("<Export: ")


@pytest.mark.slow
def test_int8_computes_products_of_factors_in_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    data = [torch.randn(16, 3, 8, 8) for _ in range(4)]
    small = rf.compress(net, data[0], budget="params<=60%", methods="tucker").model
    path = tmp_path / "net.onnx"
    labels = [(x, small(x).argmax(1)) for x in data]
    done = rf.export(small, path, data[0], int8=data, evaluate=rf.top1(labels))
    assert done.int8 is not None
    assert done.metric is not None
    assert done.float_bytes is not None
    products = [m for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert (done.int8.products, done.int8.kept) == (len(products), ())
    assert done.difference is not None
    assert 1e-4 < done.difference < 0.2
    assert done.bytes == path.stat().st_size < done.float_bytes
    assert done.metric.dense == 1.0 >= done.metric.final > 0.7
    import onnx

    graph = onnx.load(str(path)).graph
    assert sum(node.op_type in exporters.int8.INT8_PRODUCTS for node in graph.node) == len(products)
    assert not any(node.op_type in exporters.int8.FLOAT_PRODUCTS for node in graph.node)
    weights = [t for t in graph.initializer if len(t.dims) >= 2]
    assert weights
    assert all(t.data_type == onnx.TensorProto.INT8 for t in weights if max(t.dims) > 1)
    assert list(tmp_path.iterdir()) == [path]
    narrow = rf.export(small, path, data[0], int8=data, reduce_range=True)
    assert narrow.int8 is not None
    assert narrow.int8.reduce_range
    values = [onnx.numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer if len(t.dims) >= 2]
    assert max(abs(v).max() for v in values) <= 64
    with pytest.raises(RankfoldError, match=r"differ .* more than tolerance=1e-05"):
        rf.export(small, path, data[0], int8=data, tolerance=1e-5)
    monkeypatch.setattr(exporters.int8, "INT8_PRODUCTS", ())
    with pytest.raises(ModelError, match="nothing in the model is quantized"):
        rf.export(small, path, data[0], int8=data)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 2])
def test_executorch_computes_products_of_factors_in_int8(dims: int, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    torch.manual_seed(0)
    conv = (nn.Conv1d, nn.Conv2d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1]
    net = nn.Sequential(
        conv(3, 16, 3, padding=1), norm(16), nn.ReLU(), conv(16, 32, 3, padding=1, groups=4), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 4**dims, 10),
    ).eval()  # fmt: skip
    data = [torch.randn(8, 3, *(4,) * dims) for _ in range(4)]
    small = rf.compress(net, data[0], budget="params<=60%", methods=("tucker", "svd")).model
    path = tmp_path / "net.pte"
    labels = [(x, small(x).argmax(1)) for x in data]
    done = rf.export(small, path, data[0], int8=data, evaluate=rf.top1(labels))
    assert done.int8 is not None
    assert done.metric is not None
    assert done.float_bytes is not None
    products = [m for m in small.modules() if isinstance(m, conv | nn.Linear)]
    assert (done.int8.products, done.int8.kept, done.int8.reduce_range) == (len(products), (), False)
    assert done.difference is not None
    assert 1e-4 < done.difference < 0.2
    assert done.bytes == path.stat().st_size
    assert done.metric.dense == 1.0 >= done.metric.final > 0.7
    assert "torchao" in done.versions
    narrow = rf.export(small, path, data[0], int8=data, reduce_range=True)
    assert narrow.int8 is not None
    assert narrow.int8.reduce_range


def test_executorch_refuses_volumes_in_int8(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    net, x = nn.Sequential(nn.Conv3d(3, 4, 3)), torch.randn(2, 3, 4, 4, 4)
    with pytest.raises(ModelError, match=r"conv3d '0' is a 3-D convolution, which ExecuTorch does not compute in int8"):
        rf.export(net, tmp_path / "net.pte", x, int8=[x])
    assert not list(tmp_path.iterdir())


class Scores(nn.Module):
    """Products with weights and between activations, with inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(y).transpose(1, 2)
        return self.out(nn.functional.scaled_dot_product_attention(scores @ y, x, y))


def test_products_of_activations_stay_in_float(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    torch.manual_seed(0)
    data = [{"x": torch.randn(4, 5, 8), "y": torch.randn(4, 5, 8)} for _ in range(4)]
    done = rf.export(Scores(), tmp_path / "net.pte", data[0], int8=data)
    assert done.int8 is not None
    assert done.int8.products == 3
    assert [kept.partition(" ")[0] for kept in done.int8.kept] == ["matmul", "matmul", "scaled_dot_product_attention"]


def test_products_of_a_graph() -> None:
    inputs = {"x": torch.randn(2, 5, 8), "y": torch.randn(2, 5, 8)}
    graph = torch.export.export(Scores(), (), inputs).graph
    nodes = [node for node in graph.nodes if exporters.pt2e.is_product(node)]
    names = [exporters.pt2e.described(node) for node in nodes]
    assert names[:3] == ["linear 'query'", "linear 'key'", "matmul 'matmul'"]
    assert names[-1] == "linear 'out'"
    assert not any(map(exporters.pt2e.in_int8, nodes))


def test_int8_data_is_refused_in_words_of_rankfold(tmp_path: Path) -> None:
    net, x = nn.Linear(4, 3), torch.randn(2, 4)
    for data, message in (([], "calibration data is empty"), (x, "put a single batch into a list")):
        with pytest.raises(DataError, match=message):
            rf.export(net, tmp_path / "net.onnx", x, int8=data)
    with pytest.raises(DataError, match="its batches are needed twice"):
        rf.export(net, tmp_path / "net.onnx", x, int8=iter([x]))
    with pytest.raises(ConfigError, match="reduce_range only affects int8 files"):
        rf.export(net, tmp_path / "net.onnx", x, reduce_range=True)
    assert not list(tmp_path.iterdir())
    assert rf.export(net, tmp_path / "net.onnx", x, int8=iter([x]), check=[x]).int8 is not None


class Classes(nn.Module):
    """Its outputs are predicted classes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).argmax(1)


def test_integer_outputs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, path = torch.randn(8, 4), tmp_path / "net.pt2"
    assert rf.export(Classes(), path, x).difference == 0
    kind = type(exporters.get("torch-export"))
    opened = kind.open
    monkeypatch.setattr(kind, "open", lambda self, file: lambda x: [y + 1 for y in opened(self, file)(x)])
    with pytest.raises(RankfoldError, match="differ from the model's"):
        rf.export(Classes(), path, x)


def test_a_wrong_example_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot run on the example input, 2x5 float32"):
        rf.export(nn.Linear(4, 3), tmp_path / "net.pt2", torch.randn(2, 5))


def test_int8_of_another_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'torch-export' has no int8 version here\. Use 'onnx' or 'executorch'"):
        rf.export(nn.Linear(4, 3), tmp_path / "net.pt2", torch.randn(2, 4), int8=[torch.randn(2, 4)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [("x86_64", "avx2", True), ("AMD64", "avx512_vnni", False), ("x86_64", "avx_vnni", False), ("arm64", "", False)],
)
def test_saturation_is_expected_on_x86_without_vnni(
    machine: str, flags: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : sse {flags}\n")
    monkeypatch.setattr(exporters.int8, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(exporters.int8.platform, "machine", lambda: machine)
    assert exporters.get("onnx").saturates() is expected
    assert not exporters.get("executorch").saturates()


def test_what_torch_cannot_write_and_read_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential()
    net.add_module("a\\", nn.Linear(8, 4))
    with pytest.raises(ModelError, match="could not be written and read back(?s:.*)SyntaxError"):
        rf.export(net.eval(), tmp_path / "net.pt2", torch.randn(2, 8))
    assert not list(tmp_path.iterdir())
