"""Two processes find the plan that one finds, and measure half of the layers each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rankfold._processes import merged, own_share

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
import rankfold as rf
from rankfold.candidates import Estimator
from rankfold.candidates.network import NetworkProxy

torch.set_num_threads(1)
torch.manual_seed(0)
folder, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
layers = [m for i in range(5) for m in (nn.Linear(10 + i, 11 + i), nn.Tanh())]
net = nn.Sequential(*layers).eval()
data = [torch.randn(8, 10), torch.randn(8, 10)]
found = {}
for name, strategy in {"network": rf.CompressNAS(rounds=1), "fisher": rf.CompressNAS(proxy="fisher")}.items():
    seen, losses = [], NetworkProxy.losses

    def watched(self, layer, weights):
        seen.append([layer.name, len(weights)])
        return losses(self, layer, weights)

    NetworkProxy.losses = watched
    plan = rf.plan(net, data[0][:1], budget="params<=70%", methods="svd", calibration=data, strategy=strategy)
    NetworkProxy.losses = losses
    found[name] = {"plan": plan.to_json(), "seen": seen}
(folder / f"{sys.argv[2]}-{rank}.json").write_text(json.dumps(found))
if torch.distributed.is_initialized():
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
# Now and then torch aborts while the interpreter shuts down: a thread of gloo's is still running.
sys.stdout.flush(), sys.stderr.flush()
os._exit(0)
"""


def run(warm: Any, folder: Path, name: str, processes: int) -> list[dict[str, Any]]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    done = warm.run(script, folder, name, environments=warm.together(processes) if processes > 1 else [{}])
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{name}-{r}.json").read_text()) for r in range(processes)]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")
def test_two_processes_find_what_one_finds(tmp_path: Path, warm: Any) -> None:
    (one,) = run(warm, tmp_path, "one", 1)
    first, second = run(warm, tmp_path, "two", 2)
    for name in one:
        assert first[name]["plan"] == second[name]["plan"] == one[name]["plan"]
    names = [layer for layer, _ in one["network"]["seen"]]
    assert set(names) == {"0", "2", "4", "6", "8"}
    shares = [found["network"]["seen"] for found in (first, second)]
    assert sorted(shares[0] + shares[1]) == sorted(one["network"]["seen"]), "together they measure what one does"
    assert all(0 < len(share) < len(names) for share in shares)
    # Each layer is measured by one of them first; the second time, around the solution, by one of them again.
    assert {layer for layer, _ in shares[0][:3]} == {"0", "4", "8"}
    assert {layer for layer, _ in shares[1][:2]} == {"2", "6"}


def test_alone_everything_is_ones_own() -> None:
    assert own_share("abc") == ["a", "b", "c"]
    assert merged({"a": 1}) == {"a": 1}
