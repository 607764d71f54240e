"""Write the tables of README and docs from the result files: no figure is typed by hand.

    python benchmarks/figures.py [--check]

A table stands between ``<!-- figures: FILE.json -->`` and ``<!-- end figures -->``, FILE being in benchmarks/results.
Of results against peers (benchmarks/micro) several files may be named, and the table sums them up by method and peer;
after ``figures by shape:`` it has a row for each shape instead.
With ``--check`` nothing is written, and the exit code tells whether a document is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
HEADS = {
    "params": "parameters",
    "top1": "top-1",
    "weights + BN": "weights, BatchNorm re-estimated",
    "data + BN": "data, BatchNorm re-estimated",
    "sequential + BN": "sequential, BatchNorm re-estimated",
    "weights, s": "weights, CPU seconds",
    "data, s": "data, CPU seconds",
    "sequential, s": "sequential, CPU seconds",
    "settings": "candidates",
    "fewest_settings_of_a_layer": "fewest of a layer",
    "fewest_settings_of_a_method": "fewest of a layer with one method",
    "peak_mib": "peak memory, MiB",
    "peak_mib_before": "peak memory before the table, MiB",
    "of one size": "plans of one size",
    "measured": "candidates measured",
    "naive loop, measured, s": "naive loop over measured candidates, s",
    "naive loop, all, s": "naive loop over all candidates, s",
    "of 85, 60, 25 %": "settings that remove 85, 60, 25 %",
    "paper's": "in the paper",
    "paper's time": "time in the paper",
    "step": "parameters removed",
    "largest condition": "largest condition number",
    "before": "top-1 before",
    "after one epoch": "top-1 after one epoch",
}
"""Headings of columns whose names in the result files are short."""

BLOCK = re.compile(r"(<!-- figures( by shape)?: ([\w. ]+) -->\n).*?(<!-- end figures -->)", re.S)


def render(results: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table: shares in per cent, counts with separators, numbers to the right.

    The first row has every column; a cell that a later one lacks is empty.
    """
    columns = list(results[0])
    numbers = {c: not isinstance(results[0][c], str) for c in columns}
    lines = [
        "| " + " | ".join(HEADS.get(c, c).replace(" gone", " removed") for c in columns) + " |",
        "|" + "|".join("---:" if numbers[c] else "---" for c in columns) + "|",
        *("| " + " | ".join(_cell(row.get(c, "")) for c in columns) + " |" for row in results),
    ]
    return "\n".join(lines)


def updated(text: str) -> str:
    """Return a document's text with its tables as the result files have them."""

    def table(match: re.Match[str]) -> str:
        records = [json.loads((RESULTS / name).read_text(encoding="utf-8")) for name in match[3].split()]
        kind = records[0].get("benchmark", records[0].get("format"))
        rows = TABLES.get(kind, all_rows)(records, bool(match[2]))
        return f"{match[1]}\n{render(rows)}\n\n{match[4]}"

    return BLOCK.sub(table, text)


def of_similarity(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each network: what is removed, and the accuracy before and after."""
    return [
        {
            "network": row["network"],
            "parameters": row["params"],
            "parameters gone": f"{1 - row['params_compressed'] / row['params']:.1%}",
            "of the convolutions": f"{row['conv_params_removed']:.1%}",
            "MACs gone": f"{row['macs_removed']:.1%}",
            "top-1 before → after": f"{row['top1']:.2%} → {row['top1_compressed']:.2%}",
            "rounds": row["rounds"],
        }
        for row in results.values()
    ]


def of_reproduction(studies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each compressed model of each study; an X marks a drop that is larger than allowed."""
    rows = [
        {
            "study": study["name"],
            "model": trial["name"],
            "params": trial["parts"]["model"]["params"],
            "parameters gone": f"{1 - trial['parts']['model']['params'] / study['dense']['model']['params']:.1%}",
            "MACs gone": f"{1 - trial['parts']['model']['macs'] / study['dense']['model']['macs']:.1%}",
            "top1": f"{trial['metric']:.2%}" + (" X" if trial["drop"] > study["allowed"] + 1e-9 else ""),
            "rounds": len(trial["log"]) or "",
        }
        for study in studies
        for trial in study["trials"]
    ]
    if not any(row["rounds"] for row in rows):
        for row in rows:
            del row["rounds"]
    return rows


def of_latency(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each network, runtime and batch size: the time of each plan's model, as a share of dense."""
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for result in results:
        key = (result["network"], result["runtime"], result["batch"])
        row = rows.setdefault(key, {"network": key[0], "runtime": key[1], "batch": str(key[2])})
        if "time" in result:
            shown = f"{result['time']:.0%}"
        else:  # the fastest model that the search found
            least = re.search(r"([\d.]+)% of the dense", result["refused"])
            shown = "refused" if least is None else f"refused ({float(least[1]):.0f}%)"
        if result["plan"].startswith("latency") and "params" in result:
            shown += f" ({result['params']:.0%})"
        row[result["plan"]] = shown
    return [rows[key] for key in sorted(rows, key=lambda key: (key[1], key[2]))]


def of_exports(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each file of a network: its size and its accuracy in its runtime."""
    names = {"dense": "original", "float": "compressed", "int8": "compressed, int8"}
    files = [(f"{names[name]}, ONNX", size, result["top1"][name]) for name, size in result["bytes"].items()]
    files += [
        (f"{names[name]}, ExecuTorch", file["bytes"], file["top1"])
        for name, file in result.get("executorch", {}).items()
    ]
    return [
        {
            "file": name,
            "bytes": size,
            "original / file": f"{result['bytes']['dense'] / size:.2f}",
            "top1": f"{top1:.2%}",
        }
        for name, size, top1 in files
    ]


def of_ram(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each network with the estimate of its peak RAM and the measured value."""
    return [
        {
            "network": row["network"].rpartition("/")[2],
            "model": row["model"],
            "batch": row["batch"],
            "estimate": f"{row['estimate'] / 2**20:.2f} MiB",
            "measured RAM": f"{row['measured'] / 2**20:.2f} MiB",
            "measured / estimate": f"{row['measured / estimate']:.3f}",
        }
        for row in results
    ]


def of_rene(results: dict[str, Any], searches: bool) -> list[dict[str, Any]]:
    """Return a row for each plan with its accuracy; by shape, one for each search with its time and memory."""
    if searches:
        return [
            {
                "network, method": name,
                "seconds": f"{row['seconds']:g}",
                "CPU seconds": f"{row['cpu_s']:g}",
                "load of the machine": f"{row['load']:g}",
                "peak memory, MiB": row["peak_mib"],
                "parameters gone": f"{row['params_removed']:.1%}",
                "MACs gone": f"{row['macs_removed']:.1%}",
            }
            for name, row in results["search"].items()
        ]
    return [
        {
            "method": row["method"],
            "budget": row["budget"],
            "strategy": row["strategy"],
            "parameters gone": f"{row['params_removed']:.1%}",
            "MACs gone": f"{row['macs_removed']:.1%}",
            "top-1, weights": f"{row['weights']:.2%}",
            "top-1, sequential": f"{row['sequential']:.2%}",
            "seconds of the plan": f"{row['plan_s']:g}",
        }
        for row in results["accuracy"]
    ]


def of_finetuning(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each recipe."""
    return [
        {
            "recipe": row["recipe"],
            "parameters": row["parameters"],
            "MACs gone": f"{row['macs_removed']:.1%}",
            "epochs": len(row["history"]),
            "top-1 of the original": f"{row['top1_dense']:.2%}",
            "before fine-tuning": f"{row['top1_compressed']:.2%}",
            "after, reloaded": f"{row['top1_reloaded']:.2%}",
            "loss of the last epoch": f"{row['history'][-1]['loss']:.3g}",
        }
        for row in results
    ]


def by_method(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each method, peer and data type: how much faster, and how the errors differ at most."""
    rows = []
    for record in records:
        for dtype in sorted({row["dtype"] for row in record["results"]}):
            chosen = [row for row in record["results"] if row["dtype"] == dtype]
            for k, peer in enumerate(chosen[0]["peers"]):
                ratios = [row["peers"][k]["ratio"] for row in chosen]
                worst = max(row["error"] - row["peers"][k]["error"] for row in chosen)
                rows.append(
                    {
                        "method": record["options"]["methods"][0],
                        "compared with": peer["name"],
                        "data type": dtype,
                        "cases": len(chosen),
                        "median speed-up": _times(statistics.median(ratios)),
                        "least": _times(min(ratios)),
                        "most": _times(max(ratios)),
                        "slower cases": sum(ratio < 1 for ratio in ratios),
                        "error difference, at most": f"{worst:+.1e}",
                    }
                )
    return rows


def by_shape(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each shape: the median speed-up over its weights and reductions, by method; float32."""
    shapes = list(dict.fromkeys(row["shape"] for record in records for row in record["results"]))
    rows = []
    for shape in shapes:
        cells: dict[str, Any] = {"shape": shape}
        for record in records:
            for k, peer in enumerate(record["results"][0]["peers"]):
                ratios = [
                    row["peers"][k]["ratio"]
                    for row in record["results"]
                    if row["shape"] == shape and row["dtype"] == "float32"
                ]
                title = f"{record['options']['methods'][0]} / {peer['name']}"
                cells[title] = _times(statistics.median(ratios)) if ratios else ""
        rows.append(cells)
    return rows


def of_gauge(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each network: what gauging it saves, and what it does to the time of a forward pass."""
    rows = []
    for name, row in results.items():
        torch_ms = next(v for k, v in row.items() if k.startswith("latency_ms_batch_") and k != "latency_ms_batch_1")
        ort, same = row["onnx"], row["same_budget"]
        top1 = f"{same['plain_top1']:.1%} → {same['gauged_top1']:.1%}" if "plain_top1" in same else "–"
        rows.append(
            {
                "network, methods": name,
                "parameters": row["plain_params"],
                "parameters, gauged": row["gauged_params"],
                "parameters saved": row["saved_share_of_plain"],
                "MACs saved": 1 - row["gauged_macs"] / row["plain_macs"],
                "relative difference of the outputs": f"{row['output_difference']:.0e}",
                "ms in torch, plain → gauged": f"{torch_ms['plain']:.0f} → {torch_ms['gauged']:.0f}",
                "ms in onnxruntime, plain → gauged": f"{ort['plain_latency_ms']:.0f} → {ort['gauged_latency_ms']:.0f}",
                "top-1 at half the parameters, plain → gauged": top1,
            }
        )
    return rows


def of_search(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each strategy and kind of factors, with the accuracy at each size of each network."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results:
        measured = ", proxy network" if result["search"].get("proxy") == "network" else ""
        kind = (result["strategy"] + measured, result["factors"])
        row = rows.setdefault(kind, {"strategy": kind[0], "factors": kind[1]})
        row[f"{result['network'].partition('_')[0]}, {result['parameters gone']} gone"] = f"{result['top1']:.2%}"
    return list(rows.values())


def of_encoder(results: list[dict[str, Any]], searches: bool) -> list[dict[str, Any]]:
    """Return a row for each strategy with the agreement at each size; by shape, one for each timed search."""
    if searches:
        return [
            {
                "strategy": row["strategy"],
                "parameters left": f"{row['left']:g} %",
                "seconds": f"{row['seconds']:g}",
                "of the search": f"{row['search_s']:g}",
                "forecast": f"{row['forecast_s']:g}",
                "samples": row["settings"]["samples"],
                "peak_mib": row["peak_mib"],
            }
            for row in results
            if row.get("forecast_s")
        ]
    sizes = sorted({row["left"] for row in results}, reverse=True)
    rows: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(row["strategy"] for row in results):
        rows[name] = {"strategy": name}
        for left in sizes:
            same = [row for row in results if (row["strategy"], row["left"]) == (name, left)]
            text = f"{same[0]['cosine']:.3f} / {same[0]['output error']:.3f}" if same else ""
            rows[name][f"{left:g} % left"] = text
    return list(rows.values())


NETWORKS = {"encoder": "sentence encoder", "pitch": "CREPE", "resnet20": "ResNet-20", "resnet18": "ResNet-18"}


def of_limits(results: list[dict[str, Any]], proxies: bool) -> list[dict[str, Any]]:
    """Return a row for each network and limit: what the search took; by shape, one for each proxy."""
    if proxies:
        compared = {row["network"] for row in results if row["proxy"] != "auto"}
        return of_proxies([row for row in results if row["limit_s"] == 300 and row["network"] in compared])
    rows = []
    for row in results:
        if row["proxy"] != "auto":
            continue
        quality = next(iter(row.get("quality", {}).items()), None)
        rows.append(
            {
                "network": NETWORKS.get(row["network"], "ViT-B/16"),
                "params": f"{row['params'] / 1e6:.1f} M",
                "time_limit": f"{row['limit_s']:g}",
                "forecast": f"{row['forecast_s']:g}",
                "seconds": f"{row['search_s']:g}",
                "proxy": row["settings"]["proxy"],
                "samples": row["settings"]["samples"],
                "points": row["settings"]["points"],
                "samples of the moments": row["settings"].get("moment_samples") or "all",
                "peak_mib": row["peak_mib"],
                "agreement": "" if quality is None else f"{HEADS.get(quality[0], quality[0])} {quality[1]:.3f}",
            }
        )
    return rows


def of_proxies(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each proxy: agreement, processor seconds and memory of its search on each network."""
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        row, network = rows.setdefault(result["proxy"], {"proxy": result["proxy"]}), NETWORKS[result["network"]]
        for name, value in result["quality"].items():
            row[f"{network}, {HEADS.get(name, name)}"] = f"{value:.4f}"
        row[f"{network}, CPU seconds"] = f"{result['cpu_s']:g}"
        row[f"{network}, MiB"] = result["peak_mib"]
    return list(rows.values())


def of_yolo(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each detection network: what is left, and what works."""
    return [
        {
            "network": row["network"],
            "calibration images": row["images"],
            "compressible": row["coverage"],
            "parameters": row["params"],
            "parameters left": row["params_after"],
            "CPU seconds": round(row["plan_cpu_seconds"] + row["apply_cpu_seconds"]),
            "factored in the head": row["head"],
            "outputs": row["outputs"],
            "gradients": row["backward"],
            "save and load": row["save_load"],
            "fold, then compress": row["fuse_then_compress"],
            "compress, then fold": row["compress_then_fuse"],
            "export": row["export"],
        }
        for row in results
    ]


def of_joint(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each budget of each network: the accuracy of each search."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for result in results:
        key = (result["network"], result["left"])
        columns = {"network": key[0].partition("_")[0], "parameters left": f"{key[1]} %"}
        row = rows.setdefault(key, {**columns, **dict.fromkeys(("pruning", "factoring", "joint"), "")})
        row[result["search"]] = f"{result['top1']:.2%}" if "top1" in result else "out of reach"
    return [rows[key] for key in sorted(rows, key=lambda key: (key[0], -key[1]))]


def of_refit(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each network and share of channels: the agreement, and the time, of each way to apply a plan."""
    return [
        {
            "network": f"{NETWORKS[row['network']]}, {HEADS.get(row['figure'], row['figure'])}",
            "channels removed": f"{row['removed']} %",
            "parameters left": f"{row['left']:.0%}",
            **{mode: f"{row[mode]:.3f}" for mode in ("weights", "data", "sequential")},
            **{f"{mode}, s": f"{row[f'{mode}, s']:.0f}" for mode in ("weights", "data", "sequential")},
        }
        for row in results
    ]


CRITERIA = ("l2", "l1", "geometric_median", "pabs", "random", "vbd", "csa")
"""The order of the columns."""


def of_criteria(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each network, share of filters, rank and training: the accuracy of each criterion."""
    found: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for result in results:
        images = (result["images"], result["test_images"])
        key = (result["network"].partition("_")[0], *images, result["epochs"], result["ratio"], result["rank"])
        found.setdefault(key, {}).setdefault(result["criterion"], []).append(result["top1"])
    return [
        {
            "network": network,
            "images": f"{images:,}",
            "filters removed": f"{ratio:.0%}",
            "rank": str(rank),
            "training": f"{epochs} epoch" if epochs else "none",
            **{criterion: _between(accuracies.get(criterion, [])) for criterion in CRITERIA},
        }
        for (network, images, _, epochs, ratio, rank), accuracies in sorted(found.items())
    ]


def _between(shares: list[float]) -> str:
    """Return a percentage, or the smallest and the largest of several."""
    ends = dict.fromkeys(f"{100 * end:.1f}" for end in (min(shares, default=0), max(shares, default=0)))
    return f"{' to '.join(ends)} %" if shares else ""


def of_norton(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each published network: size and accuracy of ours, and the published ones."""
    return [
        {
            "rank": str(row["rank"]),
            "ratio": f"{row['ratio']:.0%}",
            "parameters": row["params"],
            "MACs, M": f"{row['macs'] / 1e6:.1f}",
            "fitted": row["fitted_top1"],
            "epochs": str(row["epochs"]),
            "fine-tuned": row["tuned_top1"],
            "published parameters": row["published"]["params"],
            "published MACs, M": f"{row['published']['macs'] / 1e6:.1f}",
            "published, 400 epochs": row["published"]["top1"],
        }
        for row in sorted(results, key=lambda row: (row["point"], row["epochs"]))
    ]


def of_merged(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each kind of factors: time and memory of a training step through stages, and merged."""
    return [
        {
            "factors": name,
            "ms per step": round(row["stages_ms"]),
            "merged": round(row["merged_ms"]) if "merged_ms" in row else "",
            "activations, MiB": row["stages_kept_MiB"],
            "merged, MiB": row.get("merged_kept_MiB", ""),
        }
        for name, row in rows.items()
    ]


def of_detection(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each detector: sizes, frames per second, and what works."""
    return [
        {
            "detector": row["network"],
            "strategy": row["strategy"],
            "parameters of the backbone": row["body_params"],
            "parameters left": row["body_params_after"],
            "frames/s": f"{row['fps']:.2f}",
            "frames/s, compressed": f"{row['fps_after']:.2f}",
            "loss of a training step": f"{row['training_loss']:.2f}",
            "reloaded": "equal" if row["reloaded_equal"] else "differs",
        }
        for row in results
    ]


def all_rows(records: list[dict[str, Any]], by_shape: bool = False) -> list[dict[str, Any]]:  # noqa: ARG001
    """Return the rows of all result files."""
    return [row for record in records for row in record["results"]]


Table = Callable[[list[dict[str, Any]], bool], list[dict[str, Any]]]

TABLES: dict[str, Table] = {
    "micro": lambda records, shapes: by_shape(records) if shapes else by_method(records),
    "gauge": lambda records, _: of_gauge(records[0]["results"]),
    "compressnas": lambda records, _: of_search(all_rows(records)),
    "encoder": lambda records, shapes: of_encoder(records[0]["results"], shapes),
    "time_limit": lambda records, shapes: of_limits(records[0]["results"], shapes),
    "similarity": lambda records, _: of_similarity(records[0]["results"]["loops"]),
    "rene": lambda records, shapes: of_rene(records[0]["results"], shapes),
    "finetuning": lambda records, _: of_finetuning(records[0]["results"]),
    "yolo": lambda records, _: of_yolo(records[0]["results"]),
    "criteria": lambda records, _: of_criteria(records[0]["results"]["accuracy"]),
    "norton": lambda records, _: of_norton(records[0]["results"]),
    "merged": lambda records, _: of_merged(records[0]["results"]),
    "detection": lambda records, _: of_detection(records[0]["results"]),
    "refit": lambda records, _: of_refit(records[0]["results"]),
    "joint": lambda records, _: of_joint(records[0]["results"]),
    "exporting": lambda records, _: of_exports(records[0]["results"]["int8"]),
    "ram": lambda records, _: of_ram(records[0]["results"]),
    "latency": lambda records, _: of_latency(records[0]["results"]),
    "rankfold-reproduction": lambda records, _: of_reproduction(records[0]["studies"]),
}
"""What makes the rows of a table, by benchmark or format; of others, all rows are shown as they are."""


def documents() -> list[Path]:
    """Return README and the documents."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> int:
    """Update the documents, or check them."""
    parser = argparse.ArgumentParser(description="Write the tables of README and docs from the result files.")
    parser.add_argument("--check", action="store_true", help="only tell whether a document is out of date")
    args = parser.parse_args()
    texts = {path: path.read_text(encoding="utf-8") for path in documents()}
    stale = {path: new for path, text in texts.items() if (new := updated(text)) != text}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)} is out of date")
        if not args.check:
            path.write_text(text, encoding="utf-8")
    return int(args.check and bool(stale))


def _times(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio < 100 else f"{ratio:,.0f}x"


def _cell(value: Any) -> str:
    if isinstance(value, float) and 0 <= value <= 1:
        return f"{value * 100:.2f} %"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
