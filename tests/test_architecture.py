"""The imports between rankfold's packages form a DAG, in the order that CONTRIBUTING describes.

Every import counts: at the top of a module, under ``TYPE_CHECKING``, and inside a function, where
rankfold's own modules may be imported only by the command line and by ``__init__``'s lazy exports.
"""

from __future__ import annotations

import ast
import graphlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import rankfold
from rankfold import errors
from rankfold.errors import RankfoldError
from rankfold.methods import registry

# Each package may import the groups above its own, never its own group or one below.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("_printable",),
    ("_version", "errors", "_state", "_tensors"),
    ("_config",),
    (
        "_options",
        "_registry",
        "_files",
        "_hashing",
        "_processes",
        "_progress",
        "_turns",
        "batches",
        "outputs",
    ),
    ("_documents", "outputs"),
    ("records", "factor"),
    ("methods",),
    ("criteria",),
    ("inventory", "cost"),
    ("surgery",),
    ("calibration", "evaluation"),
    ("candidates",),
    ("strategies",),
    ("tune", "pruning", "storage"),
    ("workbench", "exporters"),
    ("timing",),
    ("reporting",),
    ("zoo", "testing"),
    ("api",),
    ("studies",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, group in enumerate(GROUPS) for name in group}

# What a package may import of its own group.
SIBLINGS = {("testing", "zoo")}

# What a package may not import although it stands above: why.
FORBIDDEN = {
    ("strategies", "surgery"): "a strategy changes models through the workbench of its problem",
    ("strategies", "evaluation"): "a strategy measures models through the workbench of its problem",
}

# Packages that may import nothing but these and the standard library.
ONLY = {"factor": {"torch", "rankfold.errors"}}
NEVER = {"records": {"torch.nn"}}

# What counts a cost or adds costs up: elsewhere `rankfold.cost.Pricing` does, at the data type and in the resources
# that were asked for. `surgery` compares two blueprints, `testing` holds a blueprint against the built module.
COUNTING = {"blueprint_cost", "gauged_cost", "dense_cost", "replaced"}
COUNTS = {"records", "cost", "inventory", "surgery", "testing"}
MAY_COUNT = {"rankfold.api.analyzing"}  # a space is counted at the layer's own data type

# Names that objects of others have: each is looked up in one module, which all others ask.
ASKED = {
    "higher_is_better": "rankfold.evaluation.evaluate",  # as_metric
    "logits": "rankfold.outputs",  # class_scores
    "_orig_mod": "rankfold.inventory.wrappers",  # unwrap
}

# Packages that know methods by their contract only.
METHOD_BLIND = {"calibration", "candidates", "cost", "strategies", "surgery"}
NAMES_DEFAULTS = "rankfold.candidates.table"

# Where rankfold's modules may be imported inside a function.
LAZY = {"__init__", "__main__", "cli"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import of a module: where, what, and whether inside a function."""

    importer: str
    line: int
    target: str
    in_function: bool

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: imports {self.target}"


def top(module: str) -> str:
    """Return the package of ``rankfold.<package>...``; ``__init__`` for rankfold itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(module: str, source: str, modules: frozenset[str]) -> Iterator[Import]:
    """Yield the imports of one module's source; `modules` are the modules of rankfold there are."""
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(source), False)]
    while pending:
        node, inside = pending.pop()
        deeper = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        pending.extend((child, deeper) for child in ast.iter_child_nodes(node))
        for target in _targets(node, modules):
            yield Import(importer=module, line=getattr(node, "lineno", 0), target=target, in_function=inside)


def _targets(node: ast.AST, modules: frozenset[str]) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom(level=level) if level > 0:
            return ["." * level + (node.module or "")]  # relative: a violation whatever it names
        case ast.ImportFrom(module=str(base)):
            # `from a import b` imports a.b where that is a module, else only a.
            names = [f"{base}.{alias.name}" for alias in node.names]
            return [n if n in modules or n == "torch.nn" else base for n in names]
        case ast.Call(
            func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            return [name]
        case _:
            return []


def fault(found: Import) -> str | None:
    """Return what is wrong with an import, or None."""
    here, target = top(found.importer), found.target
    if target.startswith("."):
        return "relative; write the whole path"
    if target != "rankfold" and not target.startswith("rankfold."):
        outside = target.split(".")[0]
        if here in ONLY and outside not in ONLY[here] | sys.stdlib_module_names:
            return f"{here} may import only {', '.join(sorted(ONLY[here]))}"
        if any(target == name or target.startswith(f"{name}.") for name in NEVER.get(here, ())):
            return f"{here} may not import it"
        return None
    there = top(target)
    for name in (here, there):
        if name not in RANK:
            return f"{name} has no place in this file's GROUPS: put it where it belongs"
    if here != there:
        if here in ONLY and f"rankfold.{there}" not in ONLY[here]:
            return f"{here} may import only {', '.join(sorted(ONLY[here]))}"
        if (here, there) in FORBIDDEN:
            return FORBIDDEN[here, there]
        if RANK[there] >= RANK[here] and (here, there) not in SIBLINGS:
            return f"{there} stands beside or below {here} in the order of imports"
    if found.in_function and here not in LAZY:
        return "inside a function; import it at the top"
    return None


def counters(sources: Mapping[str, str]) -> list[str]:
    """Return the modules that count costs themselves instead of asking `Pricing`, with what they import."""
    return [
        f"{module}: {alias.name}"
        for module, source in sorted(sources.items())
        if top(module) not in COUNTS and module not in MAY_COUNT
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in COUNTING and (node.module or "").startswith("rankfold")
    ]


def lookups(sources: Mapping[str, str]) -> list[str]:
    """Return the modules that look a name of `ASKED` up themselves, with the name."""
    return [
        f"{module}: {node.value}"
        for module, source in sorted(sources.items())
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ASKED.get(node.value, module) != module
    ]


def named_methods(sources: Mapping[str, str]) -> list[str]:
    """Return the modules that know a particular method: its name as a text, or its module as an import."""
    known = set(registry.names())
    return [
        f"{module}: {name}"
        for module, source in sorted(sources.items())
        if top(module) in METHOD_BLIND and module != NAMES_DEFAULTS
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant | ast.ImportFrom)
        for name in [node.value if isinstance(node, ast.Constant) else (node.module or "").rpartition("methods.")[2]]
        if name in known
    ]


def faults(sources: Mapping[str, str]) -> list[str]:
    """Return every fault of these modules' imports, as ``module, line: imports x (why not)``."""
    modules = frozenset(sources)
    return [
        f"{found} ({why})"
        for module, source in sorted(sources.items())
        for found in imports(module, source, modules)
        if (why := fault(found)) is not None
    ]


def cycle(sources: Mapping[str, str]) -> list[str]:
    """Return the modules of an import cycle, the first also last; empty if there is none."""
    modules = frozenset(sources)
    graph = {
        module: {
            found.target
            for found in imports(module, source, modules)
            if found.target in modules and not (found.in_function and top(module) in LAZY)
        }
        for module, source in sources.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def read_package() -> dict[str, str]:
    """Return the source of every module of rankfold, by its dotted name."""
    root = Path(inspect.getfile(rankfold)).parent
    sources: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        sources[name] = path.read_text("utf-8")
    return sources


def test_imports_form_the_dag() -> None:
    sources = read_package()
    assert len(sources) > 10, "the package was not found"
    assert not (found := faults(sources)), "\n" + "\n".join(found)


def test_every_top_level_module_has_a_place() -> None:
    unknown = {top(name) for name in read_package()} - set(RANK)
    assert not unknown, f"put {', '.join(sorted(unknown))} into GROUPS"


def test_no_module_imports_itself_in_a_circle() -> None:
    assert cycle(read_package()) == []


def test_a_circle_is_found() -> None:
    circle = {
        "rankfold.cost": "from rankfold.cost.a import f",
        "rankfold.cost.a": "from rankfold.cost import b",
        "rankfold.cost.b": "from rankfold.cost import f",
    }
    assert set(cycle(circle)) == set(circle)
    assert cycle({**circle, "rankfold.cost.b": ""}) == []


def test_costs_are_counted_in_one_room() -> None:
    assert counters(read_package()) == []


def test_a_cost_that_is_counted_elsewhere_is_noticed() -> None:
    line = "from rankfold.cost import Pricing, blueprint_cost"
    assert counters({"rankfold.api.x": line}) == ["rankfold.api.x: blueprint_cost"]
    assert counters({"rankfold.cost.x": line, "rankfold.api.x": "from rankfold.cost import Pricing"}) == []


def test_what_metrics_and_models_look_like_is_known_in_one_place() -> None:
    assert lookups(read_package()) == []


def test_a_second_answer_is_noticed() -> None:
    line = 'higher = getattr(metric, "higher_is_better", True)'
    assert lookups({"rankfold.api.x": line}) == ["rankfold.api.x: higher_is_better"]
    assert lookups({"rankfold.evaluation.evaluate": line, "rankfold.api.x": "metric.higher_is_better"}) == []


def test_what_differs_between_methods_is_said_in_their_files() -> None:
    assert named_methods(read_package()) == []


def test_a_method_that_is_named_elsewhere_is_noticed() -> None:
    for line in ('x = method.name == "ttm"', 'x = {"ttm": 5}', "from rankfold.methods.ttm import TTM"):
        assert named_methods({"rankfold.cost.x": line}) == ["rankfold.cost.x: ttm"]
        assert named_methods({"rankfold.methods.x": line}) == []
    assert named_methods({"rankfold.candidates.table": 'DEFAULT_METHODS = ("svd", "tucker")'}) == []
    assert named_methods({"rankfold.cost.x": "from rankfold.methods.contract import get"}) == []


OTHERS = {
    "rankfold": "",
    "rankfold.errors": "",
    "rankfold.records": "",
    "rankfold.api": "",
    "rankfold.surgery": "",
    "rankfold.tune.loop": "",
    "rankfold.methods.svd": "",
    "rankfold.factor.svd": "",
}


@pytest.mark.parametrize(
    ("module", "source", "why"),
    [
        ("rankfold.methods.x", "from rankfold.surgery import build", "beside or below"),
        ("rankfold.methods.x", "from rankfold import surgery", "beside or below"),
        ("rankfold.methods.x", "from rankfold import compress", "beside or below"),
        ("rankfold.methods.x", "import rankfold.api as a", "beside or below"),
        ("rankfold.cost.x", "from rankfold.inventory.y import z", "beside or below"),
        (
            "rankfold.records",
            "if TYPE_CHECKING:\n    from rankfold.methods.svd import Svd",
            "beside or below",
        ),
        ("rankfold.tune.x", "from rankfold.storage import save", "beside or below"),
        ("rankfold.testing.x", "from rankfold.api import plan", "beside or below"),
        ("rankfold.api", "def f():\n    from rankfold.tune.loop import run", "inside a function"),
        (
            "rankfold.tune.x",
            "def f():\n    from rankfold.tune.loop import run",
            "inside a function",
        ),
        ("rankfold.zoo.x", "f = lambda: import_module('rankfold.tune.loop')", "inside a function"),
        ("rankfold.methods.x", "importlib.import_module('rankfold.api')", "beside or below"),
        ("rankfold.methods.x", "from .svd import Svd", "relative"),
        ("rankfold.factor.x", "from rankfold.records import Plan", "may import only"),
        ("rankfold.factor.x", "from rankfold._config import Config", "may import only"),
        ("rankfold.factor.x", "import scipy.linalg", "may import only"),
        ("rankfold.records", "from torch import nn", "may not"),
        ("rankfold.records", "import torch.nn.functional as F", "may not"),
        ("rankfold.strategies.x", "from rankfold.surgery import apply", "workbench"),
        ("rankfold.strategies.x", "from rankfold.tune.loop import finetune", "beside or below"),
        ("rankfold.helpers", "import rankfold.errors", "GROUPS"),
    ],
)
def test_a_fault_is_found(module: str, source: str, why: str) -> None:
    found = faults({**OTHERS, module: source})
    assert len(found) == 1
    assert found[0].startswith(f"{module}, line ")
    assert why in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rankfold.factor.x", "import math\nimport torch\nfrom rankfold.errors import E"),
        ("rankfold.factor.x", "from rankfold.factor.svd import svd"),
        ("rankfold.records", "import torch\nfrom rankfold import errors"),
        ("rankfold.methods.x", "from rankfold.factor import svd\nfrom rankfold.records import R"),
        ("rankfold.testing.x", "from rankfold.surgery import build"),
        ("rankfold.cli.x", "def f():\n    from rankfold import compress"),
        ("rankfold", "def __getattr__(name):\n    from rankfold.api import compress"),
        ("rankfold.zoo.x", "def f():\n    import torchvision"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert faults({**OTHERS, module: source}) == []


MOST_LINES, MOST_PARAMETERS = 60, 12


def oversized(source: str) -> list[str]:
    """Return the functions of a module with more lines of code than allowed, and the public ones with more parameters.

    Lines are counted from the first statement after the docstring to the last.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        parameters = sum(a is not None and a.arg not in ("self", "cls") for a in named)
        if lines > MOST_LINES:
            found.append(f"{node.name} has {lines} lines of code")
        if not node.name.startswith("_") and parameters > MOST_PARAMETERS:
            found.append(f"{node.name} has {parameters} parameters")
    return found


def test_functions_are_short_and_take_few_parameters() -> None:
    faults = [f"{name}: {fault}" for name, source in read_package().items() for fault in oversized(source)]
    assert not faults, "\n".join(faults)


def test_an_oversized_function_is_found() -> None:
    long = "def f():\n" + '    """Doc."""\n' + "    x = 1\n" * (MOST_LINES + 1)
    assert oversized(long) == [f"f has {MOST_LINES + 1} lines of code"]
    assert oversized("def f():\n" + '    """Doc.\n\n' + "    more\n" * 99 + '    """\n    return 1\n') == []
    wide = ", ".join(f"a{i}" for i in range(MOST_PARAMETERS + 1))
    assert oversized(f"def f({wide}): pass") == [f"f has {MOST_PARAMETERS + 1} parameters"]
    assert oversized(f"def _f({wide}): pass") == []


# Errors that are not RankfoldErrors: by module and class, with the reason.
RAW = {
    ("rankfold.strategies._knapsack", "ValueError"): "a private solver whose one caller passes checked arrays",
    ("rankfold.reporting.sections", "TypeError"): "a class of documents without content, as for any missing overload",
    ("rankfold.records.display", "TypeError"): "a class of records without a display, as for any missing overload",
    ("rankfold.storage.weights", "OSError"): "its callers turn it into a RankfoldError with the path",
    ("rankfold.storage.weights", "FileNotFoundError"): "its callers turn it into a RankfoldError with the path",
    ("rankfold.zoo.cifar", "UnpicklingError"): "the reader of batches turns it into a DataError",
    ("rankfold.zoo.idx_images", "ValueError"): "the same function turns it into a DataError with the path",
    ("rankfold.zoo.modelnet", "ValueError"): "its caller turns it into a DataError with the path",
    ("rankfold.tune.run", "stored"): "a RankfoldError of the main process, in every process",
    ("rankfold.calibration.replay", "_Reached"): "ends a forward pass early; caught where the pass starts",
    ("rankfold.calibration.sequential_sums", "_Enough"): "ends a forward pass early; caught where the pass starts",
    ("rankfold.cli._session", "Exit"): "ends a command with its exit code",
    ("rankfold.cli", "Exit"): "ends a command with its exit code",
}
EVERYWHERE = {"NotImplementedError"}  # abstract methods
SUITE = {"AssertionError"}  # failures of the contract suite, in `testing`


def raw_errors(sources: Mapping[str, str]) -> set[tuple[str, str]]:
    """Return the modules that raise something other than a RankfoldError, with its name.

    What is raised by calling a function or a method has that function's return type.
    """
    own = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, RankfoldError)}
    trees = {module: ast.parse(source) for module, source in sources.items()}
    returns = {
        node.name: ast.unparse(node.returns)
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.returns is not None
    }
    result = set()
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc is not None:
                raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                owner, name = "", ast.unparse(raised)
                if isinstance(raised, ast.Attribute):
                    owner, name = ast.unparse(raised.value), raised.attr
                kind = owner if owner in own else returns.get(name, name)
                if kind not in own | EVERYWHERE | (SUITE if top(module) == "testing" else set()):
                    result.add((module, kind))
    return result


def test_errors_are_rankfold_errors() -> None:
    assert raw_errors(read_package()) == set(RAW)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("raise KeyError(name)", "KeyError"),
        ("raise ValueError", "ValueError"),
        ("raise pickle.UnpicklingError('x') from None", "UnpicklingError"),
        ("raise AssertionError", "AssertionError"),
        ("raise _bad()\ndef _bad() -> TypeError: ...", "TypeError"),
        ("raise _bad()\ndef _bad() -> ConfigError: ...", None),
        ("raise self._bad()\nclass A:\n    def _bad(self) -> DataError: ...", None),
        ("raise ConfigError('x')", None),
        ("raise NoMatchingLayer.of('the model', 'x', [])", None),
        ("try:\n    f()\nexcept Exception:\n    raise", None),
    ],
)
def test_a_raw_error_is_noticed(body: str, kind: str | None) -> None:
    assert raw_errors({"rankfold.records.x": body}) == ({("rankfold.records.x", kind)} if kind else set())
