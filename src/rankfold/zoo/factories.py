"""Functions of the user's, named ``pkg.module:factory`` or ``path/to/file.py:factory``."""

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
from typing import Any

from torch import nn

from rankfold.errors import ConfigError, RankfoldError, UnknownNameError


def is_factory(name: str) -> bool:
    """Whether a name has the form ``module:factory`` or ``file.py:factory``."""
    module, colon, attribute = name.rpartition(":")
    if not (colon and attribute.isidentifier()):
        return False
    return module.endswith(".py") or all(part.isidentifier() for part in module.split("."))


def module_exists(name: str) -> bool:
    """Whether a module without dots can be imported, from the working directory too."""
    if name in sys.modules:  # "__main__" is one that cannot be found
        return True
    with _importable(Path.cwd()):
        importlib.invalidate_caches()
        return importlib.util.find_spec(name) is not None


def load_factory(name: str) -> Callable[..., Any]:
    """Return the function that ``module:factory`` or ``file.py:factory`` names.

    This runs the module's code, as importing it would. The folder of the file, or the working
    directory for a module, can be imported from meanwhile.

    Parameters
    ----------
    name : str
        For instance ``"mypkg.models:small_resnet"`` or ``"nets/small.py:make"``.

    Raises
    ------
    RankfoldError
        If the module or file does not exist or cannot be imported.
    UnknownNameError
        If it holds no function of that name.
    """
    module_name, _, attribute = name.rpartition(":")
    try:
        module = _import_file(module_name) if module_name.endswith(".py") else _import(module_name)
    except RankfoldError:
        raise
    except Exception as error:
        raise RankfoldError(
            f"{module_name!r} of {name!r} cannot be imported: {type(error).__name__}: {error}. "
            f"Check the path or the module's own imports."
        ) from error
    factory = getattr(module, attribute, None)
    # A module object can be called as well, but that would be its forward.
    if not callable(factory) or isinstance(factory, nn.Module):
        found = [
            n
            for n, value in vars(module).items()
            if callable(value) and not n.startswith("_") and not isinstance(value, nn.Module)
        ]
        raise UnknownNameError(f"factory (a function or class) of {module_name!r}", attribute, found)
    return factory


def call_factory(name: str, **arguments: Any) -> Any:
    """Call the factory that `name` names, or say which arguments it cannot take.

    Raises
    ------
    ConfigError
        If the factory's signature does not allow the arguments.
    """
    factory = load_factory(name)
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        given = ", ".join(f"{key}=..." for key in arguments)
        raise ConfigError(
            f"{name!r} is called as {name.rpartition(':')[2]}({given}), which its signature does "
            f"not allow: {error}. Give its other parameters default values."
        ) from error
    except ValueError:
        pass  # a callable of C has no signature to check
    return factory(**arguments)


def _import(name: str) -> ModuleType:
    with _importable(Path.cwd()):
        importlib.invalidate_caches()  # the file may be younger than Python's list of the folder
        return importlib.import_module(name)


def _import_file(name: str) -> ModuleType:
    path = Path(name).expanduser().resolve()
    if not os.path.isfile(path):
        raise RankfoldError(f"there is no file {name!r}. Check the path before ':'.")
    # Under a name of its own, which changes with the file, so that classes keep their identity
    # and an edited file is read again.
    key = hashlib.sha256(f"{path}:{path.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    unique = f"_rankfold_file_{path.stem}_{key}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise RankfoldError(f"{name!r} cannot be imported as a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses look their module up while it runs
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
    sys.path.append(entry)  # last: the user's files never hide an installed package
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
