"""Pruned networks without training: plain cut, refit, and sequential refit.

    RANKFOLD_DATA=... python benchmarks/refit.py --threads 2 [--networks encoder resnet20] [--removed 10 30 50]

Strategy ``prune`` removes a share of every channel group. The plan is then applied three times to the same unlabeled
data: ``weights`` only cuts, ``data`` refits the layers that read removed channels, ``sequential`` refits all layers one
after the other. BatchNorm statistics are re-estimated where that helps. The networks are those of `_networks.py`; the
figure is the first of their agreement with the original on held-out data. Seconds are CPU seconds of `rf.apply`. Rows
in the result file are not measured again.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import _harness
import _networks
import rankfold as rf

MODES = ("weights", "data", "sequential")


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("refit", __doc__)
    parser.add_argument("--networks", nargs="+", choices=["encoder", "resnet20"], default=["encoder", "resnet20"])
    parser.add_argument("--removed", type=int, nargs="+", default=[10, 30, 50], help="per cent of every group")
    args = parser.parse_args()
    _harness.start(args)
    data = os.environ.get("RANKFOLD_DATA")
    rows: list[dict[str, Any]] = _harness.stored(args) or []
    for network in args.networks:
        case = _networks.load(network, args.seed, None if data is None else Path(data))
        for removed in args.removed:
            setting = {"network": network, "removed": removed}
            if not any(setting.items() <= row.items() for row in rows):
                rows.append({**setting, **measured(case, removed / 100, args.seed)})
                print(rows[-1], flush=True)
                _harness.save("refit", rows, args)


def measured(case: _networks.Case, ratio: float, seed: int) -> dict[str, Any]:
    """Return what is left of a pruned network, and its agreement and CPU seconds for each way to apply the plan."""
    assert case.quality is not None
    plan = rf.plan(case.model, case.example, strategy=rf.Prune(ratio=ratio), seed=seed)
    row: dict[str, Any] = {}
    for mode in MODES:
        start = time.process_time()
        small = rf.apply(case.model, plan, case.calibration, reconstruct=mode, example_input=case.example)
        seconds = round(time.process_time() - start, 1)
        name, value = next(iter(case.quality(small).items()))
        row.setdefault(
            "left", rf.inspect(small, case.example).total.params / rf.inspect(case.model, case.example).total.params
        )
        row |= {"figure": name, mode: value, f"{mode}, s": seconds}
    return row


if __name__ == "__main__":
    main()
