"""Fixtures and settings of the whole suite."""

from __future__ import annotations

import os

# Before torch is imported, and inherited by every process a test starts: one thread each, so that
# parallel workers do not fight for the cores and sums come out in one order; no model hub; and training on the CPU
# on machines with an accelerator too, where the tests' own models and data are (those marked `gpu` say otherwise).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import json
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import rankfold
from rankfold import _progress

torch.set_num_threads(1)

# The same examples on every run; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("rankfold", max_examples=200, deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("explore", max_examples=2000, deadline=None, derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "rankfold"))

SEED = 0


@pytest.fixture
def seed() -> int:
    """Return the seed of every test that takes one."""
    return SEED


@pytest.fixture
def generator() -> torch.Generator:
    """Return a fresh seeded CPU generator."""
    return torch.Generator().manual_seed(SEED)


class Warm:
    """Runs scripts in forks of a process that has imported torch and rankfold, with warnings as errors; see `warm.py`.

    The output of the last script is in the files `out` and `err`.
    """

    def __init__(self, folder: Path) -> None:
        self.out, self.err = folder / "out", folder / "err"
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", str(Path(__file__).with_name("warm.py"))],
            env={**os.environ, "PYTHONPATH": str(Path(rankfold.__path__[0]).parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, script: Path, *args: str | Path, environments: Sequence[Mapping[str, str]] = ({},)) -> list[int]:
        """Start a script in its folder, once with each of these variables; return the process ids."""
        self.out.unlink(missing_ok=True)
        self.err.unlink(missing_ok=True)
        request = {
            "argv": [str(script), *map(str, args)],
            "folder": str(script.parent),
            "environments": [{**os.environ, **variables} for variables in environments],
            "out": str(self.out),
            "err": str(self.err),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        self._children = self._answer(60)
        return self._children

    def search(self, text: str, folder: Path, log: Path) -> int:
        """Start a search from the text of its script, which gets a folder and a log; return the process id."""
        folder.mkdir(exist_ok=True)
        script = folder / "script.py"
        script.write_text(text)
        (child,) = self.start(script, folder, log)
        return child

    @property
    def running(self) -> bool:
        """Whether one of the processes has not ended."""
        return not select.select([self._process.stdout], [], [], 0)[0]

    def ended(self, timeout: float = 120) -> list[int]:
        """Wait for the end of all; return their exit statuses, negative for a signal."""
        return self._answer(timeout)

    @staticmethod
    def together(processes: int) -> list[dict[str, str]]:
        """Return the variables that torchrun sets for each process of a group, which has no accelerator."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
        common |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
        return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]

    def run(
        self, script: Path, *args: str | Path, environments: Sequence[Mapping[str, str]] = ({},)
    ) -> subprocess.CompletedProcess[str]:
        """Run a script; the exit status is the largest of all."""
        self.start(script, *args, environments=environments)
        code = max(map(abs, self.ended()))
        return subprocess.CompletedProcess([str(script)], code, self.out.read_text(), self.err.read_text())

    def stop(self) -> None:
        """End the process."""
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()

    def _answer(self, timeout: float) -> list[int]:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], timeout)[0]:
            for child in self._children:
                os.kill(child, 9)
            stdout.readline()
            pytest.fail(f"no end within {timeout:g} s: {self.err.read_text()}")
        return json.loads(stdout.readline())


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Return what runs scripts without importing torch again."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    server = Warm(tmp_path_factory.mktemp("warm"))
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _global_state() -> Iterator[None]:
    """Seed torch, from which modules draw their weights; fail a test that leaves torch changed."""
    torch.manual_seed(SEED)
    _progress._lines.seen = float("-inf")  # otherwise a line per minute of tests is due in one of them
    before = _torch_state()
    yield
    after = _torch_state()
    assert after == before, f"the test left torch changed: {before} became {after}"


def _torch_state() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }
