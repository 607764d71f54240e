"""Run the tests with the oldest supported versions and with the newest, each in a fresh virtual environment.

The oldest are the floors of pyproject.toml, those of the extras that users install among them. Packages that only the
tests need are the newest that go with them. An environment takes about 6 GB; it is removed at the end, unless `--keep`
names a folder for it. Arguments after ``--`` are pytest's.

    python scripts/versions.py
    python scripts/versions.py --only oldest --keep /tmp/environments -- -n 2 tests/inventory
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("vision", "demo", "datasets", "prune")
"""The extras whose floors belong to what users install."""

_FLOOR = re.compile(r"^([A-Za-z0-9_.-]+)>=([0-9][0-9.]*)$")
_COUNTS = re.compile(r"\d+ (?:passed|failed|skipped|errors?|xfailed|xpassed)")


def floors(pyproject: Path = ROOT / "pyproject.toml") -> dict[str, str]:
    """Return the oldest supported version of every package that users install.

    Raises
    ------
    ValueError
        If a requirement is no plain floor, such as ``numpy>=1.26``, or a package has two.
    """
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    found: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(r for e in EXTRAS for r in project["optional-dependencies"][e])]:
        match = _FLOOR.match(requirement)
        if match is None or match[1] in found:
            raise ValueError(f"{requirement!r} must be the one floor of its package, such as 'numpy>=1.26'")
        found[match[1]] = match[2]
    return found


def install(environment: Path, *, oldest: bool) -> Path:
    """Make the virtual environment with rankfold and its tests; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    python = environment / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", f"{ROOT}[test]"]
    if oldest:
        pins = environment / "oldest.txt"
        pins.write_text("".join(f"{name}=={version}\n" for name, version in floors().items()), "utf-8")
        command += ["--constraint", str(pins)]
    else:
        command += ["--upgrade", "--upgrade-strategy", "eager"]
    subprocess.run(command, check=True, cwd=environment)
    return python


def versions(python: Path) -> dict[str, str]:
    """Return the installed versions of the packages that have floors."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([str(python), "-c", code, *floors()], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def run_tests(python: Path, arguments: list[str]) -> tuple[int, str]:
    """Run pytest; return its exit status and its counts, such as ``2024 passed, 9 skipped``."""
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *(arguments or ["-n", "2"])]
    last = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line if _COUNTS.search(line) else last
    return process.returncode, ", ".join(_COUNTS.findall(last)) or "no result"


def table(found: dict[str, tuple[dict[str, str], str]]) -> str:
    """Return versions and counts as a Markdown table."""
    lines = [f"| | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for name in floors():
        lines.append(f"| {name} | {' | '.join(installed[name] for installed, _ in found.values())} |")
    lines.append(f"| tests | {' | '.join(counts for _, counts in found.values())} |")
    return "\n".join(lines)


def main() -> int:
    """Return 0 if all tests passed in every environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("oldest", "newest"), help="one of the two environments; by default both")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the environments are made, and stay")
    parser.add_argument("pytest", nargs="*", metavar="-- ARGUMENT", help="for pytest; by default -n 2")
    options = parser.parse_args()
    found: dict[str, tuple[dict[str, str], str]] = {}
    failed = 0
    with tempfile.TemporaryDirectory(prefix="rankfold-versions.") as temporary:
        for name in (options.only,) if options.only else ("oldest", "newest"):
            print(f"\n=== {name} versions", flush=True)
            python = install((options.keep or Path(temporary)) / name, oldest=name == "oldest")
            status, counts = run_tests(python, options.pytest)
            found[name] = (versions(python), counts)
            failed += status != 0
    print(f"\n{table(found)}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
