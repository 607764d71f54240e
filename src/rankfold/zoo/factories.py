"""User-defined functions named ``pkg.module:factory`` or ``path/to/file.py:factory``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from torch import nn

from rankfold.errors import ConfigError, RankfoldError, UnknownNameError


def is_factory(name: str) -> bool:
    """Whether a name has the form ``module:factory`` or ``file.py:factory``."""
    module, colon, attribute = name.rpartition(":")
    if not (colon and attribute.isidentifier()):
        return False
    return module.endswith(".py") or all(part.isidentifier() for part in module.split("."))


def module_exists(name: str) -> bool:
    """Whether a top-level module can be imported, including from the working directory."""
    if name in sys.modules:  # find_spec fails for "__main__"
        return True
    with _importable(Path.cwd()):
        importlib.invalidate_caches()
        return importlib.util.find_spec(name) is not None


def load_factory(name: str) -> Callable[..., Any]:
    """Return the function that ``module:factory`` or ``file.py:factory`` names.

    This imports the module and so runs its code. Meanwhile, imports also search the file's folder or, for a module,
    the working directory.

    Raises
    ------
    RankfoldError
        If the module or file does not exist or cannot be imported.
    UnknownNameError
        If it has no function of that name.
    """
    module_name, _, attribute = name.rpartition(":")
    try:
        module = _import_file(module_name) if module_name.endswith(".py") else _import(module_name)
    except RankfoldError:
        raise
    except Exception as error:
        raise RankfoldError(
            f"{module_name!r} of {name!r} cannot be imported: {type(error).__name__}: {error}. "
            f"Check the path and the module's own imports."
        ) from error
    factory = getattr(module, attribute, None)
    if not _is_function(factory):
        functions = [n for n, value in vars(module).items() if not n.startswith("_") and _is_function(value)]
        raise UnknownNameError("function or class", attribute, functions, of=repr(module_name))
    return factory


def call_factory(name: str, **arguments: Any) -> Any:
    """Call the factory that `name` names; raise `ConfigError` if its signature does not allow the arguments."""
    factory = load_factory(name)
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        call = f"{name.rpartition(':')[2]}({', '.join(f'{key}=...' for key in arguments)})"
        raise ConfigError(
            f"{name!r} is called as {call}, which its signature does not allow: {error}. "
            f"Give its other parameters default values."
        ) from error
    except ValueError:
        pass  # functions implemented in C may have no signature
    return factory(**arguments)


def _is_function(value: object) -> TypeGuard[Callable[..., Any]]:
    return callable(value) and not isinstance(value, nn.Module)  # calling a module of torch runs its forward


def _import(name: str) -> ModuleType:
    with _importable(Path.cwd()):
        importlib.invalidate_caches()  # the file may be newer than Python's listing of the folder
        return importlib.import_module(name)


def _import_file(name: str) -> ModuleType:
    path = Path(name).expanduser().resolve()
    if not os.path.isfile(path):
        raise RankfoldError(f"there is no file {name!r}. Check the path before ':'.")
    # The module's name changes with the file: classes keep their identity, and an edited file is read again.
    key = hashlib.sha256(f"{path}:{path.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    unique = f"_rankfold_file_{path.stem}_{key}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None
    assert spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses look up their module while it is executed
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = str(folder)
    if entry in sys.path:
        yield
        return
    sys.path.append(entry)  # at the end, so that the user's files never hide an installed package
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
