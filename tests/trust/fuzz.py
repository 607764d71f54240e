"""A seeded fuzzer of everything that rankfold reads: artifacts, plans, reports, sweeps, sources and cache entries.

Bits, lengths, JSON structure and headers are changed, with checksums that no longer fit and (as a forger would) with
checksums made to fit again. Each case must give the right model, or a `RankfoldError` whose message is short and holds
no control character, in less than 2 s of processor time and 100 MB of memory; the model that is passed in stays as it
was. A few cases are part of the tests; ``python tests/trust/fuzz.py --count 3000 --seed 0`` runs more, each in a
process of its own: its memory is told from that of the others, and crashes and endless waits are found, too.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import hashlib
import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

import rankfold as rf
from rankfold._hashing import state_hash, tensor_hash
from rankfold.candidates.cache import Cache
from rankfold.candidates.estimator import as_losses
from rankfold.cli._command import Given
from rankfold.cli._source import Source, artifact_source
from rankfold.records import Choice
from rankfold.reporting import Report
from rankfold.reporting.sweep import Sweep
from rankfold.storage import SOURCE_FILE, artifact_identity

SECONDS, MEGABYTES, CHARACTERS = 2.0, 100.0, 2000
WAIT_S = 30
KEY, VALUES = {"what": "a key"}, [0.5, 0.25]
BUDGET = "params<=90%"


class Net(nn.Module):
    """A convolution, a norm, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc, self.tied, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 12)
        self.tied.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(torch.relu(self.tied(self.fc(h))))


def net() -> nn.Module:
    """Return the network; always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
PLAN = {
    "conv": Choice(method="tucker", ranks=(4, 2)),
    "fc": Choice(method="svd", ranks=(3,), gauge=True),
    "head": Choice(method="ttm", ranks=(4,), options={"cores": 2}),
}


@dataclass(frozen=True)
class Ground:
    """What every case starts from.

    Parameters
    ----------
    root : Path
        Folder of the good artifact ``good`` and of the case at hand.
    """

    root: Path
    model: nn.Module
    wanted: Tensor
    plan: str
    report: str
    sweep: str
    searched: rf.Plan

    @classmethod
    def prepare(cls, root: Path) -> Ground:
        """Make an artifact with report and source, a cache entry and a sweep."""
        result = rf.compress(net(), X, budget="params<=90%", strategy=rf.Manual(layers=PLAN),
                             evaluate=lambda model: float(model(X).sum()), output=root / "good")  # fmt: skip
        source = Source(model="lenet5_mnist5k", data="mnist5k", input_size=(1, 1, 28, 28))
        identity = artifact_identity(root / "good") or ""
        (root / "good" / SOURCE_FILE).write_text(source.texts(identity)[SOURCE_FILE])
        Cache(root / "cache").put(KEY, VALUES)
        found = rf.sweep(net(), X, points=2, strategy="energy")
        plan = (root / "good" / "plan.json").read_text()
        report = (root / "good" / "report.json").read_text()
        searched = search(root / "searches")
        return cls(root, net(), result.model(X).detach(), plan, report, found.to_json(), searched)


def search(cache: Path) -> rf.Plan:
    """Search for a plan with a cache."""
    return rf.plan(
        net(), X, budget=BUDGET, include="head", calibration=[X], cache=cache, strategy=rf.CompressNAS(points=3)
    )


# --- changes ---

EVIL: list[Any] = [
    None, True, False, -1, 0, 1, 7, 10**9, 10**30, -(10**30), 0.5, 1e308, -0.0, math.nan, math.inf, "", "svd", "cp",
    "\x1b[2J\x1b]0;owned\x07", "\u202eesrever", "\x9b31m", "a\x00b", "\n\nerror: forged", "x" * 3000, "é" * 200, [], {},
    [[]], [1], [10**9], [10**9] * 40, [-1, "a"], {"a": 1}, {"x": ["a"]}, {"method": "svd", "ranks": [1]}, {"keep": {}},
    {"cores": 10**9}, {"starts": 10**9}, {"iterations": 10**9, "tolerance": 0}, {"out_shape": [2] * 40}, {"": ""},
]  # fmt: skip
TEXTS = [
    "[" * 100_000, '{"a":' * 5000, "9" * 5000, '"' + "y" * 300_000 + '"', '"\\ud800"', "1e999", "NaN", '{"a":1,"a":2}',
    "[" + "1," * 400_000 + "1]", "{" + ",".join(f'"k{i}":{{}}' for i in range(20_000)) + "}", "\x00", "\\", "'x'",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a JSON value."""
    found = [path]
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        found += places(entry, (*path, key))
    return found


def mutated_json(text: str, chance: random.Random) -> str:
    """Return JSON text with one to three changes of its structure, now and then one that only text can express."""
    data = json.loads(text)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        spots = places(data)[1:]
        if not spots:
            break
        *way, key = chance.choice(spots)
        holder = data
        for step in way:
            holder = holder[step]
        kind = chance.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(chance.choice(EVIL))] = holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder.extend(copy.deepcopy(holder[key]) for _ in range(chance.choice((1, 50))))
        elif kind == 3:
            holder[key] = "@@text@@"
        else:
            holder[key] = copy.deepcopy(chance.choice(EVIL))
    out = json.dumps(data, indent=chance.choice((None, 1)))
    return out.replace('"@@text@@"', chance.choice(TEXTS))


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with bits flipped, parts cut out, repeated, or replaced."""
    out = bytearray(data)
    kind = chance.randrange(5)
    place = chance.randrange(max(len(out), 1))
    if kind == 0:
        for _ in range(chance.choice((1, 3, 30))):
            out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del out[place:]
    elif kind == 2:
        del out[place : place + chance.randrange(1, 200)]
    elif kind == 3:
        out[place:place] = out[place : place + chance.randrange(1, 200)]
    else:
        out[place : place + 8] = chance.randbytes(chance.choice((1, 8, 64)))
    return bytes(out)


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file, and its tensors."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(header: str, tensors: bytes, size: int | None = None) -> bytes:
    """Return a safetensors file; `size` is what it says of its header's length, by default the truth."""
    text = header.encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if size is None else size) + text + tensors


def signed(folder: Path) -> None:
    """Make the checksums of an artifact fit, as far as its files can be read, as a forger would."""
    file = folder / "model.safetensors"
    header, tensors = header_of(file.read_bytes())
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict):
        return
    metadata["plan_sha256"] = hashlib.sha256((folder / "plan.json").read_bytes()).hexdigest()
    if isinstance(metadata.get("architecture"), str):
        metadata["architecture_sha256"] = hashlib.sha256(metadata["architecture"].encode()).hexdigest()
    try:
        stored = load_file(file)
        aliases = json.loads(metadata.get("aliases", "{}"))
        metadata["tensors_sha256"] = tensor_hash({**stored, **{k: stored[v] for k, v in aliases.items()}})
    except Exception:  # it cannot be read, or not all of it: then there is no checksum that fits
        pass
    file.write_bytes(with_header(json.dumps(header), tensors))


# --- what is attacked ---


def loads(ground: Ground, folder: Path, *, forged: bool = False) -> str:
    """Load an artifact; what comes out must be the right model, or of a forger the one that the file holds."""
    small = rf.load(folder, ground.model)
    if torch.equal(small(X), ground.wanted):
        return "right"
    assert forged, "another model was loaded"
    stored = load_file(folder / "model.safetensors")
    for name, tensor in small.state_dict().items():
        assert name not in stored or torch.equal(tensor, stored[name].to(tensor.dtype)) or tensor.isnan().any(), name
    return "the forger's"


def plan_file(ground: Ground, folder: Path, chance: random.Random) -> str:
    """Attack the plan of an artifact."""
    file = folder / "plan.json"
    if chance.random() < 0.5:
        file.write_bytes(mutated_bytes(file.read_bytes(), chance))
        return loads(ground, folder)
    file.write_text(mutated_json(file.read_text(), chance))
    if chance.random() < 0.7:
        signed(folder)
        return loads(ground, folder, forged=True)
    return loads(ground, folder)


def weights_file(ground: Ground, folder: Path, chance: random.Random) -> str:
    """Attack the weights of an artifact."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    if chance.random() < 0.3:
        file.write_bytes(mutated_bytes(data, chance))
        return loads(ground, folder)
    header, tensors = header_of(data)
    kind = chance.randrange(4)
    if kind == 0:
        size = chance.choice((0, 7, 10**6, 2**24 + 8, 2**31, 2**63, 2**64 - 1))
        file.write_bytes(with_header(json.dumps(header), tensors, size))
        return loads(ground, folder)
    if kind == 1:
        name = chance.choice(["aliases", "architecture", "version", "format", "plan_sha256", "tensors_sha256"])
        header["__metadata__"][name] = chance.choice([*TEXTS, *(json.dumps(value) for value in EVIL)])
        text = json.dumps(header)
    elif kind == 2:
        header["__metadata__"]["aliases"] = mutated_json(header["__metadata__"]["aliases"], chance)
        text = json.dumps(header)
    else:
        text = mutated_json(json.dumps(header), chance)
    file.write_bytes(with_header(text, tensors))
    with contextlib.suppress(ValueError, RecursionError, TypeError, AttributeError):  # beyond signing
        signed(folder)
    return loads(ground, folder, forged=True)


def special_file(ground: Ground, folder: Path, chance: random.Random) -> str:
    """Put something that is not a file of data in the place of one."""
    file = folder / chance.choice(("plan.json", "model.safetensors", "report.json", "source.json"))
    file.unlink()
    kind = chance.randrange(6)
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.mkdir()
    elif kind == 2:
        file.symlink_to(file.name)
    elif kind == 3:
        file.symlink_to("/dev/zero")
    elif kind == 4:
        with file.open("wb") as stream:
            stream.truncate(5 * 2**30)  # sparse: no disk is used
    found = loads(ground, folder) if file.name in ("plan.json", "model.safetensors") else "right"
    Report.load(folder) if file.name == "report.json" else _source(folder)
    return found


def plan_text(ground: Ground, _folder: Path, chance: random.Random) -> str:
    """Attack a plan that is applied."""
    text = mutated_json(ground.plan, chance) if chance.random() < 0.8 else ""
    if not text:
        text = mutated_bytes(ground.plan.encode(), chance).decode("utf-8", "replace")
    rf.apply(ground.model, rf.Plan.from_json(text))(X)
    return "applied"


def report_text(ground: Ground, _folder: Path, chance: random.Random) -> str:
    """Attack a report that is shown in every form."""
    report = Report.from_json(mutated_json(ground.report, chance))
    _shown(report)
    return "shown"


def sweep_text(ground: Ground, _folder: Path, chance: random.Random) -> str:
    """Attack a sweep that is shown in every form."""
    found = Sweep.from_json(mutated_json(ground.sweep, chance))
    _shown(found)
    assert printable(found.to_csv())
    return "shown"


def source_file(_ground: Ground, folder: Path, chance: random.Random) -> str:
    """Attack what an artifact says of its source."""
    file = folder / "source.json"
    if chance.random() < 0.7:
        file.write_text(mutated_json(file.read_text(), chance))
    else:
        file.write_bytes(mutated_bytes(file.read_bytes(), chance))
    return "read" if _source(folder) else "none"


def _source(folder: Path) -> Source:
    given = Given(artifact=str(folder), original=None, trust_source=False)
    return artifact_source(given, reads_data=True)


def mutated_entry(text: str, chance: random.Random) -> tuple[bytes, str]:
    """Return a cache entry that says the same in another way, has other numbers, or is damaged; and which of these."""
    kind = chance.choice(("same", "numbers", "damaged", "damaged"))
    if kind == "damaged":
        return mutated_json(text, chance).encode() if chance.random() < 0.6 else mutated_bytes(
            text.encode(), chance
        ), kind
    data = json.loads(text)
    if kind == "numbers":
        size = len(data["value"]) if isinstance(data["value"], list) else 1
        data["value"] = [chance.choice((0, 1e-308, 0.5, 1, 1e308, 10**30)) for _ in range(size)]
    data = dict(chance.sample(sorted(data.items()), len(data)))
    if chance.random() < 0.3:
        data["more"] = chance.choice(("\x1b[2J", {"values": [9]}, [1] * 100))
    out = json.dumps(
        data, indent=chance.choice((None, 0, 3)), separators=chance.choice((None, (",", ":"), (" , ", " : ")))
    )
    return (" " * chance.randrange(3) + out + "\n" * chance.randrange(3)).encode(), kind


def cache_file(ground: Ground, _folder: Path, chance: random.Random) -> str:
    """Attack a cache entry: it is measured again or gives numbers that can be; one that says the same is used."""
    shutil.copytree(ground.root / "cache", ground.root / "case" / "cache")
    cache = Cache(ground.root / "case" / "cache")
    (file,) = cache.folder.iterdir()
    data, kind = mutated_entry(file.read_text(), chance)
    file.write_bytes(data)
    found = as_losses(cache.get(KEY), len(VALUES))
    assert found is None or all(math.isfinite(value) and value >= 0 for value in found)
    assert kind != "same" or found == VALUES, "an entry that says the same is not used"
    return f"{kind}, {'measured again' if found is None else 'used'}"


def searched_again(ground: Ground, _folder: Path, chance: random.Random) -> str:
    """Attack an entry of a search: the plan is the same unless a forger's numbers are used, and within the budget."""
    cache = ground.root / "case" / "cache"
    shutil.copytree(ground.root / "searches", cache)
    file = chance.choice(sorted(cache.iterdir()))
    data, kind = mutated_entry(file.read_text(), chance)
    file.write_bytes(data)
    found = search(cache)
    same = found.layers == ground.searched.layers
    assert same or kind != "same", "an entry that says the same gives another plan"
    assert rf.inspect(rf.apply(net(), found), X).total.params <= 0.9 * rf.inspect(net(), X).total.params
    return f"{kind}, {'the same plan' if same else 'another plan'}"


ATTACKS: list[Callable[[Ground, Path, random.Random], str]] = [
    plan_file, plan_file, weights_file, weights_file, weights_file, special_file, plan_text, plan_text, report_text,
    sweep_text, source_file, cache_file, searched_again,
]  # fmt: skip


def printable(text: str) -> bool:
    """Whether text holds nothing that a terminal or browser would obey."""
    return all(c.isprintable() or c in "\n\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}" for c in text)


def _shown(report: Report | Sweep) -> None:
    screen = StringIO()
    report.print(Console(file=screen, width=100))
    for text in (screen.getvalue(), report.to_html(), report.to_markdown(), report.to_json()):
        assert printable(text), "a control character is shown"


def run_case(ground: Ground, seed: int, number: int) -> tuple[str, str | None]:
    """Run one case and return what came of it, and the fault if there is one."""
    chance = random.Random(f"{seed}:{number}")
    attack = chance.choice(ATTACKS)
    case = ground.root / "case"
    shutil.rmtree(case, ignore_errors=True)
    folder = Path(shutil.copytree(ground.root / "good", case / "artifact"))
    before, state = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, state_hash(ground.model)
    start, fault = time.process_time(), None
    try:
        found = attack(ground, folder, chance)
    except rf.RankfoldError as error:
        found = type(error).__name__
        if len(str(error)) > CHARACTERS or not printable(str(error)):
            fault = f"a message of {len(str(error))} characters: {str(error)[:80]!r}"
    except Exception as error:
        found, fault = "fault", f"raw {type(error).__name__}: {error}"
    seconds = time.process_time() - start
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if seconds > SECONDS:
        fault = fault or f"it took {seconds:.1f} s"
    if megabytes > MEGABYTES:
        fault = fault or f"it took {megabytes:.0f} MB"
    if state_hash(ground.model) != state:
        fault = fault or "the model was changed"
    return f"{attack.__name__}: {found}", None if fault is None else f"case {seed}:{number}, {attack.__name__}: {fault}"


def isolated(ground: Ground, seed: int, number: int) -> tuple[str, str | None]:
    """Run one case in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(WAIT_S)
        try:
            os.write(writer, json.dumps(run_case(ground, seed, number)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not answer:
        how = f"no answer in {WAIT_S} s" if code == -signal.SIGALRM else f"the process ended with {code}"
        return "fault", f"case {seed}:{number}: {how}"
    found, fault = json.loads(answer)
    return found, fault


def run(
    count: int, seed: int, first: int = 0, one: Callable[[Ground, int, int], tuple[str, str | None]] = run_case
) -> tuple[collections.Counter[str], list[str]]:
    """Run cases, each by `one`, and return how often each thing came of them, and the faults."""
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ground = Ground.prepare(Path(name))
        for number in range(first, first + count):
            found, fault = one(ground, seed, number)
            counts[found] += 1
            if fault is not None:
                faults.append(fault)
    return counts, faults


def main() -> int:
    """Run everything and print figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to repeat one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the processes are forks, which CUDA does not survive
    one = isolated if hasattr(os, "fork") else run_case
    counts, faults = run(options.count, options.seed, options.first, one)
    for found, number in sorted(counts.items()):
        print(f"{number:6} {found}")
    print(*faults[:50], sep="\n")
    print(f"{options.count} cases, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
