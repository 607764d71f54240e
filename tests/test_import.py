"""``import rankfold`` is cheap and changes nothing; what it offers is small and documented."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rankfold
from rankfold import methods, strategies

ROOT = Path(__file__).parent.parent
MAX_PUBLIC_NAMES = 32

# Each of these alone costs more than the whole of rankfold may (0.3 s beyond torch, measured by
# benchmarks/import_time.py), or is an extra that a user may not have. Counting them does not
# depend on how busy the machine is.
HEAVY = (
    "PIL",
    "accelerate",
    "ai_edge_litert",
    "coremltools",
    "executorch",
    "huggingface_hub",
    "litert_torch",
    "matplotlib",
    "mlxtend",
    "onnx",
    "pandas",
    "rich",
    "scipy.optimize",
    "sklearn",
    "soundfile",
    "tensorly",
    "timm",
    "torch._dynamo",
    "torch.onnx",
    "torch.utils.tensorboard",
    "torchvision",
    "trimesh",
    "triton",
    "typer",
)

PROBE = """
import json, logging, os, random, sys, warnings
import numpy, torch, torch.fx.experimental.symbolic_shapes  # with torch 2.6 it brings SymPy, which adds a filter

def state():
    return {
        "torch RNG": torch.get_rng_state().sum().item(),
        "numpy RNG": str(numpy.random.get_state()),
        "python RNG": hash(random.getstate()),
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "CUDA initialized": torch.cuda.is_initialized(),
        "log handlers": len(logging.getLogger().handlers),
        "log level": logging.getLogger().level,
        "warning filters": [str(f) for f in warnings.filters],
        "environment": dict(os.environ),
        "float repr": str(torch.tensor([1 / 3, 1e10])),
    }

before, modules = state(), set(sys.modules)
{statement}
after = state()
changed = sorted(k for k in before if before[k] != after[k])
print(json.dumps({"changed": changed, "modules": sorted(set(sys.modules) - modules)}))
"""


def probe(statement: str) -> dict[str, Any]:
    """Run a statement after ``import torch`` in a fresh process: what it changed and imported."""
    code = PROBE.replace("{statement}", statement)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 1, f"the import printed something: {lines[:-1]}"
    return json.loads(lines[0])


def heavy(modules: list[str]) -> list[str]:
    return sorted(set(HEAVY) & set(modules))


def test_import_is_light_and_changes_nothing() -> None:
    seen = probe("import rankfold")
    assert "rankfold" in seen["modules"]
    assert heavy(seen["modules"]) == []
    assert seen["changed"] == []


def test_the_probe_sees_heavy_modules_and_changes() -> None:
    seen = probe("import rich, scipy.optimize; torch.manual_seed(1); torch.set_num_threads(3)")
    assert heavy(seen["modules"]) == ["rich", "scipy.optimize"]
    assert {"threads", "torch RNG"} <= set(seen["changed"])


def test_public_names_are_few_and_exist() -> None:
    names = rankfold.__all__
    assert len(names) == len(set(names))
    plugins = {entry.plugin.__name__ for kind in (methods, strategies) for entry in kind.registry}
    assert plugins <= set(names)
    assert 0 < len(set(public(names)) - plugins) <= MAX_PUBLIC_NAMES
    assert set(names) <= set(dir(rankfold))
    for name in names:
        assert hasattr(rankfold, name)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        rankfold.no_such_name  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_every_public_name_has_a_docstring() -> None:
    bare = [name for name in public(rankfold.__all__) if not own_docstring(getattr(rankfold, name))]
    assert bare == []


def test_own_docstring_is_not_an_inherited_one() -> None:
    class Parent:
        """Documented."""

    class Child(Parent):
        pass

    assert own_docstring(Parent)
    assert not own_docstring(Child)
    assert not own_docstring(3)
    assert not own_docstring("a constant")


def test_every_public_name_is_in_the_documents() -> None:
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "\n".join(path.read_text("utf-8") for path in documents)
    assert missing(public(rankfold.__all__), text) == []
    assert missing(["compress", "no_such_name"], "`rf.compress(model)`") == ["no_such_name"]
    assert missing(["plan"], "explanation") == ["plan"]


def public(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("__")]


def own_docstring(value: object) -> bool:
    if not (inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value)):
        return False
    return bool((value.__doc__ or "").strip())


def missing(names: list[str], text: str) -> list[str]:
    """Return the names that the text never mentions as code: ``name``, ``rf.name``, ``name(``."""
    return [n for n in names if not re.search(rf"[`.]{n}\b|\b{n}\(", text)]
