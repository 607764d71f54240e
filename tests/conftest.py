"""Fixtures and settings of the whole suite."""

from __future__ import annotations

import os

# Before torch is imported, and inherited by every process a test starts: one thread each, so that
# parallel workers do not fight for the cores and sums come out in one order; no model hub; and training on the CPU
# on machines with an accelerator too, where the tests' own models and data are (those marked `gpu` say otherwise).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

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
