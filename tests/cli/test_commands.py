"""Results of the commands, as text and as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rankfold as rf
from rankfold import zoo
from rankfold.api.realizing import Draft, Realizer
from rankfold.cli._source import Source
from rankfold.tune import NORTON, FineTune

Run = Callable[..., Any]


def top1(report: dict[str, Any]) -> dict[str, Any]:
    (metric,) = report["metrics"]
    assert metric["name"] == "top-1"
    return metric


def test_inspect_starts_with_the_coverage(run: Run) -> None:
    first, *rest = run("inspect", "lenet5_mnist5k").out.splitlines()
    assert first == "compressible: 100% of parameters, 100% of MACs (5 of 5 layers)"
    assert any("Conv2d 6->16 5x5" in line for line in rest)


def test_inspect_says_why_a_layer_is_kept(run: Run) -> None:
    found = run("inspect", "lenet5_mnist5k", "--exclude", "fc*", "--json").document
    assert found["total"]["params"] == 61_706
    verdicts = {layer["name"]: layer["compressible"] for layer in found["layers"]}
    assert verdicts == {"conv1": True, "conv2": True, "fc1": False, "fc2": False, "fc3": False}
    assert all(layer["reason"] for layer in found["layers"] if not layer["compressible"])


def test_inspect_a_part(run: Run, invoke: Run) -> None:
    found = run("inspect", "lenet5_mnist5k", "--part", "fc[12]", "--json").document
    assert [row["name"] for row in found["layers"]] == ["fc1", "fc2"]
    assert found["total"]["params"] == sum(row["params"] for row in found["layers"]) == 48_120 + 10_164
    missing = invoke("inspect", "lenet5_mnist5k", "--part", "fx1")
    assert missing.code == 2
    assert "Close matches: 'fc1'" in missing.err


def test_a_budget_of_a_part(run: Run, tmp_path: Path) -> None:
    bounds = ("--budget", "params(fc*)<=30%", "--budget", "macs(conv*)<=60%", "--budget", "params<=40%")
    run("plan", "lenet5_mnist5k", "--weights", "bundled", *bounds, "--out", tmp_path / "plan.json")
    shown = run("apply", "lenet5_mnist5k", "--weights", "bundled", "--plan", tmp_path / "plan.json", "--out",
                tmp_path / "out").out  # fmt: skip
    for bound in ("params(fc*) ≤ 30 %  met", "macs(conv*) ≤ 60 %  met", "params ≤ 40 %       met"):
        assert bound in shown


def test_inspect_quietly_is_one_line(run: Run) -> None:
    assert run("inspect", "lenet5_mnist5k", "-q").out.count("\n") == 1


def test_compress_writes_a_whole_artifact(run: Run, small: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    done = run("compress", *small, "-b", "params<=30%", "-b", "macs<=90%", "--methods", "svd,tucker", "--out", folder)
    names = ["model.safetensors", "plan.json", "report.html", "report.json", "source.json"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert "Before and after" in done.out
    assert str(folder / "report.html") in done.out
    report = rf.Report.load(folder)
    assert report.after.params <= 0.3 * report.before.params
    assert report.after.macs <= 0.9 * report.before.macs
    assert {choice.method for choice in rf.Plan.load(folder).factored.values()} <= {"svd", "tucker"}


def test_compress_needs_no_data(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    found = run("compress", "lenet5_mnist5k", "-b", "params/2", "--out", folder, "--json").document
    assert found["report"]["metrics"] == []
    assert found["report"]["after"]["params"] <= 61_706 // 2
    assert Path(found["files"]["plan"]) == folder / "plan.json"


def test_a_search_keeps_what_it_measures(run: Run, small: tuple[str, ...], tmp_path: Path) -> None:
    cache, plans = tmp_path / "cache", (tmp_path / "a.json", tmp_path / "b.json")
    options = (
        *small[:5],
        "--calibration-images",
        "16",
        "--methods",
        "svd",
        "--strategy-option",
        "points=3",
        "--cache",
        cache,
    )
    options += ("--device", "cpu")  # where ranks are multiples of 1 by default
    said = run("plan", *options, "-b", "params<=50%", "--out", plans[0], "--json").document
    search = said["plan"]["provenance"]["search"]
    assert list(search["compared"]) == ["fisher+network", "fisher", "weight", "uniform"]
    assert search["proxy"] == min(search["compared"], key=search["compared"].get)
    files = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    what = "gradients and measurements of each layer, three compared plans, and the options within the time limit"
    assert len(files) == 14, what
    run("plan", *options, "-b", "params<=50%", "--out", plans[1])
    assert plans[0].read_text() == plans[1].read_text()
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == files
    run("compress", *options, "-b", "macs<=60%", "--limit-test", "50", "--out", tmp_path / "out")
    later = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert files.items() <= later.items()
    assert len(later) == len(files) + 4, "another budget only measures its own plans"


def test_compress_takes_decisions_by_hand(run: Run, tmp_path: Path) -> None:
    options = ("--override", "conv2=tucker:8,4", "--override", "fc1=svd:0.25", "--override", "fc3=keep")
    run(
        "compress",
        "lenet5_mnist5k",
        "-b",
        "params<=40%",
        *options,
        "--strategy-option",
        "points=4",
        "--out",
        tmp_path / "out",
    )
    layers = rf.Plan.load(tmp_path / "out").layers
    assert (layers["conv2"].method, layers["conv2"].ranks) == ("tucker", (8, 4))
    assert layers["fc1"].method == "svd"
    assert 0 < layers["fc1"].ranks[0] * (400 + 120) + 120 <= 0.25 * (400 * 120 + 120)
    assert layers["fc3"].method is None


def test_compress_fine_tunes(run: Run, small: tuple[str, ...], tmp_path: Path) -> None:
    options = ("--epochs", "2", "--limit-train", "256", "--lr", "0.001", "--loss", "distill", "--augment")
    done = run("compress", *small, "-b", "params<=20%", *options, "--out", tmp_path / "out", "--json")
    report = done.document["report"]
    assert [row["epoch"] for row in report["history"]] == [1, 2]
    assert top1(report)["tuned"] == top1(report)["reloaded"]


def test_recipes_by_name(
    fail: Run, run: Run, small: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[FineTune] = []
    tune = Realizer.tune

    def watched(self: Realizer, draft: Draft, recipe: FineTune, **options: Any) -> Any:
        seen.append(recipe)
        return tune(self, draft, replace(recipe, epochs=1), **options)

    monkeypatch.setattr(Realizer, "tune", watched)
    command = ("compress", *small, "-b", "params<=20%", "--out", tmp_path / "out", "--recipe", "norton")
    report = run(*command, "--limit-train", "256", "--json").document["report"]
    assert any("held-out" in note for note in report["notes"])
    run(*command, "--lr", "0.01", "--loss", "auto", "--epochs", "7", "--train-batch-size", "64", "--hold-out", "500")
    plain, other = seen
    assert replace(plain, data=None, validate=None) == replace(NORTON, checkpoint=plain.checkpoint)
    assert (other.peak_lr, other.loss, other.epochs, other.decay) == (0.01, "auto", 7, NORTON.decay)
    assert [recipe.data.batch_size for recipe in seen] == [256, 64]  # type: ignore[union-attr]
    assert [recipe.validate.samples for recipe in seen] == [400, 500]  # type: ignore[union-attr]
    assert "Did you mean 'norton'?" in fail(*command[:-1], "nortn").err


def test_evaluate_repeats_the_report_to_the_last_digit(run: Run, artifact: Path) -> None:
    known = top1(json.loads((artifact / "report.json").read_text()))
    assert known["dense"] > 0.95
    assert run("evaluate", artifact, "--json").document["value"] == known["reloaded"] == known["compressed"]
    shown = run("evaluate", artifact).out.splitlines()
    assert shown == [
        f"top-1 of {artifact}: {100 * known['reloaded']:.2f} % (200 samples)",
        "the report has the same value",
    ]
    assert run("evaluate", artifact, "-q").out == f"{100 * known['reloaded']:.2f} %\n"


def test_evaluate_notices_other_weights(run: Run, artifact: Path, tmp_path: Path) -> None:
    """Negative control: a report of other weights is not confirmed."""
    folder = tmp_path / "copy"
    shutil.copytree(artifact, folder)
    text = (folder / "report.json").read_text()
    value = top1(json.loads(text))["reloaded"]
    (folder / "report.json").write_text(text.replace(f'"reloaded": {value!r}', '"reloaded": 0.125'))
    assert "the report has 0.125" in run("evaluate", folder).out


def test_evaluate_a_dense_network(run: Run, small: tuple[str, ...]) -> None:
    value = run("evaluate", *small[:-2], "--json").document["value"]
    assert value > 0.95
    assert run("evaluate", *small[:-2], "--top", "10", "--json").document["value"] == 1.0


def test_evaluate_without_labels_is_agreement(run: Run, artifact: Path) -> None:
    found = run("evaluate", artifact, "--agreement", "--json").document
    assert found["metric"] == "agreement"
    assert 0.8 < found["value"] <= 1


def test_data_without_labels(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "import torch\n"
        "def batches(split, batch_size):\n"
        "    print('words of a factory')\n"
        "    return [torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(i)) for i in range(3)]\n"
    )
    options = ("--weights", "bundled", "--data", f"{script}:batches", "-b", "params/2", "--out", tmp_path / "out")
    found = run("compress", "lenet5_mnist5k", *options, "--json").document
    (metric,) = found["report"]["metrics"]
    assert (metric["name"], metric["dense"]) == ("agreement", 1.0)
    assert run("evaluate", tmp_path / "out", "--trust-source", "--json").document["value"] == metric["reloaded"]


def test_artifact_remembers_its_source(artifact: Path) -> None:
    found = Source.load(artifact)
    assert found == Source(model="lenet5_mnist5k", weights="bundled", data="mnist5k", limit_test=200)


def test_paths_are_remembered_absolute(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(zoo.create("lenet5_mnist5k", weights="bundled").state_dict(), "dense.safetensors")
    Path("nets.py").write_text("from rankfold import zoo\n\n\ndef make():\n    return zoo.create('lenet5_mnist5k')\n")
    options = ("--weights", "dense.safetensors", "--input-size", "1,1,28,28", "-b", "params/2", "--out", "out")
    run("compress", "nets.py:make", *options)
    monkeypatch.chdir("/")
    options = ("--data", "mnist5k", "--limit-test", "50", "--agreement", "--trust-source", "--json")
    found = run("evaluate", tmp_path / "out", *options)
    assert found.document["value"] > 0
    source = Source.load(tmp_path / "out")
    assert source is not None
    assert (source.weights, source.model) == (str(tmp_path / "dense.safetensors"), f"{tmp_path / 'nets.py'}:make")


def test_plan_is_applied_after_a_person_edited_it(run: Run, small: tuple[str, ...], tmp_path: Path) -> None:
    file, folder = tmp_path / "plan.json", tmp_path / "out"
    planned = run("plan", *small[:-4], "--calibration-images", "64", "-b", "params/4", "-o", file, "--json").document
    assert planned["report"]["after"]["params"] <= 61_706 // 4
    edited = json.loads(file.read_text())
    edited["layers"]["fc1"]["ranks"] = [3]
    file.write_text(json.dumps(edited))
    applied = run("apply", *small, "--plan", file, "--out", folder, "--json").document["report"]
    assert rf.Plan.load(folder).layers["fc1"].ranks == (3,)
    assert applied["after"]["params"] < planned["report"]["after"]["params"]
    assert run("evaluate", folder, "--json").document["value"] == top1(applied)["reloaded"]


def test_predicted_costs_are_those_of_the_applied_plan(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    planned = run("plan", "lenet5_mnist5k", "-b", "params/3", "-o", file, "--json").document["report"]
    applied = run("apply", "lenet5_mnist5k", "--plan", file, "--out", tmp_path / "out", "--json").document["report"]
    assert planned["after"] == applied["after"]
    assert planned["before"] != applied["after"]


def test_apply_makes_what_compress_made(run: Run, small: tuple[str, ...], artifact: Path, tmp_path: Path) -> None:
    run("apply", *small, "--plan", artifact, "--out", tmp_path / "out")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", artifact))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_sequential_reconstruction(run: Run, small: tuple[str, ...], tmp_path: Path) -> None:
    budget = ("--budget", "params<=50%", "--reconstruct", "sequential")
    run("compress", *small, *budget, "--out", tmp_path / "one")
    assert rf.Plan.load(tmp_path / "one").provenance.reconstruct == "sequential"
    run("apply", *small, "--plan", tmp_path / "one", "--reconstruct", "sequential", "--out", tmp_path / "two")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    run("apply", *small, "--plan", tmp_path / "one", "--out", tmp_path / "plain")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    assert not all(torch.equal(plain[name], theirs[name]) for name in theirs)


def test_finetune_needs_only_the_artifact(run: Run, artifact: Path, tmp_path: Path) -> None:
    options = ("--epochs", "1", "--limit-train", "256", "--lr", "0.001")
    found = run("finetune", artifact, *options, "--out", tmp_path / "tuned", "--json").document
    names = ["model.safetensors", "plan.json", "report.html", "report.json", "source.json"]
    assert sorted(p.name for p in (tmp_path / "tuned").iterdir()) == names, "no checkpoint is left"
    before, after = top1(json.loads((artifact / "report.json").read_text())), top1(found["report"])
    assert (after["dense"], after["compressed"]) == (before["dense"], before["reloaded"])
    assert found["steps"] == 2
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "tuned", artifact))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours), "it trained"
    assert run("evaluate", tmp_path / "tuned", "--json").document["value"] == after["tuned"] == after["reloaded"]


def test_finetune_stops_at_a_target(run: Run, artifact: Path, tmp_path: Path) -> None:
    options = ("--epochs", "3", "--limit-train", "128", "--lr", "0.0001", "--finetune-option", "target=0.5")
    found = run("finetune", artifact, *options, "--out", tmp_path / "tuned", "--json").document
    assert len(found["report"]["history"]) == 1, "half of the digits are right after the first epoch"


def test_bench_measures_both(run: Run, artifact: Path) -> None:
    found = run("bench", artifact, "--repeats", "3", "--batch-size", "2", "--threads", "1", "--json").document
    assert found["dense"]["median_ms"] > 0
    assert found["compressed"]["median_ms"] > 0
    assert found["time_ratio"] == found["dense"]["median_ms"] / found["compressed"]["median_ms"]
    shown = run("bench", artifact, "--repeats", "3", "--device", "cpu").out
    assert "batch 1, cpu, 1 thread, 3 runs each" in shown
    assert "MAC" not in shown, "time is measured, not counted"


def test_report_in_every_form(run: Run, artifact: Path, tmp_path: Path) -> None:
    for suffix, start in ((".html", "<!doctype html>"), (".md", "#"), (".json", "{")):
        run("report", artifact, "-o", tmp_path / f"r{suffix}")
        assert (tmp_path / f"r{suffix}").read_text().lower().startswith(start)
    assert "Before and after" in run("report", artifact).out
    assert run("report", tmp_path / "r.json", "--json").document["report"] == json.loads(
        (tmp_path / "r.json").read_text()
    )


def test_a_command_replaces_its_own_artifact(run: Run, tmp_path: Path) -> None:
    for budget in ("params/2", "params/4"):
        run("compress", "lenet5_mnist5k", "-b", budget, "--out", tmp_path / "out")
    assert rf.Report.load(tmp_path / "out").after.params <= 61_706 // 4


@pytest.mark.slow
def test_demo(run: Run, tmp_path: Path) -> None:
    done = run("demo", "--out", tmp_path / "demo")
    assert "Next:" in done.out
    report = rf.Report.load(tmp_path / "demo")
    (metric,) = report.metrics
    assert report.before.params / report.after.params >= 4
    assert metric.final >= metric.dense - 0.01
    assert (tmp_path / "demo" / "report.html").is_file()
    assert run("evaluate", tmp_path / "demo", "--json").document["value"] == metric.final


def test_random_weights_are_pointed_out(run: Run, artifact: Path) -> None:
    dense = ("lenet5_mnist5k", "--data", "mnist5k", "--limit-test", "10")
    assert "warning: lenet5_mnist5k has random weights" in run("evaluate", *dense).err
    assert not run("evaluate", *dense, "--weights", "bundled").err
    assert not run("evaluate", artifact, "--limit-test", "10").err, "an artifact brings its weights"
