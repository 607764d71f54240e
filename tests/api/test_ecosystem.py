"""A compressed model under torch.compile, autocast, export, DistributedDataParallel, and without rankfold."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.methods import get, registry
from rankfold.surgery import factored_layers

X = torch.randn(2, 6, 9, 9, generator=torch.Generator().manual_seed(1))


class Net(nn.Sequential):
    """Convolutions and linear layers for every method."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(6, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 12, 3, stride=2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, 24),
            nn.ReLU(),
            nn.Linear(24, 12),
        )


def compressed(method: str) -> nn.Module:
    """Return a network of its own that was compressed once for all tests."""
    return copy.deepcopy(_compressed(method))


@cache
def _compressed(method: str) -> nn.Module:
    torch.manual_seed(0)
    net = Net().eval()
    found = {layer.name: layer for layer in rf.inspect(net, X)}
    chosen = get(method)
    layers = {
        name: (method, tuple(max(1, limit // 2) for limit in chosen.max_ranks(layer)))
        for name, layer in found.items()
        if chosen.supports(layer) is None
    }
    assert layers
    return rf.apply(net, rf.plan(net, X, strategy=rf.Manual(layers=layers)))


@pytest.fixture(params=registry.names())
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def test_strip(method: str) -> None:
    small = compressed(method)
    plain = rf.strip(small)
    assert factored_layers(small)
    assert torch.equal(plain(X), small(X))
    assert not any(type(m).__module__.startswith("rankfold") for m in plain.modules())
    plain(X).square().sum().backward()
    assert all(p.grad is not None for p in plain.parameters())
    assert all(p.grad is None for p in small.parameters())


def test_compile(method: str) -> None:
    small = compressed(method)
    torch._dynamo.reset()
    fast = torch.compile(small, backend="eager", fullgraph=True)
    assert torch.equal(fast(X), small(X))
    torch._dynamo.reset()


def test_export(method: str) -> None:
    small = compressed(method)
    torch._dynamo.reset()  # torch 2.6 counts the models that went before as compilations of one function
    program = torch.export.export(small, (X,))
    assert torch.allclose(program.module()(X), small(X), atol=1e-6)


def test_autocast(method: str) -> None:
    small = compressed(method)
    with torch.no_grad():
        expected = small(X)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = small(X)
    assert found.dtype is torch.bfloat16
    assert torch.dist(found.float(), expected) < 0.05 * expected.norm()
    assert not torch.equal(found.float(), expected)


def _run(code: str, *args: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *args],
        env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _finish(process: subprocess.Popen[str]) -> str:
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out


WITHOUT_RANKFOLD = """
import sys, torch
sys.modules["rankfold"] = None  # any import of it fails
for file in sys.argv[1:]:
    model, x, expected = torch.load(file, weights_only=False)
    assert torch.equal(model(x), expected), "outputs differ"
    print("same")
"""


def test_stripped_models_unpickle_without_rankfold(tmp_path: Path) -> None:
    small = nn.Sequential(*compressed("tucker").children())  # the class of the network is no more to be found
    torch.save((rf.strip(small), X, small(X)), tmp_path / "chain.pt")
    torch.save((small, X, small(X)), tmp_path / "not stripped.pt")
    ttm = rf.strip(
        rf.factorize(
            nn.Linear(24, 24), "ttm", get("ttm").max_ranks(rf.inspect(nn.Linear(24, 24), torch.zeros(1, 24)).layers[0])
        )
    )
    x = torch.randn(3, 24)
    torch.save((ttm, x, ttm(x)), tmp_path / "ttm.pt")
    process = _run(WITHOUT_RANKFOLD, *(str(tmp_path / name) for name in ("chain.pt", "ttm.pt")))
    control = _run(WITHOUT_RANKFOLD, str(tmp_path / "not stripped.pt"))
    assert _finish(process) == "same\n" * 2
    _, err = control.communicate(timeout=120)
    assert control.returncode != 0
    assert "rankfold" in err


PARALLEL = """
import os, sys, torch
import torch.distributed as dist
from torch import nn
import rankfold as rf

rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.Flatten(), nn.Linear(12 * 16, 8))
x = torch.randn(4, 3, 8, 8)
small = rf.compress(net, x, budget="params<=50%").model
small(x).square().mean().backward()
whole = [p.grad.clone() for p in small.parameters()]
small.zero_grad()
parallel = nn.parallel.DistributedDataParallel(small)
parallel(x.chunk(2)[rank]).square().mean().backward()
for p, expected in zip(small.parameters(), whole):
    assert torch.allclose(p.grad, expected, atol=1e-6), "gradients differ"
if rank == 0:
    folder = rf.save(parallel, sys.argv[2])
    assert torch.equal(rf.load(folder, net)(x), small(x))
    print(len(whole))
dist.barrier()
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # now and then torch aborts while the interpreter shuts down; all that is tested here is done
"""


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path: Path, warm: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(PARALLEL)
    ranks = [{"RANK": str(rank)} for rank in range(2)]
    done = warm.run(script, tmp_path / "store", tmp_path / "model", environments=ranks)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 6
