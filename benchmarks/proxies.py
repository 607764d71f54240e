"""Which proxy tells best what a plan costs in accuracy: rank correlations over random plans, CIFAR-10 test images.

    RANKFOLD_DATA=... python benchmarks/proxies.py [--each 13] [--test 2000] [--sequential 20] [--smoke]

Random plans mix svd, tucker, spatial_svd and tt. Each layer takes the candidate whose error (every other plan: whose
share of the layer's parameters) is nearest to a level that all layers have in common times a random factor of its own;
the common level is such that the plan is of a given size. It is chosen from those that no other beats in size and
error, in every third plan among those of one method, drawn at random for each layer. So plans of one size differ in
methods and in how they spread over layers, which is what a proxy is for. Each is applied with data-aware factors (the
last ``--sequential`` of them also with sequential reconstruction), 1,024 unlabeled training images, BatchNorm left as
it is, and its top-1 is counted on test images. A proxy's verdict on a plan is the sum of the losses of its candidates,
as strategy ``compressnas`` adds them up.

Printed is Spearman's rho between loss and error rate: over all plans, and within those of one size (their mean).
After ± stands the standard deviation over bootstrap samples of plans. Beside it stands the accuracy of the plans that
the strategy makes with each proxy, on the same images, their factors found in the same way. For comparison, two
measures that need the whole compressed network: the squared distance of its logits to the original's and their KL
divergence, on the same training images that the proxies look at. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import _harness
import rankfold as rf
from rankfold import strategies
from rankfold.api.planning import Planner
from rankfold.candidates import ProxyConfig
from rankfold.candidates.network import first_samples
from rankfold.records import Budget, Candidate, CandidateTable
from rankfold.strategies.contract import make_plan
from rankfold.surgery import apply_plan_, copy_model

METHODS = ("svd", "tucker", "spatial_svd", "tt")
PROXIES = ("weight", "network", "fisher", "fisher+network")
WHOLE = {"kl": "KL of the whole network", "mse": "MSE of the whole network"}
SPREAD = (0.05, 0.5)
BATCH, CHUNK = 250, 1000
Picks = dict[str, Candidate | None]


def main() -> None:
    """Measure, print and save."""
    parser = _harness.parser("proxies", __doc__)
    parser.add_argument("--network", default="resnet20_cifar10", help="a zoo network with weights in RANKFOLD_DATA")
    parser.add_argument("--gone", type=int, nargs="+", default=[25, 35, 45, 55, 65], help="per cent of the parameters")
    parser.add_argument("--each", type=int, default=13, help="plans of each size")
    parser.add_argument("--images", type=int, default=1024, help="unlabeled training images")
    parser.add_argument("--drawn", type=int, default=4000, help="test images, drawn at random")
    parser.add_argument("--test", type=int, default=2000, help="how many of them to look at, in thousands")
    parser.add_argument("--sequential", type=int, default=0, help="plans that are also reconstructed sequentially")
    parser.add_argument("--proxies", nargs="+", default=PROXIES, help="proxies to compare")
    parser.add_argument("--smoke", action="store_true", help="few plans and images")
    args = parser.parse_args()
    if args.smoke:
        args.each, args.images, args.drawn, args.test = 2, 64, 250, 250
    data = _harness.data_folder(parser)
    _harness.start(args)
    bench = Bench(data, args)
    bench.measure_plans("data", range(len(bench.plans)))
    bench.measure_plans("sequential", range(len(bench.plans) - args.sequential, len(bench.plans)))
    bench.judge_plans()
    rows = bench.rows()
    _harness.table({row["proxy"]: {k: v for k, v in row.items() if k != "proxy"} for row in rows})
    print(_harness.save("proxies", rows, args))


class Bench:
    """One network, its random plans, and what is known of them so far."""

    def __init__(self, data: Path, args: argparse.Namespace) -> None:
        self.args = args
        self.model = rf.zoo.create(args.network, weights=data / "weights" / f"{args.network}.safetensors").eval()
        entry, spec = rf.zoo.entry(args.network), f"cifar10:{data / 'cifar10'}"
        self.images = list(rf.zoo.data(spec, split="calibration", normalize=entry, limit=args.images))
        test = rf.zoo.data(spec, split="test", normalize=entry, limit=args.drawn, batch_size=BATCH, seed=args.seed)
        self.test = list(test)
        search = rf.Search(methods=METHODS, rank_multiple=1, cache=args.out.parent / ".cache", seed=args.seed)
        self.planner = Planner(self.model, rf.zoo.example_input(args.network), search, self.images)
        self.table = self.planner.problem.table()
        self.looked_at = first_samples(self.images, 256)  # as many as the proxies take of this network
        self.file = args.out.with_stem(args.out.stem + "_plans")
        self.picks = [draw(self.table, gone, i, args.seed) for i in range(args.each) for gone in args.gone]
        self.plans = [describe(self.table, picks) for picks in self.picks]
        if self.file.exists():
            known = json.loads(self.file.read_text("utf-8"))["results"]
            if any(old["layers"] != new["layers"] for old, new in zip(known, self.plans, strict=False)):
                raise SystemExit(f"{self.file} holds other plans. Remove it, or name another --out.")
            self.plans = known[: len(self.plans)] + self.plans[len(known) :]

    def measure_plans(self, mode: str, which: range) -> None:
        """Count what the compressed networks get right, of each thousand of test images."""
        chunks = max(self.args.test // CHUNK, 1)
        for index in which:
            plan = self.plans[index]
            known = plan.setdefault(mode, {"right": []})
            if len(known["right"]) >= chunks:
                continue
            small = self.applied(index, mode)
            known.update(self.distances(small))
            for number in range(len(known["right"]), chunks):
                start, stop = (n * CHUNK // BATCH for n in (number, number + 1))
                known["right"].append(count_right(small, self.test[start:stop]))
            print(index, mode, plan["gone"], known, flush=True)
            self.save_plans()

    def applied(self, index: int, mode: str) -> nn.Module:
        """Return the compressed network."""
        chosen = {name: pick for name, pick in self.picks[index].items() if pick is not None}
        plan = make_plan(self.planner.problem, self.planner.strategy, chosen, reasons={})
        if mode == "data":
            return self.filled(plan)
        return rf.apply(self.model, plan, self.images, reconstruct="sequential", batchnorm=False).eval()

    def filled(self, plan: rf.Plan) -> nn.Module:
        """Return what rf.apply makes of a plan with data-aware factors, the moments being at hand."""
        return apply_plan_(copy_model(self.model), plan, self.planner.moments).eval()

    def distances(self, small: nn.Module) -> dict[str, float]:
        """Return KL divergence and relative squared distance of the logits, on training images."""
        pairs = [(self.model(x).double(), small(x).double()) for x in map(_inputs, self.looked_at)]
        dense, ours = (torch.cat(logits) for logits in zip(*pairs, strict=True))
        kl = torch.nn.functional.kl_div(
            ours.log_softmax(1), dense.log_softmax(1), reduction="batchmean", log_target=True
        )
        return {"kl": float(kl), "mse": float((ours - dense).square().sum() / dense.square().sum())}

    def judge_plans(self) -> None:
        """Add up the losses of every proxy."""
        estimator = self.planner.problem.estimator
        assert estimator is not None
        for proxy in self.args.proxies:
            start = time.process_time()
            losses = estimator.single(ProxyConfig(proxy=proxy))
            print(proxy, f"{time.process_time() - start:.0f} s (less what the cache knew)", flush=True)
            for plan, picks in zip(self.plans, self.picks, strict=True):
                plan[proxy] = sum(losses[n][p.method, p.ranks] for n, p in picks.items() if p is not None)
        self.save_plans()

    def rows(self) -> list[dict[str, Any]]:
        """Return the rank correlations."""
        rows = []
        names = {proxy: proxy for proxy in self.args.proxies} | WHOLE
        for proxy, title in names.items():
            row: dict[str, Any] = {"proxy": title}
            for mode in ("data", "sequential"):
                measured = [i for i, p in enumerate(self.plans) if p.get(mode, {}).get("right")]
                if not measured:
                    continue
                plans = [self.plans[i] for i in measured]
                loss = np.array([p[mode][proxy] if proxy in WHOLE else p[proxy] for p in plans])
                wrong = -np.array([sum(p[mode]["right"][: max(self.args.test // CHUNK, 1)]) for p in plans])
                gone = np.array([self.args.gone[i % len(self.args.gone)] for i in measured])
                after = "" if mode == "data" else ", sequential"
                row[f"all {len(plans)} plans{after}"] = with_spread(rho, loss, wrong, gone, self.args.seed)
                if mode == "data":
                    row["of one size"] = with_spread(rho_within, loss, wrong, gone, self.args.seed)
                    for g in sorted(set(gone)):
                        row[f"{g} % gone"] = f"{rho(loss[gone == g], wrong[gone == g], gone):.2f}"
            if proxy in PROXIES:
                row |= {f"its own plan, {g} % gone": accuracy for g, accuracy in self.own_plans(proxy).items()}
            rows.append(row)
        return rows

    def own_plans(self, proxy: str) -> dict[int, float]:
        """Return the accuracy of the plan that ``compressnas`` makes with a proxy, by size."""
        strategy = strategies.get("compressnas", {"proxy": proxy})
        batches = self.test[: max(self.args.test // BATCH, 1)]
        found: dict[int, float] = {}
        for gone in self.args.gone:
            plan = strategy.plan(replace(self.planner.problem, budget=Budget.parse(f"params<={100 - gone}%")))
            found[gone] = count_right(self.filled(plan), batches) / sum(len(x) for x, _ in batches)
            print("own plan", proxy, gone, found[gone], flush=True)
        return found

    def save_plans(self) -> None:
        """Write what is known of the plans."""
        options = argparse.Namespace(**{**vars(self.args), "out": self.file})
        _harness.save("proxies_plans", self.plans, options)


def count_right(model: nn.Module, batches: Sequence[Any]) -> int:
    """Return how many images a network puts into the right class."""
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)


def draw(table: CandidateTable, gone: int, index: int, seed: int) -> Picks:
    """Return a random plan that takes at least so many per cent of the parameters away, and hardly more."""
    random = np.random.default_rng([seed, gone, index])
    by_error, one_method = index % 2 == 0, index % 3 == 0
    spread = random.uniform(*SPREAD)
    fronts, levels, offsets = {}, {}, {}
    for name, row in table.rows.items():
        method = random.choice(sorted({c.method for c in row}))
        fronts[name] = front([c for c in row if not one_method or c.method == method])
        dense = table.dense[name].params
        levels[name] = np.log([c.error if by_error else dense / c.cost.params for c in fronts[name]])
        offsets[name] = spread * random.standard_normal()

    def at(level: float) -> Picks:
        picks: Picks = {}
        for name in table.rows:
            wanted = level + offsets[name]
            nearest = fronts[name][int(np.abs(levels[name] - wanted).argmin())]
            picks[name] = None if wanted < levels[name][0] else nearest
        return picks

    low, high = -8.0, 8.0
    limit = table.total.params * (100 - gone) / 100
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if params(table, at(middle)) <= limit else (middle, high)
    return at(high)


def front(row: list[Candidate]) -> list[Candidate]:
    """Return the candidates that nothing cheaper beats, least error first."""
    best: list[Candidate] = []
    for candidate in sorted(row, key=lambda c: (c.cost.params, c.error)):
        if not best or candidate.error < best[-1].error:
            best.append(candidate)
    return [c for c in reversed(best) if c.error > 0]


def params(table: CandidateTable, picks: Picks) -> int:
    """Return the parameters of the whole network with these picks."""
    return table.cost([pick for pick in picks.values() if pick is not None]).params


def describe(table: CandidateTable, picks: Picks) -> dict[str, Any]:
    """Return a plan as JSON values."""
    share = 1 - params(table, picks) / table.total.params
    layers = {name: [p.method, *p.ranks] if p else None for name, p in picks.items()}
    return {"gone": round(100 * share), "share gone": round(share, 4), "layers": layers}


def rho(loss: Any, wrong: Any, gone: Any) -> float:  # noqa: ARG001
    """Return Spearman's rank correlation."""
    return float(np.asarray(spearmanr(loss, wrong))[0])


def rho_within(loss: Any, wrong: Any, gone: Any) -> float:
    """Return the mean of the rank correlations among plans of one size."""
    return float(np.mean([rho(loss[gone == g], wrong[gone == g], g) for g in set(gone)]))


def with_spread(statistic: Any, loss: Any, wrong: Any, gone: Any, seed: int) -> str:
    """Return a statistic and its standard deviation over bootstrap samples of the plans, drawn size by size."""
    random = np.random.default_rng(seed)
    groups = [np.flatnonzero(gone == g) for g in sorted(set(gone))]
    samples = []
    for _ in range(1000):
        chosen = np.concatenate([random.choice(group, len(group)) for group in groups])
        samples.append(statistic(loss[chosen], wrong[chosen], gone[chosen]))
    return f"{statistic(loss, wrong, gone):.3f} ± {np.std(samples):.3f}"


def _inputs(batch: Any) -> Tensor:
    return batch[0] if isinstance(batch, tuple | list) else batch


if __name__ == "__main__":
    with torch.no_grad():
        main()
