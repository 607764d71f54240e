"""The snippets of README and docs run, and the tags that make them run are read correctly.

Shell blocks are run by ``.ci/run``; Python blocks here, those of one document in one process, a fork of one that has
imported torch and rankfold.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def _load_fences() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ci_fences", ROOT / ".ci" / "fences.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


ci = _load_fences()


def python_script(document: str) -> str:
    """Return the document's tagged Python blocks, each on its own lines, all else left empty.

    So a traceback shows the document's own line numbers.
    """
    lines = [""] * (document.count("\n") + 1)
    for block in ci.fences(document):
        if block.tag == "ci:python":
            text = block.text.splitlines()
            lines[block.line - 1 : block.line - 1 + len(text)] = text
    return "\n".join(lines)


def run_snippets(document: str, folder: Path, warm: Any) -> subprocess.CompletedProcess[str]:
    """Run the tagged Python blocks of a document in order, in a process and a folder of their own."""
    path = folder / "snippets.py"
    path.write_text(python_script(document), "utf-8")
    return warm.run(path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_snippets_run(path: Path, tmp_path: Path, warm: Any) -> None:
    document = path.read_text("utf-8")
    if not python_script(document).strip():
        assert path.name != "README.md", "README shows no Python that runs"
        return
    done = run_snippets(document, tmp_path, warm)
    assert done.returncode == 0, done.stderr


def test_readme_has_its_two_commands() -> None:
    found = ci.fences((ROOT / "README.md").read_text("utf-8"))
    by_tag = {tag: [f for f in found if f.tag == tag] for tag in ci.TAGS}
    assert [len(by_tag[t]) for t in ("ci:demo", "ci:test")] == [1, 1]
    assert "rankfold demo" in by_tag["ci:demo"][0].text
    assert "pytest" in by_tag["ci:test"][0].text


def test_snippets_share_a_namespace_and_a_failure_shows_its_line(tmp_path: Path, warm: Any) -> None:
    good = "<!-- ci:python -->\n```python\nx = 1\n```\ntext\n```python\nx = 0\n```\n"
    also_good = "<!-- ci:python -->\n```python\nassert x == 1\n```\n"
    bad = "<!-- ci:python -->\n```python\nassert x == 2\n```\n"
    assert run_snippets(good + also_good, tmp_path, warm).returncode == 0
    done = run_snippets(good + bad, tmp_path, warm)
    assert done.returncode == 1
    assert "line 11" in done.stderr
    assert "AssertionError" in done.stderr
    warning = "<!-- ci:python -->\n```python\nimport warnings\nwarnings.warn('so')\n```\n"
    assert "UserWarning: so" in run_snippets(warning, tmp_path, warm).stderr
    assert "NameError" in run_snippets("<!-- ci:python -->\n```python\nx\n```\n", tmp_path, warm).stderr, (
        "a new namespace"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- ci:rnu -->\n```bash\nls\n```\n", "unknown tag 'ci:rnu'"),
        ("<!-- ci:run -->\n\n```bash\nls\n```\n", "line 2: ci:run must stand right before"),
        ("<!-- ci:run -->\n```python\nx = 1\n```\n", "ci:run needs a ```bash block"),
        ("<!-- ci:run -->\n```bash\nls\n", "line 2: this block never ends"),
        ("text\n<!-- ci:run -->\n", "stands before nothing"),
    ],
)
def test_a_wrong_tag_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ci.fences(text)


def test_a_tag_inside_a_block_is_text() -> None:
    assert ci.fences("````markdown\n<!-- ci:run -->\n```bash\nls\n```\n````\n") == []


def _run_shell(block: str, tmp_path: Path) -> tuple[int, str]:
    document = tmp_path / "d.md"
    document.write_text(f"<!-- ci:run -->\n```bash\n{block}\n```\n", "utf-8")
    script = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "fences.py"), "ci:run", str(document)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_shell_commands_share_one_shell(tmp_path: Path) -> None:
    block = "x=1 && cd /  # a comment\n# another\necho $x \\\n  $PWD 'a b'"
    code, out = _run_shell(block, tmp_path)
    assert code == 0
    assert out == "$ x=1 && cd /  # a comment\n$ echo $x $PWD 'a b'\n1 / a b\n"


@pytest.mark.parametrize("failing", ["false", "false && true", "(exit 3)", "false | true"])
def test_any_failing_shell_command_fails_the_script(failing: str, tmp_path: Path) -> None:
    code, out = _run_shell(f"{failing}\necho reached", tmp_path)
    assert code != 0
    assert "\nreached" not in out


def test_a_missing_command_block_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "d.md"
    document.write_text("nothing\n", "utf-8")
    with pytest.raises(SystemExit, match="expected one ci:demo block"):
        ci.main("ci:demo", str(document))
