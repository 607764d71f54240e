"""SIGKILL at random instants of save, compress, finetune and sweep: each leaves the old or the new artifact whole.

After every kill, what is in the folder must load as the old or the new model. The same call is then made again: it must
resume, end with the result of a run that was never killed, and leave no other file. A few kills are part of the tests;
``python tests/trust/kills.py --count 40 --seed 0`` makes 40 of each operation, and has a reader beside two writers for
20 s (``--seconds``).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.errors import RankfoldWarning
from rankfold.records import Choice
from rankfold.storage.weights import file_state

AFTER_S = 0.004
X = torch.randn(8, 24, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 6
DATA = [(X, Y), (X.flip(0), Y.flip(0))]


def net() -> nn.Module:
    """Return the network of every run; always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 6)).eval()


def by_hand(rank: int) -> nn.Module:
    """Return the network with factors of a rank."""
    layers = {name: Choice(method="svd", ranks=(rank,)) for name in ("0", "2")}
    return rf.apply(net(), rf.Plan(layers=layers))


def accuracy(model: nn.Module) -> float:
    """Return a metric that is quick."""
    return float((model(X).argmax(1) == Y).float().mean())


def _save(folder: Path) -> None:
    rf.save(by_hand(4), folder / "artifact")


def _compress(folder: Path) -> None:
    rf.compress(
        net(), X[:1], budget="params<=60%", strategy=rf.CompressNAS(points=3), calibration=DATA,
        cache=folder / "cache", evaluate=accuracy, output=folder / "artifact",
    )  # fmt: skip


def _finetune(folder: Path) -> None:
    recipe = rf.FineTune(data=DATA, epochs=6, lr=0.05, checkpoint=folder / "artifact", checkpoint_every=1)
    tuned = rf.finetune(by_hand(4), recipe, teacher=net()).model
    rf.save(tuned, folder / "artifact")
    (folder / "artifact" / "finetune.pt").unlink()


def _sweep(folder: Path) -> None:
    found = rf.sweep(
        net(), X[:1], points=2, strategy=rf.CompressNAS(points=3), calibration=DATA, cache=folder / "cache",
        evaluate=accuracy, output=folder / "models",
    )  # fmt: skip
    found.save(folder / "sweep.json")


OPERATIONS: dict[str, Callable[[Path], None]] = {
    "save": _save, "compress": _compress, "finetune": _finetune, "sweep": _sweep,
}  # fmt: skip


def artifacts(folder: Path) -> list[Path]:
    """Return the folders of the artifacts below a folder."""
    return sorted(file.parent for file in folder.rglob("plan.json") if not file.parent.name.startswith("."))


def outcome(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of every artifact; each must load."""
    return {
        str(place.relative_to(folder)): dict(rf.load(place, net()).state_dict())
        for place in artifacts(folder)
    }  # fmt: skip


def names(folder: Path) -> list[str]:
    """Return every path below a folder, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states are the same, bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def child(work: Callable[[], object]) -> int:
    """Start work in a fork and return its process id; it ends with 0 if the work did not raise."""
    with warnings.catch_warnings():
        # Python 3.12 warns where a library, such as CUDA's, has threads; the work needs none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            warnings.simplefilter("ignore", RankfoldWarning)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """Wait for a child and return how it ended; negative is the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def import_what_it_imports(work: Callable[[], object]) -> None:
    """Import scipy, accelerate and more once, instead of in each child.

    The work itself is done in a child, too: HiGHS starts threads, without which its solver waits for ever in a fork.
    """
    reader, writer = os.pipe()

    def report() -> None:
        work()
        with os.fdopen(writer, "w") as stream:
            stream.write("\n".join(sys.modules))

    pid = child(report)
    os.close(writer)
    with os.fdopen(reader) as stream:
        modules = stream.read().split()
    assert ended(pid) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in modules:
            with contextlib.suppress(Exception):  # some are no modules that can be imported by name
                importlib.import_module(module)


@dataclass(kw_only=True)
class Tally:
    """What came of the kills of one operation."""

    kills: int = 0
    late: int = 0
    old: int = 0
    new: int = 0
    nothing: int = 0
    faults: list[str] = field(default_factory=list)


def kill_often(name: str, count: int, chance: random.Random, root: Path) -> Tally:
    """Kill an operation `count` times, in turn in a new folder and in one with old artifacts.

    Half of the kills come at random instants of the whole operation, half in the milliseconds after a plan has appeared
    or was replaced: these are the ones beyond the switch.
    """
    operation, tally = OPERATIONS[name], Tally()
    old = dict(by_hand(6).state_dict())
    straight, warm = root / f"{name}-straight", root / f"{name}-warm"
    straight.mkdir()
    warm.mkdir()
    import_what_it_imports(lambda: operation(warm))
    start = time.monotonic()
    assert ended(child(lambda: operation(straight))) == 0
    duration = time.monotonic() - start
    wanted, listing = outcome(straight), names(straight)
    attempt = 0
    while tally.kills < count and attempt < 25 * count:
        attempt += 1
        folder = root / f"{name}-{attempt}"
        folder.mkdir()
        over = attempt % 2 == 0
        if over:
            for place in wanted:
                rf.save(by_hand(6), folder / place)
        plan = folder / chance.choice(sorted(wanted)) / "plan.json"
        before = file_state(plan)
        pid = child(lambda folder=folder: operation(folder))
        if attempt % 4 < 2:
            time.sleep(chance.random() * duration)
        else:
            end = time.monotonic() + 2 * duration
            while file_state(plan) == before and time.monotonic() < end:
                time.sleep(0)
            time.sleep(chance.random() * AFTER_S)
        os.kill(pid, signal.SIGKILL)
        if ended(pid) != -signal.SIGKILL:
            tally.late += 1
            continue
        tally.kills += 1
        _judge(name, folder, old if over else None, wanted, tally)
        if ended(child(lambda folder=folder: operation(folder))) != 0:
            tally.faults.append(f"{name} {attempt}: the same call fails after the kill")
            continue
        again = outcome(folder)
        if again.keys() != wanted.keys() or not all(equal(again[key], wanted[key]) for key in wanted):
            tally.faults.append(f"{name} {attempt}: the result differs from that of a run that was not killed")
        if names(folder) != listing:
            tally.faults.append(f"{name} {attempt}: {sorted(set(names(folder)) ^ set(listing))} is left or missing")
    return tally


def _judge(
    name: str, folder: Path, old: Mapping[str, Tensor] | None, wanted: Mapping[str, object], tally: Tally
) -> None:
    """Compare what a kill left with the old and the new artifact."""
    try:
        left = outcome(folder)
    except rf.RankfoldError as error:
        tally.faults.append(f"{name} {folder.name}: {error}")
        return
    if old is not None and left.keys() != wanted.keys():
        tally.faults.append(f"{name} {folder.name}: an old artifact is gone")
    tally.nothing += not left
    for key, state in left.items():
        if old is not None and equal(state, old):
            tally.old += 1
        elif equal(state, wanted[key]):
            tally.new += 1
        else:
            tally.faults.append(f"{name} {folder.name}: {key} is neither the old nor the new artifact")


def read_beside_writers(root: Path, seconds: float, writers: int = 2) -> dict[str, int]:
    """Load from a folder that several processes save to, and count what comes of it."""
    models = [by_hand(rank) for rank in (2, 4, 6)]
    states = [dict(model.state_dict()) for model in models]
    place = root / "shared"
    rf.save(models[0], place)

    def write() -> None:
        while True:
            for model in models:
                rf.save(model, place)

    pids, counts, end = [child(write) for _ in range(writers)], dict[str, int](), time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            try:
                state = dict(rf.load(place, net()).state_dict())
                found = next((f"model {i}" for i, one in enumerate(states) if equal(state, one)), "a mixture")
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
            counts[found] = counts.get(found, 0) + 1
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        died = [ended(pid) for pid in pids]
    if died != [-signal.SIGKILL] * writers:
        counts[f"a writer ended with {died}"] = 1
    rf.save(models[0], place)
    if names(place) != ["model.safetensors", "plan.json"]:
        counts[f"left behind: {names(place)}"] = 1
    return counts


def main() -> int:
    """Run everything and print figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="kills of each operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20, help="of the reader beside two writers")
    parser.add_argument("--operations", nargs="*", default=list(OPERATIONS), choices=list(OPERATIONS))
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the processes are forks, which CUDA does not survive
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RankfoldWarning)
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        for operation in options.operations:
            tally = kill_often(operation, options.count, random.Random(options.seed), Path(name))
            faults += len(tally.faults) + (tally.kills < options.count)
            print(f"{operation}: {tally.kills} kills left {tally.old} old, {tally.new} new artifacts, "
                  f"{tally.nothing} times nothing yet; {len(tally.faults)} faults",
                  *tally.faults[:5], sep="\n  ")  # fmt: skip
        counts = read_beside_writers(Path(name), options.seconds) if options.seconds else {}
        print(f"a reader beside 2 writers for {options.seconds:g} s: {counts}")
        faults += sum(count for what, count in counts.items() if not what.startswith("model "))
    print(f"{faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
