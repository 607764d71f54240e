"""Two processes do what one does with the same global batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rankfold

# Last batches of one sample: fewer than there are processes.
SCRIPT = """
import copy, os, sys
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from rankfold.errors import ConfigError, DataError, ModelError
from rankfold.inventory import static_inventory
from rankfold.records import Choice, Plan
from rankfold.surgery import apply_plan_
from rankfold.tune import FineTune, finetune

torch.set_num_threads(1)
torch.manual_seed(0)
folder = Path(sys.argv[1])
rank = int(os.environ.get("RANK", "0"))
unused = nn.Linear(2, 2)  # a parameter that no loss reaches
teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
teacher.add_module("5", nn.Identity())
teacher[5].unused = unused
student = copy.deepcopy(teacher)
names = [layer.name for layer in static_inventory(student)]
ranks = {"0": 3, "2": 4}
choices = {n: Choice(method="svd", ranks=(ranks[n],)) if n in ranks else Choice() for n in names}
apply_plan_(student, Plan(layers=choices))
x = torch.randn(33, 6)
y = x[:, :3].argmax(1)
loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
cases = {
    "loader": dict(data=loader, loss="task+distill+layer"),
    "list": dict(data=list(zip(x.split(8), y.split(8))), loss="task+distill+layer"),
    "unlabeled": dict(data=list(x.split(8)), optimizer="adamw"),
    "layer": dict(data=loader, loss="layer", max_grad_norm=None),
    "sum": dict(data=loader, loss="layer", layer_scale="sum", layer_weight=1e-3),
    "mean": dict(data=loader, loss="task+layer", layer_scale="mean"),
    "merged": dict(data=loader, loss="task+distill+layer", merge_factors=True),
    "best": dict(data=loader, schedule="plateau", plateau_patience=0, keep="best"),
    "checkpoint": dict(data=loader, checkpoint=folder / f"{sys.argv[2]}.pt", checkpoint_every=2),
}
seen = []
found = {}
for name, options in cases.items():
    values = iter([0.5 + rank, 0.7 + rank, 0.9 + rank])  # only the main process's may count
    config = FineTune(**{"epochs": 3, "lr": 0.05, "target": 0.65, **options})
    result = finetune(student, config, teacher=teacher, metric=lambda _: next(values),
                      progress=lambda info: seen.append(info.step))
    found[name] = {"model": result.model.state_dict(), "history": [
        {"loss": e.loss, "metric": e.metric, **e.terms} for e in result.history]}
assert bool(seen) == (rank == 0)

norm = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
found["norm"] = finetune(norm, FineTune(data=list(zip(x[:32].split(8), y.split(8))), epochs=1)).model.state_dict()
errors = []
for options in (
    dict(data=[(x, y), (x * float("nan"), y)]),
    dict(data=[x], loss="task"),
    dict(data=loader, checkpoint=folder / f"{sys.argv[2]}.pt"),
):
    try:
        finetune(student, FineTune(epochs=1, **options), teacher=teacher)
    except (ConfigError, DataError, ModelError) as error:
        errors.append(type(error).__name__)
assert errors == ["ModelError", "DataError", "ConfigError"], errors
torch.save(found, folder / f"{sys.argv[2]}-{rank}.out")
if torch.distributed.is_initialized():
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
# Now and then torch aborts while the interpreter shuts down ("terminate called without an active exception": a thread
# of gloo's is still running). What is tested here is written by now.
sys.stdout.flush(), sys.stderr.flush()
os._exit(0)
"""


def one_process(warm: Any, folder: Path) -> dict[str, Any]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    done = warm.run(script, folder, "one")
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "one-0.out", weights_only=True)


def processes_of_torchrun(folder: Path, processes: int) -> list[dict[str, Any]]:
    """Start the processes as users do, with torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *launcher, str(folder / "script.py"), str(folder), "two"],
        # Without accelerators: two processes may not share one, and gloo is what is tested.
        env={**os.environ, "PYTHONPATH": str(Path(rankfold.__path__[0]).parent), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"two-{r}.out", weights_only=True) for r in range(processes)]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")
def test_two_processes_equal_one(tmp_path: Path, warm: Any) -> None:
    one = one_process(warm, tmp_path)
    main, second = processes_of_torchrun(tmp_path, 2)
    norm = [found.pop("norm") for found in (one, main, second)]
    for case, alone in one.items():
        assert len(alone["history"]) == 2, "the main process's metric stops both"
        for found in (main[case], second[case]):
            for name, tensor in alone["model"].items():
                # 2.5e-6 measured, with AdamW, which divides small gradients by their size.
                torch.testing.assert_close(found["model"][name], tensor, rtol=1e-3, atol=2e-5)
            for a, b in zip(alone["history"], found["history"], strict=True):
                assert a == pytest.approx(b, rel=1e-4)
        for name, tensor in main[case]["model"].items():
            assert torch.equal(tensor, second[case]["model"][name])
    # Negative control: another order of the same batches is further away than the tolerance.
    a, b = one["loader"]["model"], one["list"]["model"]
    assert any((a[k] - b[k]).abs().max() > 1e-3 for k in a)
    # BatchNorm sees each process's share by itself; all end with the main process's statistics.
    assert all(torch.equal(norm[1][k], norm[2][k]) for k in norm[0])
    assert not torch.allclose(norm[0]["1.running_mean"], norm[1]["1.running_mean"], atol=1e-4)
    written = sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".pt")
    assert written == ["one.pt", "two.pt"]


def test_processes_that_accelerate_does_not_know_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from rankfold.errors import ConfigError
    from rankfold.tune import FineTune, finetune

    data = [(torch.ones(2, 6), torch.zeros(2).long())]
    # Accelerate learnt in an earlier test that this process is alone.
    finetune(torch.nn.Linear(6, 3), FineTune(data=data, epochs=1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were started together"):
        finetune(torch.nn.Linear(6, 3), FineTune(data=data, epochs=1))
