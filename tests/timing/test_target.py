"""Targets: texts, defaults, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.errors import ConfigError, UnknownNameError
from rankfold.timing import Target, Timer
from rankfold.timing.torch_runtime import Eager


def test_texts_are_read_and_written() -> None:
    target = Target.of("onnxruntime, batch=32,threads=1 , dtype=float16")
    assert target == Target(runtime="onnxruntime", batch=32, threads=1, dtype="float16")
    assert Target.of(str(target)) == target
    assert Target.of("torch") == Target()


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("torch, cores=2", UnknownNameError, "unknown setting 'cores'"),
        ("torch, dtype=int8", UnknownNameError, "int8"),
        ("torch, memory_format=nhwc", UnknownNameError, "memory format 'nhwc'. Choose from: contiguous, channels_last"),
        ("torch, batch=0", ConfigError, "batch must be"),
        ("torch, batch=many", ConfigError, "batch must be an integer"),
        ("torch, threads", ConfigError, "target must be a runtime with settings"),
        ("torch, device=tpu", ConfigError, "device must be 'cpu' or 'cuda'"),
    ],
)
def test_bad_texts_are_refused(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Target.of(text)


def test_settings_come_from_the_model_and_the_input() -> None:
    net, x = nn.Linear(4, 2).double(), torch.randn(3, 4, dtype=torch.float64)
    settled = Target().settled(net, x)
    threads = torch.get_num_threads()
    assert settled == Target(device="cpu", batch=3, threads=threads, dtype="float64")
    inputs = Target(batch=5, dtype="float32", device="cpu").inputs(x)
    assert inputs.shape == (5, 4)
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs[4], x[0].float())


@pytest.mark.parametrize(("shape", "kind"), [((2, 3, 8, 8), nn.Conv2d), ((2, 3, 8, 8, 8), nn.Conv3d)])
@pytest.mark.parametrize("asked", [True, False])
def test_everything_that_is_timed_has_the_memory_format(
    shape: tuple[int, ...], kind: type[nn.Module], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = nn.Sequential(kind(3, 8, 3), nn.ReLU(), kind(8, 8, 3)).eval(), torch.randn(shape)
    form = {4: torch.channels_last, 5: torch.channels_last_3d}[x.ndim]
    if not asked:
        net = net.to(memory_format=form)  # what is not set is the model's
    seen = list[torch.Tensor]()
    monkeypatch.setattr(Eager, "_run", lambda _, module, x: seen.extend([*module.parameters(), x]) or (lambda: 0.0))
    timer = Timer(net, x, Target.of("torch, memory_format=channels_last" if asked else "torch"))
    layer = rf.inspect(net, x).layer("2")
    timer.runtime.layer(layer, None, layer.calls[0], timer.target)
    timer._run(net)
    large = [t for t in seen if t.ndim == x.ndim]
    assert len(large) == 1 + 1 + 2 + 1  # a weight and an input; two weights and an input
    assert all(t.is_contiguous(memory_format=form) for t in large)
    other = Timer(net, x, Target.of("torch, memory_format=contiguous")).target
    assert other.inputs(x).is_contiguous()
    assert other.arrange_(net)[2].weight.is_contiguous()  # pyright: ignore[reportIndexIssue]


def test_onnxruntime_decides_on_the_memory_format(net: nn.Module, x: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="ONNX Runtime chooses the memory format itself. Remove memory_format"):
        Timer(net, x, Target.of("onnxruntime, memory_format=channels_last"))
    assert Timer(net.to(memory_format=torch.channels_last), x, Target.of("onnxruntime")).target.memory_format is None  # pyright: ignore[reportCallIssue]


def test_inputs_without_a_batch_dimension_cannot_be_resized() -> None:
    with pytest.raises(ConfigError, match=r"batch must be 3, as in the example input"):
        Target(batch=2).resized((torch.randn(3, 4), torch.tensor(1.0)))


def test_an_unknown_runtime_is_refused_before_any_work(net: nn.Module, x: torch.Tensor) -> None:
    with pytest.raises(UnknownNameError, match="runtime 'onnxruntim'"):
        rf.plan(net, x, budget="params<=50%", target="onnxruntim")
    with pytest.raises(ConfigError, match="target must be a runtime"):
        rf.plan(net, x, budget="params<=50%", target=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_refused_without_a_device(net: nn.Module, x: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="needs CUDA, which this machine lacks. Use device=cpu"):
        Timer(net, x, Target.of("torch, device=cuda"))
